"""The batch queue: who shares a run, who is refused, who is told what, and that everybody is told once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs.codec import Request
from gateway.errors import (
    CallerLeft,
    DeadlineExceeded,
    Draining,
    InferenceFailed,
    InvalidInput,
    QueueFull,
)
from gateway.serving.runpool import RunPool
from gateway.tensors import Signature, Tensors
from tests.puppet import DOUBLER, POISON, PuppetRuntime
from tests.serving.bench import FAR_S, Bench, run


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
