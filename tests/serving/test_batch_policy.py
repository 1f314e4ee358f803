"""What is learned from runs: their cost, the best size of a batch, how fast a queue drains."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.batch_policy import LONG_RUN_S, MIN_RUNS, BestSize, DrainRate, RunCost, finish_s

MOST = 256
# Seconds that a run of so many rows takes.
Shape = Callable[[int], float]
SHAPES: dict[str, Shape] = {
    "flat": lambda rows: 2e-3,
    "linear": lambda rows: 50e-6 * rows,
    "linear with a base": lambda rows: 1e-3 + 20e-6 * rows,
    "convex above 128 rows": lambda rows: 1e-3 + 20e-6 * rows + (100e-6 * (rows - 128) if rows > 128 else 0.0),
    "dear above 8 rows": lambda rows: 1e-3 + (1e-3 * rows if rows > 8 else 10e-6 * rows),
}
BEST = {"flat": {MOST}, "linear": {16, 32}, "linear with a base": {MOST}, "convex above 128 rows": {128},
        "dear above 8 rows": {8}}  # fmt: skip


def learn(best: BestSize, shape: Shape, draw: random.Random, runs: int, *, noise: float = 0.0) -> None:
    """Batches as a busy queue gives them: mostly as large as allowed, now and then what is left."""
    for _ in range(runs):
        limit = best.next_rows(MOST)
        rows = limit if draw.random() < 0.7 else draw.randint(1, limit)
        best.observe(rows, shape(rows) * (1 + noise * draw.expovariate(1)))


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("name", SHAPES)
def test_the_cheapest_size_is_found(name: str, noise: float) -> None:
    for seed in range(5):
        best, draw = BestSize(), random.Random(seed)
        for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256) * 4:  # as a version is warmed
            best.observe(rows, SHAPES[name](rows))
        learn(best, SHAPES[name], draw, 2000, noise=noise)
        found = best.best_rows(MOST)
        # Within a tenth of the cheapest: a smaller batch answers sooner.
        cost = {rows: (SHAPES[name](rows) + 100e-6) / rows for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
        slack = 1.15 if not noise else 1.6
        assert cost[found] <= slack * min(cost.values()), (found, seed)
        if not noise:
            assert found in BEST[name] | {min(size for size in cost if cost[size] * 0.9 <= min(cost.values()))}


@pytest.mark.parametrize(("before", "after"), [("dear above 8 rows", "linear with a base"),
                                               ("linear with a base", "dear above 8 rows"),
                                               ("flat", "convex above 128 rows")])  # fmt: skip
def test_the_best_size_follows_when_the_costs_change(before: str, after: str) -> None:
    best, draw = BestSize(), random.Random(1)
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256) * 4:
        best.observe(rows, SHAPES[before](rows))
    learn(best, SHAPES[before], draw, 1000)
    old = best.best_rows(MOST)
    learn(best, SHAPES[after], draw, 60_000)
    new = best.best_rows(MOST)
    cost = {rows: (SHAPES[after](rows) + 100e-6) / rows for rows in (old, new)}
    assert new != old
    assert cost[new] < cost[old]


def test_other_sizes_are_tried_now_and_then_and_never_more_than_allowed() -> None:
    best = BestSize()
    shape = SHAPES["dear above 8 rows"]
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256) * 4:
        best.observe(rows, shape(rows))
    limits = [best.next_rows(MOST) for _ in range(2000)]
    assert set(limits) == {4, 8, 16}
    assert 1 <= limits.count(16) <= 20
    assert 20 <= limits.count(4) <= 40
    assert {best.next_rows(5) for _ in range(2000)} == {2, 5}
    assert {best.next_rows(12) for _ in range(2000)} == {4, 8, 12}
    assert {best.next_rows(1) for _ in range(2000)} == {1}
    assert BestSize().next_rows(MOST) == MOST


def test_what_was_learned_of_a_smaller_size_in_a_slow_hour_is_not_believed_for_ever() -> None:
    """All sizes cost as much per row; the smaller ones were met while the machine was half as fast."""
    best = BestSize()
    for rows in (32, 64, 128) * 8:
        best.observe(rows, 2 * 50e-6 * rows)
    for _ in range(16):
        best.observe(MOST, 50e-6 * MOST)
    assert best.best_rows(MOST) == MOST
    for _ in range(20_000):  # the queue always holds enough
        rows = best.next_rows(MOST)
        best.observe(rows, 50e-6 * rows)
    assert best.best_rows(MOST) <= 64


@pytest.mark.parametrize(
    ("base_s", "row_s", "wait_s", "most"),
    [
        (0.5e-3, 40e-6, 0.0, 128),  # nobody asks how long one waits: 6 % dearer than 256 rows at once
        (0.5e-3, 40e-6, 5e-3, 64),  # 17 % dearer, and takes 3.2 ms; 128 rows take 5.7 ms
        (0.5e-3, 40e-6, 20e-3, 128),  # 128 rows take no longer than that
        (0.5e-3, 40e-6, 2e-3, 128),  # 32 rows would take 1.9 ms, and are more than a third dearer
        (0.5e-3, 40e-6, 1e-9, 128),  # nothing is that short
        (4e-3, 10e-6, 5e-3, 256),  # a row costs twice as much in half as large a batch
    ],
)
def test_where_waits_are_bounded_a_batch_takes_no_longer_unless_a_row_is_much_cheaper_then(
    base_s: float, row_s: float, wait_s: float, most: int
) -> None:
    best = BestSize()
    best.wait_at_most(wait_s)
    for rows in (16, 32, 64, 128, 256) * 8:
        best.observe(rows, base_s + row_s * rows)
    assert best.best_rows(MOST) == most


def test_while_a_larger_size_may_still_be_better_nothing_is_held_back() -> None:
    best = BestSize()
    for rows in (1, 2, 4, 8, 16, 32) * 8:
        best.observe(rows, SHAPES["flat"](rows))
    assert best.best_rows(MOST) == MOST


@given(runs=st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 10)), max_size=200), most=st.integers(1, 300))
def test_a_limit_is_always_one_that_a_batch_can_have(runs: list[tuple[int, float]], most: int) -> None:
    best = BestSize()
    for rows, run_s in runs:
        best.observe(rows, run_s)
        assert 1 <= best.best_rows(most) <= most
        assert max(1, best.best_rows(most) // 2) <= best.next_rows(most) <= most


@pytest.mark.parametrize("runs", [MIN_RUNS, 99, 100, 107, 108, 500])
def test_the_cost_is_fitted_at_first_after_each_run_and_later_soon_enough(runs: int) -> None:
    cost = RunCost()
    for number in range(runs):
        cost.observe(1 + number % 32, 1e-3 + 1e-4 * (1 + number % 32))
    assert cost.expected_s(10) == pytest.approx(2e-3)
    for number in range(1500):  # now twice as dear
        cost.observe(1 + number % 32, 2e-3 + 2e-4 * (1 + number % 32))
    assert cost.expected_s(10) == pytest.approx(4e-3, rel=0.01)


def test_a_line_that_is_fitted_seldom_still_moves_with_every_eighth_run() -> None:
    cost = RunCost()
    for number in range(200):
        cost.observe(1 + number % 4, 1e-3)
    seen = set()
    for number in range(32):
        cost.observe(1 + number % 4, 1e-3 * (1.01 + number / 100))
        seen.add(cost.expected_s(1))
    assert 4 <= len(seen) <= 5


@given(runs=st.lists(st.tuples(st.integers(1, 512), st.floats(1e-7, 5)), min_size=1, max_size=150))
def test_no_cost_is_below_zero_and_more_rows_are_never_cheaper(runs: list[tuple[int, float]]) -> None:
    cost = RunCost()
    for rows, run_s in runs:
        cost.observe(rows, run_s)
    expected = [cost.expected_s(rows) for rows in (1, 2, 16, 128, 1024)]
    assert all(math.isfinite(value) and value >= 0 for value in expected)
    assert expected == sorted(expected)


def test_one_disturbed_run_counts_as_a_few_and_a_lasting_change_is_believed() -> None:
    cost = RunCost()
    for _ in range(300):
        cost.observe(4, 1e-3)
    cost.observe(4, 10.0)
    for _ in range(8):
        cost.observe(4, 1e-3)
    assert cost.expected_s(4) < 1.05e-3
    for _ in range(600):
        cost.observe(4, 10e-3)
    assert cost.expected_s(4) == pytest.approx(10e-3, rel=0.05)


@given(
    rate=st.floats(1, 1e6), batches=st.lists(st.integers(1, 500), min_size=1, max_size=50), rows=st.integers(0, 9999)
)
def test_a_steady_queue_drains_at_its_rate(rate: float, batches: list[int], rows: int) -> None:
    drain = DrainRate()
    assert drain.wait_s(rows) == 1.0
    for batch in batches:
        drain.observe(batch, batch / rate)
    assert drain.wait_s(rows) == pytest.approx(rows / rate)


def test_the_rate_of_a_queue_is_that_of_its_latest_batches() -> None:
    drain = DrainRate()
    for _ in range(1000):
        drain.observe(10, 1.0)
    for _ in range(1000):
        drain.observe(10, 0.1)
    assert drain.wait_s(100) == pytest.approx(1.0, rel=0.01)


def known(base_s: float, row_s: float) -> RunCost:
    cost = RunCost()
    for number in range(2 * MIN_RUNS):
        cost.observe(1 + number % 16, base_s + row_s * (1 + number % 16))
    return cost


@pytest.mark.parametrize(
    ("ahead", "rows", "batch_rows", "runs"),
    [
        (0, 1, 8, [1]),
        (7, 1, 8, [8]),
        (8, 1, 8, [8, 1]),
        (20, 4, 8, [8, 8, 8]),
        (0, 20, 8, [8, 8, 4]),
        (3, 2, 1, [1] * 5),
    ],
)
def test_the_time_until_an_answer_is_that_of_the_runs_before_it_and_its_own(
    ahead: int, rows: int, batch_rows: int, runs: list[int]
) -> None:
    expected_s = sum(10e-3 + 1e-3 * count + 100e-6 for count in runs)
    assert finish_s(known(10e-3, 1e-3), ahead, rows, batch_rows) == pytest.approx(expected_s)


def test_nobody_is_turned_away_on_a_guess() -> None:
    cost = RunCost()
    for _ in range(MIN_RUNS - 1):
        cost.observe(1, 9.0)
    assert finish_s(cost, 1000, 1, 1) == 0.0
    cost.observe(1, 9.0)
    assert finish_s(cost, 1000, 1, 1) > 9000


@given(
    base_us=st.floats(1, 500),
    row_us=st.floats(0.01, 50),
    rows=st.lists(st.integers(1, 256), min_size=MIN_RUNS, max_size=80),
    asked=st.integers(1, 256),
)
def test_the_cost_of_a_run_is_learned(base_us: float, row_us: float, rows: list[int], asked: int) -> None:
    cost = RunCost()
    for count in rows:
        cost.observe(count, (base_us + row_us * count) * 1e-6)
    if len(set(rows)) > 1:
        assert math.isclose(cost.expected_s(asked), (base_us + row_us * asked) * 1e-6, rel_tol=1e-3, abs_tol=1e-9)
    else:
        assert cost.expected_s(rows[0]) == pytest.approx((base_us + row_us * rows[0]) * 1e-6)


def test_a_spike_does_not_change_what_is_known() -> None:
    cost = RunCost()
    assert cost.expected_s(1) == math.inf
    for _ in range(MIN_RUNS):
        cost.observe(1, 50e-6)
    cost.observe(1, 3.0)
    assert cost.expected_s(1) <= 200e-6


def test_a_model_whose_cost_depends_on_its_rows_leaves_the_loop_for_a_while() -> None:
    cost = RunCost()

    def is_sure_after(runs: int, run_s: float = 10e-6) -> bool:
        for _ in range(runs):
            cost.observe(1, run_s)
        return cost.is_sure

    assert not is_sure_after(MIN_RUNS - 1)
    assert is_sure_after(1)
    for _ in range(3):  # one long run now and then is the machine's doing
        assert is_sure_after(1, 2 * LONG_RUN_S)
        assert is_sure_after(64)
    is_sure_after(1, 2 * LONG_RUN_S)
    assert not is_sure_after(1, 2 * LONG_RUN_S)
    assert not is_sure_after(200)
    assert is_sure_after(56)


def test_long_runs_of_many_rows_that_are_as_long_as_expected_surprise_nobody() -> None:
    cost = RunCost()
    for _ in range(4 * MIN_RUNS):
        cost.observe(1, 100e-6)
        cost.observe(1000, 100e-3)
    assert LONG_RUN_S < 100e-3
    assert cost.is_sure
