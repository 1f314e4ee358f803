"""How large batches are and why they leave: best sizes, deadlines, and what is short enough for the event loop."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from gateway.codecs.codec import Request
from gateway.errors import (
    DeadlineUnreachable,
)
from gateway.serving.adaptive import BEGIN_ROWS
from gateway.serving.batch_policy import MIN_RUNS, BestSize, RunCost
from gateway.serving.runpool import RunPool
from gateway.tensors import Signature, Tensors
from tests.puppet import DOUBLER, PuppetRuntime
from tests.serving.bench import FAR_S, Bench, queue_behind_a_run, run


def test_each_batch_says_why_it_left(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool, max_batch_rows=4)
        await queue_behind_a_run(bench, (1, 2), (3,), (4, 5, 6))
        assert [(run.rows, run.reason) for run in bench.runs] == [(1, "drained"), (4, "full"), (2, "drained")]

        off = Bench(pool)
        off.batcher.set_limits(enabled=False, max_batch_rows=4)
        await queue_behind_a_run(off, (1,), (2,))
        assert [run.reason for run in off.runs] == ["alone"] * 3

        open_shape = replace(DOUBLER, inputs=(replace(DOUBLER.inputs[0], shape=(-1, -1)),))
        shapes = Bench(pool, open_shape)
        shapes.runtime.hold()
        shapes.submit(0)
        await shapes.running()
        shapes.submit(1)
        shapes.queue(Request(1, {"x": np.array([[1.0, 2.0]])}))
        shapes.submit_gathered()
        shapes.runtime.release()
        await shapes.all_answered()
        assert [run.reason for run in shapes.runs] == ["drained", "shape", "drained"]

    run(scenario)


def test_a_batch_is_no_larger_than_the_size_at_which_a_row_is_cheapest(pool: RunPool) -> None:
    async def scenario() -> None:
        best = BestSize()
        for rows in (1, 2, 4, 8, 16) * 8:
            best.observe(rows, 1e-3 if rows <= 4 else 1e-2 * rows)
        bench = Bench(pool, best=best)
        await queue_behind_a_run(bench, *[(number,) for number in range(9)])
        assert bench.runtime.batches == [1, 4, 4, 1]
        assert [run.reason for run in bench.runs] == ["drained", "best_size", "best_size", "drained"]

    run(scenario)


@pytest.mark.parametrize(("adaptive", "best_rows", "bound_rows"), [("off", 128, 16_384), ("on", 64, BEGIN_ROWS)])
def test_a_batcher_whose_bound_is_learned_has_shorter_batches_and_begins_lower(
    pool: RunPool, adaptive: str, best_rows: int, bound_rows: int
) -> None:
    best = BestSize()
    for rows in (16, 32, 64, 128, 256) * 8:
        best.observe(rows, 0.5e-3 + 40e-6 * rows)  # 128 rows take more than the 5 ms that one shall wait
    told = Bench(pool, best=best, adaptive=adaptive).batcher.describe(0.0)
    assert (told["best_rows"], told["bound_rows"]) == (best_rows, bound_rows)


@pytest.mark.parametrize("enabled", [True, False])
def test_other_sizes_are_tried_only_where_requests_run_together(pool: RunPool, enabled: bool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        bench.batcher.set_limits(enabled=enabled, max_batch_rows=4)
        await queue_behind_a_run(bench, *[(1, 2, 3, 4)] * 130)
        assert (set(bench.runtime.batches[1:]) == {4}) is not enabled

    run(scenario)


def test_a_batch_has_no_more_rows_than_its_earliest_deadline_allows(pool: RunPool) -> None:
    """A row takes a second: two rows are in time, three would not be; who comes first goes in any case."""

    async def scenario() -> None:
        bench = Bench(pool, cost=per_row(1.0))
        now_s = bench.clock()
        await queue_behind_a_run(bench, *[(number,) for number in range(5)], deadlines_s=[now_s + 2.5, *[FAR_S] * 4])
        assert bench.runtime.batches == [1, 2, 3]
        assert [run.reason for run in bench.runs] == ["drained", "deadline", "drained"]

        hopeless = Bench(pool, cost=per_row(1.0))
        await queue_behind_a_run(hopeless, (1,), (2,), deadlines_s=[hopeless.clock() + 0.5, FAR_S])
        assert hopeless.runtime.batches == [1, 1, 1]

        later = Bench(pool, cost=per_row(1.0))  # the tight one is not the first
        await queue_behind_a_run(later, (1,), (2,), (3,), deadlines_s=[FAR_S, later.clock() + 1.5, FAR_S])
        assert later.runtime.batches == [1, 1, 1, 1]

    run(scenario)


def per_row(second_s: float) -> RunCost:
    """The cost of a model of which each row takes so long."""
    cost = RunCost()
    for number in range(2 * MIN_RUNS):
        cost.observe(1 + number % 4, second_s * (1 + number % 4))
    return cost


def test_who_comes_to_an_empty_queue_with_a_tight_deadline_runs_with_those_who_fit(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool, cost=per_row(1.0))
        tight = bench.submit(1, deadline_s=bench.clock() + 1.5)
        others = [bench.submit(2), bench.submit(3)]
        await bench.all_answered()
        assert [bench.values(entry) for entry in (tight, *others)] == [[2], [4], [6]]
        assert bench.runtime.batches == [1, 2]
        assert [run.reason for run in bench.runs] == ["deadline", "drained"]

    run(scenario)


def test_a_deadline_that_the_queue_makes_unreachable_is_refused_with_the_time_that_the_queue_takes(
    pool: RunPool,
) -> None:
    async def scenario() -> None:
        bench = Bench(pool, cost=per_row(1.0), max_batch_rows=2)
        busy = [bench.batcher.is_busy]
        bench.runtime.hold()
        bench.submit(0)
        await bench.running()
        busy.append(bench.batcher.is_busy)
        now_s = bench.clock()
        for values in ((1, 2), (3, 4), (5,)):
            bench.submit(*values)
        bench.submit_gathered()
        # One that runs, five that wait, and itself: one, two, two, two seconds.
        bench.batcher.check_in_time(now_s + 7.1, now_s)
        with pytest.raises(DeadlineUnreachable) as refused:
            bench.batcher.check_in_time(now_s + 6.9, now_s)
        assert refused.value.retry_after_s == 1.0  # nothing is known of the queue yet
        bench.clock.advance(3.0)
        bench.runtime.release()
        await bench.all_answered()
        assert [*busy, bench.batcher.is_busy] == [False, True, False]
        bench.runtime.hold()
        for values in ((0,), (1, 2)):
            bench.submit(*values)
            bench.submit_gathered()
        with pytest.raises(DeadlineUnreachable) as refused:
            bench.batcher.check_in_time(bench.clock() + 1.0, bench.clock())
        assert refused.value.retry_after_s == pytest.approx(2 * 3.0 / 5, rel=0.1)
        bench.runtime.release()
        await bench.all_answered()

    run(scenario)


class Placed(PuppetRuntime):
    """Remembers in which thread it ran."""

    def __init__(self, signature: Signature = DOUBLER) -> None:
        super().__init__(signature)
        self.threads: list[int] = []

    def run(self, inputs: Tensors) -> Tensors:
        self.threads.append(threading.get_ident())
        return super().run(inputs)


@pytest.mark.parametrize(
    ("signature", "rows", "is_here"),
    [
        (DOUBLER, 1, True),
        (DOUBLER, 100, False),
        (replace(DOUBLER, batch_invariant=False), 1, True),
        (replace(DOUBLER, batch_invariant=False), 100, False),
        (replace(DOUBLER, inputs=(replace(DOUBLER.inputs[0], shape=(-1, -1)),)), 1, False),
    ],
    ids=["short", "long", "short alone", "long alone", "of open shape"],
)
def test_only_what_is_surely_short_runs_on_the_loop(
    pool: RunPool, signature: Signature, rows: int, is_here: bool
) -> None:
    cost = RunCost()
    for count in (1, 2) * MIN_RUNS:
        cost.observe(count, count * 50e-6)

    async def scenario() -> None:
        runtime = Placed(signature)
        bench = Bench(pool, signature, runtime, cost=cost)
        bench.submit(*range(rows))
        await bench.all_answered()
        assert [thread == threading.get_ident() for thread in runtime.threads] == [is_here]

    run(scenario)
