"""From arrays to the JSON texts of their values; NaN and infinities are the bare tokens that Python's json reads."""

from __future__ import annotations

import numpy as np
import orjson

from gateway.tensors import Array

_OBJECT = np.dtype(object)
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
# So few texts are written one by one.
_FEW = 8


def value_texts(array: Array) -> list[bytes]:
    """The JSON of each value, in row-major order."""
    if array.dtype is _OBJECT:
        values = array.ravel().tolist()
        if len(values) < _FEW:
            return [orjson.dumps(value.decode("utf-8", "replace")) for value in values]
        # Labels: the same few again and again.
        known = {value: orjson.dumps(value.decode("utf-8", "replace")) for value in set(values)}
        return [known[value] for value in values]
    flat = np.ascontiguousarray(array).reshape(-1)
    return _split(orjson.dumps(flat, option=_NUMPY), flat) if flat.size else []


def array_text(array: Array) -> bytes:
    """The JSON of all values as one flat array."""
    if array.dtype is _OBJECT:
        return orjson.dumps([value.decode("utf-8", "replace") for value in array.ravel().tolist()])
    flat = np.ascontiguousarray(array).reshape(-1)
    text = orjson.dumps(flat, option=_NUMPY)
    return text if b"n" not in text else b"[" + b",".join(_split(text, flat)) + b"]"


def row_texts(array: Array) -> list[bytes] | None:
    """The JSON of each row of an array [rows] or [rows, n], without brackets; None for other shapes."""
    dimensions = array.ndim
    if not 1 <= dimensions <= 2 or not array.size:
        return None
    if array.dtype is not _OBJECT:
        try:
            text = orjson.dumps(array, option=_NUMPY)
        except orjson.JSONEncodeError:  # it is not contiguous, as few are
            text = orjson.dumps(np.ascontiguousarray(array), option=_NUMPY)
        if b"n" not in text:
            return text[1:-1].split(b",") if dimensions == 1 else text[2:-2].split(b"],[")
    texts = value_texts(array)
    if dimensions == 1:
        return texts
    width = array.shape[1]
    return [b",".join(texts[start : start + width]) for start in range(0, len(texts), width)]


def _split(text: bytes, flat: Array) -> list[bytes]:
    """The texts of values that orjson wrote as one array; it writes null for what is not finite."""
    texts = text[1:-1].split(b",")
    if b"n" in text:  # no other number or boolean has this letter
        for place in np.flatnonzero(~np.isfinite(flat)).tolist():
            texts[place] = _token(flat[place])
    return texts


def _token(value: float) -> bytes:
    if value != value:
        return b"NaN"
    return b"Infinity" if value > 0 else b"-Infinity"
