"""The native protocol: rows of named features in, labels and probabilities by name out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from gateway.codecs.codec import JSON_HEADERS, BoundCodec, Encoded, Request, Spans
from gateway.codecs.envelope import MOST_ROWS, Envelopes
from gateway.codecs.large import LARGE_BYTES, NUMERIC, native_matrix
from gateway.codecs.numbers import name_of, parse_finite, parse_json, to_array, to_flat
from gateway.codecs.records import head, named_rows
from gateway.codecs.texts import row_texts, value_texts
from gateway.errors import GatewayError, InvalidInput
from gateway.tensors import FLOATS, Array, Feature, FeatureCheck, Signature, Tensors, TensorSpec, same_rows

_OPENING = b',"predictions":['
_CLOSING = b"]}"
# From here on a gap for each number of a row is filled faster than a gap for the row.
_MANY_ROWS = 8
# A large body whose columns are not named so early is most likely one of named rows.
_COLUMNS_WITHIN = 64
# How a body of named rows begins.
_NAMED = head("rows")


class NativeCodec:
    """``{"rows": [{"petal_length": 1.4, ...}]}`` or ``{"columns": ["petal_length", ...], "rows": [[1.4, ...]]}``."""

    name = "native"

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        return BoundNative(model, version, signature)

    def error(self, error: GatewayError) -> bytes:
        told: dict[str, Any] = {"code": error.code, "message": str(error)}
        if isinstance(error, InvalidInput):
            told |= {"field": error.field, "came": error.came, "expected": error.expected}
        return orjson.dumps({"error": told})

    def cache_headers(self, headers: Mapping[str, str]) -> str:
        return ""


class BoundNative:
    """The native protocol for one version."""

    def __init__(self, model: str, version: str, signature: Signature) -> None:
        self._signature = signature
        # In the order of the inputs and their columns, so that a row's values are the tensors' values in order.
        order = {spec.name: index for index, spec in enumerate(signature.inputs)}
        self._features = tuple(sorted(signature.features, key=lambda f: (order[f.input], f.column)))
        self._positions = {feature.name: index for index, feature in enumerate(self._features)}
        self._check = FeatureCheck(signature)
        self._head = orjson.dumps({"model": model, "model_version": version})[:-1]
        self._batchable = signature.batchable
        self._keys = [_key(spec.name) for spec in signature.outputs]
        self._templates: dict[tuple[bytes, ...], bytes] = {}  # of one prediction, by what each output is in it
        classes = signature.classes or ()
        self._width = len(classes)
        self._classes = b"{" + b",".join(_key(str(label)) + b"%b" for label in classes) + b"}"
        self._flat = _is_matrix(signature)
        self._envelopes = Envelopes(b'"rows"', 2, signature.inputs[0], self._plain_row) if self._flat else None
        self._is_numeric = self._flat and bool(self._features) and signature.inputs[0].datatype in NUMERIC
        self._names = names = [feature.name for feature in self._features]
        pick = itemgetter(*names) if names else None
        # itemgetter of one name gives the value itself, not a tuple of one.
        self._pick = pick if len(names) != 1 or pick is None else lambda row: (pick(row),)

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        if len(body) >= LARGE_BYTES and self._is_numeric:
            large = self._largely(body)
            if large is not None:
                return large
        request = self._decode(body)
        if request.rows == 1 and request.is_plain and request.flat is not None and self._envelopes is not None:
            self._envelopes.learn(body)
        return request

    def _decode(self, body: bytes) -> Request:
        document = parse_finite(body)
        is_finite = document is not None
        if not is_finite:
            document = parse_json(body)
        if type(document) is not dict:
            raise InvalidInput("body", name_of(document), "a JSON object with 'rows'")
        if not self._features:
            raise InvalidInput("body", "named features", "tensors over /v2, since the model has no named features")
        for key in document:
            if key not in ("rows", "columns"):
                raise InvalidInput(key, "an unknown key", "only 'rows' and 'columns'")
        rows = document.get("rows")
        if "rows" not in document:
            raise InvalidInput("rows", "nothing", "an array of rows")
        if type(rows) is not list:
            raise InvalidInput("rows", name_of(rows), "an array of rows")
        if not rows:
            raise InvalidInput("rows", "an empty array", "at least one row")
        table = self._columnar(document["columns"], rows) if "columns" in document else self._named(rows)
        if self._flat and is_finite:
            spec = self._signature.inputs[0]
            flat = to_flat(list(chain.from_iterable(table)), spec.datatype)
            if flat is not None:
                request = Request(len(table), flat=flat.tobytes(), spec=spec)
                request.is_plain = len(table) <= MOST_ROWS
                return request
        inputs = self._tensors(table)
        self._check(inputs)
        request = Request(same_rows(self._signature, inputs), inputs)
        request.is_plain = request.rows <= MOST_ROWS
        return request

    def decode_plain(self, bodies: list[bytes]) -> list[bytes | None]:
        return self._envelopes.read(bodies) if self._envelopes is not None else [None] * len(bodies)

    def _plain_row(self, body: bytes) -> Request | None:
        """A body of one row in columns; None for any other, right or wrong."""
        try:
            request = self._decode(body)
        except InvalidInput:
            return None
        return request if request.is_plain else None

    def _largely(self, body: bytes) -> Request | None:
        """A large request of numbers; None for one that is not plainly right, which the other ways then read."""
        spec = self._signature.inputs[0]
        if b'"columns"' in body[:_COLUMNS_WITHIN]:
            matrix = native_matrix(body, self._names, spec.datatype)
        else:
            matrix = self._named_matrix(body, spec.datatype)
        if matrix is None:
            return None
        inputs = {spec.name: matrix}
        try:
            self._check(inputs)
        except InvalidInput:  # said by the way that has the values as they came
            return None
        request = Request(len(matrix), inputs)
        request.is_plain = request.rows <= MOST_ROWS
        return request

    def _named_matrix(self, body: bytes, datatype: str) -> Array | None:
        """The rows of named features, if they have all of them in one order."""
        found = named_rows(body, _NAMED, datatype)
        if found is None:
            return None
        names, matrix = found
        if names == self._names:
            return matrix
        if sorted(names) != sorted(self._names):
            return None
        return matrix.take([names.index(name) for name in self._names], axis=1)

    def _named(self, rows: list[Any]) -> list[tuple[Any, ...]]:
        """Rows as tuples in the order of the features."""
        width = len(self._features)
        try:
            assert self._pick is not None
            table = [self._pick(row) for row in rows]
            if all(type(row) is dict and len(row) == width for row in rows):
                return table
        except (KeyError, TypeError, IndexError):
            pass
        return [self._named_slowly(row, index) for index, row in enumerate(rows)]

    def _named_slowly(self, row: Any, index: int) -> tuple[Any, ...]:
        """One row with absent features, or the error that says what is wrong with it."""
        if type(row) is not dict:
            raise InvalidInput(f"rows[{index}]", name_of(row), "an object of features")
        for name in row:
            if name not in self._positions:
                raise InvalidInput(f"rows[{index}].{name}", "an unknown feature", f"only {self._known()}")
        for feature in self._features:
            if feature.name not in row and not feature.missing_allowed:
                raise InvalidInput(f"rows[{index}].{feature.name}", "nothing", "a value for every feature of the model")
        return tuple(row.get(feature.name) for feature in self._features)

    def _columnar(self, columns: Any, rows: list[Any]) -> list[tuple[Any, ...]]:
        if type(columns) is not list or not all(type(name) is str for name in columns):
            raise InvalidInput("columns", name_of(columns), "an array of feature names")
        for index, name in enumerate(columns):
            if name not in self._positions:
                raise InvalidInput(f"columns[{index}]", f"the unknown feature {name!r}", f"only {self._known()}")
            if columns.index(name) != index:
                raise InvalidInput(f"columns[{index}]", f"{name!r} twice", "each feature once")
        for feature in self._features:
            if feature.name not in columns and not feature.missing_allowed:
                raise InvalidInput("columns", f"no {feature.name!r}", "every feature of the model")
        for index, row in enumerate(rows):
            if type(row) is not list or len(row) != len(columns):
                came = f"{len(row)} values" if type(row) is list else name_of(row)
                raise InvalidInput(f"rows[{index}]", came, f"an array of {len(columns)} values, one per column")
        if columns == list(self._positions):
            return rows
        places = [columns.index(f.name) if f.name in columns else None for f in self._features]
        return [tuple(None if place is None else row[place] for place in places) for row in rows]

    def _known(self) -> str:
        names = list(self._positions)
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

    def _tensors(self, table: list[tuple[Any, ...]]) -> Tensors:
        inputs: Tensors = {}
        start = 0
        for spec in self._signature.inputs:
            own = [feature for feature in self._features if feature.input == spec.name]
            whole = len(own) == len(self._features)
            flat = list(chain.from_iterable(table if whole else (row[start : start + len(own)] for row in table)))
            shape = tuple(len(table) if size == -1 else size for size in spec.shape)
            if math.prod(shape) != len(flat):
                raise InvalidInput(
                    "body", "named features", f"tensors over /v2 for input {spec.name!r} {list(spec.shape)}"
                )
            inputs[spec.name] = self._array(flat, spec.datatype, own).reshape(shape)
            start += len(own)
        return inputs

    def _array(self, flat: list[Any], datatype: str, own: list[Feature]) -> Array:
        if None in flat:
            flat = [self._filled(value, datatype, own[i % len(own)], i // len(own)) for i, value in enumerate(flat)]
        try:
            return to_array(flat, datatype, "")
        except InvalidInput as error:
            position = int(error.field.strip("[]")) if error.field.startswith("[") else 0
            name = own[position % len(own)].name
            raise InvalidInput(f"rows[{position // len(own)}].{name}", error.came, error.expected) from None

    def _filled(self, value: Any, datatype: str, feature: Feature, row: int) -> Any:
        """null as the model's own sign for missing: NaN, or empty text."""
        if value is not None:
            return value
        if not feature.missing_allowed or not (datatype in FLOATS or datatype == "BYTES"):
            raise InvalidInput(f"rows[{row}].{feature.name}", "null", "a value (this feature may not be missing)")
        return math.nan if datatype in FLOATS else ""

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        template, slots = self._slots(outputs)
        rows, width = len(slots[0]), len(slots)
        texts = [b""] * (rows * width)
        for place, slot in enumerate(slots):
            texts[place::width] = slot
        return Encoded(_OPENING + b",".join([template] * rows) % tuple(texts) + _CLOSING, JSON_HEADERS)

    def encode_rows(self, outputs: Tensors, spans: Spans | None = None) -> list[bytes] | None:
        if not self._batchable:
            return None
        template, slots = self._slots(outputs)
        if spans is None:
            template = _OPENING + template + _CLOSING
            return [template % texts for texts in zip(*slots, strict=True)]
        rows = [template % texts for texts in zip(*slots, strict=True)]
        return [_OPENING + b",".join(rows[start:stop]) + _CLOSING for start, stop in spans]

    def _slots(self, outputs: Tensors) -> tuple[bytes, list[list[bytes]]]:
        """The JSON of one prediction with gaps, and for each gap what goes there, a text per row."""
        slots: list[list[bytes]] = []
        parts = tuple([self._fill(spec, outputs[spec.name], slots) for spec in self._signature.outputs])
        template = self._templates.get(parts)
        if template is None:
            template = b"{" + b",".join(map(bytes.__add__, self._keys, parts)) + b"}"
            self._templates[parts] = template
        return template, slots

    def _fill(self, spec: TensorSpec, array: Array, slots: list[list[bytes]]) -> bytes:
        """Put the texts of one output into *slots*; returns what it is in a prediction, with as many gaps."""
        if not self._batchable:
            slots.append([_text(array)])
            return b"%b"
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        named = array.ndim == 2 and 0 < array.shape[1] == self._width and spec.role == "probabilities"
        if named and len(array) >= _MANY_ROWS:
            texts = value_texts(array)
            slots += [texts[column :: self._width] for column in range(self._width)]
            return self._classes
        rows = row_texts(array)
        if rows is None:
            slots.append([_text(row) for row in array])
        elif named:
            slots.append([self._classes % tuple(row.split(b",")) for row in rows])
        else:
            slots.append(rows)
            if array.ndim == 2:
                return b"[%b]"
        return b"%b"

    def stamp(self, body: bytes, variant: str, prediction_id: str) -> bytes:
        return b'%b,"variant":%b,"prediction_id":"%b"%b' % (
            self._head,
            orjson.dumps(variant),
            prediction_id.encode(),
            body,
        )


def _key(name: str) -> bytes:
    return orjson.dumps(name).replace(b"%", b"%%") + b":"


def _is_matrix(signature: Signature) -> bool:
    """Whether the features are, in order, the columns of one input."""
    spec = signature.inputs[0]
    return (
        len(signature.inputs) == 1
        and signature.batchable
        and len(spec.shape) == 2
        and spec.shape[1] == len(signature.features)
        and sorted(feature.column for feature in signature.features) == list(range(spec.shape[1]))
    )


def _text(value: Any) -> bytes:
    """JSON of a value or array; NaN and infinities as the bare tokens that Python's json reads and writes."""
    if isinstance(value, bytes):
        return orjson.dumps(value.decode("utf-8", "replace"))
    if isinstance(value, np.ndarray) and value.ndim:
        return b"[" + b",".join(_text(part) for part in value) + b"]"
    if isinstance(value, np.ndarray):
        return _text(value[()])
    if isinstance(value, np.floating) and not np.isfinite(value):
        return json.dumps(float(value)).encode()
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
