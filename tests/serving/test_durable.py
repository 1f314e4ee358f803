"""Answers that wait for the log: given once the disk has them, refused if it does not take them, held by nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.errors import SampleLogUnavailable
from gateway.samples.segments import SegmentReader
from tests.serving.rig import Caller, Rig, run


async def answered(callers: list[Caller]) -> None:
    async with asyncio.timeout(20):
        while not all(caller.answers for caller in callers):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("codec", ["oip", "native"])
def test_an_answer_goes_out_when_the_log_has_it_also_for_followers_and_from_the_cache(
    tmp_path: Path, codec: str
) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.adopt(sampled=1.0, durable=True)
        first = [rig.ask(1.0, codec=codec), rig.ask(1.0, codec=codec), rig.ask(2.0, codec=codec)]
        await rig.settle()
        assert [caller.answers for caller in first] == [[], [], []]  # nobody writes yet
        rig.sampler.start()
        await answered(first)
        again = rig.ask(1.0, codec=codec)
        await answered([again])
        assert again.headers["x-cache"] == "hit"
        asked = {caller.call.prediction_id: caller.outputs() for caller in (*first, again)}
        assert sorted(asked.values()) == [[2.0], [2.0], [2.0], [4.0]]
        blocks = SegmentReader(tmp_path / "samples").read(10**9)
        logged = [json.loads(line)["prediction_id"] for _file, block in blocks for line in block.splitlines()]
        assert sorted(logged) == sorted(asked)
        rig.check_nothing_is_held()
        rig.sampler.close(10)

    run(scenario)


def test_a_log_that_takes_nothing_until_the_deadline_refuses_and_holds_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.adopt(sampled=1.0, durable=True)
        waits, leaves = rig.ask(1.0), rig.ask(2.0)
        await rig.settle()
        rig.leave(leaves)
        rig.advance(6.0)
        assert isinstance(waits.error, SampleLogUnavailable)
        assert not leaves.answers
        rig.check_nothing_is_held()
        rig.sampler.start()
        rig.sampler.close(10)
        await rig.turn()
        await rig.turn()
        rig.check_nothing_is_held()
        late = rig.ask(3.0)  # the log is closed
        await rig.settle()
        assert isinstance(late.error, SampleLogUnavailable)
        rig.check_nothing_is_held()

    run(scenario)


def test_only_sampled_answers_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.adopt(sampled=0.0, durable=True)
        caller = rig.ask(1.0)
        await rig.settle()
        assert caller.outputs() == [2.0]

    run(scenario)


def test_answers_of_a_batch_in_which_the_flag_came_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        rig.adopt(sampled=1.0)
        before = rig.ask(1.0, codec="native")
        rig.adopt(sampled=1.0, durable=True)
        after = rig.ask(2.0, codec="native")
        await rig.settle()
        assert before.outputs() == [2.0]
        assert not after.answers
        rig.advance(6.0)
        rig.check_nothing_is_held()

    run(scenario)
