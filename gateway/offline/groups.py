"""The labelled rows of one variant of a version, and what is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gateway.offline.scores import Judged, calibration_in, scores_of
from gateway.offline.targets import Target

# Slices told apart, those with most rows; and rows that a slice needs to be told of.
_MAX_SLICES = 20
_MIN_SLICE_ROWS = 30
_QUANTILES = (0.5, 0.9, 0.99)
# Classes that the model does not have are told by name: so many different ones of a variant, and so much of each.
_MAX_UNKNOWN = 20
_MAX_UNKNOWN_CHARS = 80


@dataclass(slots=True)
class Group:
    """What is known of one variant of a version, as its package *digest* answers.

    over, labelled: rows whose wait is over, and those of them with a label. unusable: labels that say nothing of what
    the model predicts. recent: labelled rows, the newest. unknown: of the unusable ones, rows by the class that their
    label names and the model does not have.
    """

    digest: str
    over: int = 0
    labelled: int = 0
    unusable: int = 0
    recent: list[Judged] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)

    def add(self, row: Judged, limit: int) -> None:
        """Keep a labelled row, and of all the newest *limit* at least."""
        self.recent.append(row)
        if len(self.recent) >= 2 * limit:
            self.recent = newest(self.recent, limit)

    def add_unusable(self, name: str) -> None:
        """Count a row whose label cannot be used. name: of the class that only the label knows, or ""."""
        self.unusable += 1
        count_unknown(self.unknown, name)

    def told(self) -> dict[str, Any]:
        """coverage: share of the rows whose wait is over that got a label, None if there are none."""
        coverage = self.labelled / self.over if self.over else None
        return {"over": self.over, "labelled": self.labelled, "coverage": coverage}


def count_unknown(unknown: dict[str, int], name: str) -> None:
    """Count a row for the class *name*, none for "". Only so many different ones are kept apart."""
    name = name[:_MAX_UNKNOWN_CHARS]
    if name and (name in unknown or len(unknown) < _MAX_UNKNOWN):
        unknown[name] = unknown.get(name, 0) + 1


def newest(rows: Iterable[Judged], limit: int) -> list[Judged]:
    """The newest *limit* rows by (time, id, row), oldest first: the same in whatever order they came."""
    return sorted(rows, key=lambda row: (row.ts_ns, row.prediction_id, row.row))[-limit:]


def told_of(rows: Sequence[Judged], target: Target | str, *, by_slice: bool = False) -> dict[str, Any]:
    """How late the labels of *rows* came, and how good the predictions were: in all, and by slice; and whether
    probabilities mean what they say."""
    if not rows or isinstance(target, str):
        return {"delay_s": None, "scores": None, "slices": [], "calibration": None}
    delays = np.quantile([row.delay_s for row in rows], _QUANTILES).tolist()
    sizes = Counter(row.slice for row in rows if row.slice) if by_slice else Counter[str]()
    slices = []
    for value, size in sizes.most_common(_MAX_SLICES):
        if size >= _MIN_SLICE_ROWS:
            scores = scores_of([row for row in rows if row.slice == value], target)
            scores.pop("classes", None)
            slices.append({"value": value, **scores})
    return {
        "delay_s": {f"p{round(q * 100)}": delay for q, delay in zip(_QUANTILES, delays, strict=True)},
        "scores": scores_of(rows, target),
        "slices": slices,
        "calibration": calibration_in(rows, target),
    }
