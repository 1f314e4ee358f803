"""The reference: what inputs and outputs looked like when the model was converted, to tell drift by later."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from converters.rows import feature_columns, output_columns
from gateway.tensors import Array, Signature, Tensors

MAX_ROWS = 5_000
MAX_CATEGORIES = 1_000
BINS = 10
# Columns with at most this many different numbers get one bin for each.
MAX_DISCRETE = 20
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def histograms(signature: Signature, inputs: Tensors, outputs: Tensors) -> Mapping[str, Any]:
    """The manifest's ``reference``: a histogram per feature and per output column over all rows.

    Numbers are counted as float32, as the gateway will see and log them.
    """
    return {
        "rows": len(next(iter(inputs.values()))),
        "features": {name: _histogram(values) for name, values in feature_columns(inputs, signature).items()},
        "outputs": {
            name: _counts(values) if name == "label" else _histogram(values)
            for name, values in output_columns(outputs, signature).items()
        },
    }


def rows_as_parquet(signature: Signature, inputs: Tensors, outputs: Tensors, random: np.random.Generator) -> bytes:
    """reference.parquet: at most MAX_ROWS rows drawn without replacement, in their old order.

    Columns: each feature and each output column by name; float32 for numbers (null where missing), string for texts.
    """
    total = len(next(iter(inputs.values())))
    rows = np.arange(total)
    if total > MAX_ROWS:
        rows = np.sort(random.choice(total, MAX_ROWS, replace=False))
    columns = {**feature_columns(inputs, signature), **output_columns(outputs, signature)}
    table = pyarrow.table({name: _column(values[rows]) for name, values in columns.items()})
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _column(values: Array) -> Any:
    if values.dtype == object:
        return pyarrow.array([value.decode() or None for value in values], type=pyarrow.string())
    return pyarrow.array(values, from_pandas=True)


def _histogram(values: Array) -> Mapping[str, Any]:
    return _counts(values) if values.dtype == object else _bins(values)


def _counts(values: Array) -> Mapping[str, Any]:
    """Counts per category, the most frequent first; a missing text is no category."""
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
    names, counts = np.unique([text for text in texts if text], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]
    return {
        "kind": "categorical",
        "counts": {str(names[i]): int(counts[i]) for i in order},
        "distinct": len(names),
        "missing_rate": _rate(texts.count(""), len(texts)),
    }


def _bins(values: Array) -> Mapping[str, Any]:
    present = values[np.isfinite(values)].astype(np.float64)
    if not present.size:
        return {"kind": "numeric", "edges": [], "counts": [], "quantiles": {}, "missing_rate": 1.0}
    edges = _edges(present)
    counts, _ = np.histogram(present, bins=edges)
    return {
        "kind": "numeric",
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "quantiles": {f"{q:g}": float(np.quantile(present, q)) for q in QUANTILES},
        "missing_rate": _rate(int(np.isnan(values).sum()), values.size),
    }


def _edges(present: Array) -> Array:
    """Edges from the smallest to the largest number: a bin per number if there are few, else about equal counts."""
    different = np.unique(present)
    if different.size == 1:
        only = different[0]
        return np.array([only - 0.5, only + 0.5]) if abs(only) < 2**50 else np.array([only, np.nextafter(only, np.inf)])
    if different.size <= MAX_DISCRETE:
        between = (different[1:] + different[:-1]) / 2
        return np.concatenate([different[:1], between, different[-1:]])
    edges: Array = np.unique(np.quantile(present, np.linspace(0, 1, BINS + 1)))
    return edges


def _rate(count: int, total: int) -> float:
    return count / total if total else 0.0
