"""Rows unlike all that the reference holds: how many there are, how many were to be expected, and which.

A row is outside if a feature of it is smaller or larger than any value of the reference, or a category that it does not
have. What is to be expected is told by the reference itself: the share of its rows that would be outside if the range
were that of the others (leave one out; for categories that is the estimate of Good and Turing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.offline.drift import Column
from gateway.tensors import Array

MAX_EXAMPLES = 10
# Of windows without any drift, about so many lie above the bound.
_CHANCE_ABOVE = 0.001


@dataclass(frozen=True, slots=True)
class Outside:
    """The rows of a window that are outside.

    rows: how many. share: of the window's. expected, bound: the share that was to be expected, and what only one
    window in a thousand exceeds by chance. is_above: this one does. prediction_ids: the newest of them.
    """

    rows: int
    share: float
    expected: float
    bound: float
    is_above: bool
    prediction_ids: tuple[str, ...]


def outside_of(columns: Sequence[Column], ids: Sequence[str]) -> Outside | None:
    """What of a window is outside; None without features, or if a side has no rows. Needs scipy.

    columns: features are looked at, outputs are not. ids: the prediction id of each row of the window, oldest first.
    """
    features = [column for column in columns if column.role == "input"]
    if not features or not ids or not len(features[0].reference):
        return None
    from scipy import stats

    is_outside = np.zeros(len(ids), dtype=np.bool_)
    is_edge = np.zeros(len(features[0].reference), dtype=np.bool_)
    for column in features:
        of_numbers = column.kind != "categorical"
        current, reference = (_outside_numbers if of_numbers else _new_categories)(column)
        is_outside |= current
        is_edge |= reference
    found, edges, rows = int(is_outside.sum()), int(is_edge.sum()), len(is_edge)
    # The share is itself known from so many rows only: a beta distribution (Jeffreys) around it.
    most = int(stats.betabinom.ppf(1 - _CHANCE_ABOVE, len(ids), edges + 0.5, rows - edges + 0.5))
    newest = [ids[index] for index in np.flatnonzero(is_outside)[::-1].tolist()]
    return Outside(
        found, found / len(ids), edges / rows, most / len(ids), found > most,
        tuple(dict.fromkeys(newest))[:MAX_EXAMPLES],
    )  # fmt: skip


def _outside_numbers(column: Column) -> tuple[Array, Array]:
    """Which values of the window lie beyond the reference's, and which of the reference's beyond all others."""
    present = column.reference[~np.isnan(column.reference)]
    if not present.size:
        return np.zeros(len(column.current), dtype=np.bool_), np.zeros(len(column.reference), dtype=np.bool_)
    low, high = present.min(), present.max()
    is_edge = np.zeros(len(column.reference), dtype=np.bool_)
    for end in (low, high):
        at = column.reference == end
        if np.count_nonzero(at) == 1:
            is_edge |= at
    return (column.current < low) | (column.current > high), is_edge


def _new_categories(column: Column) -> tuple[Array, Array]:
    """The same for categories: which are new, and which the reference has once."""
    then, now = column.reference.tolist(), column.current.tolist()
    counts = Counter(value for value in then if value is not None)
    if not counts:
        return np.zeros(len(now), dtype=np.bool_), np.zeros(len(then), dtype=np.bool_)
    return (
        np.array([value is not None and value not in counts for value in now], dtype=np.bool_),
        np.array([value is not None and counts[value] == 1 for value in then], dtype=np.bool_),
    )
