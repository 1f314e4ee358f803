"""TensorFlow Serving's REST API v1, which KServe V1 shares: predict in rows or columns, classify, regress.

Source: tensorflow/serving, g3doc/api_rest.md and model_servers/http_rest_api_util.cc. KServe V1's ``:predict`` is the
form in rows. Each verb is a codec of its own: the same body means something else to each.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import orjson

from gateway.codecs.codec import JSON_HEADERS, BoundCodec, Encoded, Request, Spans
from gateway.codecs.envelope import MOST_ROWS, Envelopes
from gateway.codecs.large import LARGE_BYTES, tensors_document
from gateway.codecs.nested import TensorReader, json_rows, to_json
from gateway.codecs.numbers import name_of, parse_finite, parse_json, to_flat
from gateway.codecs.records import head
from gateway.codecs.table import Table
from gateway.codecs.texts import value_texts
from gateway.errors import GatewayError, InvalidInput, UnknownLabel, UnknownModel, UnknownVersion
from gateway.tensors import Array, Signature, Tensors, TensorSpec

# Signatures have no names here: those that TensorFlow's own models usually have are all taken for the one.
_SIGNATURES = frozenset(
    {"", "serving_default", *(f"tensorflow/serving/{v}" for v in ("predict", "classify", "regress"))}
)
# Outputs with names that end so are bytes, not texts.
_BYTES_SUFFIX = "_bytes"
# Where tensors may stand in large bodies, and how those of examples begin.
_FORMS = {"instances": "", "inputs": ""}
_EXAMPLES = head("examples")
# What a refusal begins with in TensorFlow Serving's own words, by which clients know it.
_OPENINGS: Mapping[type[GatewayError], str] = {
    UnknownModel: "Servable not found for request: ",
    UnknownVersion: "Servable not found for request: ",
    UnknownLabel: "Unrecognized servable version label: ",
}


def tfs_error(error: GatewayError) -> bytes:
    """The body of any refusal on these paths."""
    text = str(error)
    if isinstance(error, UnknownModel) and error.model:
        text = f"Latest({error.model})"
    if isinstance(error, InvalidInput) and (error.field, error.expected) == ("body", "valid JSON"):
        text = f"JSON Parse error: {'The document is empty' if error.came == 'an empty body' else text}"
    return orjson.dumps({"error": _OPENINGS.get(type(error), "") + text})


class _TfsCodec:
    """What the verbs have in common."""

    def error(self, error: GatewayError) -> bytes:
        return tfs_error(error)

    def cache_headers(self, headers: Mapping[str, str]) -> str:
        return ""


class PredictCodec(_TfsCodec):
    """``{"instances": [row, ...]}`` or ``{"inputs": tensor or {name: tensor}}``."""

    name = "tfs"

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        return BoundPredict(signature)


class ClassifyCodec(_TfsCodec):
    """``{"examples": [{feature: value}, ...]}``, answered with the scores of all classes."""

    name = "tfs_classify"

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        return BoundClassify(signature)


class RegressCodec(_TfsCodec):
    """``{"examples": [{feature: value}, ...]}``, answered with a number for each."""

    name = "tfs_regress"

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        return BoundRegress(signature)


class ColumnarRequest(Request):
    """A request in columns, which gets its answer in columns."""


class BoundPredict:
    """``:predict`` for one version."""

    def __init__(self, signature: Signature) -> None:
        self._outputs = signature.outputs
        self._batchable = signature.batchable
        self._reader = TensorReader(signature)
        self._only = _flat_input(signature)
        is_matrix = self._only is not None and len(self._only.shape) == 2
        self._envelopes = Envelopes(b'"instances"', 2, signature.inputs[0], self._plain_row) if is_matrix else None
        keys = [orjson.dumps(spec.name).replace(b"%", b"%%") + b":%b" for spec in signature.outputs]
        self._row = b"{" + b",".join(keys) + b"}" if len(keys) > 1 else b"%b"

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        if len(body) >= LARGE_BYTES and self._reader.datatypes:
            large = self._largely(body)
            if large is not None:
                if large.is_plain and large.rows == 1 and self._envelopes is not None:
                    self._envelopes.learn(body)
                return large
        document = parse_finite(body)
        quick = self._quickly(document)
        if quick is not None:
            if quick.is_plain and quick.rows == 1 and self._envelopes is not None:
                self._envelopes.learn(body)
            return quick
        return self._from_document(parse_json(body) if document is None else document)

    def _largely(self, body: bytes) -> Request | None:
        """A large request of numbers; None for one that is not plainly right, which the other ways then read."""
        document = tensors_document(body, _FORMS, self._reader.datatypes)
        if document is None:
            return None
        try:
            return self._from_document(document)
        except InvalidInput:  # said by the way that has the values as they came
            return None

    def _from_document(self, document: Any) -> Request:
        document = _opened(document)
        if ("instances" in document) == ("inputs" in document):
            came = "both" if "inputs" in document else "neither"
            raise InvalidInput("body", came, "exactly one of 'instances' and 'inputs'")
        if "instances" in document:
            request = self._reader.request(self._reader.rows(document["instances"], "instances"))
            request.is_plain = request.rows <= MOST_ROWS
            return request
        read = self._reader.request(self._reader.columns(document["inputs"], "inputs"))
        return ColumnarRequest(read.rows, read.inputs)

    def decode_plain(self, bodies: list[bytes]) -> list[bytes | None]:
        return self._envelopes.read(bodies) if self._envelopes is not None else [None] * len(bodies)

    def _plain_row(self, body: bytes) -> Request | None:
        return self._quickly(parse_finite(body))

    def _quickly(self, document: Any) -> Request | None:
        """Rows of finite numbers for one flat input with nothing else said; None for any other, right or wrong."""
        spec = self._only
        if spec is None or type(document) is not dict or len(document) != 1:
            return None
        rows = document.get("instances")
        if type(rows) is not list or not rows:
            return None
        values = rows
        if len(spec.shape) == 2:
            if set(map(type, rows)) != {list} or set(map(len, rows)) != {spec.shape[1]}:
                return None
            values = list(chain.from_iterable(rows))
        flat = to_flat(values, spec.datatype)
        if flat is None:
            return None
        request = Request(len(rows), flat=flat.tobytes(), spec=spec)
        request.is_plain = len(rows) <= MOST_ROWS
        return request

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        if isinstance(request, ColumnarRequest):
            texts = [to_json(outputs[spec.name], base64_texts=_is_bytes(spec)) for spec in self._outputs]
            return Encoded(b'{"outputs":%b}' % (self._row % tuple(texts)), JSON_HEADERS)
        return Encoded(b'{"predictions":[%b]}' % b",".join(self._rows(outputs)), JSON_HEADERS)

    def encode_rows(self, outputs: Tensors, spans: Spans | None = None) -> list[bytes] | None:
        if not self._batchable:
            return None
        rows = self._rows(outputs)
        if spans is not None:
            rows = [b",".join(rows[start:stop]) for start, stop in spans]
        return [b'{"predictions":[%b]}' % row for row in rows]

    def _rows(self, outputs: Tensors) -> list[bytes]:
        columns = [json_rows(outputs[spec.name], base64_texts=_is_bytes(spec)) for spec in self._outputs]
        if len(columns) == 1:
            return columns[0]
        return [self._row % row for row in zip(*columns, strict=True)]

    stamp = None


class _BoundExamples:
    """What classify and regress have in common: requests of examples."""

    stamp = None
    _verb = ""
    _wants = ""

    def __init__(self, signature: Signature) -> None:
        self._reader = TensorReader(signature)
        self._table = Table(signature)
        self._output = self._find_output(signature)

    def _find_output(self, signature: Signature) -> TensorSpec | None:
        """What the answer is made of; None if the model has nothing like it."""
        raise NotImplementedError

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        if len(body) >= LARGE_BYTES and self._output is not None:
            large = self._table.read_large(body, _EXAMPLES)
            if large is not None:
                return large
        document = _opened(parse_json(body))
        if self._output is None:
            raise InvalidInput("path", self._verb, f"predict, since the model has no {self._wants}")
        examples, context = document.get("examples"), document.get("context", {})
        if type(examples) is not list or not examples:
            raise InvalidInput("examples", "an empty array" if examples == [] else name_of(examples), "an array")
        if type(context) is not dict:
            raise InvalidInput("context", name_of(context), "an object of features")
        for index, example in enumerate(examples):
            if type(example) is not dict:
                raise InvalidInput(f"examples[{index}]", name_of(example), "an object of features")
            for name in example:
                if name in context:
                    raise InvalidInput(f"examples[{index}].{name}", "a feature of the context too", "it in one of them")
        merged = [{**context, **example} for example in examples]
        if not self._table.names_features(merged[0]) and self._reader.names_inputs(merged[0]):
            return self._reader.request(self._reader.rows(merged, "examples"))
        return self._table.read_objects(merged, _example_place, "examples")

    def decode_plain(self, bodies: list[bytes]) -> list[bytes | None]:
        return [None] * len(bodies)

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        assert self._output is not None  # else nothing was decoded
        results = b",".join(self._results(outputs[self._output.name]))
        return Encoded(b'{"results":[%b]}' % results, JSON_HEADERS)

    def encode_rows(self, outputs: Tensors, spans: Spans | None = None) -> list[bytes] | None:
        return None

    def _results(self, array: Array) -> list[bytes]:
        """The JSON of each row's result."""
        raise NotImplementedError


class BoundClassify(_BoundExamples):
    """``:classify`` for one version."""

    _verb, _wants = "classify", "probabilities of classes"

    def _find_output(self, signature: Signature) -> TensorSpec | None:
        self._labels = [orjson.dumps(str(label)) for label in signature.classes or ()]
        found = (spec for spec in signature.outputs if spec.role == "probabilities" and len(spec.shape) == 2)
        return next(found, None) if signature.batchable else None

    def _results(self, array: Array) -> list[bytes]:
        width = array.shape[1]
        labels = self._labels if len(self._labels) == width else [b'""'] * width
        scores = value_texts(array)
        pairs = [b"[%b,%b]" % (labels[place % width], score) for place, score in enumerate(scores)]
        return [b"[" + b",".join(pairs[start : start + width]) + b"]" for start in range(0, len(pairs), width)]


class BoundRegress(_BoundExamples):
    """``:regress`` for one version."""

    _verb, _wants = "regress", "one number per row"

    def _find_output(self, signature: Signature) -> TensorSpec | None:
        for spec in signature.outputs:
            is_number = spec.datatype not in ("BYTES", "BOOL") and spec.role == "value"
            if signature.batchable and is_number and spec.shape[1:] in ((), (1,)):
                return spec
        return None

    def _results(self, array: Array) -> list[bytes]:
        return value_texts(array)


def _opened(document: Any) -> dict[str, Any]:
    if type(document) is not dict:
        raise InvalidInput("body", name_of(document), "a JSON object")
    signature = document.get("signature_name", "")
    if type(signature) is not str:
        raise InvalidInput(
            "signature_name", name_of(signature), "a string: 'signature_name' key must be a string value."
        )
    if signature not in _SIGNATURES:
        raise InvalidInput("signature_name", name_of(signature), "'serving_default', since models have one signature")
    return document


def _flat_input(signature: Signature) -> TensorSpec | None:
    """The one input of a model that takes numbers, one or a row of them per row; None for other models."""
    (spec, *others) = signature.inputs
    if others or not signature.batchable or len(spec.shape) not in (1, 2) or min(spec.shape[1:], default=1) < 1:
        return None
    return spec


def _is_bytes(spec: TensorSpec) -> bool:
    return spec.name.endswith(_BYTES_SUFFIX)


def _example_place(row: int | None, name: str) -> str:
    return f"examples.{name}" if row is None else f"examples[{row}].{name}"
