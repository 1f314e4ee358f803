"""The Open Inference Protocol v2 over REST: inference requests and replies as JSON, with binary tensors mixed in.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; the binary tensor extension is in
oip_binary.py. Strictness follows Triton: names, datatypes and shapes must be those of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from gateway.codecs import oip_binary
from gateway.codecs.classification import highest
from gateway.codecs.codec import JSON_HEADERS, BoundCodec, Encoded, Request, Spans, Wish
from gateway.codecs.envelope import MOST_ROWS, Envelopes
from gateway.codecs.large import LARGE_BYTES, NUMERIC, oip_document
from gateway.codecs.numbers import flatten, name_of, parse_finite, parse_json, to_array, to_flat
from gateway.codecs.texts import array_text, row_texts
from gateway.errors import GatewayError, InvalidInput
from gateway.tensors import (
    BINARY_ONLY,
    FLOATS,
    Array,
    FeatureCheck,
    Signature,
    Tensors,
    TensorSpec,
    check_shape,
    same_rows,
    shape_text,
)

# More than any body can hold.
_MAX_ELEMENTS = 2**32
Shapes = tuple[tuple[int, ...], ...]  # of one row of each output
# Templates kept per version: one for a row and one for rows, unless the model's outputs vary in shape.
_MAX_TEMPLATES = 16


class OipCodec:
    """Open Inference Protocol v2, JSON and binary tensors."""

    name = "oip"

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        return BoundOip(model, version, signature)

    def error(self, error: GatewayError) -> bytes:
        return orjson.dumps({"error": str(error)})

    def cache_headers(self, headers: Mapping[str, str]) -> str:
        return headers.get(oip_binary.LENGTH_HEADER, "")


class BoundOip:
    """OIP for one version."""

    def __init__(self, model: str, version: str, signature: Signature) -> None:
        self._model = model
        self._version = version
        self._signature = signature
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._names = [orjson.dumps(name).replace(b"%", b"%%") for name in self._outputs]
        self._check = FeatureCheck(signature)
        self._only = _flat_input(signature)
        self._is_numeric = {spec.datatype for spec in signature.inputs} <= NUMERIC
        self._head = orjson.dumps({"model_name": model, "model_version": version})[:-1].replace(b"%", b"%%")
        self._envelopes = Envelopes(b'"data"', 1, self._only, self._plain_rows) if self._only is not None else None
        self._fits_json = all(spec.datatype not in BINARY_ONLY for spec in signature.outputs)
        classes = signature.classes
        self._labels = None if classes is None else [str(label) for label in classes]
        self._templates: dict[tuple[bytes, Shapes], bytes] = {}

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        length = headers.get(oip_binary.LENGTH_HEADER)
        if length is None:
            if len(body) >= LARGE_BYTES and self._is_numeric:
                large = self._largely(body)
                if large is not None:
                    self._learn(body, large)
                    return large
            document = parse_finite(body)
            quick = self._quickly(document)
            if quick is not None:
                self._learn(body, quick)
                return quick
            return self._from_document(parse_json(body) if document is None else document, oip_binary.Blobs(b""))
        json_bytes = oip_binary.json_length(length, len(body))
        if json_bytes == 0:
            return self._from_raw(body)
        blobs = oip_binary.Blobs(memoryview(body)[json_bytes:])
        request = self._from_document(parse_json(body[:json_bytes]), blobs)
        blobs.check_all_read()
        return request

    def decode_plain(self, bodies: list[bytes]) -> list[bytes | None]:
        return self._envelopes.read(bodies) if self._envelopes is not None else [None] * len(bodies)

    def _learn(self, body: bytes, request: Request) -> None:
        if request.is_plain and self._envelopes is not None:
            self._envelopes.learn(body, request.rows)

    def _plain_rows(self, body: bytes) -> Request | None:
        """A body of rows with nothing else said."""
        return self._quickly(parse_finite(body))

    def _quickly(self, document: Any) -> Request | None:
        """A request of one small flat input with nothing else said; None for any other, right or wrong."""
        spec = self._only
        if spec is None or type(document) is not dict or len(document) != 1:
            return None
        try:
            (tensor,) = document["inputs"]
            (rows, width), values = tensor["shape"], tensor["data"]
            if (
                len(tensor) != 4
                or tensor["name"] != spec.name
                or tensor["datatype"] != spec.datatype
                or type(rows) is not int
                or type(width) is not int
                or rows < 1
                or width != spec.shape[1]
                or type(values) is not list
                or len(values) != rows * width
            ):
                return None
        except (KeyError, TypeError, ValueError):
            return None
        flat = to_flat(values, spec.datatype)
        if flat is None:
            return None
        request = Request(rows, flat=flat.tobytes(), spec=spec)
        request.is_plain = rows <= MOST_ROWS
        return request

    def _largely(self, body: bytes) -> Request | None:
        """A large request of numbers; None for one that is not plainly right, which the other ways then read."""
        document = oip_document(body, len(self._inputs))
        if document is None:
            return None
        try:
            request = self._only_matrix(document)
            if request is None:
                request = self._from_document(document, oip_binary.Blobs(b""))
            else:
                self._check(request.inputs)
        except InvalidInput:  # said by the way that has the values as they came
            return None
        return request

    def _only_matrix(self, document: dict[str, Any]) -> Request | None:
        """A large request of one matrix with nothing else said; None for any other."""
        spec = self._only
        if spec is None or len(document) != 1:
            return None
        (tensor,) = document["inputs"]
        shape = tensor["shape"]
        if len(tensor) != 4 or tensor["name"] != spec.name or tensor["datatype"] != spec.datatype or len(shape) != 2:
            return None
        rows, width = shape
        if type(rows) is not int or type(width) is not int or rows < 1 or width != spec.shape[1]:
            return None
        if rows > MOST_ROWS:
            return Request(rows, {spec.name: tensor["data"].reshape(rows, -1)})
        request = Request(rows, flat=tensor["data"].tobytes(), spec=spec)
        request.is_plain = True
        return request

    def _from_document(self, document: Any, blobs: oip_binary.Blobs) -> Request:
        if type(document) is not dict:
            raise InvalidInput("body", name_of(document), "a JSON object with 'inputs'")
        tensors = document.get("inputs")
        if type(tensors) is not list:
            raise InvalidInput("inputs", name_of(tensors), "an array of input tensors")
        inputs: Tensors = {}
        for index, tensor in enumerate(tensors):
            spec = self._spec(tensor, index)
            if spec.name in inputs:
                raise InvalidInput(f"inputs.{spec.name}", "the input twice", "each input once")
            inputs[spec.name] = self._tensor(spec, tensor, blobs)
        for name in self._inputs:
            if name not in inputs:
                raise InvalidInput(f"inputs.{name}", "no such input", f"all of {', '.join(self._inputs)}")
        parameters = _parameters(document, "parameters")
        request = Request(same_rows(self._signature, inputs), inputs)
        request.id = _text(document, "id") or None
        request.binary = parameters.get("binary_data_output") is True
        request.outputs = self._wishes(document.get("outputs"), request.binary)
        request.timeout_s = _timeout_s(parameters)
        request.priority = _whole(parameters, "parameters", "priority")
        self._check(inputs)
        return request

    def _from_raw(self, body: bytes) -> Request:
        """A body that is one tensor: for models with one input, as a batch of one row."""
        if len(self._inputs) != 1:
            raise InvalidInput("inputs", "a raw body", f"named tensors, since the model has {len(self._inputs)} inputs")
        spec = self._signature.inputs[0]
        inputs = {spec.name: oip_binary.raw(body, spec, batchable=self._signature.batchable)}
        self._check(inputs)
        request = Request(same_rows(self._signature, inputs), inputs)
        request.binary = True
        return request

    def _spec(self, tensor: Any, index: int) -> TensorSpec:
        if type(tensor) is not dict:
            raise InvalidInput(f"inputs[{index}]", name_of(tensor), "an object with name, shape, datatype and data")
        name = tensor.get("name")
        spec = self._inputs.get(name) if type(name) is str else None
        if spec is None:
            known = ", ".join(self._inputs)
            raise InvalidInput(f"inputs[{index}].name", name_of(name), f"an input of model {self._model!r}: {known}")
        return spec

    def _tensor(self, spec: TensorSpec, tensor: dict[str, Any], blobs: oip_binary.Blobs) -> Array:
        field = f"inputs.{spec.name}"
        if tensor.get("datatype") != spec.datatype:
            raise InvalidInput(f"{field}.datatype", name_of(tensor.get("datatype")), spec.datatype)
        shape = _shape(tensor.get("shape"), field)
        check_shape(spec, shape)
        if math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:  # numpy refuses it even where another size is 0
            raise InvalidInput(f"{field}.shape", shape_text(shape), f"at most {_MAX_ELEMENTS} elements")
        parameters = _parameters(tensor, f"{field}.parameters")
        _refuse_shared_memory(parameters, f"{field}.parameters")
        if "binary_data_size" in parameters:
            if "data" in tensor:
                raise InvalidInput(f"{field}.data", "data beside binary_data_size", "one of the two")
            return oip_binary.decode(blobs.take(parameters["binary_data_size"], field), spec, shape)
        data = tensor.get("data")
        if type(data) is np.ndarray:  # of a large body, and checked there
            return data.reshape(shape)
        if type(data) is not list:
            raise InvalidInput(f"{field}.data", name_of(data), "an array")
        flat, nested = flatten(data, f"{field}.data")
        if (len(nested) > 1 and nested != shape) or len(flat) != math.prod(shape):
            raise InvalidInput(
                f"{field}.data", f"values of shape {list(nested)}", f"values of the tensor's own shape {list(shape)}"
            )
        return to_array(flat, spec.datatype, f"{field}.data").reshape(shape)

    def _wishes(self, outputs: Any, binary: bool) -> tuple[Wish, ...] | None:
        if outputs is None or outputs == []:
            return None
        if type(outputs) is not list:
            raise InvalidInput("outputs", name_of(outputs), "an array of output names")
        wishes: dict[str, Wish] = {}
        for index, output in enumerate(outputs):
            name = output.get("name") if type(output) is dict else None
            if type(name) is not str or name not in self._outputs:
                known = ", ".join(self._outputs)
                raise InvalidInput(f"outputs[{index}].name", name_of(name), f"an output of the model: {known}")
            field = f"outputs[{index}].parameters"
            parameters = _parameters(output, field)
            _refuse_shared_memory(parameters, field)
            classes = _whole(parameters, field, "classification") or 0
            if "classification" in parameters and not (classes and self._outputs[name].dtype.kind in "iuf"):
                raise InvalidInput(f"{field}.classification", str(classes), "at least 1, of an output of numbers")
            wishes[name] = Wish(name, parameters.get("binary_data", binary) is True, classes)
        return tuple(wishes.values())

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        wishes = request.outputs or tuple(Wish(name, request.binary) for name in self._outputs)
        described: list[dict[str, Any]] = []
        blobs: list[bytes | memoryview] = []
        for name, is_binary, classes in wishes:
            datatype, array = self._outputs[name].datatype, outputs[name]
            if classes:
                datatype, array = "BYTES", self._classified(self._outputs[name], array, classes)
            description: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
            if is_binary:
                blobs.append(oip_binary.encode(array, datatype))
                description["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                description["data"] = _plain(array, name, datatype)
            described.append(description)
        document: dict[str, Any] = {"model_name": self._model, "model_version": self._version}
        if request.id is not None:
            document["id"] = request.id
        document["outputs"] = described
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        if not blobs:
            return Encoded(body, JSON_HEADERS)
        length = (oip_binary.LENGTH_HEADER.encode(), str(len(body)).encode())
        return Encoded(b"".join([body, *blobs]), ((b"content-type", b"application/octet-stream"), length))

    def _classified(self, spec: TensorSpec, array: Array, classes: int) -> Array:
        labels = self._labels if spec.role == "probabilities" else None
        if labels is not None and array.shape[-1] != len(labels):
            labels = None
        return highest(array, classes, labels, batchable=self._signature.batchable)

    def encode_rows(self, outputs: Tensors, spans: Spans | None = None) -> list[bytes] | None:
        if not self._fits_json:
            return None
        columns: list[list[bytes]] = []
        shapes: list[tuple[int, ...]] = []
        for name in self._outputs:
            array = outputs[name]
            texts = row_texts(array)
            if texts is None:
                return None
            columns.append(texts)
            shapes.append(array.shape[1:])
        if spans is not None:
            return self._encode_spans(columns, tuple(shapes), spans)
        template = self._template(tuple(shapes))
        if len(columns[0]) == 1:
            return [template % tuple([texts[0] for texts in columns])]
        return [template % row for row in zip(*columns, strict=True)]

    def _encode_spans(self, columns: list[list[bytes]], shapes: Shapes, spans: Spans) -> list[bytes]:
        template = self._template(shapes, b"%d")
        return [
            template % tuple([gap for texts in columns for gap in (stop - start, b",".join(texts[start:stop]))])
            for start, stop in spans
        ]

    def _template(self, shapes: Shapes, rows: bytes = b"1") -> bytes:
        """The body of a reply of so many rows, with a gap for the data of each output."""
        template = self._templates.get((rows, shapes))
        if template is None:
            parts = [
                b'{"name":%b,"shape":[%b],"datatype":"%b","data":[%%b]}'
                % (name, b",".join([rows, *(b"%d" % size for size in shape)]), spec.datatype.encode())
                for name, spec, shape in zip(self._names, self._outputs.values(), shapes, strict=True)
            ]
            template = self._head + b',"outputs":[' + b",".join(parts) + b"]}"
            if len(self._templates) < _MAX_TEMPLATES:
                self._templates[rows, shapes] = template
        return template

    stamp = None


def _flat_input(signature: Signature) -> TensorSpec | None:
    """The one input of a model that takes a matrix of numbers, rows first; None for other models."""
    (spec, *others) = signature.inputs
    if others or not signature.batchable or len(spec.shape) != 2 or spec.shape[1] < 1:
        return None
    return spec


def _plain(array: Array, name: str, datatype: str) -> Any:
    if datatype in BINARY_ONLY:
        raise InvalidInput(
            f"outputs.{name}", f"a wish for {datatype} as JSON", f"binary_data, since JSON cannot hold {datatype}"
        )
    if datatype == "BYTES":
        return [value.decode("utf-8", "replace") for value in array.ravel().tolist()]
    if datatype in FLOATS and not np.isfinite(array).all():
        return orjson.Fragment(array_text(array))  # orjson itself would write null
    return np.ascontiguousarray(array).reshape(-1)


def _shape(shape: Any, field: str) -> tuple[int, ...]:
    if type(shape) is not list or any(type(size) is not int or size < 0 for size in shape):
        raise InvalidInput(f"{field}.shape", name_of(shape), "an array of whole numbers of at least 0")
    return tuple(shape)


def _parameters(holder: dict[str, Any], field: str) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidInput(field, name_of(parameters), "an object")
    return parameters


def _text(document: dict[str, Any], field: str) -> str:
    value = document.get(field, "")
    if type(value) is not str:
        raise InvalidInput(field, name_of(value), "a string")
    return value


def _timeout_s(parameters: dict[str, Any]) -> float | None:
    """The schedule extension's timeout, which is in microseconds; 0 means none."""
    timeout_us = _whole(parameters, "parameters", "timeout", "microseconds as ")
    return timeout_us / 1e6 if timeout_us else None


def _whole(parameters: dict[str, Any], holder: str, name: str, what: str = "") -> int | None:
    """A parameter that is a whole number of at least 0; None if it did not come."""
    value = parameters.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise InvalidInput(f"{holder}.{name}", name_of(value), f"{what}a whole number of at least 0")
    return value


def _refuse_shared_memory(parameters: dict[str, Any], field: str) -> None:
    if "shared_memory_region" in parameters:
        came = name_of(parameters["shared_memory_region"])
        raise InvalidInput(f"{field}.shared_memory_region", came, "tensors in the body: no shared memory is read here")
