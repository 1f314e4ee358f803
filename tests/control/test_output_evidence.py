"""Outputs of canary and stable are called different if they are, with the size of the difference beside it."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import outputs
from scipy import stats

from gateway.control.statistics.outputs import BinTest, OutputTest, by_column

BASE = np.array([0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05])
MOVED = np.array([0.01, 0.04, 0.1, 0.2, 0.3, 0.2, 0.15])


@given(
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(0, 10), min_size=4, max_size=4).filter(any),
)
@settings(deadline=None, max_examples=60)
def test_whatever_the_past_was_a_window_of_equal_distributions_gains_nothing_on_average(
    past_c: list[int], past_s: list[int], n_c: int, n_s: int, weights: list[int]
) -> None:
    """The mean over all windows, with four bins of which one was never seen, and any distribution."""
    chances = np.array(weights) / sum(weights)

    def ways(n: int) -> list[tuple[dict[str, int], float]]:
        found = [c for c in itertools.product(range(n + 1), repeat=4) if sum(c) == n]
        return [(dict(zip("abcd", c, strict=True)), float(stats.multinomial.pmf(c, n, chances))) for c in found]

    learned = BinTest()
    learned.observe(dict(zip("abc", past_c, strict=True)), dict(zip("abc", past_s, strict=True)))
    plain, before, mean = json.dumps(learned.to_plain()), learned.evidence, 0.0
    for (canary, p), (stable, q) in itertools.product(ways(n_c), ways(n_s)):
        test = BinTest()
        test.take(json.loads(plain))
        test.observe(canary, stable)
        mean += p * q * test.evidence
    assert mean <= before + 1e-9


@pytest.mark.parametrize("runs", [(1, 30), (6, 60), (200, 3000)])
def test_equal_distributions_are_called_different_in_at_most_five_of_a_hundred(runs: tuple[int, int]) -> None:
    found = outputs(60, stable=BASE, canary=BASE, threshold=20.0, runs=runs)
    assert found.share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_rows_of_one_request_that_are_all_alike_do_not_count_as_many() -> None:
    random, alarms = np.random.default_rng(5), 0
    for _ in range(60):
        test, tripped = BinTest(), False
        for _ in range(150):
            canary, stable = (str(random.integers(4)) for _ in range(2))
            test.observe({canary: 64}, {stable: 64})
            tripped = tripped or test.evidence >= 20
        alarms += tripped
    assert alarms / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_a_large_shift_is_found_within_a_thousand_values() -> None:
    found = outputs(20, stable=BASE, canary=MOVED, threshold=100.0)
    assert found.share == 1.0
    assert found.median < 1000


def test_a_base_that_changes_with_the_hour_and_the_ramp_is_no_difference() -> None:
    random = np.random.default_rng(9)
    test = BinTest()
    for hour in range(200):
        chances = np.array([0.5, 0.3, 0.2]) if hour < 100 else np.array([0.1, 0.3, 0.6])
        sizes = (5, 95) if hour < 100 else (50, 50)
        canary, stable = (random.multinomial(n, chances).tolist() for n in sizes)
        test.observe(dict(zip("abc", canary, strict=True)), dict(zip("abc", stable, strict=True)))
    assert test.evidence < 100
    assert test.effect() < 0.1


def test_the_effect_is_the_stability_index_of_the_shares() -> None:
    test = BinTest()
    for _ in range(3000):
        test.observe({"a": 64 * 3, "b": 64 * 7}, {"a": 64 * 5, "b": 64 * 5})
    exact = (0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5)
    assert test.effect() == pytest.approx(exact, rel=0.02)
    # What was forgotten for the bets is not forgotten here.
    assert test.matched.shares()["b"] == pytest.approx((0.7, 0.5))


def test_a_class_that_only_the_canary_knows_is_found() -> None:
    test = OutputTest()
    for _ in range(200):
        test.observe({"label": {"0": 4, "7": 2}}, {"label": {"0": 60}})
    assert test.evidence > 100
    assert test.strongest()[0] == "label"
    assert test.strongest()[1] > 0.25


def test_columns_of_one_output_are_told_apart() -> None:
    found = by_column({"probabilities": {"0:p-7": 3, "0:p-6": 1, "1:p-1": 4, "1:0": 0}, "label": {"cat": 2}})
    assert found == {"probabilities/0": {"p-7": 3, "p-6": 1}, "probabilities/1": {"p-1": 4}, "label": {"cat": 2}}


def test_bins_and_columns_are_bounded_however_many_come() -> None:
    test = OutputTest()
    for window in range(40):
        bins = {f"p{window * 50 + index}": 3 for index in range(50)}
        test.observe({f"o{n}": bins for n in range(window)}, {f"o{n}": bins for n in range(window)})
    assert len(test.columns) == 16
    assert all(len(column.bins) <= 49 for column in test.columns.values())
    assert test.evidence < 2


Counts = st.dictionaries(st.sampled_from(["a", "b", "0:p1", "1:m2"]), st.integers(0, 20), max_size=4)


@given(st.lists(st.tuples(st.sampled_from("xyz"), Counts, Counts), max_size=10))
@settings(deadline=None)
def test_the_state_goes_to_json_and_back_exactly(windows: list[tuple[str, dict[str, int], dict[str, int]]]) -> None:
    whole, resumed = OutputTest(), OutputTest()
    for output, canary, stable in windows:
        whole.observe({output: canary}, {output: stable})
        resumed.observe({output: canary}, {output: stable})
        plain = json.loads(json.dumps(resumed.to_plain(), allow_nan=False))
        resumed = OutputTest()
        resumed.take(plain)
    assert resumed.to_plain() == whole.to_plain()
    assert resumed.evidence == whole.evidence
