"""Whether the features still go together as they did: one figure for all of them, shown and never an alarm.

Tests of single columns cannot see that two features, each distributed as ever, no longer belong together. Principal
components of the reference can: what they leave of a row grows when columns stop following each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.offline.drift import Column
from gateway.tensors import Array

# The components kept explain this share of the variance; what is left is what can grow.
EXPLAINED_SHARE = 0.65
# One outlier must not be all that is seen of the others.
_CLIP_DEVIATIONS = 10.0
_CHUNKS = 20
_BAND_DEVIATIONS = 3.0
_MIN_CHUNK_ROWS = 10


@dataclass(frozen=True, slots=True)
class Together:
    """The reconstruction error of a window, and what chunks of the reference of that size would have.

    error: mean distance of a row from its reconstruction, in standard deviations. expected: that of the reference.
    low, high: three standard deviations around it. components, columns: kept, of so many. is_outside: beyond the band.
    """

    error: float
    expected: float
    low: float
    high: float
    components: int
    columns: int
    is_outside: bool


def reconstruction_errors(fitted_on: Array, rows: Array, explained_share: float) -> tuple[Array, int]:
    """How far each of *rows* lies from its projection on the principal components of *fitted_on*: (errors, components).

    fitted_on: [m, k], rows: [n, k], float64 and finite; so many components that they explain the share. The same as
    sklearn.decomposition.PCA with transform and inverse_transform, without the import.
    """
    fitted = _Components(fitted_on, explained_share)
    return fitted.errors(rows), fitted.kept


class _Components:
    """The principal components of a table, so many that they explain the share."""

    def __init__(self, fitted_on: Array, explained_share: float) -> None:
        self._centre = fitted_on.mean(axis=0)
        _u, strengths, directions = np.linalg.svd(fitted_on - self._centre, full_matrices=False)
        explained = np.cumsum(strengths**2) / np.sum(strengths**2)
        self.kept = min(int(np.searchsorted(explained, explained_share, side="left")) + 1, len(strengths))
        self._directions = directions[: self.kept]

    def errors(self, rows: Array) -> Array:
        """How far each of *rows* lies from its projection."""
        centred = rows - self._centre
        left = centred - (centred @ self._directions.T) @ self._directions
        return np.asarray(np.sqrt(np.sum(left**2, axis=1)))


class Fit:
    """The reference of one version, ready to compare windows with. Made once; used by one thread."""

    def __init__(self, columns: Sequence[Column]) -> None:
        """columns: the features; only their reference is looked at. Raises ValueError if it has too little to say: in
        words for people, what there is too little of."""
        self._scales = [_Scale(column) for column in columns]
        self._used = [index for index, scale in enumerate(self._scales) if scale.spread]
        rows = len(columns[0].reference) if columns else 0
        if len(self._used) < 2:
            raise ValueError("insufficient features: fewer than two features that vary")
        if rows < 2 * _CHUNKS * _MIN_CHUNK_ROWS:
            least = 2 * _CHUNKS * _MIN_CHUNK_ROWS
            raise ValueError(f"insufficient rows: the reference has {rows} rows of at least {least}")
        table = self._table([column.reference for column in columns])
        # Each half is judged by the other: components fit the rows that they were made from better than any others.
        self._halves = [_Components(table[start::2], EXPLAINED_SHARE) for start in (0, 1)]
        if any(half.kept >= len(self._used) for half in self._halves):
            # The reconstruction is exact, and what is left of a row is how a processor rounds.
            raise ValueError(
                f"insufficient features: {len(self._used)} that vary, of which none can be told from the others"
            )
        errors = np.empty(rows)
        errors[0::2] = self._halves[1].errors(table[0::2])
        errors[1::2] = self._halves[0].errors(table[1::2])
        self._expected = float(errors.mean())
        # Chunks of rows that follow each other: if neighbours are alike, chunks differ more, and the band is wider.
        self._chunk_rows = rows // _CHUNKS
        means = errors[: self._chunk_rows * _CHUNKS].reshape(_CHUNKS, -1).mean(axis=1)
        self._deviation = float(means.std(ddof=1))
        self._rows = rows

    def judge(self, columns: Sequence[Column]) -> Together:
        """Compare the window in *columns*, the features of the reference in order, with at least one row."""
        table = self._table([column.current for column in columns])
        error = float(np.mean([half.errors(table).mean() for half in self._halves]))
        # The mean of n rows against that of the m of the reference.
        width = self._deviation * math.sqrt(self._chunk_rows / len(table) + self._chunk_rows / self._rows)
        low, high = (self._expected + sign * _BAND_DEVIATIONS * width for sign in (-1, 1))
        return Together(
            error, self._expected, max(low, 0.0), high, self._halves[0].kept, len(self._used), not low <= error <= high
        )

    def _table(self, values: Sequence[Array]) -> Array:
        return np.stack([self._scales[index].scaled(values[index]) for index in self._used], axis=1)


class _Scale:
    """How one column becomes numbers of mean 0 and deviation 1; categories by how frequent the reference has them."""

    def __init__(self, column: Column) -> None:
        self._shares: Mapping[Any, float] | None = None
        if column.kind == "categorical":
            names, counts = np.unique([str(value) for value in column.reference.tolist()], return_counts=True)
            self._shares = dict(zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True))
        self._centre = self.spread = 0.0
        numbers = self._numbers(column.reference)
        present = numbers[np.isfinite(numbers)]
        with np.errstate(over="ignore", invalid="ignore"):
            if present.size and math.isfinite(spread := float(present.std())):
                self._centre, self.spread = float(present.mean()), spread

    def scaled(self, values: Array) -> Array:
        """Missing values are the mean: they have tests of their own."""
        with np.errstate(over="ignore"):
            scaled = (self._numbers(values) - self._centre) / self.spread
        return np.clip(np.nan_to_num(scaled, nan=0.0), -_CLIP_DEVIATIONS, _CLIP_DEVIATIONS)

    def _numbers(self, values: Array) -> Array:
        if self._shares is None:
            return values
        return np.array([self._shares.get(str(value), 0.0) for value in values.tolist()], dtype=np.float64)
