"""One sampled prediction, and the JSON lines (one per row) that keep it: who asked what, what was answered, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mmh3
import numpy as np
import orjson

from gateway.redaction import NOTHING, Rules, rules_for
from gateway.tensors import DATATYPES, Array, Signature, Tensors

SCHEMA = 1
SCHEMA_FILE = "sample.schema.json"

# The only reason whose rows may enter statistics: every prediction had the same chance to be written.
RANDOM = "random"
# Rules by which others are written too, as their rows name them.
ERROR, KEY, HEADER = "error", "key", "header"
LOW_CONFIDENCE, OUTLIER, SLOW = "low_confidence", "outlier", "slow"

_HASH_SPAN = 2**32


# The 32-bit hash of a prediction id by which sampling decides: a prediction is sampled if it is below `sampling_limit`.
# That depends on nothing but the id, so a request, its shadow and its label agree; and what a lower rate includes, a
# higher rate includes too. Its seed is its own: a route may hash the same id.
sample_hash: Callable[[str], int] = partial(mmh3.hash, seed=0x5A3B1E, signed=False)


def sampling_limit(rate: float) -> float:
    """A share *rate* (0..1) of all ids has a `sample_hash` below this."""
    return rate * _HASH_SPAN


@dataclass(slots=True, eq=False)
class Sample:
    """One answered prediction as the pipeline hands it to the sampler: references only, nothing is copied.

    inputs, outputs: arrays that nobody changes any more, first dimension *rows* (one row if the model is not
    batchable). ts_ns: Unix time. sample_rate: the rate in force, so that readers can weight. queue_s, run_s,
    batch_rows: zero where no run happened (a cache hit). cache: hit, miss, shared or bypass. error: the code of the
    error that was the answer; then there are no outputs, and no inputs if they could not be read. redact: what the card
    of the package says of its values.
    """

    prediction_id: str
    request_id: str
    ts_ns: int
    model: str
    version: str
    digest: str
    variant: str
    flag_revision: int
    reason: str
    sample_rate: float
    sample_reason: str
    inputs: Tensors
    outputs: Tensors
    signature: Signature
    rows: int
    queue_s: float
    run_s: float
    batch_rows: int
    cache: str
    protocol: str
    error: str | None = None
    redact: Rules = field(default_factory=dict)


def to_lines(sample: Sample, max_rows: int) -> list[bytes]:
    """The lines of one sample; see LineBuilder.lines."""
    return LineBuilder(max_rows).lines(sample)


def picked_rows(rows: int, max_rows: int) -> Sequence[int]:
    """Which rows of a request are written: all, or *max_rows* of them spread evenly over the request."""
    return range(rows) if rows <= max_rows else [index * rows // max_rows for index in range(max_rows)]


def _no_key() -> bytes:
    raise OSError("there is no key to hash with")


class LineBuilder:
    """Turns samples into lines, remembering the layout of each signature. Used by one thread.

    redact: rules by model, beside those of the samples. key: gives the key of the hashes when it is first needed; what
    it raises, `lines` raises.
    """

    # Versions come and go; a worker that has served more than this many starts to remember anew.
    _MAX_LAYOUTS = 256

    def __init__(
        self, max_rows: int, redact: Mapping[str, Rules] | None = None, key: Callable[[], bytes] = _no_key
    ) -> None:
        self._max_rows = max_rows
        self._redact = redact or {}
        self._key = key
        # By identity, since hashing a signature costs more than building a line; the signature itself is kept in the
        # layout, so that its identity cannot be taken over by another one.
        self._layouts: dict[tuple[int, int, str], _Layout] = {}

    def lines(self, sample: Sample) -> list[bytes]:
        """One JSON object with a newline per written row, at most max_rows of them.

        NaN is written as null (missing), infinities as "Infinity" and "-Infinity". FP16 and FP32 values are written
        as the shortest decimal that reads back to the same 16 or 32 bits. An input or output that no feature or
        output column describes is written as a summary: datatype, shape, sha256.
        """
        layout = self._layout(sample)
        picks = picked_rows(sample.rows, self._max_rows)
        inputs = layout.named_rows(layout.inputs, sample.inputs, sample.rows, picks)
        outputs = layout.named_rows(layout.outputs, sample.outputs, sample.rows, picks)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "prediction_id": sample.prediction_id,
            "row": 0,
            "rows": sample.rows,
            "request_id": sample.request_id,
            "ts_ns": sample.ts_ns,
            "model": sample.model,
            "version": sample.version,
            "digest": sample.digest,
            "variant": sample.variant,
            "flag_revision": sample.flag_revision,
            "reason": sample.reason,
            "sample_rate": sample.sample_rate,
            "sample_reason": sample.sample_reason,
            "protocol": sample.protocol,
            "inputs": None,
            "outputs": None,
            "latency_us": {"queue": round(sample.queue_s * 1e6), "run": round(sample.run_s * 1e6)},
            "batch_rows": sample.batch_rows,
            "cache": sample.cache,
            "error": sample.error,
            "redacted": [],
        }
        if layout.rules:
            record["redacted"] = sorted({name for named in (*inputs, *outputs) for name in layout.redact(named)})
        lines: list[bytes] = []
        for row, named_inputs, named_outputs in zip(picks, inputs, outputs, strict=True):
            record["row"] = row
            record["inputs"] = named_inputs
            record["outputs"] = named_outputs
            lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        return lines

    def _layout(self, sample: Sample) -> _Layout:
        key = (id(sample.signature), id(sample.redact), sample.model)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= self._MAX_LAYOUTS:
                self._layouts.clear()
            rules = rules_for(sample.model, sample.redact, self._redact)
            needs_key = any(rule.kind == "hash" for rule in rules.values())
            secret = self._key() if needs_key else b""
            layout = self._layouts[key] = _Layout(sample.signature, sample.redact, rules, secret)
        return layout


class _Columns:
    """The named columns of one tensor."""

    __slots__ = ("names", "positions")

    def __init__(self) -> None:
        self.names: list[str] = []
        self.positions: list[int] = []

    def table(self, whole: Array) -> Array | None:
        """The named columns of *whole* [rows, width], or None if that has not got them."""
        width = whole.shape[1]
        if len(self.positions) == width and self.positions == list(range(width)):
            return whole
        return whole[:, self.positions] if max(self.positions) < width else None


class _Layout:
    """Which column of which tensor has which name; tensors without an entry are summarized.

    rules: what is redacted, by name. secret: the key of the hashes.
    """

    __slots__ = ("_card", "_hidden", "_secret", "inputs", "outputs", "rules", "signature")

    def __init__(
        self, signature: Signature, card: Rules = NOTHING, rules: Rules = NOTHING, secret: bytes = b""
    ) -> None:
        self.signature = signature
        self.rules = rules
        self._card = card  # kept for its identity, as the signature is
        self._secret = secret
        self.inputs: dict[str, _Columns] = {}
        self.outputs: dict[str, _Columns] = {}
        for feature in signature.features:
            _add(self.inputs, feature.input, feature.name, feature.column)
        for column in signature.output_columns():
            _add(self.outputs, column.output, column.name, column.index or 0)
        # Tensors with a value that is redacted: a summary of all of it would tell of that one.
        self._hidden = {
            tensor
            for side in (self.inputs, self.outputs)
            for tensor, columns in side.items()
            if tensor in rules or not rules.keys().isdisjoint(columns.names)
        }

    def redact(self, row: dict[str, Any]) -> list[str]:
        """Put into one named row what may be written of it; returns the names that this concerns."""
        found = [name for name in self.rules if name in row]
        for name in found:
            rule = self.rules[name]
            if rule.kind == "drop" or type(row[name]) is dict:  # a dict is a summary
                del row[name]
            else:
                row[name] = rule.replace(name, row[name], self._secret)
        for name in self._hidden.intersection(row):
            if type(row[name]) is dict:
                del row[name]
                found.append(name)
        return found

    def named_rows(
        self, side: dict[str, _Columns], tensors: Tensors, rows: int, picks: Sequence[int]
    ) -> list[dict[str, Any]]:
        """One {name: value} per picked row, over all *tensors*."""
        names: list[str] = []
        parts: list[list[list[Any]]] = []
        for tensor, array in tensors.items():
            whole = array.reshape(rows, -1) if array.size else array.reshape(rows, 0)
            if len(picks) < rows:
                whole = whole[picks]
            columns = side.get(tensor)
            if not self.signature.batchable and columns is not None and len(columns.names) != whole.shape[1]:
                columns = None  # its first dimension is not the rows: the names do not fit the whole tensor
            table = None if columns is None else columns.table(whole)
            if columns is None or table is None:
                shape = array.shape[1:] if self.signature.batchable else array.shape
                names.append(tensor)
                parts.append([[_summary(row, shape)] for row in whole])
            else:
                names += columns.names
                parts.append(_plain(table))
        if len(parts) == 1:
            return [dict(zip(names, row, strict=True)) for row in parts[0]]
        return [
            dict(zip(names, [value for part in parts for value in part[i]], strict=True)) for i in range(len(picks))
        ]


def _add(side: dict[str, _Columns], tensor: str, name: str, position: int) -> None:
    columns = side.setdefault(tensor, _Columns())
    columns.names.append(name)
    columns.positions.append(position)


def _plain(table: Array) -> list[list[Any]]:
    """The values as JSON knows them; the shape stays [rows, columns]."""
    plain: list[list[Any]]
    if table.dtype == object:
        return [[_text(value) for value in row] for row in table.tolist()]
    if table.dtype.kind != "f":
        plain = table.tolist()
        return plain
    # Not tolist: it widens to 64 bits and gives 0.10000000149011612 for 0.1; orjson knows the short form.
    raw = orjson.dumps(np.ascontiguousarray(table), option=orjson.OPT_SERIALIZE_NUMPY)
    plain = orjson.loads(raw)
    if b"null" in raw:  # NaN, as it should be, or an infinity
        for row, column in np.argwhere(np.isinf(table)).tolist():
            plain[row][column] = "Infinity" if table[row, column] > 0 else "-Infinity"
    return plain


def _text(value: Any) -> Any:
    """A BYTES element as text; bytes that are not UTF-8 are shown as \\xNN."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _summary(row: Array, shape: Sequence[int]) -> dict[str, Any]:
    """What is kept of one row of a tensor too wide to be written: enough to find equal ones again."""
    raw = b"\0".join(bytes(value) for value in row.tolist()) if row.dtype == object else row.tobytes()
    return {
        "datatype": DATATYPES.get(row.dtype, str(row.dtype)),
        "shape": list(shape),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


_REASONS = (
    "random: every answered prediction had the same chance; use no others for statistics. Or the rule that wanted it: "
    "error, key, header, low_confidence, outlier, slow."
)


def json_schema() -> bytes:
    """The JSON Schema of one line, as it is shipped beside the data. Fields are only ever added."""
    text, whole, number = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    summary = {
        "type": "object",
        "description": "A tensor too wide to be written: its datatype, shape without the rows, sha256 of the bytes.",
        "required": ["datatype", "shape", "sha256"],
    }
    scalar = {"type": ["number", "string", "boolean", "null"]}
    named = {
        "type": "object",
        "description": "By name. null is missing (NaN); infinities are the strings Infinity and -Infinity.",
        "additionalProperties": {"anyOf": [scalar, summary]},
    }
    properties: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "prediction_id": {**text, "description": "Minted by the gateway, one per request."},
        "row": {**whole, "minimum": 0, "description": "Which row of the request this line is."},
        "rows": {**whole, "minimum": 1, "description": "Rows of the request; not all of a large one are written."},
        "request_id": {**text, "description": "The client's, for correlation only."},
        "ts_ns": {**whole, "description": "Unix time of the answer, in nanoseconds."},
        "model": text,
        "version": text,
        "digest": {**text, "description": "Which package of that version answered."},
        "variant": text,
        "flag_revision": {**whole, "description": "Revision that last changed the model's route flag."},
        "reason": {**text, "description": "Why the flag chose this variant."},
        "sample_rate": {**number, "minimum": 0, "maximum": 1, "description": "Share of predictions then written."},
        "sample_reason": {**text, "description": _REASONS},
        "protocol": text,
        "inputs": named,
        "outputs": named,
        "latency_us": {
            "type": "object",
            "properties": {"queue": whole, "run": whole},
            "required": ["queue", "run"],
        },
        "batch_rows": {**whole, "minimum": 0, "description": "Rows in the run that gave the answer; 0 on a hit."},
        "cache": {"enum": ["hit", "miss", "shared", "bypass"]},
    }
    required = list(properties)  # of every row, also of those that were written before the fields below were known
    properties["error"] = {"type": ["string", "null"], "description": "Code of the error that was the answer."}
    properties["redacted"] = {
        "type": "array",
        "items": text,
        "description": "Names whose values were dropped, hashed or put into ranges; what is dropped is not there.",
    }
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One row of a sampled prediction",
        "type": "object",
        "properties": properties,
        "required": required,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
