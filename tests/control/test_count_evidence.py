"""Evidence from counts is worth what it says: without cause at most 1 on average, whatever rates and windows are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import ramp
from scipy import stats

from gateway.control.statistics.counts import BETTER, BETTER_FINE, WORSE, WORSE_FINE, CountTest, log_bets
from gateway.tensors import Array

RATES = st.sampled_from([0.0, 1e-4, 0.005, 0.05, 0.3, 0.5, 0.8, 1.0]) | st.floats(1e-9, 1)
MARGINS = st.sampled_from([1.0, 1.25, 2.0])
TOLERANCES = st.sampled_from([0.0, 0.001, 0.02, 0.2])


def expected(test: CountTest, n_c: int, p_c: float, n_s: int, p_s: float) -> float:
    """The mean of the evidence after one window: a sum over all that can happen, no simulation."""
    b_c, b_s = np.meshgrid(np.arange(n_c + 1), np.arange(n_s + 1), indexing="ij")
    chance = stats.binom.pmf(b_c, n_c, p_c) * stats.binom.pmf(b_s, n_s, p_s)
    test.observe(np.full_like(b_c, n_c), b_c, np.full_like(b_s, n_s), b_s)
    return float((chance * test.evidence).sum())


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 40), st.integers(0, 40), RATES, MARGINS, TOLERANCES, st.booleans())
def test_evidence_that_the_canary_is_worse_is_at_most_1_on_average_if_it_is_not(
    n_c: int, n_s: int, p_s: float, margin: float, tolerance: float, fine: bool
) -> None:
    test = CountTest(
        margin=margin, tolerance=tolerance, guesses=WORSE_FINE if fine else WORSE, lanes=(n_c + 1, n_s + 1)
    )
    p_c = min(margin * p_s + tolerance, 1.0)
    assert expected(test, n_c, p_c, n_s, p_s) <= 1 + 1e-9


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 40), st.integers(0, 40), RATES, MARGINS, TOLERANCES, st.booleans())
def test_evidence_that_the_canary_is_not_worse_is_at_most_1_on_average_if_it_is(
    n_c: int, n_s: int, p_s: float, margin: float, tolerance: float, fine: bool
) -> None:
    p_c = margin * p_s + tolerance
    if p_c > 1:
        return  # it cannot be that bad
    guesses = BETTER_FINE if fine else BETTER
    test = CountTest(margin=margin, tolerance=tolerance, guesses=guesses, lanes=(n_c + 1, n_s + 1))
    assert expected(test, n_c, p_c, n_s, p_s) <= 1 + 1e-9


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 12), RATES, MARGINS)
def test_events_that_come_in_groups_are_worth_no_more_than_1_if_the_group_is_known(
    groups_c: int, groups_s: int, together: int, rate: float, margin: float
) -> None:
    """All of a group are bad, or none: the worst dependence there is."""
    test = CountTest(margin=margin, together=together, lanes=(groups_c + 1, groups_s + 1))
    b_c, b_s = np.meshgrid(np.arange(groups_c + 1), np.arange(groups_s + 1), indexing="ij")
    p_c = min(margin * rate, 1.0)
    chance = stats.binom.pmf(b_c, groups_c, p_c) * stats.binom.pmf(b_s, groups_s, rate)
    test.observe(groups_c * together, b_c * together, groups_s * together, b_s * together)
    assert float((chance * test.evidence).sum()) <= 1 + 1e-9


def test_the_bet_on_one_event_is_the_likelihood_ratio_of_the_conditional_binomial_test() -> None:
    share, margin, rho = 0.05, 1.25, 6.0
    log_u, log_v = log_bets(share, margin, np.array([rho]))
    on_canary = share * rho / (share * rho + 1 - share)
    if_not = share * margin / (share * margin + 1 - share)
    bad, of = 7, 30
    ratio = stats.binom.logpmf(bad, of, on_canary) - stats.binom.logpmf(bad, of, if_not)
    assert bad * log_u[0] + (of - bad) * log_v[0] == pytest.approx(ratio)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6))
@settings(deadline=None)
def test_windows_of_equal_shares_say_the_same_one_by_one_and_together(events: list[tuple[int, int]]) -> None:
    apart, joined = CountTest(margin=1.25, guesses=np.array([2.0])), CountTest(margin=1.25, guesses=np.array([2.0]))
    for b_c, b_s in events:
        apart.observe(10, b_c, 90, b_s)
    joined.observe(10 * len(events), sum(b_c for b_c, _ in events), 90 * len(events), sum(b_s for _, b_s in events))
    # With one guess the evidence is the bet and what is kept back; a portion that was put in on the way may add to it.
    assert float(apart.evidence) >= float(joined.evidence) - 1e-9 or float(joined.evidence) < 1
    assert float(apart.evidence) <= float(joined.evidence) + 1


def test_without_traffic_on_both_variants_nothing_is_said() -> None:
    test = CountTest(margin=1.25)
    before = test.to_plain()
    test.observe(1000, 1000, 0, 0)
    test.observe(0, 0, 1000, 1000)
    assert test.to_plain() == before


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 49), st.integers(0, 50))
@settings(deadline=None)
def test_one_more_bad_event_of_the_canary_never_lessens_the_evidence(n_c: int, n_s: int, b_c: int, b_s: int) -> None:
    test = CountTest(margin=1.25, lanes=(2,))
    b_c, b_s = min(b_c, n_c - 1), min(b_s, n_s)
    test.observe(n_c, np.array([b_c, b_c + 1]), n_s, b_s)
    assert test.evidence[1] >= test.evidence[0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=12))
@settings(deadline=None)
def test_the_state_goes_to_json_and_back_exactly(windows: list[tuple[int, int, int, int]]) -> None:
    whole, resumed = CountTest(margin=1.25, tolerance=0.01), CountTest(margin=1.25, tolerance=0.01)
    for n_c, b_c, n_s, b_s in windows:
        whole.observe(n_c, min(n_c, b_c), n_s, min(n_s, b_s))
        resumed.observe(n_c, min(n_c, b_c), n_s, min(n_s, b_s))
        plain = json.loads(json.dumps(resumed.to_plain(), allow_nan=False))
        resumed = CountTest(margin=1.25, tolerance=0.01)
        resumed.take(plain)
    assert resumed.to_plain() == whole.to_plain()


def test_a_state_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        CountTest(margin=1.25).take({"logs": [0.0], "portions": 1.0})


# Rollouts over the ramp 1-5-20-50 %, with 1 % allowed: of 1,000 rollouts, 18 are three standard deviations too many.
ALLOWED = 0.01 + 3 * math.sqrt(0.01 * 0.99 / 1000)
SHORT = ((0.01, 5_000), (0.05, 5_000), (0.20, 5_000), (0.50, 10_000))


@pytest.mark.parametrize(
    ("rate", "window", "heavy"),
    [(0.005, 100, 0.0), (0.005, 2500, 0.0), (0.5, 100, 0.0), (0.95, 500, 0.0), (0.005, 100, 0.3), (0.5, 500, 0.3)],
)
def test_a_healthy_canary_is_blamed_in_at_most_one_of_a_hundred_rollouts(
    rate: float, window: int, heavy: float
) -> None:
    test = CountTest(margin=1.0, lanes=(1000,))
    found = ramp(test, 1000, base=rate, rate=rate, threshold=100.0, window=window, steps=SHORT, heavy=heavy)
    assert found.share <= ALLOWED


def test_looking_after_each_request_blames_no_more_often() -> None:
    test = CountTest(margin=1.0, lanes=(1000,))
    steps = ((0.2, 400), (0.5, 400))
    assert ramp(test, 1000, base=0.05, rate=0.05, threshold=100.0, window=1, steps=steps).share <= ALLOWED


def test_ten_bad_events_of_one_cause_are_too_many_only_if_nobody_says_so() -> None:
    apart, together = (CountTest(margin=1.0, lanes=(1000,), together=k) for k in (1, 10))
    kwargs = {"base": 0.01, "rate": 0.01, "threshold": 100.0, "steps": SHORT, "group": 10}
    assert ramp(apart, 1000, **kwargs).share > 0.1  # type: ignore[arg-type]
    assert ramp(together, 1000, **kwargs).share <= ALLOWED  # type: ignore[arg-type]


@pytest.mark.parametrize(("ratio", "soon"), [(20, (20, 45)), (5, (280, 450))])
def test_a_bad_canary_is_found_after_as_many_requests_as_promised(ratio: float, soon: tuple[int, int]) -> None:
    """x5 at 0.5 % after about 400 requests of the canary, x20 after about 30: median, with all of alpha = 1 %."""
    test = CountTest(margin=1.25, lanes=(500,))
    found = ramp(test, 500, base=0.005, rate=0.005 * ratio, threshold=100.0, steps=((0.01, 20_000), (0.05, 30_000)))
    assert found.share > 0.99
    assert soon[0] <= found.median <= soon[1]


def _late(evidence: Array | float) -> float:
    return float(np.max(evidence))


def test_a_canary_that_was_good_for_long_is_found_when_it_turns_bad() -> None:
    test = CountTest(margin=1.25)
    for _ in range(2000):  # ten thousand requests of the canary, with the errors that it should have
        test.observe(50, 1, 50, 1)
    assert _late(test.evidence) < 1
    looks = 0
    while _late(test.evidence) < 100:
        test.observe(50, 5, 50, 1)
        looks += 1
    assert looks < 25


def test_evidence_has_a_ceiling_so_that_a_change_is_noticed_soon() -> None:
    test = CountTest(margin=1.25, tolerance=0.005, guesses=BETTER, ceiling=400.0)
    for _ in range(1000):
        test.observe(50, 0, 50, 0)
    assert 20 < float(test.evidence) <= 401
    for _ in range(4):
        test.observe(50, 2, 50, 0)
    assert float(test.evidence) < 20
