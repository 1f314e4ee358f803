"""Whether the rows of now still look like the rows of then: one reference, one window, one verdict per column.

Pure functions of two samples. The tests are scipy's; ours is what surrounds them: what is comparable at all, how many
tests were made at once (Benjamini-Hochberg), and how large a difference must be to matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from gateway.offline.measures import Measures
from gateway.offline.sides import Side, tie_terms
from gateway.tensors import Array, Kind

Role = Literal["input", "output"]
Verdict = Literal["drifted", "stable", "insufficient"]

# Names of the tests, as they stand in the drift document and the metrics.
KS, RANKS, CHI_SQUARE, FISHER, MISSING = "ks", "mann-whitney", "chi2", "fisher", "missing"

# Cochran (1954), Some methods for strengthening the common chi-square tests, Biometrics 10: expected counts below 5
# make the chi-square approximation poor, below 1 useless.
_MIN_EXPECTED = 5.0
_MIN_EXPECTED_POOLED = 1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """When a difference is called drift.

    min_rows: fewer rows on either side give the verdict "insufficient". max_false_discovery_rate: largest q that
    counts. min_effect: smallest KS distance or Cramer's V that counts, however small q is.
    """

    min_rows: int
    max_false_discovery_rate: float
    min_effect: float


@dataclass(frozen=True, slots=True)
class Expected:
    """A difference that is no drift. effect: of the values, as found between two samples of n_1 and n_2 rows."""

    effect: float
    n_1: int
    n_2: int


@dataclass(frozen=True, slots=True)
class Column:
    """One feature or output, then and now.

    reference, current: one value per row, of the same kind: float64 with NaN for missing if numeric; objects with None
    for missing if categorical. wrong_type: how many of current are missing only because they were no numbers.
    expected: if not None, only what the values differ by beyond that is tested. then, now: both sides, looked at once;
    then is given by who has looked at that reference before.
    """

    name: str
    role: Role
    kind: Kind
    reference: Array
    current: Array
    wrong_type: int = 0
    expected: Expected | None = None
    then: Side = None  # type: ignore[assignment] # never after __post_init__
    now: Side = field(init=False)

    def __post_init__(self) -> None:
        if self.then is None or self.then.values is not self.reference:
            object.__setattr__(self, "then", Side(self.reference))
        object.__setattr__(self, "now", Side(self.current))


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """What was found for one column.

    n_ref, n_cur: rows on each side, missing ones too. missing_ref, missing_cur: share of them that is missing, 0..1.
    test: the one that decided; "" if none could be made, and then statistic, p, q and effect are None. p: what entered
    the family; where several tests were made, that many times the p-value of the one that is named. effect: of numbers
    the distance of Kolmogorov and Smirnov, whichever test decided. measures: figures that decide nothing; None in the
    answer of `compare`.
    """

    name: str
    role: Role
    kind: Kind
    n_ref: int
    n_cur: int
    missing_ref: float
    missing_cur: float
    test: str
    statistic: float | None
    p: float | None
    q: float | None
    effect: float | None
    verdict: Verdict
    reason: str
    measures: Measures | None = None


@dataclass(frozen=True, slots=True)
class _Test:
    name: str
    statistic: float
    p: float
    effect: float
    excess: float  # what of effect was not to be expected
    q: float = math.nan


def compare(columns: Sequence[Column], rules: Rules) -> list[ColumnDrift]:
    """Compare each column's window with its reference; results in the order of *columns*.

    Each column enters one family with one test: q is the p-value after Benjamini and Hochberg (1995), Controlling the
    false discovery rate, J. R. Statist. Soc. B 57: of the columns called drifted, on average at most
    max_false_discovery_rate are called so wrongly. Of numbers there are two tests: any difference of the distributions,
    and ranks, which see a shift in fewer rows. Of a column with missing values on either side the share that is missing
    is tested, too. The clearest test enters, at its p-value times the number of tests (Bonferroni).
    """
    from scipy import stats

    entered = [_entered(_tests(column, rules), rules) for column in columns]
    family = [test.p for test in entered if test is not None]
    q = iter(stats.false_discovery_control(family) if family else [])
    judged = [None if test is None else replace(test, q=float(next(q))) for test in entered]
    return [_verdict(column, test, rules) for column, test in zip(columns, judged, strict=True)]


def ks(reference: Array, current: Array) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov test: (distance, p).

    The distance is sup |F_ref(x) - F_cur(x)| over the empirical distribution functions: 0 for equal ones, 1 for
    disjoint ones, and a measure of effect by itself, since it does not depend on how many rows there are. A shift of a
    normal distribution by d standard deviations has the distance 2 * Phi(d / 2) - 1. p is asymptotic; ties make it
    too large, never too small. Source: scipy.stats.ks_2samp; Hodges (1958), Arkiv foer Matematik 3.

    >>> ks(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0]))[0]
    0.5
    """
    return _Ordered(Side(reference), Side(current)).ks()


def ranks(reference: Array, current: Array) -> tuple[float, float]:
    """The test of Mann and Whitney: (probability of superiority, p).

    The first is the chance that a row of *current* lies above one of *reference*, ties counted half: 0.5 where neither
    is shifted. p is two-sided, of the normal approximation with ties and continuity corrected. Sources: Mann and
    Whitney (1947), Ann. Math. Statist. 18; scipy.stats.mannwhitneyu(method="asymptotic").

    >>> ranks(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0]))[0]
    0.875
    """
    return _Ordered(Side(reference), Side(current)).ranks()


class _Ordered:
    """The present numbers of two sides in order: where each different one of the second side lies among the first's."""

    def __init__(self, then: Side, now: Side) -> None:
        self._then, self._n, self._m = then, len(then.ordered), len(now.ordered)
        self._first, self._counts = now.tied
        values = now.ordered[self._first]
        self._below = np.searchsorted(then.ordered, values, side="left")
        self._upto = np.searchsorted(then.ordered, values, side="right")

    def ks(self) -> tuple[float, float]:
        """As scipy does it, to the last bit, but at the second side's values alone.

        Between two of them its distribution function stands still and the other one only rises, so the distance is
        largest where one begins, or just before.
        """
        n, m = self._n, self._m
        before = self._below / n - self._first / m
        after = (self._first + self._counts) / m - self._upto / n
        distance = max(0.0, float(before.max()), float(after.max()))
        return distance, _ks_p(distance, round(float(n) * float(m) / (n + m)))

    def ranks(self) -> tuple[float, float]:
        from scipy import special

        n, m = self._n, self._m
        above = float(np.dot(self._below + self._upto, self._counts)) / 2
        inside = self._upto - self._below  # how often each of the second side's values is on the first
        ties = self._then.tie_term + float((tie_terms(inside + self._counts) - tie_terms(inside)).sum())
        variance = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
        if variance <= 0:
            return above / (n * m), 1.0  # all values are one
        deviation = max(0.0, abs(above - n * m / 2) - 0.5) / math.sqrt(variance)
        return above / (n * m), min(1.0, 2 * float(special.ndtr(-deviation)))


@lru_cache(maxsize=1 << 14)  # windows are of one size, and of few distances
def _ks_p(distance: float, rows: int) -> float:
    from scipy import stats

    return min(max(float(stats.kstwo.sf(distance, rows)), 0.0), 1.0)


def chi_square(table: Array) -> tuple[str, float, float]:
    """Whether the two rows of *table* (counts per category, [2, k]) come from one distribution: (test, statistic, p).

    The statistic is Pearson's chi-square without continuity correction; p is that of the chi-square distribution with
    k - 1 degrees of freedom, or Fisher's exact one if k is 2 and an expected count is below 5.
    Source: scipy.stats.chi2_contingency and fisher_exact.
    """
    from scipy import stats

    found = stats.chi2_contingency(table, correction=False)
    if table.shape[1] == 2 and found.expected_freq.min() < _MIN_EXPECTED:
        return FISHER, float(found.statistic), float(stats.fisher_exact(table).pvalue)
    return CHI_SQUARE, float(found.statistic), float(found.pvalue)


def cramers_v(table: Array) -> float:
    """Cramer's V of two rows of counts [2, k], each row given the same weight: 0 for equal shares, 1 for disjoint.

    V = sqrt(chi2 / n) of the table of shares (p, q) = sqrt(1/2 * sum (p - q)^2 / (p + q)). Weighted by the counts, as V
    usually is, the same change of shares would look smaller the more the reference outnumbers the window. For rows of
    equal size it is scipy.stats.contingency.association(table, method="cramer").

    >>> round(cramers_v(np.array([[50, 50], [70, 30]])), 3)
    0.204
    """
    p, q = table / table.sum(axis=1, keepdims=True)
    return float(np.sqrt(0.5 * np.sum((p - q) ** 2 / (p + q))))


def count_table(reference: Sequence[Any], current: Sequence[Any]) -> Array:
    """Counts per category, [2, k] without empty columns, rare categories pooled.

    A category whose expected count on the smaller side is below 5 goes into one pool; the pool joins the smallest
    other category if it still expects less than 1 itself. So a new category counts as soon as it is frequent enough to
    be tested. k = 1 means that nothing is left to compare.
    """
    return _table(Counter(reference), Counter(current))


def _table(then: Counter[Any], now: Counter[Any]) -> Array:
    sizes = then.total(), now.total()
    n = sum(sizes)
    smaller = min(sizes) / n
    kept: list[list[int]] = []
    pool = [0, 0]
    for category in then.keys() | now.keys():
        counts = [then[category], now[category]]
        if sum(counts) * smaller >= _MIN_EXPECTED:
            kept.append(counts)
        else:
            pool = [pool[0] + counts[0], pool[1] + counts[1]]
    pooled = sum(pool)
    kept.sort(key=sum, reverse=True)
    if pooled and (not kept or pooled * smaller >= _MIN_EXPECTED_POOLED):
        kept.append(pool)
    elif pooled:
        kept[-1] = [kept[-1][0] + pool[0], kept[-1][1] + pool[1]]
    return np.array(kept, dtype=np.float64).T


def _tests(column: Column, rules: Rules) -> list[_Test]:
    """The tests that can be made of one column; none if it has too few rows or nothing that could differ."""
    if min(len(column.reference), len(column.current)) < rules.min_rows:
        return []
    tests: list[_Test] = []
    then, now = column.then, column.now
    if min(len(then.present), len(now.present)) >= rules.min_rows:
        if column.kind == "numeric":
            ordered = _Ordered(then, now)
            distance, p = ordered.ks()
            tests.append(_beyond(_Test(KS, distance, p, distance, distance), column, 2))
            if column.expected is None:
                above, p = ordered.ranks()
                tests.append(_Test(RANKS, above, p, distance, distance))
        else:
            table = _table(then.counts, now.counts)
            if table.shape[1] > 1:
                name, statistic, p = chi_square(table)
                effect = cramers_v(table)
                tests.append(_beyond(_Test(name, statistic, p, effect, effect), column, table.shape[1]))
    if then.missing or now.missing:
        gone = np.array([then.missing, now.missing])
        table = np.stack([gone, [len(then), len(now)] - gone], axis=1).astype(np.float64)
        if table.sum(axis=0).all():
            _name, statistic, p = chi_square(table)
            effect = cramers_v(table)
            tests.append(_Test(MISSING, statistic, p, effect, effect))
    return tests


def _beyond(test: _Test, column: Column, categories: int) -> _Test:
    """*test* of what lies beyond the expected difference, if there is one.

    The KS distance and Cramer's V between two rows of equal weight are metrics. So by the triangle inequality an effect
    exceeds the true one by no more than chance alone gives for four samples that are pairwise alike; p is how often
    chance gives so much, never too small. Sources: scipy.stats.kstwo; V^2 * 4 n is chi-square for 1/n = sum of 1/n_i.
    """
    from scipy import stats

    expected = column.expected
    if expected is None:
        return test
    sides = (len(column.reference), len(column.current), expected.n_1, expected.n_2)
    rows = 1 / sum(1 / side for side in sides)
    excess = max(0.0, test.effect - expected.effect)
    if test.name == KS:
        p = float(stats.kstwo.sf(excess, max(1, round(rows))))
    else:
        p = float(stats.chi2.sf(4 * rows * excess**2, categories - 1))
    return replace(test, p=p, excess=excess)


def _entered(tests: Sequence[_Test], rules: Rules) -> _Test | None:
    """The one test that speaks for a column, at the p-value that pays for having chosen among them.

    A test whose effect is too small to matter can never be called drift, so it does not stand before one that can.
    """
    if not tests:
        return None
    chosen = min(tests, key=lambda test: (test.excess < rules.min_effect, test.p, -test.effect))
    return replace(chosen, p=min(1.0, len(tests) * chosen.p))


def _verdict(column: Column, found: _Test | None, rules: Rules) -> ColumnDrift:
    rate_ref, rate_cur = (side.missing / len(side) if len(side) else 0.0 for side in (column.then, column.now))
    base = ColumnDrift(
        column.name,
        column.role,
        column.kind,
        n_ref=len(column.reference),
        n_cur=len(column.current),
        missing_ref=rate_ref,
        missing_cur=rate_cur,
        test="",
        statistic=None,
        p=None,
        q=None,
        effect=None,
        verdict="insufficient",
        reason="",
    )
    if found is None:
        verdict, reason = _untested(column, rules)
        return replace(base, verdict=verdict, reason=reason)
    reason = f"q {found.q:.2g}, effect {found.effect:.2g}"
    if found.q > rules.max_false_discovery_rate:
        reason = f"q {found.q:.2g} is above {rules.max_false_discovery_rate:g}"
    elif found.excess < rules.min_effect:
        more = "" if found.excess == found.effect else f", less the expected {found.effect - found.excess:.2g},"
        reason = f"effect {found.effect:.2g}{more} is below {rules.min_effect:g}"
    elif found.name == MISSING:
        reason = f"missing {rate_cur:.1%} of the window, {rate_ref:.1%} of the reference"
    return replace(
        base,
        test=found.name,
        statistic=found.statistic,
        p=found.p,
        q=found.q,
        effect=found.effect,
        verdict="drifted" if _is_drift(found, rules) else "stable",
        reason=reason,
    )


def _is_drift(test: _Test, rules: Rules) -> bool:
    return test.q <= rules.max_false_discovery_rate and test.excess >= rules.min_effect


def _untested(column: Column, rules: Rules) -> tuple[Verdict, str]:
    """The verdict on a column of which no test could be made."""
    for side, values in (("reference", column.reference), ("window", column.current)):
        if len(values) < rules.min_rows:
            return "insufficient", f"the {side} has {len(values)} rows of at least {rules.min_rows}"
    for name, looked_at in (("reference", column.then), ("window", column.now)):
        present = len(looked_at) - looked_at.missing
        if 0 < present < rules.min_rows:
            return "insufficient", f"the {name} has {present} present values of at least {rules.min_rows}"
    kinds = {*column.reference.tolist(), *column.current.tolist()} if column.kind == "categorical" else set()
    if len(kinds) > 1:
        return "insufficient", "no two categories are frequent enough to be compared"
    return "stable", "the same value everywhere" if kinds - {None} else "missing everywhere"
