"""One side of a column, reference or window: its values, and what several judges want to know of them, told once."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np

from gateway.tensors import Array


def tie_terms(counts: Array) -> Array:
    """t^3 - t of each count t of equal values: what ties take from the variance of a sum of ranks."""
    counts = counts.astype(np.float64)
    return counts**3 - counts


class Side:
    """values: as in `drift.Column`; they must not change. Used by one thread."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def is_missing(self) -> Array:
        if self.values.dtype == object:
            return np.array([value is None for value in self.values.tolist()], dtype=np.bool_)
        return np.isnan(self.values)

    @cached_property
    def missing(self) -> int:
        """How many are missing."""
        return int(np.count_nonzero(self.is_missing))

    @cached_property
    def present(self) -> Array:
        """The values that are not missing, in the order of the rows."""
        return self.values[~self.is_missing] if self.missing else self.values

    @cached_property
    def ordered(self) -> Array:
        """The present numbers, the smallest first."""
        return np.sort(self.present)

    @cached_property
    def tied(self) -> tuple[Array, Array]:
        """Of each different number the place of its first one in `ordered`, and how many there are."""
        values = self.ordered
        first = np.flatnonzero(np.concatenate((np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1])))
        return first, np.diff(first, append=len(values))

    @cached_property
    def tie_term(self) -> float:
        return float(tie_terms(self.tied[1]).sum())

    @cached_property
    def counts(self) -> Counter[Any]:
        """How often each present value is there."""
        return Counter(self.present.tolist())

    @cached_property
    def is_edge(self) -> Array:
        """Which rows lie beyond all others, or in a category of their own."""
        if self.values.dtype == object:
            return np.array([self.counts.get(value) == 1 for value in self.values.tolist()], dtype=np.bool_)
        is_edge = np.zeros(len(self), dtype=np.bool_)
        for end in self.ordered[[0, -1]] if len(self.ordered) else ():
            at = self.values == end
            if np.count_nonzero(at) == 1:
                is_edge |= at
        return is_edge
