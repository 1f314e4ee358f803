"""Rows unlike all that the reference holds: how many there are, how many were to be expected, and which.

A row is outside if a feature of it is smaller or larger than any value of the reference, or a category that it does not
have; and, told apart, if a number that the model answered is smaller or larger than any of its answers there. What is
to be expected is told by the reference itself: the share of its rows that would be outside if the range were that of
the others (leave one out; for categories that is the estimate of Good and Turing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.offline.drift import Column, Role
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


def outside_of(columns: Sequence[Column], ids: Sequence[str], role: Role = "input") -> Outside | None:
    """What of a window is outside; None if there is nothing to look at, or if a side has no rows. Needs scipy.

    columns: of *role* all features are looked at, or of the outputs those that are numbers: a label that the reference
    does not have is a category like any other of the model. ids: the prediction id of each row of the window, oldest
    first.
    """
    found = _outside(columns, len(ids), role)
    if found is None:
        return None
    from scipy import stats

    is_outside, is_edge = found
    rows, edges, of_rows = int(is_outside.sum()), int(is_edge.sum()), len(is_edge)
    # The share is itself known from so many rows only: a beta distribution (Jeffreys) around it.
    most = int(stats.betabinom.ppf(1 - _CHANCE_ABOVE, len(ids), edges + 0.5, of_rows - edges + 0.5))
    newest = [ids[index] for index in np.flatnonzero(is_outside)[::-1].tolist()]
    return Outside(
        rows, rows / len(ids), edges / of_rows, most / len(ids), rows > most,
        tuple(dict.fromkeys(newest))[:MAX_EXAMPLES],
    )  # fmt: skip


def outside_share(columns: Sequence[Column], rows: int, role: Role = "input") -> float | None:
    """Outside.share of a window of so many rows, without the rest."""
    found = _outside(columns, rows, role)
    return None if found is None else int(found[0].sum()) / rows


def _outside(columns: Sequence[Column], rows: int, role: Role) -> tuple[Array, Array] | None:
    """Which rows of the window are outside, and which of the reference would be if they were left out."""
    looked_at = [column for column in columns if column.role == role and (role == "input" or column.kind == "numeric")]
    if not looked_at or not rows or not len(looked_at[0].reference):
        return None
    is_outside = np.zeros(rows, dtype=np.bool_)
    is_edge = np.zeros(len(looked_at[0].reference), dtype=np.bool_)
    for column in looked_at:
        is_outside |= _of_column(column)
        is_edge |= column.then.is_edge
    return is_outside, is_edge


def _of_column(column: Column) -> Array:
    """Which values of the window lie beyond the reference's, or are categories that it does not have."""
    now, then = column.current, column.then
    if column.kind == "categorical":
        counts = then.counts
        return np.array(
            [bool(counts) and value is not None and value not in counts for value in now.tolist()], np.bool_
        )
    if not len(then.ordered):
        return np.zeros(len(now), dtype=np.bool_)
    is_outside: Array = (now < then.ordered[0]) | (now > then.ordered[-1])
    return is_outside
