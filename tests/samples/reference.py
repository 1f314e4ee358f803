"""The lines of a sample as one would write them to be read, row by row: what the fast builder's are held against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from gateway.redaction import Rules, rules_for
from gateway.samples.record import SCHEMA, Sample
from gateway.tensors import DATATYPES, Array, Signature, Tensors

Side = dict[str, list[tuple[str, int]]]  # tensor -> (name, column) of its named columns


def expected_lines(sample: Sample, max_rows: int, redact: Mapping[str, Rules], key: Callable[[], bytes]) -> list[bytes]:
    """One line per written row, at most *max_rows* of them, evenly spread."""
    inputs, outputs = sides_of(sample.signature)
    parts = {tensor: [name for name, _ in columns] for side in (inputs, outputs) for tensor, columns in side.items()}
    rules = rules_for(sample.model, sample.redact, redact, parts)
    hidden = {
        tensor
        for side in (inputs, outputs)
        for tensor, columns in side.items()
        if tensor in rules or any(name in rules for name, _ in columns)
    }
    lines = []
    count = min(sample.rows, max_rows)
    for row in (index * sample.rows // count for index in range(count)):
        named_inputs = named(sample, inputs, sample.inputs, row)
        named_outputs = named(sample, outputs, sample.outputs, row)
        redacted = set()
        for values in (named_inputs, named_outputs):
            redacted |= redact_row(values, rules, hidden, key)
        record = {
            "schema": SCHEMA,
            "prediction_id": sample.prediction_id,
            "row": row,
            "rows": sample.rows,
            "request_id": sample.request_id,
            "ts_ns": sample.ts_ns,
            "model": sample.model,
            "version": sample.version,
            "digest": sample.digest,
            "variant": sample.variant,
            "flag_revision": sample.flag_revision,
            "variant_weight": sample.variant_weight,
            "reason": sample.reason,
            "sample_rate": sample.sample_rate,
            "sample_reason": sample.sample_reason,
            "protocol": sample.protocol,
            "inputs": named_inputs,
            "outputs": named_outputs,
            "latency_us": {"queue": round(sample.queue_s * 1e6), "run": round(sample.run_s * 1e6)},
            "batch_rows": sample.batch_rows,
            "cache": sample.cache,
            "error": sample.error,
            "redacted": sorted(redacted),
        }
        lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    return lines


def sides_of(signature: Signature) -> tuple[Side, Side]:
    """The named columns of the inputs and of the outputs."""
    inputs: Side = {}
    outputs: Side = {}
    for feature in signature.features:
        inputs.setdefault(feature.input, []).append((feature.name, feature.column))
    for column in signature.output_columns():
        outputs.setdefault(column.output, []).append((column.name, column.index or 0))
    return inputs, outputs


def named(sample: Sample, side: Side, tensors: Tensors, row: int) -> dict[str, Any]:
    """{name: value} of one row over all tensors; a dict as a value is a summary."""
    found: dict[str, Any] = {}
    for tensor, array in tensors.items():
        values = array.reshape(sample.rows, -1)[row] if array.size else np.empty(0, array.dtype)
        columns = side.get(tensor, [])
        fits = columns and max(column for _, column in columns) < len(values)
        if not fits or (not sample.signature.batchable and len(columns) != len(values)):
            found[tensor] = summary(values, array.shape[1:] if sample.signature.batchable else array.shape)
        else:
            found.update({name: plain(values[column]) for name, column in columns})
    return found


def plain(value: Any) -> Any:
    """One value as JSON knows it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.floating):
        if np.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return orjson.loads(orjson.dumps(np.array([value]), option=orjson.OPT_SERIALIZE_NUMPY))[0]
    return value.item() if isinstance(value, np.generic) else value


def summary(values: Array, shape: tuple[int, ...]) -> dict[str, Any]:
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in values.tolist()]
    raw = b"\0".join(texts) if values.dtype == object else values.tobytes()
    datatype = DATATYPES.get(values.dtype, str(values.dtype))
    return {"datatype": datatype, "shape": list(shape), "sha256": hashlib.sha256(raw).hexdigest()}


def redact_row(row: dict[str, Any], rules: Rules, hidden: set[str], key: Callable[[], bytes]) -> set[str]:
    """Put into a row what may be written of it; returns the names that this concerns."""
    found = {name for name in rules if name in row}
    for name in found:
        if rules[name].kind == "drop" or isinstance(row[name], dict):
            del row[name]
        else:
            row[name] = rules[name].replace(name, row[name], key())
    for name in hidden.intersection(row):
        if isinstance(row[name], dict):
            del row[name]
            found.add(name)
    return found
