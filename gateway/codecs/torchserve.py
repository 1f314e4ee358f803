"""TorchServe's predictions: one row or several as JSON, or one tensor as it lies in memory, raw or as a form's field.

Source: pytorch/serve, docs/inference_api.md. What a body means is there up to a model's own handler; here it is a row,
rows, or objects of features, bare or under "data"; raw bytes are the only input's, as in the binary tensor extension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from gateway.codecs import oip_binary
from gateway.codecs.codec import JSON_HEADERS, BoundCodec, Encoded, Request, Spans
from gateway.codecs.large import LARGE_BYTES, tensors_document
from gateway.codecs.multipart import Part, parts_of
from gateway.codecs.nested import ARRAYS, TensorReader, json_rows, to_json
from gateway.codecs.numbers import name_of, parse_json
from gateway.codecs.records import head
from gateway.codecs.table import Table
from gateway.errors import GatewayError, InvalidInput, UnknownModel, UnknownVersion
from gateway.tensors import Signature, Tensors, shape_text

_FORM = "multipart/form-data"
_RAW = "application/octet-stream"
_FIELDS = ("data", "body")
# Where tensors may stand in large bodies, and how those of rows as objects begin.
_TENSORS = {"data": ""}
_RECORDS = head("data", bare=True)
# The names of Java's exceptions that TorchServe gives, by status.
_TYPES = {
    400: "BadRequestException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    501: "UnsupportedOperationException",
    503: "ServiceUnavailableException",
}
_TYPES_BY_KIND: Mapping[type[GatewayError], str] = {
    UnknownModel: "ModelNotFoundException",
    UnknownVersion: "ModelVersionNotFoundException",
}


class TorchServeCodec:
    """``[5.1, 3.5]``, ``{"data": [[5.1, 3.5]]}``, ``{"sepal_length": 5.1}``, bytes, or a form with one of them.

    status_of: the status with which an error travels; it stands in the body too.
    """

    name = "torchserve"

    def __init__(self, status_of: Callable[[GatewayError], int]) -> None:
        self._status_of = status_of

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        return BoundTorchServe(signature)

    def error(self, error: GatewayError) -> bytes:
        status = self._status_of(error)
        usual = "BadRequestException" if status < 500 else "InternalServerException"
        kind = _TYPES_BY_KIND.get(type(error)) or _TYPES.get(status, usual)
        return orjson.dumps({"code": status, "type": kind, "message": str(error)})

    def cache_headers(self, headers: Mapping[str, str]) -> str:
        content_type = headers.get("content-type", "")
        kind = _kind(content_type)
        if kind == _FORM:
            return content_type
        return kind if kind == _RAW else "json" if kind.endswith("json") else ""


class BoundTorchServe:
    """TorchServe's predictions for one version."""

    stamp = None

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._batchable = signature.batchable
        self._only = signature.inputs[0] if len(signature.inputs) == 1 else None
        self._reader = TensorReader(signature)
        self._table = Table(signature)
        keys = [orjson.dumps(spec.name).replace(b"%", b"%%") + b":%b" for spec in signature.outputs]
        self._row = b"{" + b",".join(keys) + b"}" if len(keys) > 1 else b"%b"

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        content_type = headers.get("content-type", "")
        kind = _kind(content_type)
        if kind != _FORM:
            return self._read(kind, body)
        found = [part for part in parts_of(body, content_type) if part.name in _FIELDS]
        if not found:
            raise InvalidInput("body", "no part named 'data'", "at least one")
        if len(found) == 1:
            return self._read(found[0].content_type, found[0].content, is_part=True)
        return self._together(found)

    def _together(self, parts: list[Part]) -> Request:
        """Rows that come in a part each, or several in one."""
        if not self._batchable:
            raise InvalidInput("body", f"{len(parts)} parts named 'data'", "one, since the model takes no rows")
        requests: list[Request] = []
        for index, part in enumerate(parts):
            try:
                requests.append(self._read(part.content_type, part.content, is_part=True))
            except InvalidInput as error:
                raise InvalidInput(f"part {index}: {error.field}", error.came, error.expected) from None
        inputs: Tensors = {}
        for name in requests[0].inputs:
            arrays = [request.inputs[name] for request in requests]
            first = arrays[0].shape[1:]
            for index, array in enumerate(arrays):
                if array.shape[1:] != first:
                    expected = f"{shape_text(first)} as in the first part"
                    raise InvalidInput(f"part {index}: inputs.{name}.shape", shape_text(array.shape[1:]), expected)
            inputs[name] = np.concatenate(arrays)
        return self._reader.request(inputs)

    def _read(self, kind: str, body: bytes, *, is_part: bool = False) -> Request:
        """is_part: of a form, whose files curl calls bytes whatever they are."""
        if len(body) >= LARGE_BYTES and self._reader.datatypes and (kind != _RAW or is_part):
            large = self._largely(body)
            if large is not None:
                return large
        if kind.endswith("json"):  # application/json, text/json, application/vnd...+json
            return self._from_json(parse_json(body))
        if (kind == _RAW and not is_part) or not _looks_like_json(body):
            return self._one(self._from_raw(body))
        try:
            document = parse_json(body)
        except InvalidInput as error:  # bytes may begin like JSON
            try:
                return self._one(self._from_raw(body))
            except InvalidInput:
                raise error from None
        return self._from_json(document)

    def _largely(self, body: bytes) -> Request | None:
        """A large request of numbers in JSON; None for one that is not plainly right, which other ways then read."""
        if not body.startswith((b"[", b"{")) or "data" in self._table.names:
            return None
        if _RECORDS.match(body):
            return self._table.read_large(body, _RECORDS)
        document = tensors_document(body, _TENSORS, self._reader.datatypes)
        try:
            return None if document is None else self._from_json(document)
        except InvalidInput:  # said by the way that has the values as they came
            return None

    def decode_plain(self, bodies: list[bytes]) -> list[bytes | None]:
        return [None] * len(bodies)

    def _from_raw(self, body: bytes) -> Request:
        spec = self._only
        if spec is None:
            names = ", ".join(other.name for other in self._signature.inputs)
            raise InvalidInput("body", "raw bytes", f"JSON, since the model has several inputs: {names}")
        return self._reader.request({spec.name: oip_binary.raw(body, spec, batchable=self._batchable)})

    def _from_json(self, document: Any) -> Request:
        value, field = document, "body"
        if type(document) is dict and len(document) == 1 and "data" in document and "data" not in self._table.names:
            value, field = document["data"], "data"
        if type(value) is dict:
            return self._one(self._objects([value], field))
        if type(value) not in ARRAYS or not len(value):
            raise InvalidInput(field, "an empty array" if value == [] else name_of(value), "a row, rows, or features")
        if type(value[0]) is dict:
            return self._objects(value, field)
        if self._batchable and self._only is not None and _depth(value) == len(self._only.shape) - 1:
            row = [value] if type(value) is list else value[np.newaxis]
            return self._one(self._reader.request(self._reader.rows(row, field)))
        read = self._reader.rows if self._batchable else self._reader.columns
        return self._reader.request(read(value, field))

    def _objects(self, rows: list[Any], field: str) -> Request:
        if self._batchable and not self._table.names_features(rows[0]):
            return self._reader.request(self._reader.rows(rows, field))
        if not self._batchable and len(rows) == 1:
            return self._reader.request(self._reader.columns(rows[0], field))
        return self._table.read_objects(rows, _place, field)

    def _one(self, request: Request) -> Request:
        """A request of one row, which gets one answer and no list of them."""
        request.is_plain = self._batchable
        return request

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        if not self._batchable:
            whole = self._row % tuple([to_json(outputs[spec.name]) for spec in self._signature.outputs])
            return Encoded(whole, JSON_HEADERS)
        rows = self._rows(outputs)
        return Encoded(rows[0] if request.is_plain else b"[" + b",".join(rows) + b"]", JSON_HEADERS)

    def encode_rows(self, outputs: Tensors, spans: Spans | None = None) -> list[bytes] | None:
        if not self._batchable:
            return None
        rows = self._rows(outputs)
        return rows if spans is None else [rows[start] for start, _ in spans]  # a plain request has one row

    def _rows(self, outputs: Tensors) -> list[bytes]:
        arrays = [outputs[spec.name] for spec in self._signature.outputs]
        squeezed = [array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array for array in arrays]
        columns = [json_rows(array) for array in squeezed]
        return columns[0] if len(columns) == 1 else [self._row % row for row in zip(*columns, strict=True)]


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _looks_like_json(body: bytes) -> bool:
    """Whether a body whose type says nothing is meant as JSON; curl calls files nothing, or a form."""
    return body.lstrip(b" \t\r\n")[:1] in (b"{", b"[", b"")


def _depth(value: Any) -> int:
    """How many arrays are nested in the first places."""
    if type(value) is np.ndarray:
        return value.ndim
    depth = 0
    while type(value) is list:
        depth += 1
        value = value[0] if value else None
    return depth


def _place(row: int | None, name: str) -> str:
    return name if row is None else f"row {row}: {name}"
