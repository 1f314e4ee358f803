"""From JSON values to checked arrays: no silent casts, every refusal names the value that caused it."""

from __future__ import annotations

import functools
import json
import math
import struct
from array import array as flat_array
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import orjson

from gateway.errors import InvalidInput
from gateway.tensors import BINARY_ONLY, DTYPES, FLOATS, Array

MAX_DIMENSIONS = 16
_NUMBERS = frozenset({int, float})
_INTEGERS = frozenset({int})
_BOOLEANS = frozenset({bool})
_TEXTS = frozenset({str})


def parse_json(body: bytes) -> Any:
    """The JSON value in *body*; the tokens NaN, Infinity and -Infinity are read too. Raises InvalidInput."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" in body or b"Infinity" in body:
            try:
                # Both refuse lone surrogates, as orjson does: no answer could carry them back.
                document = json.loads(body.decode())
                if b"\\u" in body:
                    json.dumps(document, ensure_ascii=False).encode()
            except (ValueError, RecursionError):
                pass
            else:
                return document
        raise InvalidInput("body", _excerpt(body, error), "valid JSON") from error


def parse_finite(body: bytes) -> Any | None:
    """The JSON value in *body* if it is strict JSON, which has no NaN and no infinities; else None."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _excerpt(body: bytes, error: orjson.JSONDecodeError) -> str:
    if not body:
        return "an empty body"
    return f"{error.msg} at byte {error.pos}"


def name_of(value: object) -> str:
    """How a JSON value is called in messages: its type and, if short, itself."""
    if value is None:
        return "null"
    kind = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    name = kind.get(type(value), type(value).__name__)
    text = json.dumps(value) if isinstance(value, bool | int | float | str) else ""
    return f"{name} {text}" if text and len(text) <= 40 else name


def flatten(values: list[Any], field: str) -> tuple[list[Any], tuple[int, ...]]:
    """A nested list as one flat list and its shape. Raises InvalidInput if it is ragged or too deep."""
    shape = [len(values)]
    while values and type(values[0]) is list:
        if len(shape) >= MAX_DIMENSIONS:
            raise InvalidInput(field, f"more than {MAX_DIMENSIONS} nested arrays", "a tensor")
        width = len(values[0])
        for index, value in enumerate(values):
            if type(value) is not list or len(value) != width:
                came = f"{len(value)} values" if type(value) is list else name_of(value)
                raise InvalidInput(f"{field}, array {index}", came, f"{width} values, as in the first array")
        shape.append(width)
        values = list(chain.from_iterable(values))
    return values, tuple(shape)


def to_array(flat: list[Any], datatype: str, field: str) -> Array:
    """A flat list of JSON values as a one-dimensional array of *datatype*.

    Raises InvalidInput naming the first value of a wrong type or out of range, as ``field[3]``.
    """
    if datatype in FLOATS:
        return _floats(flat, datatype, field)
    if datatype == "BYTES":
        _check_types(flat, _TEXTS, field, "a string")
        array = np.empty(len(flat), dtype=object)
        array[:] = [text.encode("utf-8", "replace") for text in flat]
        return array
    if datatype == "BOOL":
        _check_types(flat, _BOOLEANS, field, "a boolean")
        return np.array(flat, dtype=np.bool_)
    _check_types(flat, _INTEGERS, field, "a whole number")
    try:
        return np.array(flat, dtype=DTYPES[datatype])
    except OverflowError:
        limits = np.iinfo(DTYPES[datatype])
        for index, value in enumerate(flat):
            if not limits.min <= value <= limits.max:
                raise InvalidInput(
                    f"{field}[{index}]", str(value), f"{datatype}, {limits.min} to {limits.max}"
                ) from None
        raise


# Datatypes whose values can wait in an array.array, and its type codes.
_TYPE_CODES = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i"}
_FP32_MAX = float(np.finfo(np.float32).max)


def to_flat(values: list[Any], datatype: str) -> flat_array[Any] | None:
    """Finite values as a flat array; None if any is of a wrong type or out of range (`to_array` then says which)."""
    code = _TYPE_CODES.get(datatype)
    if code is None:
        return None
    if code in "fd":
        if not set(map(type, values)) <= _NUMBERS:
            return None
    elif not set(map(type, values)) <= _INTEGERS:
        return None
    try:
        flat = flat_array(code, values)
        # A sum of doubles that are finite as floats is finite; one that is not may still be of finite doubles.
        return flat if code not in "fd" or math.isfinite(sum(flat)) else None
    except OverflowError:
        return None


# Gives values as they lie in memory; None if there are not as many as it was made for, or they do not fit.
Packer = Callable[[list[Any]], bytes | None]


@functools.lru_cache(maxsize=256)
def packer(datatype: str, count: int) -> Packer | None:
    """What packs *count* finite values as an array of *datatype* holds them; None for datatypes that it cannot pack.

    For few values quicker than `to_flat`, and gives the same bytes. Infinities and NaN are not looked for: no JSON
    parser here gives any.
    """
    code = _TYPE_CODES.get(datatype)
    if code is None:
        return None
    pack, allowed = struct.Struct(f"={count}{code}").pack, _NUMBERS if code in "fd" else _INTEGERS

    def packed(values: list[Any]) -> bytes | None:
        try:
            return pack(*values) if set(map(type, values)) <= allowed else None
        except (struct.error, OverflowError):
            return None

    return packed


def _floats(flat: list[Any], datatype: str, field: str) -> Array:
    if datatype in BINARY_ONLY:
        raise InvalidInput(
            field, f"{datatype} values as JSON", f"binary tensor data, since JSON cannot hold {datatype}"
        )
    _check_types(flat, _NUMBERS, field, "a number")
    try:
        wide = np.array(flat, dtype=np.float64)
    except OverflowError:  # an integer of more than 308 digits
        raise InvalidInput(field, "a number beyond the range of doubles", datatype) from None
    if datatype == "FP64":
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    beyond = np.isinf(narrow) & ~np.isinf(wide)
    if beyond.any():
        index = int(np.flatnonzero(beyond)[0])
        raise InvalidInput(f"{field}[{index}]", repr(flat[index]), "a number in the range of FP32")
    return narrow


def _check_types(flat: list[Any], allowed: frozenset[type], field: str, expected: str) -> None:
    # One pass in C over the types; the slow look for the guilty one happens only when there is one.
    if set(map(type, flat)) <= allowed:
        return
    for index, value in enumerate(flat):
        if type(value) not in allowed:
            raise InvalidInput(f"{field}[{index}]", name_of(value), expected)
