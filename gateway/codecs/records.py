"""Large bodies of named rows: the keys that each row repeats are blanked out, and what is left is rows of numbers.

As in large.py: a way here gives what the codec's own way would give, or None.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import numpy as np

from gateway.codecs.large import number_rows
from gateway.codecs.numbers import parse_json
from gateway.errors import InvalidInput
from gateway.tensors import Array

# Of so many bytes' rows the names are blanked out at a time: more would leave the processor's cache.
PART_BYTES = 256 * 1024
_BLANKS = b" \t\r\n"
_MAY_BE = frozenset({int, float, type(None)})
_QUOTE, _BRACE = b'"{'
_BLANK = ord(" ")  # also the bit by which braces and brackets differ
_WORD_BYTES = 8
# What all keys of a row may come to, each as long as the longest: a client chooses them, and has no model's width.
_MOST_WORDS = 8192
_Words = np.ndarray[Any, np.dtype[np.uint64]]
_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def head(*keys: str, bare: bool = False) -> re.Pattern[bytes]:
    """How a body begins that is an object with rows of objects under one of *keys* and nothing else; for `named_rows`.

    bare: or those rows alone.
    """
    blanks = b"[" + _BLANKS + b"]*"
    named = rb'(\{~"(?:%b)"~:~)%b\[~(?=\{)' % (b"|".join([key.encode() for key in keys]), b"?" if bare else b"")
    return re.compile(named.replace(b"~", blanks))


def named_rows(body: bytes, begin: re.Pattern[bytes], datatype: str) -> tuple[list[str], Array] | None:
    """The names of the columns, and the rows as an array [rows, names]; null is NaN there if *datatype* has it.

    begin: of `head`. None if the rows differ in their keys or the order of these, or the body is not plainly right.
    """
    found = begin.match(body)
    if found is None:
        return None
    start, stop = found.end(), body.rfind(b"]")
    # A closing bracket before would be taken for a brace.
    if body.find(b"]", start) != stop:
        return None
    if body[stop:].translate(None, _BLANKS) != (b"]}" if found[1] else b"]"):
        return None
    names = _names(body[start : body.find(b"}", start) + 1])
    if names is None:
        return None
    parts: list[Array] = []
    while start < stop:
        end = body.find(b"}", start + PART_BYTES, stop) + 1 or stop
        part = _without_names(np.frombuffer(body, np.uint8, end - start, start), names)
        if part is None:
            return None
        numbers, rows = part
        matrix = number_rows(numbers, len(names), datatype)
        if matrix is None or len(matrix) != rows:  # there are numbers without a name
            return None
        parts.append(matrix)
        start = body.find(b"{", end)
        if start < 0:
            start = stop
        if body[end:start].strip(_BLANKS) != (b"" if start == stop else b","):
            return None
    return names, parts[0] if len(parts) == 1 else np.concatenate(parts)


def _names(first: bytes) -> list[str] | None:
    """The keys of the first row; None if it is not one of numbers."""
    try:
        row = parse_json(first)
    except InvalidInput:
        return None
    if not row or len(row) * (1 + max(map(len, row)) // _WORD_BYTES) > _MOST_WORDS:
        return None
    return list(row) if set(map(type, row.values())) <= _MAY_BE else None


def _without_names(text: _Bytes, names: list[str]) -> tuple[bytes, int] | None:
    """Rows of numbers in brackets, from rows in braces with exactly these names, and how many rows of names there were.

    A name is looked at byte for byte, so it has no escapes, with the colon behind it and the brace or comma before it,
    so no value has two. What else stands in *text* is left to who reads the numbers. None if there are other names.
    """
    width = len(names)
    quotes = np.flatnonzero(text == _QUOTE)
    if not quotes.size or quotes.size % (2 * width):
        return None
    starts = quotes[::2].reshape(-1, width) - 1
    is_spaced = width > 1 and bool(text[starts[0, 1]] == _BLANK)
    if is_spaced:  # as Python's json writes it
        starts[:, 1:] -= 1
    words = _words_of(tuple(names), is_spaced)
    end = 1 + len(text)
    padded = np.zeros(end + len(words) * _WORD_BYTES, np.uint8)  # with room for a bracket at both ends
    padded[1:end] = text
    windows: Array = np.ndarray(len(padded) - _WORD_BYTES + 1, np.uint64, padded, strides=(1,))
    # What stands behind a short part of a key may be of the next one, is put back, and then written over in its turn.
    for word in words:
        places = (starts if word.columns is None else starts[:, word.columns]) + (1 + word.offset)
        found = windows[places]
        if np.count_nonzero((found & word.mask) != word.bytes_):
            return None
        windows[places.ravel()] = (found ^ word.change).ravel()
    numbers = padded[: end + 1]
    numbers[0], numbers[end] = _BRACE, _BRACE + 2
    # From braces to brackets. What else is changed was not allowed, and is not now.
    braces = (numbers >= _BRACE).view(np.uint8)
    braces *= _BLANK
    numbers ^= braces
    return numbers.tobytes(), len(starts)


class _Word(NamedTuple):
    """So many bytes of each key of a row, from one place in it on."""

    offset: int
    columns: list[int] | None  # those whose keys are so long; None: all
    bytes_: _Words  # what they are, each with what stands before it
    mask: _Words  # which of the bytes are of the key
    change: _Words  # what makes blanks of them, but for the brace or comma


@functools.lru_cache(maxsize=16)
def _words_of(names: tuple[str, ...], is_spaced: bool) -> list[_Word]:
    """The keys of a row cut into words."""
    comma = ", " if is_spaced else ","
    keys = [((comma if column else "{") + f'"{name}":').encode() for column, name in enumerate(names)]
    words = []
    for offset in range(0, max(map(len, keys)), _WORD_BYTES):
        columns = [column for column, key in enumerate(keys) if len(key) > offset]
        parts = np.array([keys[column][offset : offset + _WORD_BYTES] for column in columns], f"S{_WORD_BYTES}")
        bytes_ = parts.view(np.uint8).reshape(-1, _WORD_BYTES)
        mask = (bytes_ != 0).view(np.uint8) * np.uint8(255)  # no key has this byte
        change = (bytes_ ^ _BLANK) & mask
        if offset == 0:
            change[:, 0] = 0
        told = [array.reshape(-1).view(np.uint64) for array in (bytes_, mask, change)]
        words.append(_Word(offset, None if len(columns) == len(keys) else columns, *told))
    return words
