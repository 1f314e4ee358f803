"""The walk of predictions without sockets: everybody is told once and rightly, and nothing is held afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    InferenceFailed,
    InvalidInput,
    OverShare,
    QueueFull,
    Shed,
)
from gateway.serving.batch_policy import MIN_RUNS
from gateway.serving.shares import Shares
from tests.puppet import POISON
from tests.serving.rig import FLAG, NAMED, Caller, Rig, run
from tests.serving.steps import STEPS


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=STEPS, cache=st.booleans(), max_batch_rows=st.integers(1, 6), max_queue_rows=st.sampled_from([7, 12, 1000])
)
def test_everybody_is_told_once_and_nothing_is_held_afterwards(
    tmp_path: Path, steps: list[tuple[str, Any]], cache: bool, max_batch_rows: int, max_queue_rows: int
) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=cache, max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows)
        for kind, detail in steps:
            if kind == "ask":
                rig.ask(*detail["values"], **{name: value for name, value in detail.items() if name != "values"})
            elif kind == "leave" and rig.callers:
                rig.leave(rig.callers[detail % len(rig.callers)])
            elif kind == "advance":
                rig.advance(detail)
            elif kind == "run" and rig.pool.is_busy:
                rig.pool.run_one()
            elif kind.startswith("cache"):
                rig.adopt(cached=kind == "cache on")
            elif kind == "turn":
                await rig.turn()
        await rig.settle()
        for caller in rig.callers:
            check_answer(caller)
        rig.check_nothing_is_held()
        # Nobody is left behind whom an equal call would wait for.
        for value in (1.0, 2.0, 3.0, POISON):
            for pinned in ("1", "2"):
                again = rig.ask(value, pinned=pinned)
                await rig.settle()
                check_answer(again)
                assert again.error is None or value == POISON or str(again.error) == "aborted"
        rig.check_nothing_is_held()

    run(scenario)


def check_answer(caller: Caller) -> None:
    call = caller.call
    if caller.left:
        assert not caller.answers
        return
    ((error, headers, _),) = caller.answers
    if error is None:
        assert caller.outputs() == [2 * value for value in caller.values]
        assert POISON not in caller.values
        wanted = call.headers.get("x-variant")
        variant = "pinned" if call.pinned else wanted if wanted in FLAG["variants"] else "stable"
        version = call.pinned or FLAG["variants"][variant]  # type: ignore[index]
        assert (headers["x-model-variant"], headers["x-model-version"]) == (variant, version)
    elif isinstance(error, InvalidInput):
        assert call.body in (b"{", b"")
    elif isinstance(error, InferenceFailed):
        assert POISON in caller.values or str(error) == "aborted"  # called off, long after its deadline
    else:
        assert isinstance(error, DeadlineExceeded | QueueFull | Shed | DeadlineUnreachable), error


def test_calls_of_all_kinds_share_one_run_and_each_gets_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        callers = [rig.ask(1), rig.ask(2, codec="native"), rig.ask(3, pinned="1"), rig.ask(4, variant="twin")]
        rig.adopt(cached=False)
        callers += [rig.ask(5), rig.ask(6, codec="native"), rig.ask(7, 8), rig.ask(9, pinned="1"), rig.ask(1)]
        callers += [rig.ask(10, codec="tfs"), rig.ask(11, 12, codec="mlflow"), rig.ask(13, codec="torchserve")]
        await rig.settle()
        assert rig.runtimes["1"].batches == [14]
        for caller in callers:
            check_answer(caller)
        assert [caller.headers["x-cache"] for caller in callers] == ["miss"] * 4 + ["bypass"] * 8
        rig.check_nothing_is_held()

    run(scenario)


@pytest.mark.parametrize("how", ["leaves", "expires"])
@pytest.mark.parametrize("who", ["leader", "followers", "all"])
@pytest.mark.parametrize("when", ["arrived", "queued", "running"])
def test_who_goes_takes_nobody_along(tmp_path: Path, who: str, how: str, when: str) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        if when == "queued":
            rig.ask(7)
            await rig.turn()
        short = dict.fromkeys(("leader", "all") if who == "leader" else ("followers", "all"), 1.0)
        leader = rig.ask(1, timeout_s=short.get(who, 5.0) if who != "followers" else 5.0)
        followers = [rig.ask(1, codec=codec, timeout_s=1.0 if who != "leader" else 5.0) for codec in ("oip", "native")]
        if when != "arrived":
            await rig.turn()
        going = {"leader": [leader], "followers": followers, "all": [leader, *followers]}[who]
        if how == "expires":
            rig.advance(2.0)
        else:
            for caller in going:
                rig.leave(caller)
        await rig.settle()
        for caller in (leader, *followers):
            check_answer(caller)
            if caller not in going:
                assert caller.error is None
            elif how == "expires":
                assert isinstance(caller.error, DeadlineExceeded)
        if when != "running":
            assert rig.runtimes["1"].batches == [1] * (when == "queued") + [1] * (who != "all")
        rig.check_nothing_is_held()

    run(scenario)


def test_a_run_that_fails_fails_all_who_wait_for_it_and_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        bad = [rig.ask(POISON), rig.ask(POISON), rig.ask(POISON, codec="native")]
        good = [rig.ask(1), rig.ask(2, codec="native")]
        await rig.settle()
        assert all(isinstance(caller.error, InferenceFailed) for caller in bad)
        assert [caller.outputs() for caller in good] == [[2], [4]]
        again = rig.ask(POISON)  # nothing of it is kept
        await rig.settle()
        assert isinstance(again.error, InferenceFailed)
        rig.check_nothing_is_held()

    run(scenario)


def test_a_leader_that_finds_no_room_is_refused_with_its_followers(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, max_queue_rows=2, max_batch_rows=2)
        rig.ask(7)
        await rig.turn()
        rig.ask(1, 2)
        leader, follower = rig.ask(3), rig.ask(3, codec="native")
        await rig.turn()
        assert isinstance(leader.error, QueueFull)
        assert isinstance(follower.error, QueueFull)
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)


def test_a_leader_whose_client_asks_for_too_much_is_refused_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig, shares = Rig(tmp_path, max_queue_rows=22, max_batch_rows=2), Shares()

        def ask(client: str, *values: float, codec: str = "oip") -> Caller:
            caller = rig.ask(*values, codec=codec)
            shares.join(caller.call, client, "m")
            return caller

        ask("greedy", 7)
        await rig.turn()
        ask("greedy", *range(10, 19))
        ask("large", *range(20, 28))
        leader, followers = ask("greedy", 3), [ask("modest", 3, codec="native"), ask("small", 3)]
        own = ask("greedy", 3)
        assert leader.call.share is not None
        leader.call.share.rows = 21  # what it has in flight besides
        await rig.settle()
        assert isinstance(leader.error, OverShare)
        assert isinstance(own.error, OverShare)
        assert own.headers["x-cache"] == "shared", "what its client is refused once is not decoded again"
        assert [caller.outputs() for caller in followers] == [[6], [6]]
        assert [caller.headers["x-cache"] for caller in followers] == ["bypass", "bypass"]
        rig.check_nothing_is_held()

    run(scenario)


def test_a_follower_makes_the_run_worth_doing_for_longer(tmp_path: Path) -> None:
    """The leader's deadline passes in the queue; the follower's has not."""

    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.ask(7)
        await rig.turn()
        leader, follower = rig.ask(1, timeout_s=1.0), rig.ask(1)
        await rig.turn()
        rig.advance(2.0)
        await rig.settle()
        assert isinstance(leader.error, DeadlineExceeded)
        assert follower.outputs() == [2]
        assert follower.headers["x-cache"] == "shared"
        rig.check_nothing_is_held()

    run(scenario)


def test_an_equal_call_takes_up_a_run_that_everybody_had_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.ask(7)
        await rig.turn()
        leader = rig.ask(1)
        await rig.turn()
        rig.leave(leader)
        late = rig.ask(1)
        await rig.settle()
        assert late.outputs() == [2]
        assert rig.runtimes["1"].batches == [1, 1]
        rig.check_nothing_is_held()

    run(scenario)


def test_a_body_of_the_other_protocol_is_refused_also_beside_calls_that_are_right(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        bodies = {}
        for codec in ("oip", "native"):
            bodies[codec] = rig.ask(1, codec=codec).call.body  # now both envelopes are known
            await rig.settle()
        for first, second in (("oip", "native"), ("native", "oip")):
            right, wrong = rig.ask(1, codec=first), rig.ask(1, codec=second, body=bodies[first])
            await rig.settle()
            assert right.outputs() == [2]
            assert isinstance(wrong.error, InvalidInput)
        rig.check_nothing_is_held()

    run(scenario)


def test_who_cannot_be_answered_in_time_is_told_at_once_and_never_by_an_idle_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        for _ in range(MIN_RUNS):
            rig.costs["1"].observe(1, 2.0)
        first = rig.ask(1, timeout_s=1.0)  # nobody is before it: it may try
        await rig.turn()
        assert not first.answers
        late, patient = rig.ask(2, timeout_s=3.0), rig.ask(3, timeout_s=10.0)
        other = rig.ask(4, timeout_s=1.0, pinned="2")
        large = rig.ask(*range(10, 30), timeout_s=30.0)  # how much that is shows when it is decoded
        assert isinstance(late.error, DeadlineUnreachable)
        await rig.turn()
        assert isinstance(large.error, DeadlineUnreachable)
        assert not patient.answers
        await rig.settle()
        for caller in (first, patient, other):
            assert caller.error is None
        rig.check_nothing_is_held()

    run(scenario)


def test_an_entry_that_runs_whole_is_judged_by_one_run_of_all_its_rows(tmp_path: Path) -> None:
    async def scenario() -> None:
        alone = replace(NAMED, batch_invariant=False)
        rig = Rig(tmp_path, alone, cache=False)
        for rows, run_s in [(1, 0.006), (1000, 0.009)] * MIN_RUNS:
            rig.costs["1"].observe(rows, run_s)
        rig.ask(1)
        await rig.turn()
        many = rig.ask(*range(1000), timeout_s=5.0)
        await rig.settle()
        assert many.error is None
        rig.check_nothing_is_held()

    run(scenario)


def test_the_wait_that_is_suggested_is_what_the_queue_takes(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False, max_batch_rows=1)
        for _ in range(MIN_RUNS):
            rig.costs["1"].observe(1, 2.0)
        for number in range(3):
            rig.ask(number, timeout_s=60.0)
            await rig.turn()
        rig.clock.advance(4.0)
        rig.pool.run_one()  # one row in four seconds
        await rig.turn()
        await rig.turn()
        queued = rig.versions["1"].batcher.queued_rows
        refused = rig.ask(9, timeout_s=1.0)
        assert isinstance(refused.error, DeadlineUnreachable)
        assert refused.error.retry_after_s == pytest.approx(4.0 * queued)
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)
