"""Whether a model gets worse, by its labels: windows of labelled rows, held against the band of the first ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.offline.scores import Judged, scores_of
from gateway.offline.targets import Target

# Metric -> whether more of it is better. Each is judged by itself.
METRICS: Mapping[str, bool] = {"accuracy": True, "auc": True, "rmse": False}
# A version has decayed if this many of its last windows lie outside of the band: one may do so by chance.
_OUTSIDE, _OF_LAST = 2, 3
_DEVIATIONS = 3.0
# A deviation is never taken for less than this share of the mean: reference windows that happen to be equal would turn
# the next difference, however small, into an alarm.
_MIN_RELATIVE_SD = 0.005
_KEPT_WINDOWS = 50  # besides those of the reference


@dataclass(slots=True)
class Decay:
    """The windows of one package. rows: of the window that fills. reference, windows: what is told of full ones."""

    digest: str
    rows: list[Judged] = field(default_factory=list)
    reference: list[dict[str, Any]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: Judged, target: Target, *, window_rows: int, reference_windows: int) -> None:
        """Take a labelled row whose wait is over; rows come in the order of time."""
        self.rows.append(row)
        if len(self.rows) < window_rows:
            return
        scores = scores_of(self.rows, target)
        scores.pop("classes", None)
        told = {"from_ns": self.rows[0].ts_ns, "to_ns": self.rows[-1].ts_ns, **scores}
        self.rows = []
        if len(self.reference) < reference_windows:
            self.reference.append(told)
        else:
            self.windows = [*self.windows[1 - _KEPT_WINDOWS :], told]

    def told(self, reference_windows: int) -> dict[str, Any]:
        """What the drift document says of it."""
        enough = len(self.reference) >= reference_windows
        found = [each for name in METRICS if (each := self._metric(name, enough)) is not None]
        return {"filling_rows": len(self.rows), "reference": self.reference, "windows": self.windows, "metrics": found}

    def _metric(self, name: str, enough: bool) -> dict[str, Any] | None:
        before = [window[name] for window in self.reference if window.get(name) is not None]
        after = [window[name] for window in self.windows if window.get(name) is not None]
        if not before or (enough and len(before) < 2):
            return None
        if not enough or not after:
            mean = statistics.fmean(before)
            return {"name": name, "verdict": "insufficient", "value": before[-1], "mean": mean, "bound": None}
        mean, bound = band(before, more_is_better=METRICS[name])
        outside = is_outside(after, bound, more_is_better=METRICS[name])
        verdict = "drifted" if outside else "stable"
        return {"name": name, "verdict": verdict, "value": after[-1], "mean": mean, "bound": bound}


def band(reference: Sequence[float], *, more_is_better: bool) -> tuple[float, float]:
    """The mean of the reference windows, and the bound that is 3 standard deviations on its bad side.

    Of so few windows the deviation is itself uncertain; the bound is for a further window, hence the root.
    """
    mean = statistics.fmean(reference)
    sd = max(statistics.stdev(reference), _MIN_RELATIVE_SD * abs(mean))
    width = _DEVIATIONS * sd * math.sqrt(1 + 1 / len(reference))
    return mean, mean - width if more_is_better else mean + width


def is_outside(windows: Sequence[float], bound: float, *, more_is_better: bool) -> bool:
    """Whether 2 of the last 3 windows lie beyond the bound."""
    last = windows[-_OF_LAST:]
    return sum(value < bound if more_is_better else value > bound for value in last) >= _OUTSIDE
