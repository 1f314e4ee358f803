"""Binned values of the canary beside those of stable at the same times: shares of bins and means, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.control.statistics.intervals import mixture_half_width

OTHER = "other"  # what does not get a bin of its own
_MAX_BINS = 96

Bins = Mapping[str, int]
Interval = tuple[float, float, float]  # difference, low, high


class MatchedBins:
    """Counts of the canary, and of stable as if it had had the canary's traffic.

    Each window's shares of stable count as often as the canary had values there, so that a ramp does not compare the
    morning's stable with the evening's canary. Differences are of these two columns; the intervals are the asymptotic
    ones of statistics/intervals.py. together: values that may be alike, being of one run; with k of them alike, n
    values are worth n/k, so the variance is taken k times as large.
    """

    def __init__(self, *, together: float, max_bins: int = _MAX_BINS) -> None:
        self._together, self._max_bins = together, max_bins
        self._bins: dict[str, list[float]] = {}  # bin: [canary, stable]
        self._values = [0.0, 0.0]  # n of the canary; of stable
        self._spread = [0.0, 0.0]  # variance of n * difference, per unit of variance of a value, by arm

    def observe(self, canary: Bins, stable: Bins) -> None:
        """Take one window. One in which an arm had nothing says nothing."""
        n_c, n_s = sum(canary.values()), sum(stable.values())
        if not n_c or not n_s:
            return
        for name in sorted(canary.keys() | stable.keys()):
            cell = name if name in self._bins or len(self._bins) < self._max_bins else OTHER
            counts = self._bins.setdefault(cell, [0.0, 0.0])
            counts[0] += canary.get(name, 0)
            counts[1] += stable.get(name, 0) / n_s * n_c
        self._values[0] += n_c
        self._values[1] += n_s
        self._spread[0] += n_c * min(n_c, self._together)
        self._spread[1] += n_c * n_c / n_s * min(n_s, self._together)

    @property
    def values(self) -> tuple[int, int]:
        """Values of the canary and of stable, in windows that had both."""
        return int(self._values[0]), int(self._values[1])

    def shares(self) -> dict[str, tuple[float, float]]:
        """Share of each bin in the canary and in stable, largest first."""
        n = self._values[0]
        return {name: (c / n, s / n) for name, (c, s) in sorted(self._bins.items(), key=lambda item: -sum(item[1]))}

    def share(self, name: str, alpha: float) -> Interval:
        """Difference of the shares of one bin. There must be values."""
        c, s = self.shares()[name]
        difference, low, high = self._interval(c - s, (c * (1 - c), s * (1 - s)), alpha)
        return difference, max(low, -1.0), min(high, 1.0)  # shares differ by no more

    def means(self, value: Callable[[str], float | None]) -> tuple[float, float] | None:
        """Means of canary and stable. value: of a bin. None if there are no values, or a bin has none."""
        moments = self._moments(value)
        return None if moments is None else (moments[0][0], moments[1][0])

    def mean(self, value: Callable[[str], float | None], alpha: float) -> Interval | None:
        """Difference of the means; None as for means."""
        moments = self._moments(value)
        if moments is None:
            return None
        (mean_c, var_c), (mean_s, var_s) = moments
        return self._interval(mean_c - mean_s, (var_c, var_s), alpha)

    def _moments(self, value: Callable[[str], float | None]) -> tuple[tuple[float, float], tuple[float, float]] | None:
        values = {name: value(name) for name in self._bins}
        if not self._bins or None in values.values():
            return None
        found = []
        for arm in (0, 1):
            weighted = [(values[name] or 0.0, counts[arm] / self._values[0]) for name, counts in self._bins.items()]
            mean = sum(x * share for x, share in weighted)
            found.append((mean, sum((x - mean) ** 2 * share for x, share in weighted)))
        return found[0], found[1]

    def _interval(self, difference: float, variances: tuple[float, float], alpha: float) -> Interval:
        n = self._values[0]
        variance = (variances[0] * self._spread[0] + variances[1] * self._spread[1]) / n
        half = mixture_half_width(variance, n, alpha)
        return difference, difference - half, difference + half

    def to_plain(self) -> dict[str, Any]:
        return {"bins": self._bins, "values": self._values, "spread": self._spread}

    def take(self, plain: dict[str, Any]) -> None:
        """Go on from what to_plain gave. Raises KeyError, TypeError or ValueError."""
        self._bins = {name: [float(c), float(s)] for name, (c, s) in plain["bins"].items()}
        self._values = [float(value) for value in plain["values"]]
        self._spread = [float(value) for value in plain["spread"]]
