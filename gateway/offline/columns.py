"""Rows of the sample log as columns of a table and back: which name and type each field has there.

A field of a record is a column of its own name; what stands in inputs, outputs and latency_us is ``inputs.NAME``,
``outputs.NAME``, ``latency_us.queue``, ``latency_us.run``. ``ts`` repeats ts_ns as a UTC timestamp. Model and version
are not among them: the folders of the log say them, and readers that know such folders would find them twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow

from gateway.samples.record import SCHEMA
from gateway.tensors import Signature

# What a column holds. none: nothing but missing values so far. json: values of several kinds, or objects, as JSON text.
Kind = Literal["none", "int", "big", "float", "bool", "text", "texts", "floats", "json"]
Kinds = dict[str, Kind]
Values = dict[str, list[Any]]

# The fields of every record. A line in which one of them is something else is no sample.
_FIELDS: Mapping[str, Kind] = {
    "schema": "int",
    "prediction_id": "text",
    "row": "int",
    "rows": "int",
    "request_id": "text",
    "ts_ns": "int",
    "digest": "text",
    "variant": "text",
    "flag_revision": "int",
    "variant_weight": "float",
    "reason": "text",
    "sample_rate": "float",
    "sample_reason": "text",
    "protocol": "text",
    "latency_us.queue": "int",
    "latency_us.run": "int",
    "batch_rows": "int",
    "cache": "text",
    "error": "text",
    "redacted": "texts",
    "trace_id": "text",
}
# Fields that are null where there is nothing to say, as serving writes them.
_NULLABLE = ("variant_weight", "error")
# Fields that say which row it is: without them a line is no sample. Others may be missing in records of other times.
IDENTITY = ("schema", "prediction_id", "row", "ts_ns", "sample_reason")
_TIME = "ts"
_JSON_MARK = {b"sluicegate": b"json"}
TYPES: Mapping[Kind, Any] = {
    "none": pyarrow.float64(),  # a type that readers may mix with those of other files, unlike "null"
    "int": pyarrow.int64(),
    "big": pyarrow.uint64(),
    "float": pyarrow.float64(),
    "bool": pyarrow.bool_(),
    "text": pyarrow.string(),
    # "element" is what Parquet calls it, and so what is read back from there.
    "texts": pyarrow.list_(pyarrow.field("element", pyarrow.string())),
    "floats": pyarrow.list_(pyarrow.field("element", pyarrow.float64())),
    "json": pyarrow.string(),
}
_OF_TYPE: Mapping[type, Kind] = {type(None): "none", int: "int", float: "float", bool: "bool", str: "text"}
_INFINITE = {"Infinity": float("inf"), "-Infinity": float("-inf")}
_TEXT_OF_INFINITE = {value: text for text, value in _INFINITE.items()}
_EXACT = 2**53  # whole numbers above this lose digits as floats


class KindMismatch(Exception):
    """The column *name* has values, or exists, against what the kinds at hand allow for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def read_lines(lines: Iterable[bytes], model: str, version: str) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The rows of *model* and *version* among *lines* as decoded records, and the lines that are none."""
    records: list[dict[str, Any]] = []
    rejected: list[bytes] = []
    for line in lines:
        try:
            record = orjson.loads(line)
            if _is_sample(record, model, version):
                records.append(record)
                continue
        except (ValueError, KeyError, TypeError):
            pass
        rejected.append(line)
    return records, rejected


def _is_sample(record: Any, model: str, version: str) -> bool:
    if record["schema"] != SCHEMA or record["model"] != model or record["version"] != version:
        return False
    if type(record["inputs"]) is not dict or type(record["outputs"]) is not dict:
        return False
    if any(record[name] is None for name in IDENTITY):
        return False
    latency_us = record.get("latency_us")
    if latency_us is not None and type(latency_us) is not dict:
        return False
    for name, kind in _FIELDS.items():
        value = record.get(name) if "." not in name else (latency_us or {}).get(name.partition(".")[2])
        if value is not None and not _is_of(value, kind):
            return False
    return True


def _is_of(value: Any, kind: Kind) -> bool:
    if kind == "int":
        return type(value) is int and -(2**63) <= value < 2**63
    if kind == "texts":
        return type(value) is list and all(type(text) is str for text in value)
    return type(value) in (float, int) if kind == "float" else type(value) is str


def values_by_name(records: Sequence[Mapping[str, Any]]) -> Values:
    """Column by column what the *records* hold, None where one has nothing. They are of one model and version."""
    found: Values = {}
    for name in _names(records):
        if name in ("model", "version"):
            continue
        values = [record.get(name) for record in records]
        if not any(type(value) is dict for value in values):
            found[name] = values
            continue
        groups = [value if type(value) is dict else {} for value in values]
        for inner in _names(groups):
            found[f"{name}.{inner}"] = [group.get(inner) for group in groups]
    return found


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """All names in the order in which they come; most of the groups have the same ones."""
    return list(dict.fromkeys(name for names in dict.fromkeys(map(tuple, groups)) for name in names))


def kinds_of(values: Values) -> Kinds:
    """The kind that holds all values of each column."""
    return {name: _FIELDS.get(name) or _kind_of(column) for name, column in values.items()}


def _kind_of(column: list[Any]) -> Kind:
    types = set(map(type, column)) - {type(None)}
    if not types:
        return "none"
    if types <= {int, float, str} and types != {str} and _only_infinite_texts(column):
        return _kind_of_numbers(column, types)
    if types == {str}:
        return "float" if set(column) - {None} <= _INFINITE.keys() else "text"
    if types == {bool}:
        return "bool"
    if types == {list}:
        inner = {type(value) for values in column if values for value in values}
        if inner <= {str}:
            return "texts"
        if inner <= {float}:
            return "floats"
    return "json"


def _only_infinite_texts(column: list[Any]) -> bool:
    return all(value in _INFINITE for value in column if type(value) is str)


def _kind_of_numbers(column: list[Any], types: set[type]) -> Kind:
    whole = [value for value in column if type(value) is int]
    if types == {int}:
        if max(whole) < 2**63:
            return "int"
        return "big" if min(whole) >= 0 else "json"
    return "float" if all(-_EXACT <= value <= _EXACT for value in whole) else "json"


def together(first: Kinds, second: Kinds) -> Kinds:
    """The kinds that hold the values of both."""
    return {name: _join(first.get(name, "none"), second.get(name, "none")) for name in {**first, **second}}


def _join(first: Kind, second: Kind) -> Kind:
    if first == second or second == "none":
        return first
    if first == "none":
        return second
    # Of these two, the one that holds the other's usual values. Unusual ones (2**53 + 1 among floats, -1 among the
    # large) are found out when they are converted.
    for wide in ("float", "big"):
        if {first, second} == {"int", wide}:
            return wide
    return "json"


def declared_kinds(signature: Signature) -> Kinds:
    """What the manifest says of the columns: so one without any value has its type all the same."""
    found: Kinds = {}
    for feature in signature.features:
        spec = signature.input(feature.input)
        if spec is not None:
            found[f"inputs.{feature.name}"] = _kind_of_datatype(spec.datatype)
    for column in signature.output_columns():
        spec = signature.output(column.output)
        if spec is not None:
            found[f"outputs.{column.name}"] = _kind_of_datatype(spec.datatype)
    return found


def _kind_of_datatype(datatype: str) -> Kind:
    if datatype in ("BOOL", "BYTES"):
        return "bool" if datatype == "BOOL" else "text"
    if datatype == "UINT64":
        return "big"
    return "int" if "INT" in datatype else "float"


def schema_of(kinds: Kinds) -> Any:
    """The Arrow schema of a table whose columns are of these *kinds*; ts stands beside ts_ns."""
    fields = []
    for name, kind in kinds.items():
        fields.append(pyarrow.field(name, TYPES[kind], metadata=_JSON_MARK if kind == "json" else None))
        if name == "ts_ns":
            fields.append(pyarrow.field(_TIME, pyarrow.timestamp("us")))
    return pyarrow.schema(fields)


def kinds_in(schema: Any) -> Kinds:
    """The inverse of schema_of. Raises ValueError if it is no such schema."""
    by_type: dict[Any, Kind] = {
        TYPES[kind]: kind for kind in ("int", "big", "float", "bool", "text", "texts", "floats")
    }
    found: Kinds = {}
    for field in schema:
        if field.name == _TIME:
            continue
        if field.type not in by_type:
            raise ValueError(f"column {field.name!r} has a type that the log does not use: {field.type}")
        found[field.name] = "json" if (field.metadata or {}) == _JSON_MARK else by_type[field.type]
    return found


def table_of(values: Values, kinds: Kinds) -> Any:
    """An Arrow table of schema_of(kinds) with these *values*. Raises KindMismatch if they do not fit it."""
    for name in values.keys() - kinds.keys():
        raise KindMismatch(name)
    rows = len(next(iter(values.values()), []))
    arrays = []
    for name, kind in kinds.items():
        arrays.append(_array(name, values.get(name) or [None] * rows, kind))
        if name == "ts_ns":
            arrays.append(pyarrow.array(np.array(values[name], np.int64) // 1000).cast(pyarrow.timestamp("us")))
    return pyarrow.table(arrays, schema=schema_of(kinds))


def _array(name: str, column: list[Any], kind: Kind) -> Any:
    if kind == "json":
        texts = [None if value is None else orjson.dumps(value).decode() for value in column]
        return pyarrow.array(texts, pyarrow.string())
    found = _FIELDS.get(name) or _kind_of(column)
    if _join(kind, found) != kind:
        raise KindMismatch(name)
    if kind == "float" and str in set(map(type, column)):
        column = [_INFINITE[value] if type(value) is str else value for value in column]
    try:
        return pyarrow.array(column, TYPES[kind])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
        raise KindMismatch(name) from error


def records_of(table: Any, model: str, version: str) -> Iterator[dict[str, Any]]:
    """The rows of *table* as the records that they were. Fields that a row did not have are left out, inputs and
    outputs that it did not have are None. Raises ValueError if it is no such table.
    """
    columns = {name: plain_values(table[name].to_pylist(), kind) for name, kind in kinds_in(table.schema).items()}
    groups: dict[str, dict[str, list[Any]]] = {}
    for name, column in columns.items():
        head, _, tail = name.partition(".")
        groups.setdefault(head, {})[tail] = column
    for row in range(table.num_rows):
        record: dict[str, Any] = {}
        for head, parts in groups.items():
            whole = parts.get("")
            if whole is None:
                record[head] = {tail: column[row] for tail, column in parts.items()}
            elif whole[row] is not None or head in _NULLABLE:
                record[head] = whole[row]
            if head == "ts_ns":
                record |= {"model": model, "version": version}
        record.setdefault("inputs", {})
        record.setdefault("outputs", {})
        yield record


def plain_values(column: list[Any], kind: Kind) -> list[Any]:
    """What a column of a part, or some of its values, said in the lines."""
    if kind == "json":
        return [None if value is None else orjson.loads(value) for value in column]
    if kind == "float":
        return [_TEXT_OF_INFINITE.get(value, value) for value in column]
    return column
