"""MLflow's scoring protocol: a table or tensors in, as JSON in four forms or as CSV, and predictions out.

Source: mlflow/mlflow, pyfunc/scoring_server and the documentation of ``mlflow models serve``. A model with a label
among its outputs answers with that, as scikit-learn's predict() does; the parameter ``outputs`` asks for others.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from gateway.codecs.codec import JSON_HEADERS, BoundCodec, Encoded, Request, Spans, Wish
from gateway.codecs.envelope import MOST_ROWS, Envelopes
from gateway.codecs.large import LARGE_BYTES, tensors_document
from gateway.codecs.nested import TensorReader, json_rows, to_json
from gateway.codecs.numbers import name_of, parse_json
from gateway.codecs.records import head
from gateway.codecs.table import Table, matrix_input
from gateway.errors import (
    GatewayError,
    InferenceFailed,
    InvalidInput,
    KeyOutOfScope,
    KeyUnknown,
    QuotaExceeded,
    Refused,
    UnknownModel,
    UnknownVersion,
)
from gateway.tensors import FLOATS, Array, Signature, Tensors

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
# The names of errors that MLflow's clients know; all others are BAD_REQUEST.
_CODES: Mapping[type[GatewayError], str] = {
    UnknownModel: "RESOURCE_DOES_NOT_EXIST",
    UnknownVersion: "RESOURCE_DOES_NOT_EXIST",
    KeyUnknown: "UNAUTHENTICATED",
    KeyOutOfScope: "PERMISSION_DENIED",
    InferenceFailed: "INTERNAL_ERROR",
    QuotaExceeded: "REQUEST_LIMIT_EXCEEDED",
    Refused: "TEMPORARILY_UNAVAILABLE",
}
_SPLIT = b'"dataframe_split"'
# Where tensors may stand in large bodies, by which of the forms is named so early, and how those of records begin.
_FORM_WITHIN = 64
_FRAME = {"dataframe_split": "data"}
_TENSORS = {"instances": "", "inputs": ""}
_RECORDS = head("dataframe_records", "instances", "inputs", bare=True)
_TEXTS = frozenset({str})
_CSV = "text/csv"
# Its documentation says so, too.
_CSV_TYPES = frozenset({_CSV, "application/csv"})
# What pandas reads as missing, or at least what it writes and people type.
_MISSING = frozenset({"", "nan", "NaN", "NA", "N/A", "null", "NULL", "None"})
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class MlflowCodec:
    """``{"dataframe_split": {"columns": [...], "data": [[...]]}}``, records, tensors as for TensorFlow, or CSV."""

    name = "mlflow"

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        return BoundMlflow(signature)

    def error(self, error: GatewayError) -> bytes:
        code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), "BAD_REQUEST")
        return orjson.dumps({"error_code": code, "message": str(error)})

    def cache_headers(self, headers: Mapping[str, str]) -> str:
        return _CSV if _is_csv(headers) else ""


class BoundMlflow:
    """MLflow's protocol for one version."""

    def __init__(self, signature: Signature) -> None:
        self._batchable = signature.batchable
        self._reader = TensorReader(signature)
        self._table = Table(signature)
        # Of tensors in large bodies; there a column of a matrix may be a tensor.
        self._datatypes = self._reader.datatypes
        if self._table.matrix_datatype is not None:
            self._datatypes = {**dict.fromkeys(self._table.names, self._table.matrix_datatype), **self._datatypes}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        labels = [spec.name for spec in signature.outputs if spec.role == "label"]
        self._usual = tuple(labels[:1]) or tuple(self._outputs)
        spec = matrix_input(signature)
        is_matrix = spec is not None and len(spec.shape) == 2
        self._envelopes = Envelopes(b'"data"', 2, signature.inputs[0], self._plain_row) if is_matrix else None

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        if _is_csv(headers):
            request = self._from_csv(body)
            request.is_plain = request.rows <= MOST_ROWS
            return request
        request = self._from_json(body)
        # Of the other forms each body would be looked at as a new envelope.
        if (
            request.rows == 1
            and request.is_plain
            and request.flat is not None
            and self._envelopes is not None
            and _SPLIT in body
        ):
            self._envelopes.learn(body)
        return request

    def decode_plain(self, bodies: list[bytes]) -> list[bytes | None]:
        return self._envelopes.read(bodies) if self._envelopes is not None else [None] * len(bodies)

    def _plain_row(self, body: bytes) -> Request | None:
        try:
            request = self._from_json(body)
        except InvalidInput:
            return None
        return request if request.is_plain else None

    # -- JSON ---------------------------------------------------------------------------------------

    def _from_json(self, body: bytes) -> Request:
        if len(body) >= LARGE_BYTES and self._datatypes:
            large = self._largely(body)
            if large is not None:
                return large
        return self._from_document(parse_json(body))

    def _largely(self, body: bytes) -> Request | None:
        """A large request of numbers; None for one that is not plainly right, which the other way then reads."""
        if _RECORDS.match(body):
            request = self._table.read_large(body, _RECORDS)
            if request is not None:
                request.is_plain = request.rows <= MOST_ROWS
            return request
        is_frame = _SPLIT in body[:_FORM_WITHIN]
        if is_frame and self._table.matrix_datatype is None:
            return None
        document = tensors_document(body, _FRAME if is_frame else _TENSORS, self._datatypes, null=is_frame)
        try:
            return None if document is None else self._from_document(document)
        except InvalidInput:  # said by the way that has the values as they came
            return None

    def _from_document(self, document: Any) -> Request:
        if type(document) is list and document:  # records without a word around them
            request = self._from_records(document, "body")
            request.is_plain = request.rows <= MOST_ROWS
            return request
        if type(document) is not dict:
            raise InvalidInput("body", name_of(document), "a JSON object")
        forms = [form for form in _FORMS if form in document]
        if len(forms) != 1:
            raise InvalidInput("body", ", ".join(forms) or "none of them", f"exactly one of {', '.join(_FORMS)}")
        wanted = self._wanted(document.get("params"))
        value = document[forms[0]]
        if forms[0] == "dataframe_split":
            request = self._from_split(value)
        elif forms[0] == "dataframe_records":
            request = self._from_records(value, forms[0])
        else:
            request = self._from_tensors(value, forms[0])
        request.outputs = wanted
        request.is_plain = request.rows <= MOST_ROWS and wanted is None
        return request

    def _wanted(self, params: Any) -> tuple[Wish, ...] | None:
        """The outputs that the parameters ask for, none of them as binary; None: the usual ones."""
        if params is None or params == {}:
            return None
        if type(params) is not dict:
            raise InvalidInput("params", name_of(params), "an object")
        for name in params:
            if name != "outputs":
                raise InvalidInput(f"params.{name}", "an unknown parameter", "only outputs")
        names = params["outputs"]
        if type(names) is not list or not names:
            raise InvalidInput("params.outputs", name_of(names), "an array of output names")
        for index, name in enumerate(names):
            if type(name) is not str or name not in self._outputs or name in names[:index]:
                known = ", ".join(self._outputs)
                raise InvalidInput(f"params.outputs[{index}]", name_of(name), f"each of {known} once at most")
        return tuple([Wish(name, False) for name in names])

    def _from_split(self, frame: Any) -> Request:
        field = "dataframe_split"
        if type(frame) is not dict:
            raise InvalidInput(field, name_of(frame), "an object with 'columns' and 'data'")
        rows: Any = frame.get("data")
        if not isinstance(rows, np.ndarray) and (type(rows) is not list or not rows):
            raise InvalidInput(f"{field}.data", "an empty array" if rows == [] else name_of(rows), "an array of rows")
        names = frame.get("columns", list(self._table.names))
        if type(names) is not list or not set(map(type, names)) <= _TEXTS:
            raise InvalidInput(f"{field}.columns", name_of(names), "an array of column names")
        if isinstance(rows, np.ndarray):  # of a large body
            return self._table.read_matrix(names, rows)
        for index, row in enumerate(rows):
            if type(row) is not list or len(row) != len(names):
                came = f"{len(row)} values" if type(row) is list else name_of(row)
                raise InvalidInput(f"{field}.data[{index}]", came, f"an array of {len(names)} values, one per column")
        return self._table.read(_by_name(names, rows, f"{field}.columns"), len(rows), _place)

    def _from_records(self, records: Any, field: str) -> Request:
        if type(records) is not list or not records:
            raise InvalidInput(field, "an empty array" if records == [] else name_of(records), "an array of objects")
        return self._table.read_objects(records, _place, field)

    def _from_tensors(self, value: Any, field: str) -> Request:
        """Tensors as TensorFlow Serving takes them, or, where the names are those of features, a table."""
        first = value[0] if type(value) is list and value else value
        if self._reader.names_inputs(first) or not self._table.names_features(first):
            is_rows = field == "instances" or (type(value) is list and type(first) is dict)
            read = self._reader.rows if is_rows else self._reader.columns
            return self._reader.request(read(value, field))
        if type(value) is list:
            return self._from_records(value, field)
        if type(next(iter(value.values()))) is np.ndarray:  # of a large body, and so are the others
            return self._table.read_columns(value)
        rows = {len(column) if type(column) is list else -1 for column in value.values()}
        if len(rows) != 1 or rows == {-1}:
            raise InvalidInput(field, "columns of several lengths, or none", "an array of as many values per column")
        return self._table.read(value, rows.pop(), _place)

    # -- CSV ----------------------------------------------------------------------------------------

    def _from_csv(self, body: bytes) -> Request:
        try:
            text = body.decode("utf-8-sig")
            lines = [line for line in csv.reader(text.splitlines(keepends=True), strict=True) if line]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidInput(
                "body", f"what is no CSV ({error})", "CSV in UTF-8 with a line of column names"
            ) from None
        if len(lines) < 2:
            raise InvalidInput("body", f"{len(lines)} lines", "a line of column names and at least one row")
        names, *rows = lines
        for index, row in enumerate(rows):
            if len(row) != len(names):
                raise InvalidInput(f"row {index}", f"{len(row)} values", f"{len(names)} values, one per column")
        columns = _by_name(names, rows, "the line of column names")
        for name in columns:
            datatype = self._table.datatype(name)
            if datatype is not None:
                columns[name] = list(map(_reader_of(datatype), columns[name]))
        return self._table.read(columns, len(rows), _place)

    # -- the answer ---------------------------------------------------------------------------------

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        names = self._usual if request.outputs is None else [wish.name for wish in request.outputs]
        if self._batchable:
            return Encoded(b'{"predictions":[%b]}' % b",".join(_records(names, outputs)), JSON_HEADERS)
        texts = [to_json(outputs[name]) for name in names]
        whole = texts[0] if len(texts) == 1 else _record(names) % tuple(texts)
        return Encoded(b'{"predictions":%b}' % whole, JSON_HEADERS)

    def encode_rows(self, outputs: Tensors, spans: Spans | None = None) -> list[bytes] | None:
        if not self._batchable:
            return None
        rows = _records(self._usual, outputs)
        if spans is not None:
            rows = [b",".join(rows[start:stop]) for start, stop in spans]
        return [b'{"predictions":[%b]}' % row for row in rows]

    stamp = None


def _records(names: Any, outputs: Tensors) -> list[bytes]:
    """The JSON of each row: the value of the only output, or an object of outputs."""
    columns = [json_rows(_squeezed(outputs[name])) for name in names]
    if len(columns) == 1:
        return columns[0]
    record = _record(names)
    return [record % row for row in zip(*columns, strict=True)]


def _record(names: Any) -> bytes:
    return b"{" + b",".join([orjson.dumps(name).replace(b"%", b"%%") + b":%b" for name in names]) + b"}"


def _squeezed(array: Array) -> Array:
    """One number per row as just that, as a column of a table is."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _by_name(names: list[str], rows: list[list[Any]], field: str) -> dict[str, list[Any]]:
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidInput(field, f"{twice!r} twice", "each column once")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _place(row: int | None, name: str) -> str:
    return f"column {name!r}" if row is None else f"column {name!r}, row {row}"


def _is_csv(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() in _CSV_TYPES


def _reader_of(datatype: str) -> Callable[[str], Any]:
    """From the text of a cell to a JSON value; what cannot be read stays a text, which is then refused by name."""
    if datatype == "BYTES":
        return lambda text: text if text else None
    if datatype == "BOOL":
        return lambda text: None if text in _MISSING else _TRUTHS.get(text.strip(), text)
    return _float if datatype in FLOATS else _int


def _float(text: str) -> Any:
    if text in _MISSING:
        return None
    try:
        value = float(text)
    except ValueError:
        return text
    is_beyond = math.isinf(value) and "inf" not in text.lower()
    return text if is_beyond or "_" in text else value


def _int(text: str) -> Any:
    if text in _MISSING:
        return None
    try:
        return int(text) if "_" not in text else text
    except ValueError:
        return text
