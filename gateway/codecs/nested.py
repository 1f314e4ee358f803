"""Tensors as JSON writes them naturally: nested arrays to checked inputs, and outputs back to nested arrays.

What TensorFlow Serving, KServe V1, MLflow and TorchServe have in common: an input is rows, a tensor, or either by name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from gateway.codecs.codec import Request
from gateway.codecs.large import NUMERIC
from gateway.codecs.numbers import flatten, name_of, to_array
from gateway.codecs.texts import row_texts, value_texts
from gateway.errors import InvalidInput
from gateway.tensors import Array, FeatureCheck, Signature, Tensors, TensorSpec, check_shape, same_rows

_B64 = "b64"
# What rows may be: nested lists, or an array of a large body.
ARRAYS = frozenset({list, np.ndarray})


class TensorReader:
    """Reads the inputs of one version, given as tensors: nested lists, or arrays of a large body. Pure.

    datatypes: of the inputs by name, and of the only one by "", if all are JSON numbers; else none.

    Every method raises InvalidInput; *field* is what the messages call the value that is read.
    """

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._only = signature.inputs[0] if len(signature.inputs) == 1 else None
        self._names = ", ".join(self._inputs)
        datatypes = {spec.name: spec.datatype for spec in signature.inputs}
        if self._only is not None:
            datatypes[""] = self._only.datatype
        self.datatypes: Mapping[str, str] = datatypes if NUMERIC.issuperset(datatypes.values()) else {}
        self._check = FeatureCheck(signature)

    def request(self, inputs: Tensors) -> Request:
        """A request of these inputs, checked as a whole."""
        request = Request(same_rows(self._signature, inputs), inputs)
        self._check(inputs)
        return request

    def names_inputs(self, value: Any) -> bool:
        """Whether an object's keys are all inputs."""
        return type(value) is dict and bool(value) and all(name in self._inputs for name in value)

    def rows(self, rows: Any, field: str) -> Tensors:
        """Inputs as a list of rows: each the row of the only input, or an object of rows by input."""
        if type(rows) not in ARRAYS or not len(rows):
            raise InvalidInput(field, "an empty array" if rows == [] else name_of(rows), "an array of rows")
        if not self._signature.batchable:
            raise InvalidInput(field, "rows", "whole tensors by input, since the model takes no rows")
        if type(rows[0]) is dict and not _is_base64(rows[0]):
            return self._named_rows(rows, field)
        if self._only is None:
            raise InvalidInput(f"{field}[0]", name_of(rows[0]), f"an object with all of {self._names}")
        return {self._only.name: read_array(rows, self._only, field)}

    def _named_rows(self, rows: list[Any], field: str) -> Tensors:
        for index, row in enumerate(rows):
            if type(row) is not dict:
                raise InvalidInput(f"{field}[{index}]", name_of(row), f"an object with all of {self._names}")
            self._check_names(row, f"{field}[{index}]")
        return {
            name: read_array([row[name] for row in rows], spec, field, f".{name}")
            for name, spec in self._inputs.items()
        }

    def columns(self, inputs: Any, field: str) -> Tensors:
        """Inputs as whole tensors: the only input's, or an object of tensors by input."""
        if type(inputs) is dict and not _is_base64(inputs):
            self._check_names(inputs, field)
            return {name: read_array(inputs[name], spec, f"{field}.{name}") for name, spec in self._inputs.items()}
        if self._only is None:
            raise InvalidInput(field, name_of(inputs), f"an object with all of {self._names}")
        return {self._only.name: read_array(inputs, self._only, field)}

    def _check_names(self, named: dict[str, Any], field: str) -> None:
        for name in named:
            if name not in self._inputs:
                raise InvalidInput(f"{field}.{name}", "an unknown input", f"only {self._names}")
        for name in self._inputs:
            if name not in named:
                raise InvalidInput(f"{field}.{name}", "nothing", f"all of {self._names}")


def read_array(value: Any, spec: TensorSpec, field: str, key: str = "") -> Array:
    """A nested list as an array of the input's datatype and shape; of width 1, a number stands for its row.

    An array, whose datatype is the input's, is only checked for its shape.

    Texts may come as ``{"b64": "..."}``. key: what messages put behind the number of the row. Raises InvalidInput.
    """
    if type(value) is list:
        flat, came = flatten(value, f"{field}{key}")
    elif type(value) is np.ndarray:
        flat, came = [], value.shape
    elif spec.shape == () or _is_base64(value):
        flat, came = [value], ()
    else:
        raise InvalidInput(f"{field}{key}", name_of(value), "an array")
    is_column = len(came) == len(spec.shape) - 1 and spec.shape[-1] == 1
    shape = (*came, 1) if is_column else came
    check_shape(spec, shape)
    if type(value) is np.ndarray:
        return value.reshape(shape)
    if spec.datatype == "BYTES" and dict in set(map(type, flat)):
        flat = [decode_base64(item, _place(field, key, at, came)) for at, item in enumerate(flat)]
    try:
        return to_array(flat, spec.datatype, "").reshape(shape)
    except InvalidInput as error:
        at = error.field.strip("[]")
        place = _place(field, key, int(at), came) if at else f"{field}{key}"
        raise InvalidInput(place, error.came, error.expected) from None


def _place(field: str, key: str, at: int, shape: Sequence[int]) -> str:
    """Where the value number *at* of a tensor stands in what came."""
    indices = [f"[{index}]" for index in np.unravel_index(at, tuple(shape))] if shape else []
    return field + "".join([*indices[:1], key, *indices[1:]])


def _is_base64(value: Any) -> bool:
    return type(value) is dict and len(value) == 1 and type(value.get(_B64)) is str


def decode_base64(value: Any, field: str) -> Any:
    """``{"b64": "..."}`` as its text; anything else as it is. Raises InvalidInput where no UTF-8 text comes out."""
    if not _is_base64(value):
        return value
    try:
        return base64.b64decode(value[_B64], validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{field}.{_B64}", f"what cannot be decoded ({error})", "base64 of UTF-8 text") from None


def json_rows(array: Array, *, base64_texts: bool = False) -> list[bytes]:
    """The JSON of each row of an output, NaN and infinities as the bare tokens that Python's json reads.

    base64_texts: texts are written as ``{"b64": "..."}``.
    """
    if base64_texts and array.dtype == object:
        return [_base64_json(row) for row in array]
    texts = row_texts(array)
    if texts is None:
        return [to_json(row) for row in array]
    return texts if array.ndim == 1 else [b"[%b]" % text for text in texts]


def to_json(array: Array, *, base64_texts: bool = False) -> bytes:
    """The JSON of a whole output, as `json_rows` writes it."""
    if base64_texts and array.dtype == object:
        return _base64_json(array)
    if array.dtype != object and array.ndim:
        text = orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
        if b"n" not in text:  # no number or boolean has this letter; what is not finite would be null
            return text
    if array.ndim > 1:
        return b"[" + b",".join(map(to_json, array)) + b"]"
    texts = value_texts(array)
    return b"[" + b",".join(texts) + b"]" if array.ndim else texts[0]


def _base64_json(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.ndim:
        return b"[" + b",".join(map(_base64_json, value)) + b"]"
    text = value.item() if isinstance(value, np.ndarray) else value
    return b'{"b64":"%b"}' % base64.b64encode(text)
