"""How two samples of one column differ, in figures that are shown beside the test and decide nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gateway.tensors import Array

if TYPE_CHECKING:
    from gateway.offline.drift import Column

# PSI is defined on bins; ten with equal shares of the reference are what its usual thresholds (0.1, 0.25) speak of.
_PSI_BINS = 10
_PLOT_BINS = 20
# The plot's outermost bins hold all that lies beyond these quantiles, or one outlier would leave a single bar.
_PLOT_QUANTILES = (0.005, 0.995)
_PLOT_CATEGORIES = 12
_MAX_NEW_CATEGORIES = 10
OTHER = "(other)"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of the present values, to be drawn. Shares of each side add up to 1, or are all 0 if it has no values.

    edges: of the bins of numbers, one more than there are bins; the outer bins also hold what lies beyond them.
    categories: the bins otherwise, the most frequent first, the rest together as OTHER. One of the two is empty.
    """

    edges: tuple[float, ...]
    categories: tuple[str, ...]
    reference: tuple[float, ...]
    current: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures on one column.

    psi: population stability index over ten bins with equal shares of the reference, or over categories.
    wasserstein: earth mover's distance in standard deviations of the reference; None for categories, or if the
    reference does not vary. jensen_shannon: distance, base 2, 0..1, over the bins of psi. None where a side has no
    values. outside: share of the window's present values beyond the smallest and largest of the reference, or in
    categories that it does not have. wrong_type: share of the window's values that are no numbers though they should
    be. new_categories: the most frequent ones, at most ten.
    """

    psi: float | None
    wasserstein: float | None
    jensen_shannon: float | None
    outside: float
    wrong_type: float
    new_categories: tuple[str, ...]
    histogram: Histogram


def measure(column: Column) -> Measures:
    """All figures on *column*; a window without a row is an empty side like any other."""
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit into 64 bits becomes None further down
        return _measure(column)


def _measure(column: Column) -> Measures:
    wrong_type = column.wrong_type / len(column.current) if len(column.current) else 0.0
    if column.kind == "categorical":
        return _of_categories(column, wrong_type)
    reference = column.reference[~np.isnan(column.reference)]
    current = column.current[~np.isnan(column.current)]
    psi_value = distance = None
    outside = 0.0
    if reference.size and current.size:
        p, q = _shares_of_numbers(reference, current)
        psi_value, distance = psi(p, q, reference.size, current.size), jensen_shannon(p, q)
        outside = float(np.mean((current < reference.min()) | (current > reference.max())))
    return Measures(
        psi_value, wasserstein(reference, current), distance, outside, wrong_type, (), _plot(reference, current)
    )


def psi(p: Array, q: Array, n_ref: int, n_cur: int) -> float:
    """The population stability index of the shares *q* (of n_cur rows) against *p* (of n_ref rows).

    sum (q - p) ln(q / p): the Kullback-Leibler divergence, both ways together. An empty bin counts as half a row;
    otherwise it would be infinite. Without any drift it is about (1 / n_ref + 1 / n_cur) * (bins - 1), so its usual
    thresholds mean nothing for a few hundred rows; it is shown, and decides nothing.
    """
    p, q = np.maximum(p, 0.5 / n_ref), np.maximum(q, 0.5 / n_cur)
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def jensen_shannon(p: Array, q: Array) -> float:
    """The Jensen-Shannon distance of two lists of shares, base 2: 0 for equal ones, 1 for disjoint ones.

    >>> round(jensen_shannon(np.array([0.5, 0.5]), np.array([1.0, 0.0])), 4)
    0.5579
    """
    middle = (p + q) / 2
    divergence = 0.0
    for side in (p, q):
        held = side > 0
        divergence += 0.5 * float(np.sum(side[held] * np.log2(side[held] / middle[held])))
    return math.sqrt(min(max(divergence, 0.0), 1.0))


def wasserstein(reference: Array, current: Array) -> float | None:
    """The earth mover's distance between the finite values, in standard deviations of the reference's.

    None if a side has none, or the reference does not vary. Source: scipy.stats.wasserstein_distance.
    """
    from scipy import stats

    reference, current = reference[np.isfinite(reference)], current[np.isfinite(current)]
    if not reference.size or not current.size:
        return None
    spread = float(reference.std())
    if not spread or not math.isfinite(spread):
        return None
    moved = float(stats.wasserstein_distance(reference, current)) / spread
    return moved if math.isfinite(moved) else None


def _shares_of_numbers(reference: Array, current: Array) -> tuple[Array, Array]:
    """Shares in bins with about equal shares of the reference, the outer ones open."""
    inner = np.unique(np.quantile(reference, np.linspace(0, 1, _PSI_BINS + 1)[1:-1], method="inverted_cdf"))
    counts = [
        np.bincount(np.searchsorted(inner, side, side="left"), minlength=inner.size + 1)
        for side in (reference, current)
    ]
    return counts[0] / reference.size, counts[1] / current.size


def _plot(reference: Array, current: Array) -> Histogram:
    every = np.concatenate([reference[np.isfinite(reference)], current[np.isfinite(current)]])
    if not every.size:
        return Histogram((), (), (), ())
    low, high = (float(value) for value in np.quantile(every, _PLOT_QUANTILES))
    # Not high - low > 0: the two may be neighbours among the floats, between which no bins fit.
    if not high - low > max(1e-6 * max(abs(low), abs(high)), 1e-300):
        margin = 1e-3 * abs(low) if abs(low) > 1e-290 else 0.5
        low, high = low - margin, high + margin
    edges = low + (high - low) * np.arange(_PLOT_BINS + 1) / _PLOT_BINS
    if not np.all(np.isfinite(edges)):
        return Histogram((), (), (), ())
    shares = [
        np.bincount(np.searchsorted(edges[1:-1], side, side="right"), minlength=_PLOT_BINS) / max(side.size, 1)
        for side in (reference, current)
    ]
    return Histogram(tuple(_short(edges, 9)), (), tuple(_short(shares[0])), tuple(_short(shares[1])))


def _of_categories(column: Column, wrong_type: float) -> Measures:
    then = Counter(value for value in column.reference.tolist() if value is not None)
    now = Counter(value for value in column.current.tolist() if value is not None)
    n_then, n_now = then.total(), now.total()
    fresh = {name: count for name, count in now.items() if name not in then}
    names = sorted(then.keys() | now.keys(), key=lambda name: (-then[name], -now[name], name))
    p = np.array([then[name] for name in names], dtype=np.float64) / max(n_then, 1)
    q = np.array([now[name] for name in names], dtype=np.float64) / max(n_now, 1)
    both = bool(n_then and n_now)
    shown = names[:_PLOT_CATEGORIES]
    # A category that came is what one looks for: the most frequent new one has a place, however many there were before.
    newest = sorted(fresh, key=lambda name: (-fresh[name], name))
    if newest and newest[0] not in shown:
        shown = [*shown[:-1], newest[0]]
    plotted = [[side[name] / max(total, 1) for name in shown] for side, total in ((then, n_then), (now, n_now))]
    categories = tuple(shown)
    if len(shown) < len(names):
        categories = (*categories, OTHER)
        plotted = [
            [*shares, max(0.0, 1 - sum(shares)) if total else 0.0]
            for shares, total in zip(plotted, (n_then, n_now), strict=True)
        ]
    return Measures(
        psi(p, q, n_then, n_now) if both else None,
        None,
        jensen_shannon(p, q) if both else None,
        sum(fresh.values()) / n_now if n_now else 0.0,
        wrong_type,
        tuple(newest[:_MAX_NEW_CATEGORIES]),
        Histogram((), categories, *(tuple(_short(np.array(shares))) for shares in plotted)),
    )


def _short(values: Array, digits: int = 5) -> list[float]:
    """As few digits as a plot needs: the document is sent around."""
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
