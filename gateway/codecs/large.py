"""Large JSON bodies of numbers, read by simdjson from text to arrays without an object for each number.

Every way here gives what the codec's own way would give, or None: then that one reads the body and decides, and all
refusals are in its words.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import simdjson

from gateway.codecs.numbers import MAX_DIMENSIONS
from gateway.tensors import BINARY_ONLY, DTYPES, FLOATS, Array

# From here on simdjson is the faster way (benchmarks/bodies.py); below, its objects cost more than they save.
LARGE_BYTES = 2048
# Datatypes whose values are JSON numbers.
NUMERIC = frozenset(name for name, dtype in DTYPES.items() if dtype.kind in "iuf") - BINARY_ONLY
# As what simdjson gives the numbers of each of them.
_CODES = {name: "u" if name == "UINT64" else "d" if name in FLOATS else "i" for name in NUMERIC}
_FP32_MAX = float(np.finfo(np.float32).max)
# Bodies in which brackets are counted; in larger ones a few are sought, and many counted by numpy, to save time.
_COUNTED_BYTES = 4096
_FEW_BRACKETS = 32
_TOKENS = {b"NaN": math.nan, b"Infinity": math.inf}
_NULL = {b"null": math.nan}
# From so many tensors by name on they are read together, since each is most likely a short column.
_MANY_COLUMNS = 4
_HOLDERS = frozenset({dict, list})
# Of an object that is no tensors by name: no protocol has as many.
_MOST_KEYS = 64


_T = TypeVar("_T")


class _Doubt(ValueError):
    """The body is not plainly right."""


# What simdjson raises where it cannot read or convert, and what the looks below do.
_DOUBTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class _StandIn:
    """A number put into a body for a word that is no number. It is drawn for this one body: no client can know it."""

    def __init__(self, word: bytes, meaning: float) -> None:
        self._word = word
        self._text = f"{random.uniform(1, 9):.17f}e-200".encode()
        self._value = float(self._text)
        self._meaning = meaning
        self.missed = 0  # places where the word stood and that were not yet found to be a number by itself

    def enter(self, body: bytes) -> bytes:
        """*body* with the number instead of the word."""
        entered = body.replace(self._word, self._text)
        self.missed = (len(entered) - len(body)) // (len(self._text) - len(self._word))
        return entered

    def put(self, wide: Array, numbers: Array) -> None:
        """Write the meaning into *numbers* where *wide*, the same numbers as doubles, holds the stand-in."""
        for sign in (1.0, -1.0) if self._meaning == math.inf else (1.0,):
            places = wide == sign * self._value
            self.missed -= int(np.count_nonzero(places))
            numbers[places] = sign * self._meaning


def oip_document(body: bytes, inputs: int) -> dict[str, Any] | None:
    """The JSON of an inference request with so many *inputs*; None if it is not plainly right.

    In place of each 'data' is a flat array of the tensor's datatype, its values in range, as many as its shape says.
    """
    return _read(_oip, body, _TOKENS, inputs)


def native_matrix(body: bytes, names: Sequence[str], datatype: str) -> Array | None:
    """The rows of ``{"columns": [...], "rows": [[...], ...]}`` as an array [rows, names], its columns as in *names*.

    null is NaN there; whether a value may be missing is not checked. None if the columns are others than these, or the
    body is not plainly right.
    """
    words = _TOKENS | _NULL if datatype in FLOATS else {}
    return _read(_native, body, words, names, datatype)


def number_rows(text: bytes, width: int, datatype: str) -> Array | None:
    """A JSON array of rows of numbers as an array [rows, width]; null is NaN there, if *datatype* has that.

    None if it is not plainly right.
    """
    return _read(_rows, text, _TOKENS | _NULL if datatype in FLOATS else {}, width, datatype)


def tensors_document(
    body: bytes, forms: Mapping[str, str], datatypes: Mapping[str, str], *, null: bool = False
) -> Any | None:
    """The JSON of *body* with arrays, shaped as the lists that came, in place of tensors as nested lists.

    The body is the only tensor itself, or an object with one of *forms* for a key and there the only tensor, tensors
    by name, or an object with that under the form's own key, if it has any. datatypes: of the tensors by name, of the
    only tensor by "". null: it is NaN in tensors of floats. None if the body is not plainly right.
    """
    return _read(_document, body, _TOKENS | _NULL if null else _TOKENS, forms, datatypes)


def flat_numbers(text: bytes, datatype: str) -> bytes | None:
    """A JSON array of numbers as they lie in memory in that datatype; None if it is not plainly right.

    text: known to hold nothing but a flat array of what numbers are made of.
    """
    try:
        return _numbers(simdjson.Parser().parse(text), datatype, ()).tobytes()
    except _DOUBTS:
        return None


def flat_arrays(texts: Sequence[bytes], count: int, datatype: str) -> bytes | None:
    """Flat JSON arrays of *count* numbers each, one behind the other as they lie in memory in that datatype.

    None if one of them is not plainly that.
    """
    parser, code = simdjson.Parser(), _CODES[datatype]
    found = []
    try:
        for text in texts:
            if text.find(b"[", 1) >= 0:  # simdjson would pass over the brackets of arrays in arrays
                return None
            numbers: Any = parser.parse(text)
            if len(numbers) != count:
                return None
            found.append(numbers.as_buffer(of_type=code))
            del numbers  # else the parser may not be used again
        return _checked(b"".join(found), datatype, ()).tobytes()
    except _DOUBTS:
        return None


# What is found in a body, and the number of arrays that were looked at.
_Found = tuple[_T, int]
_Look = Callable[..., _Found[_T]]


def _read(look: _Look[_T], body: bytes, words: Mapping[bytes, float], *of: Any) -> _T | None:
    """What *look* finds in *body*; in doubt once more, with numbers in place of *words*; still in doubt None."""
    try:
        found, arrays = look(_opened(body), (), *of)
        if _has_just(body, arrays):
            return found
    except _DOUBTS:
        pass
    # The first letter is found much faster than a word, and where it is not there the word is not.
    present = [word for word in words if word[:1] in body and word in body]
    if not present:
        return None
    stand_ins = [_StandIn(word, words[word]) for word in present]
    for stand_in in stand_ins:
        body = stand_in.enter(body)
    try:
        found, arrays = look(_opened(body), stand_ins, *of)
    except _DOUBTS:
        return None
    return found if _has_just(body, arrays) and not any(stand_in.missed for stand_in in stand_ins) else None


def _opened(body: bytes) -> Any:
    """The body's object or array."""
    if body[0] not in b"{[":  # simdjson would pass over a byte order mark
        raise _Doubt
    # A parser keeps several times the bytes of the largest body that it has seen; a new one costs half a microsecond.
    return simdjson.Parser().parse(body)


def _has_just(body: bytes, arrays: int) -> bool:
    """Whether *body* has so many opening brackets and no more: then no array holds another that was not looked at.

    A bracket in a text counts too; such bodies are read the other way.
    """
    if len(body) < _COUNTED_BYTES:
        return body.count(b"[") == arrays
    if arrays > _FEW_BRACKETS:
        return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord("["))) == arrays
    position = 0
    for _ in range(arrays):
        position = body.find(b"[", position) + 1
        if not position:
            return False
    return body.find(b"[", position) < 0


def _oip(top: Any, stand_ins: Sequence[_StandIn], inputs: int) -> _Found[dict[str, Any]]:
    tensors = top["inputs"]
    if len(tensors) != inputs:
        raise _Doubt
    document: dict[str, Any] = {"inputs": []}
    arrays = 1
    for tensor in tensors:
        read, nested = _tensor(tensor, stand_ins)
        document["inputs"].append(read)
        arrays += nested
    if len(top) > 1:
        document |= _plain_but(top, "inputs")
        arrays += type(document.get("outputs")) is list
    return document, arrays


def _tensor(tensor: Any, stand_ins: Sequence[_StandIn]) -> _Found[dict[str, Any]]:
    datatype, shape, data = tensor["datatype"], tensor["shape"].as_list(), tensor["data"]
    numbers = _numbers(data, datatype, stand_ins)
    if type(data[0]) is simdjson.Array:
        arrays = _nested(data, shape)
    elif numbers.size == math.prod(shape):
        arrays = 1
    else:
        raise _Doubt
    if len(tensor) == 4:
        read = {"name": tensor["name"], "datatype": datatype, "shape": shape}
    else:
        read = _plain_but(tensor, "data")
    read["data"] = numbers
    return read, arrays + 1


def _native(top: Any, stand_ins: Sequence[_StandIn], names: Sequence[str], datatype: str) -> _Found[Array]:
    columns, rows = top["columns"].as_list(), top["rows"]
    if len(top) != 2 or (columns != names and sorted(columns) != sorted(names)):
        raise _Doubt
    numbers = _numbers(rows, datatype, stand_ins)
    arrays = 1 + _nested(rows, [len(rows), len(names)])
    matrix = numbers.reshape(len(rows), len(names))
    if columns != names:
        matrix = matrix.take([columns.index(name) for name in names], axis=1)
    return matrix, arrays


def _rows(top: Any, stand_ins: Sequence[_StandIn], width: int, datatype: str) -> _Found[Array]:
    numbers = _numbers(top, datatype, stand_ins)
    return numbers.reshape(-1, width), _nested(top, [len(top), width])


def _document(
    top: Any, stand_ins: Sequence[_StandIn], forms: Mapping[str, str], datatypes: Mapping[str, str]
) -> _Found[Any]:
    if type(top) is simdjson.Array:
        return _tensors(top, stand_ins, datatypes)
    (key,) = forms.keys() & set(top)
    place, document = top[key], _plain_but(top, key)
    holder = document
    if forms[key]:
        document[key] = holder = _plain_but(place, forms[key])
        place, key = place[forms[key]], forms[key]
    # Counted before the tensors are among them.
    arrays = _lists_in(document)
    holder[key], nested = _tensors(place, stand_ins, datatypes)
    return document, arrays + nested


def _tensors(place: Any, stand_ins: Sequence[_StandIn], datatypes: Mapping[str, str]) -> _Found[Any]:
    """The only tensor, or tensors by name."""
    if type(place) is not simdjson.Object:
        return _shaped(place, stand_ins, datatypes[""])
    came = _items(place, len(datatypes))
    if len(came) >= _MANY_COLUMNS:
        return _columns(came, stand_ins, datatypes)
    arrays, tensors = 0, {}
    for name, data in came.items():
        tensors[name], nested = _shaped(data, stand_ins, datatypes[name])
        arrays += nested
    return tensors, arrays


def _columns(
    columns: Mapping[str, Any], stand_ins: Sequence[_StandIn], datatypes: Mapping[str, str]
) -> _Found[dict[str, Array]]:
    """Many tensors by name, all of one datatype and with as many numbers each."""
    (datatype,) = {datatypes[name] for name in columns}
    (rows,) = {len(column) for column in columns.values()}
    code = _CODES[datatype]
    raw = b"".join([column.as_buffer(of_type=code) for column in columns.values()])
    numbers = _checked(raw, datatype, stand_ins).reshape(len(columns), rows)
    return dict(zip(columns, numbers, strict=True)), len(columns)


def _shaped(data: Any, stand_ins: Sequence[_StandIn], datatype: str) -> _Found[Array]:
    """A tensor of the shape that its first values have."""
    shape, first = [], data
    while type(first) is simdjson.Array:
        shape.append(len(first))
        first = first[0]
    arrays = _nested(data, shape)
    return _numbers(data, datatype, stand_ins).reshape(shape), arrays


def _lists_in(value: Any) -> int:
    """How many lists a JSON value is and holds."""
    if type(value) is dict:
        return sum(map(_lists_in, value.values()))
    if type(value) is not list:
        return 0
    return 1 + (0 if _HOLDERS.isdisjoint(map(type, value)) else sum(map(_lists_in, value)))


def _plain_but(holder: Any, left_out: str) -> dict[str, Any]:
    """An object's values by key, but for one of them."""
    return {key: _plain(value) for key, value in _items(holder, _MOST_KEYS).items() if key != left_out}


def _items(holder: Any, most: int) -> dict[str, Any]:
    """An object's values by key. Raises if there are more than *most*: simdjson seeks each key from the beginning."""
    if len(holder) > most:
        raise _Doubt
    keys = list(holder)
    if len(set(keys)) != len(keys):  # here the first would be found, elsewhere the last
        raise _Doubt
    return {key: holder[key] for key in keys}


def _plain(value: Any) -> Any:
    if type(value) is simdjson.Array:
        return value.as_list()
    return value.as_dict() if type(value) is simdjson.Object else value


def _nested(data: Any, shape: Sequence[int]) -> int:
    """The arrays that nested *data* of this shape are. Raises if they are of another shape."""
    if len(shape) > MAX_DIMENSIONS:
        raise _Doubt
    level, arrays = [data], 1
    for size in shape[:-1]:
        if set(map(len, level)) != {size}:
            raise _Doubt
        level = list(chain.from_iterable(level))
        arrays += len(level)
    if set(map(len, level)) != {shape[-1]}:
        raise _Doubt
    return arrays


def _numbers(data: Any, datatype: str, stand_ins: Sequence[_StandIn]) -> Array:
    """The numbers in *data*, however nested, as a flat array. Raises if one is of another type, or out of range."""
    return _checked(data.as_buffer(of_type=_CODES[datatype]), datatype, stand_ins)


def _checked(raw: bytes, datatype: str, stand_ins: Sequence[_StandIn]) -> Array:
    """Numbers as simdjson has them, in that datatype. Raises if one is out of range."""
    dtype = DTYPES[datatype]
    if dtype.kind != "f":
        wide: Array = np.frombuffer(raw, np.uint64 if datatype == "UINT64" else np.int64)
        numbers = wide.astype(dtype, copy=False)
        # What does not fit is wrapped, and no more equal.
        if numbers is not wide and np.count_nonzero(numbers != wide):
            raise _Doubt
        return numbers
    wide = numbers = np.frombuffer(raw)
    if datatype == "FP32":
        if np.count_nonzero(np.abs(wide) <= _FP32_MAX) != wide.size:
            raise _Doubt
        numbers = wide.astype(np.float32)
    for stand_in in stand_ins:
        stand_in.put(wide, numbers)
    return numbers
