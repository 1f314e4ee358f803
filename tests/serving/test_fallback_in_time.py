"""Candidates that hang or have no room: the default version answers while there is still time."""

from __future__ import annotations

from pathlib import Path

from gateway.errors import DeadlineExceeded, InferenceFailed, QueueFull
from gateway.serving.breaker import FIRST_OPEN_S, MAX_ROW
from gateway.serving.guards import RUN_LIMIT_S
from tests.puppet import POISON
from tests.serving.faulty import CANARY_KEYS, PLAIN_FLAG, STABLE_KEYS, FaultyRig, check_fell_back, check_own
from tests.serving.rig import run


def test_a_run_that_takes_too_long_leaves_the_default_version_time_to_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        waiting = [
            rig.ask(1, key=CANARY_KEYS[0], timeout_s=1.0),
            rig.ask(2, 3, key=CANARY_KEYS[1], timeout_s=2.0, codec="native"),
            rig.ask(4, pinned="2"),
        ]
        await rig.turn()
        queued = rig.ask(5, key=CANARY_KEYS[2])
        await rig.turn()
        hanging = rig.pool.take()
        rig.advance(0.7)
        await rig.settle()
        assert not any(caller.answers for caller in waiting)
        rig.advance(0.2)
        await rig.settle()
        check_fell_back(waiting[0])
        check_fell_back(queued)  # nobody waits behind it any more
        late = rig.ask(6, key=CANARY_KEYS[3])  # nor comes to it
        await rig.settle()
        check_fell_back(late)
        rig.advance(0.99)
        await rig.settle()
        check_fell_back(waiting[1])
        assert not waiting[2].answers
        hanging()
        await rig.settle()
        check_own(waiting[2])
        assert rig.breaker()["state"] == "closed"
        assert rig.told() == {"eligible": 4, "errors": 0, "timeouts": 2, "invalid": 0, "fallbacks": 4, "keys": 4}
        again = rig.ask(7, key=CANARY_KEYS[3])
        await rig.settle()
        check_own(again)
        rig.check_nothing_is_held()

    run(scenario)


def test_equal_requests_that_wait_for_one_run_leave_it_one_by_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        leader = rig.ask(1, key=CANARY_KEYS[0], timeout_s=1.0)
        early = rig.ask(1, key=CANARY_KEYS[1], timeout_s=1.0, codec="native")
        patient, pinned = rig.ask(1, key=CANARY_KEYS[2], timeout_s=3.0), rig.ask(1, pinned="2")
        await rig.turn()
        hanging = rig.pool.take()
        rig.advance(0.98)
        await rig.settle()
        check_fell_back(leader)
        check_fell_back(early)
        assert not patient.answers
        hanging()
        await rig.settle()
        check_own(patient)
        check_own(pinned)
        assert rig.told() == {"eligible": 1, "errors": 0, "timeouts": 1, "invalid": 0, "fallbacks": 1, "keys": 3}
        rig.check_nothing_is_held()

    run(scenario)


def test_a_run_that_hangs_is_noticed_also_if_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        gone = rig.ask(1, key=CANARY_KEYS[0])
        await rig.turn()
        hanging = rig.pool.take()
        rig.leave(gone)
        queued = rig.ask(2, key=CANARY_KEYS[1], timeout_s=1.0)
        await rig.turn()
        rig.advance(0.9)
        await rig.settle()
        check_fell_back(queued)
        at_once = rig.ask(3, key=CANARY_KEYS[2])
        await rig.settle()
        check_fell_back(at_once)
        rig.advance(RUN_LIMIT_S)
        assert rig.canary.aborted
        hanging()
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)


def test_a_kill_switch_leaves_nobody_in_a_run_that_hangs(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        caller = rig.ask(1, key=CANARY_KEYS[0], timeout_s=1.0)
        await rig.turn()
        queued = rig.ask(2, key=CANARY_KEYS[1])
        await rig.turn()
        hanging = rig.pool.take()
        rig.adopt({**PLAIN_FLAG, "state": "DISABLED", "metadata": {"revision": 2}})
        rig.advance(0.98)
        await rig.settle()
        check_fell_back(caller)
        check_fell_back(queued)
        rig.canary.fault = "nan"
        hanging()
        await rig.settle()
        rig.advance(0.1)
        assert not rig.guards.has_candidates
        rig.check_nothing_is_held()

    run(scenario)


def test_a_large_request_that_leaves_its_run_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Not those who wait for the same answer and have more time, and not those who ask the same later."""

    async def scenario() -> None:
        rig = FaultyRig(tmp_path, max_batch_rows=2)
        leader = rig.ask(1, 2, 3, key=CANARY_KEYS[0], timeout_s=1.0)
        await rig.turn()
        patient = rig.ask(1, 2, 3, key=CANARY_KEYS[1], timeout_s=5.0)
        alone = rig.ask(4, 5, 6, key=CANARY_KEYS[2], timeout_s=5.0)
        await rig.turn()
        hanging = rig.pool.take()
        rig.advance(0.98)
        await rig.settle()
        check_fell_back(leader)
        hanging()
        await rig.settle()
        check_own(patient)
        assert alone.answers
        lonely = rig.ask(7, 8, 9, key=CANARY_KEYS[0], timeout_s=1.0)
        await rig.turn()
        hanging = rig.pool.take()
        rig.advance(0.98)
        await rig.settle()
        check_fell_back(lonely)
        hanging()
        await rig.settle()
        again = rig.ask(7, 8, 9, key=CANARY_KEYS[1])
        await rig.settle()
        check_own(again)
        rig.check_nothing_is_held()

    run(scenario)


def test_who_leaves_a_batch_that_is_run_part_by_part_makes_no_part_fail(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, cache=False)
        rig.canary.fault, rig.canary.only_poison = "raise", True
        bad = rig.ask(POISON, key=CANARY_KEYS[0], timeout_s=5.0)
        leaves = rig.ask(2, key=CANARY_KEYS[1], timeout_s=1.0)
        stays = rig.ask(3, key=CANARY_KEYS[2], timeout_s=50.0)
        await rig.turn()
        first_part = 2
        rig.canary.on_enter = lambda: rig.advance(0.9) if len(rig.canary.batches) == first_part else None
        rig.pool.take()()
        await rig.settle()
        check_fell_back(bad)
        check_fell_back(leaves)
        check_own(stays)
        assert rig.canary.batches == [3, 1, 1, 1]
        rig.check_nothing_is_held()

    run(scenario)


def test_five_runs_that_take_too_long_open_the_breaker(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        for number in range(MAX_ROW):
            assert rig.breaker()["state"] == "closed"
            caller = rig.ask(number, key=CANARY_KEYS[number], timeout_s=1.0)
            await rig.turn()
            hanging = rig.pool.take()
            rig.advance(0.98)
            await rig.settle()
            check_fell_back(caller)
            hanging()
            await rig.settle()
        assert rig.breaker()["state"] == "open"
        rig.check_nothing_is_held()

    run(scenario)


def test_a_hanging_run_is_called_off_when_nobody_waits_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        caller = rig.ask(1, key=CANARY_KEYS[0], timeout_s=1.0)
        patient = rig.ask(2, pinned="2", timeout_s=2 * RUN_LIMIT_S)
        await rig.turn()
        hanging = rig.pool.take()
        rig.advance(0.98)
        await rig.settle()
        check_fell_back(caller)
        rig.advance(RUN_LIMIT_S)
        aborted = [rig.canary.aborted]
        rig.leave(patient)
        rig.advance(0.01)
        aborted.append(rig.canary.aborted)
        assert aborted == [False, True]
        assert rig.breaker()["state"] == "open"
        hanging()
        await rig.settle()
        rig.advance(FIRST_OPEN_S)
        for number in range(3):  # it is tried, and does not run
            again = rig.ask(number, key=CANARY_KEYS[0])
            await rig.settle()
            check_fell_back(again)
        assert rig.breaker() == {"variant": "canary", "version": "2", "state": "open", "opened": 2}
        rig.check_nothing_is_held()

    run(scenario)


def test_a_run_on_the_event_loop_that_does_not_end_is_called_off_by_a_thread(tmp_path: Path) -> None:
    """The clock stands still here, so the thread has to be told the time; the run waits until it is called off."""

    async def scenario() -> None:
        rig = FaultyRig(tmp_path, inline_budget_s=1.0)
        for _ in range(30):
            rig.costs["2"].observe(1, 1e-6)
            rig.costs["1"].observe(1, 1e-6)
        rig.canary.hold()
        rig.canary.on_enter = lambda: rig.clock.advance(2.0)
        caller = rig.ask(1, key=CANARY_KEYS[0])
        await rig.turn()
        await rig.settle()
        check_fell_back(caller)
        assert rig.canary.aborted
        assert rig.breaker()["state"] == "open"
        rig.canary.on_enter = lambda: None
        still = rig.ask(2, pinned="2")
        await rig.settle()
        assert isinstance(still.error, InferenceFailed)
        released = {**PLAIN_FLAG, "defaultVariant": "canary", "targeting": None, "metadata": {"revision": 2}}
        rig.adopt(released)  # nobody would be answered if it did not run again
        rig.advance(0.01)
        again = rig.ask(3)
        await rig.settle()
        check_own(again)
        rig.guards.close()

    run(scenario)


def test_a_queue_without_room_sends_its_share_to_the_default_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, max_queue_rows=2, cache=False)
        running = rig.ask(1, key=CANARY_KEYS[0])
        await rig.turn()
        waiting = [rig.ask(number, key=CANARY_KEYS[number]) for number in (2, 3)]
        await rig.turn()
        refused = rig.ask(4, key=CANARY_KEYS[4])
        pinned = rig.ask(5, pinned="2")
        await rig.settle()
        assert isinstance(pinned.error, QueueFull)
        check_fell_back(refused)
        for caller in (running, *waiting):
            check_own(caller)
        assert rig.told()["eligible"] == 4
        assert rig.told()["fallbacks"] == 1
        rig.check_nothing_is_held()

    run(scenario)


def test_a_timeout_of_the_default_version_is_counted_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        caller = rig.ask(1, key=STABLE_KEYS[0], timeout_s=1.0)
        await rig.turn()
        queued = rig.ask(2, key=STABLE_KEYS[1], timeout_s=1.0)  # its own run has not begun
        await rig.turn()
        rig.advance(1.0)
        assert isinstance(caller.error, DeadlineExceeded)
        assert isinstance(queued.error, DeadlineExceeded)
        await rig.settle()
        assert rig.told("stable")["eligible"] == rig.told("stable")["timeouts"] == 1
        rig.check_nothing_is_held()

    run(scenario)
