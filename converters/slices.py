"""How good the answers are for parts of the rows: by what stands in a column, a feature or any other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from converters.quality import Truth
from converters.rows import is_text
from gateway.errors import InvalidInput
from gateway.tensors import Array, Signature, Tensors

# Below this a figure of a slice says little.
FEW_ROWS = 30
_MAX_VALUES = 10
_MAX_COLUMNS = 5
_QUARTERS = (0.25, 0.5, 0.75)


def usual_columns(signature: Signature, table: Any, target: str) -> list[str]:
    """The columns that are sliced by unless others are asked for: true classes, and texts of few values."""
    texts = [feature.name for feature in signature.features if feature.kind == "categorical"]
    chosen = [name for name in texts if table[name].nunique() <= _MAX_VALUES][: _MAX_COLUMNS - 1]
    return [target, *chosen] if signature.classes is not None and len(signature.classes) <= _MAX_VALUES else chosen


def by_slice(truth: Truth, table: Any, columns: Sequence[str], outputs: Tensors) -> list[Mapping[str, Any]]:
    """For each column and each of its values, or quarter of its numbers: the rows with a truth, and the figures of
    *outputs*, the served model's answers to *table*. Raises InvalidInput for a column that is not there.
    """
    found: list[Mapping[str, Any]] = []
    for name in columns:
        if name not in table.columns:
            raise InvalidInput("slice", repr(name), f"a column of the data: {', '.join(map(repr, table.columns[:10]))}")
        for value, chosen in _parts(table[name], name):
            rows = truth.known(chosen)
            if rows:
                few = {"few_rows": True} if rows < FEW_ROWS else {}
                figures = truth.measure(outputs, chosen)
                found.append({"column": name, "value": value, "rows": rows, "served": figures, **few})
    return found


def _parts(column: Any, name: str) -> Iterator[tuple[str, Array]]:
    lacking = column.isna().to_numpy(dtype=bool)
    if is_text(column, name) or column.nunique() <= _MAX_VALUES:
        for value in column.value_counts().index[:_MAX_VALUES].tolist():
            yield str(value), (column == value).to_numpy(dtype=bool, na_value=False)
    else:
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        edges = [-np.inf, *np.unique(np.nanquantile(numbers, _QUARTERS)).tolist(), np.inf]
        for low, high in itertools.pairwise(edges):
            with np.errstate(invalid="ignore"):
                yield _between(low, high), (numbers > low) & (numbers <= high)
    if lacking.any():
        yield "(missing)", lacking


def _between(low: float, high: float) -> str:
    if np.isneginf(low):
        return f"up to {high:.4g}"
    return f"over {low:.4g}" if np.isposinf(high) else f"{low:.4g} to {high:.4g}"
