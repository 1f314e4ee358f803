"""The batch queue: who shares a run, who is refused, who is told what, and that everybody is told once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs.codec import Request
from gateway.errors import (
    CallerLeft,
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    GatewayError,
    InferenceFailed,
    InvalidInput,
    QueueFull,
)
from gateway.serving.batch_policy import MIN_RUNS, BestSize, RunCost
from gateway.serving.batcher import Batcher
from gateway.serving.entry import Entry, Run
from gateway.serving.runpool import RunPool
from gateway.settings import BatchSettings
from gateway.tensors import Signature, Tensors
from tests.puppet import DOUBLER, POISON, FakeClock, PuppetRuntime

FAR_S = 1e9


@pytest.fixture
def pool() -> Iterator[RunPool]:
    threads = RunPool(1)
    yield threads
    threads.close()


class Bench:
    """A batcher with a puppet for a model, and what came out of it."""

    def __init__(
        self,
        pool: RunPool,
        signature: Signature = DOUBLER,
        runtime: PuppetRuntime | None = None,
        cost: RunCost | None = None,
        best: BestSize | None = None,
        **limits: int,
    ) -> None:
        self._signature = signature
        self.runtime = runtime if runtime is not None else PuppetRuntime(signature)
        self.clock = FakeClock()
        self._gathered: list[Entry] = []
        self.runs: list[Run] = []
        self.answers: dict[Entry, list[Tensors | GatewayError]] = {}
        self.batcher = Batcher(
            self.runtime,
            signature,
            cost if cost is not None else RunCost(),
            BatchSettings(**limits),  # type: ignore[arg-type]  # those that are numbers
            pool,
            best=best,
            on_run=self.runs.append,
            clock=self.clock,
        )

    def submit(self, *values: float, deadline_s: float = FAR_S, flat: bool = False) -> Entry:
        rows = np.array(values, np.float64).reshape(-1, 1)
        if flat:
            request = Request(len(values), flat=rows.tobytes(), spec=self._signature.inputs[0])
        else:
            request = Request(len(values), {"x": rows})
        return self.queue(request, deadline_s)

    def queue(self, request: Request, deadline_s: float = FAR_S) -> Entry:
        entry = Entry(request, deadline_s, self)
        self.answers[entry] = []
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self.submit_gathered)
        self._gathered.append(entry)
        return entry

    def submit_gathered(self) -> None:
        """Submit what has been queued in this turn of the loop, as the pipeline does."""
        gathered, self._gathered = self._gathered, []
        self.batcher.submit(gathered)

    def finish(self, entry: Entry, result: Tensors | GatewayError, run: Run | None) -> None:
        self.answers[entry].append(result)

    def finish_batch(self, entries: list[Entry], outputs: Tensors, run: Run) -> None:
        start = 0
        for entry in entries:
            stop = start + entry.rows
            self.answers[entry].append({name: values[start:stop] for name, values in outputs.items()})
            start = stop

    async def all_answered(self) -> None:
        async with asyncio.timeout(20):
            while not all(self.answers.values()):
                await asyncio.sleep(0)

    async def running(self) -> None:
        """Until the puppet is inside a run."""
        async with asyncio.timeout(20):
            while not self.runtime.entered.acquire(blocking=False):
                await asyncio.sleep(0)

    def values(self, entry: Entry) -> list[float]:
        (answer,) = self.answers[entry]
        assert isinstance(answer, dict), answer
        return answer["y"].ravel().tolist()

    def error(self, entry: Entry) -> GatewayError:
        (answer,) = self.answers[entry]
        assert isinstance(answer, GatewayError), answer
        return answer


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


class Merger(PuppetRuntime):
    """Gives one row for each different value."""

    def run(self, inputs: Tensors) -> Tensors:
        return {"y": np.unique(super().run(inputs)["y"]).reshape(-1, 1)}


@pytest.mark.parametrize("invariant", [True, False])
def test_an_answer_of_too_few_rows_is_a_failed_run_even_of_a_request_alone(pool: RunPool, invariant: bool) -> None:
    async def scenario() -> None:
        bench = Bench(pool, replace(DOUBLER, batch_invariant=invariant), runtime=Merger())
        wrong, right = bench.submit(1, 1), bench.submit(1, 2)
        await bench.all_answered()
        assert isinstance(bench.error(wrong), InferenceFailed)
        assert "for a batch of 2 rows" in str(bench.error(wrong))
        assert bench.values(right) == [2, 4]

    run(scenario)


def test_requests_of_one_turn_of_the_loop_share_a_run(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        entries = [bench.submit(value) for value in (1, 2, 3)]
        await bench.all_answered()
        assert [bench.values(entry) for entry in entries] == [[2], [4], [6]]
        assert bench.runtime.batches == [3]

    run(scenario)


def test_what_comes_while_the_model_is_busy_leaves_together_when_it_is_free(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        bench.runtime.hold()
        bench.submit(1)
        await bench.running()
        for value in range(5):
            bench.submit(value)
            await asyncio.sleep(0)
        bench.runtime.release()
        await bench.all_answered()
        assert bench.runtime.batches == [1, 5]

    run(scenario)


def test_a_large_request_is_split_and_put_together_again(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool, max_batch_rows=4)
        large = bench.submit(*range(10))
        small = bench.submit(7)
        await bench.all_answered()
        assert bench.values(large) == [2 * value for value in range(10)]
        assert bench.values(small) == [14]
        assert bench.runtime.batches == [4, 4, 3]

    run(scenario)


def test_only_the_guilty_request_of_a_failed_batch_fails(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        good, bad, also_good = bench.submit(1), bench.submit(POISON), bench.submit(3)
        await bench.all_answered()
        assert isinstance(bench.error(bad), InferenceFailed)
        assert [bench.values(good), bench.values(also_good)] == [[2], [6]]

    run(scenario)


def test_a_full_queue_refuses_and_takes_again_once_it_has_room(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool, max_batch_rows=2, max_queue_rows=4)
        bench.runtime.hold()
        bench.submit(0)
        await bench.running()
        bench.submit(1, 2, 3)
        bench.submit_gathered()
        refused, impossible = bench.submit(4, 5), bench.submit(*range(5))
        bench.submit_gathered()
        error = bench.error(refused)
        assert isinstance(error, QueueFull)
        assert error.retry_after_s >= 1
        assert isinstance(bench.error(impossible), InvalidInput)
        assert "at most 4" in str(bench.error(impossible))
        bench.runtime.release()
        await bench.all_answered()
        bench.submit(4, 5)
        await bench.all_answered()

    run(scenario)


def test_who_waited_past_the_deadline_is_told_so_and_never_run(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        bench.runtime.hold()
        bench.submit(0)
        await bench.running()
        late = bench.submit(1, deadline_s=bench.clock() + 1)
        in_time = bench.submit(2, deadline_s=bench.clock() + 3)
        bench.clock.advance(2)
        bench.runtime.release()
        await bench.all_answered()
        assert isinstance(bench.error(late), DeadlineExceeded)
        assert bench.values(in_time) == [4]
        assert bench.runtime.batches == [1, 1]

    run(scenario)


def test_who_left_is_skipped(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        bench.runtime.hold()
        bench.submit(0)
        await bench.running()
        gone, here = bench.submit(1), bench.submit(2)
        bench.submit_gathered()
        gone.gone = True
        bench.runtime.release()
        await bench.all_answered()
        assert isinstance(bench.error(gone), CallerLeft)
        assert bench.values(here) == [4]
        assert bench.runtime.batches == [1, 1]

    run(scenario)


@pytest.mark.parametrize(
    "signature",
    [replace(DOUBLER, batch_invariant=False), replace(DOUBLER, batchable=False)],
    ids=["not-invariant", "fixed"],
)
def test_a_version_whose_rows_may_not_mix_runs_every_request_alone(pool: RunPool, signature: Signature) -> None:
    async def scenario() -> None:
        bench = Bench(pool, signature, max_batch_rows=2)
        entries = [bench.submit(1), bench.submit(2, 3, 4), bench.submit(5)]
        await bench.all_answered()
        assert [bench.values(entry) for entry in entries] == [[2], [4, 6, 8], [10]]
        assert bench.runtime.batches == [1, 3, 1]

    run(scenario)


def test_batching_can_be_switched_off_by_flag(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        bench.batcher.set_limits(enabled=False, max_batch_rows=2)
        large, small = bench.submit(1, 2, 3), bench.submit(4)
        await bench.all_answered()
        assert [bench.values(large), bench.values(small)] == [[2, 4, 6], [8]]
        assert bench.runtime.batches == [2, 1, 1]

    run(scenario)


def test_requests_of_different_open_shapes_never_share_a_run(pool: RunPool) -> None:
    async def scenario() -> None:
        signature = replace(DOUBLER, inputs=(replace(DOUBLER.inputs[0], shape=(-1, -1)),))
        bench = Bench(pool, signature)
        narrow = bench.submit(1)
        wide = bench.queue(Request(1, {"x": np.array([[1.0, 2.0]])}))
        await bench.all_answered()
        assert bench.values(narrow) == [2]
        assert bench.values(wide) == [2, 4]
        assert bench.runtime.batches == [1, 1]

    run(scenario)


def test_closing_tells_everybody_who_still_waits(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool)
        bench.runtime.hold()
        bench.submit(0)
        await bench.running()
        waiting = bench.submit(1)
        bench.submit_gathered()
        bench.batcher.close(Draining("stopping"))
        assert isinstance(bench.error(waiting), Draining)
        assert bench.batcher.queued_rows == 0
        bench.runtime.release()

    run(scenario)


async def queue_behind_a_run(bench: Bench, *entries: tuple[float, ...], deadlines_s: Sequence[float] = ()) -> None:
    """Queue entries while a run is held, then let all run."""
    bench.runtime.hold()
    bench.submit(0)
    await bench.running()
    for place, values in enumerate(entries):
        bench.submit(*values, deadline_s=deadlines_s[place] if deadlines_s else FAR_S)
        bench.submit_gathered()
    bench.runtime.release()
    await bench.all_answered()


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


def test_an_entry_that_is_split_when_the_queue_closes_is_told_once(pool: RunPool) -> None:
    async def scenario() -> None:
        bench = Bench(pool, max_batch_rows=2)
        bench.runtime.hold()
        large = bench.submit(*range(7))
        await bench.running()
        bench.batcher.close(Draining("stopping"))
        bench.runtime.release()
        small = bench.submit(1)
        await bench.all_answered()
        assert isinstance(bench.error(large), Draining)
        assert bench.values(small) == [2]
        assert bench.batcher.queued_rows == 0

    run(scenario)


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([1.0, 2.0, 3.0, POISON]), min_size=1, max_size=9),
        st.sampled_from(["stays", "leaves", "late"]),
        st.booleans(),  # a turn of the loop before the next one
        st.booleans(),  # its values wait in a flat array
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, max_batch_rows=st.integers(1, 8), invariant=st.booleans())
def test_everybody_gets_one_answer_and_it_is_their_own(
    requests: list[tuple[list[float], str, bool, bool]], max_batch_rows: int, invariant: bool
) -> None:
    async def scenario() -> None:
        with contextlib.closing(RunPool(1)) as pool:
            bench = Bench(pool, replace(DOUBLER, batch_invariant=invariant), max_batch_rows=max_batch_rows)
            submitted = []
            for values, fate, turn, flat in requests:
                deadline_s = bench.clock() if fate == "late" else FAR_S
                entry = bench.submit(*values, deadline_s=deadline_s, flat=flat)
                entry.gone = fate == "leaves"
                submitted.append((entry, values, fate))
                if turn:
                    await asyncio.sleep(0)
            await bench.all_answered()
            for entry, values, fate in submitted:
                (answer,) = bench.answers[entry]
                if isinstance(answer, dict):
                    assert answer["y"].ravel().tolist() == [2 * value for value in values]
                    assert POISON not in values
                elif fate == "stays":
                    assert isinstance(answer, InferenceFailed)
                    assert POISON in values
                else:
                    assert isinstance(answer, CallerLeft | DeadlineExceeded | InferenceFailed)
            assert bench.batcher.queued_rows == 0
            if invariant:
                assert max(bench.runtime.batches, default=0) <= max_batch_rows

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
