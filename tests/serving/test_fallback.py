"""Candidates that fail: the default version answers in their place, in time, and it is counted against them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import DeadlineExceeded, InferenceFailed, InvalidInput, QueueFull, Refused
from gateway.flags.compile import compile_route
from gateway.flags.document import parse
from gateway.serving.breaker import FIRST_OPEN_S, MAX_ROW
from gateway.serving.guards import RUN_LIMIT_S
from tests.puppet import POISON, FaultyRuntime
from tests.serving.rig import FLAG, Caller, Rig, run

SPLIT_FLAG: dict[str, Any] = {
    **FLAG,
    "metadata": {},
    "targeting": {
        "if": [
            {"!=": [{"var": "headers.x-variant"}, None]},
            {"var": "headers.x-variant"},
            {"fractional": [["canary", 50], ["stable", 50]]},
        ]
    },
}
PLAIN_FLAG = {**SPLIT_FLAG, "targeting": {"fractional": [["canary", 50], ["stable", 50]]}}


def keys_of(variant: str) -> list[str]:
    route = compile_route("m", parse({"flags": {"m.route": PLAIN_FLAG}}).flags["m.route"])
    return [key for key in map(str, range(200)) if route.decide(key, "p", {}, "oip").variant == variant]


CANARY_KEYS, STABLE_KEYS = keys_of("canary"), keys_of("stable")
FAULTS = ["raise", "nan", "inf", "shape", "type", "rows"]


class FaultyRig(Rig):
    """A rig whose version 2 is a candidate that can be made to fail."""

    def __init__(self, root: Path, flag: dict[str, Any] = PLAIN_FLAG, **more: Any) -> None:
        super().__init__(root, puppet=FaultyRuntime, **more)
        self.adopt(flag)

    @property
    def canary(self) -> FaultyRuntime:
        runtime = self.runtimes["2"]
        assert isinstance(runtime, FaultyRuntime)
        return runtime

    @property
    def stable(self) -> FaultyRuntime:
        runtime = self.runtimes["1"]
        assert isinstance(runtime, FaultyRuntime)
        return runtime

    def told(self, variant: str = "canary") -> dict[str, Any]:
        self.guards.signals.flush()
        (found,) = [arm for arm in self.guards.to_json()["signals"] if arm["variant"] == variant]
        return {name: found[name] for name in ("eligible", "errors", "timeouts", "invalid", "fallbacks", "keys")}

    def breaker(self) -> dict[str, Any]:
        (found,) = self.guards.to_json()["breakers"]
        return {name: found[name] for name in ("variant", "version", "state", "opened")}


def check_fell_back(caller: Caller) -> None:
    assert caller.outputs() == [2 * value for value in caller.values]
    headers = caller.headers
    assert (headers["x-model-version"], headers["x-model-variant"]) == ("1", "stable")
    assert list(headers)[-2:] == ["x-cache", "x-model-fallback"]
    assert headers["x-model-fallback"] == "stable"


def check_own(caller: Caller, version: str = "2") -> None:
    assert caller.outputs() == [2 * value for value in caller.values]
    assert caller.headers["x-model-version"] == version
    assert "x-model-fallback" not in caller.headers


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_candidate_that_always_fails_is_asked_five_times_and_nobody_notices(
    tmp_path: Path, fault: str, size: int, cache: bool
) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, cache=cache)
        rig.canary.fault = fault
        asked = 0
        while asked < 80:
            callers = []
            for number in range(asked, asked + size):
                codec = "native" if number % 3 == 0 else "oip"
                callers.append(rig.ask(number, codec=codec, key=CANARY_KEYS[number % len(CANARY_KEYS)]))
            asked += size
            await rig.settle()
            for caller in callers:
                check_fell_back(caller)
        assert 0 < rig.canary.bad_calls <= MAX_ROW
        assert rig.breaker() == {"variant": "canary", "version": "2", "state": "open", "opened": 1}
        assert rig.changes == 1
        told = rig.told()
        assert told["eligible"] == asked
        assert told["fallbacks"] == told["keys"] == min(asked, len(CANARY_KEYS))
        kind = "errors" if fault == "raise" else "invalid"
        assert 0 < told[kind] <= MAX_ROW * size
        assert told["errors"] + told["invalid"] == told[kind]
        rig.check_nothing_is_held()

    run(scenario)


@pytest.mark.parametrize("fault", ["raise", "nan", "inf"])
@pytest.mark.parametrize("codec", ["oip", "native"])
def test_one_bad_row_hurts_only_the_request_that_it_belongs_to(tmp_path: Path, fault: str, codec: str) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        rig.canary.fault, rig.canary.only_poison = fault, True
        keys = iter(CANARY_KEYS)
        good = [rig.ask(1, codec=codec, key=next(keys)), rig.ask(2, 3, codec="native", key=next(keys))]
        bad = [rig.ask(POISON, key=next(keys)), rig.ask(4, POISON, 5, codec=codec, key=next(keys))]
        good += [rig.ask(6, codec=codec, key=next(keys)), rig.ask(7, key=next(keys))]
        await rig.settle()
        for caller in good:
            check_own(caller)
        for caller in bad:
            check_fell_back(caller)
        assert rig.breaker()["state"] == "closed"
        kind = "errors" if fault == "raise" else "invalid"
        assert rig.told() == {"eligible": 6, "errors": 0, "timeouts": 0, "invalid": 0, "keys": 6, "fallbacks": 2} | {
            kind: 2
        }
        rig.check_nothing_is_held()

    run(scenario)


def test_a_large_request_of_which_one_part_is_bad_falls_back_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, max_batch_rows=2)
        for fault in ("raise", "nan"):
            rig.canary.fault, rig.canary.only_poison = fault, True
            caller = rig.ask(1, 2, POISON, 3, 4, key=CANARY_KEYS[0])
            await rig.settle()
            check_fell_back(caller)
        rig.check_nothing_is_held()

    run(scenario)


def test_nothing_of_a_fallback_is_kept_for_the_candidate(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        for value, fault in enumerate(FAULTS[:3]):
            rig.canary.fault = fault
            failed = [rig.ask(value, key=CANARY_KEYS[0], codec=codec) for codec in ("oip", "native", "oip")]
            await rig.settle()
            for caller in failed:
                check_fell_back(caller)
            rig.canary.fault = ""
            runs = len(rig.canary.batches)
            caller = rig.ask(value, key=CANARY_KEYS[1], codec="native")
            await rig.settle()
            check_own(caller)
            assert len(rig.canary.batches) == runs + 1
        rig.check_nothing_is_held()

    run(scenario)


def test_a_bad_answer_that_was_kept_before_the_version_was_a_candidate_is_not_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, {**FLAG, "targeting": None})
        rig.canary.fault = "nan"
        pinned = rig.ask(1, pinned="2", codec="native")
        await rig.settle()
        assert pinned.error is None
        rig.adopt(PLAIN_FLAG)
        caller = rig.ask(1, key=CANARY_KEYS[0], codec="native")
        await rig.settle()
        check_fell_back(caller)

    run(scenario)


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_who_asked_for_the_version_itself_gets_what_it_gives(tmp_path: Path, fault: str) -> None:
    """Alone, and as the first or the last of equal requests that wait for one run."""

    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        rig.canary.fault = fault
        for order in ("p", "pc", "cp", "cpc"):
            callers = [
                (who, rig.ask(1, pinned="2" if who == "p" else None, key=CANARY_KEYS[0], codec="native"))
                for who in order
            ]
            await rig.settle()
            for who, caller in callers:
                if who == "c":
                    check_fell_back(caller)
                elif fault == "raise":
                    assert isinstance(caller.error, InferenceFailed)
                else:
                    assert math.isnan(caller.outputs()[0])
                    assert "x-model-fallback" not in caller.headers
        assert rig.breaker()["state"] == "closed"
        rig.check_nothing_is_held()

    run(scenario)


def test_a_route_can_forbid_it_and_is_counted_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, {**PLAIN_FLAG, "metadata": {"fallback": False}})
        rig.canary.fault = "raise"
        failed = [rig.ask(number, key=CANARY_KEYS[number]) for number in range(10)]
        await rig.settle()
        rig.canary.fault = "nan"
        invalid = rig.ask(1, key=CANARY_KEYS[11], codec="native")
        await rig.settle()
        assert all(isinstance(caller.error, InferenceFailed) for caller in failed)
        assert invalid.headers["x-model-version"] == "2"
        assert rig.guards.to_json()["breakers"] == []
        assert rig.told() == {"eligible": 11, "errors": 10, "timeouts": 0, "invalid": 1, "fallbacks": 0, "keys": 11}
        rig.check_nothing_is_held()

    run(scenario)


def test_what_the_default_version_gets_wrong_is_counted_and_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        rig.stable.fault = "nan"
        caller = rig.ask(1, key=STABLE_KEYS[0], codec="native")
        await rig.settle()
        assert math.isnan(caller.outputs()[0])
        rig.stable.fault = "raise"
        failed = rig.ask(2, key=STABLE_KEYS[1])
        await rig.settle()
        assert isinstance(failed.error, InferenceFailed)
        wanted = {"eligible": 2, "errors": 1, "timeouts": 0, "invalid": 1, "fallbacks": 0, "keys": 2}
        assert rig.told("stable") == wanted
        rig.canary.fault = "raise"
        both = rig.ask(3, key=CANARY_KEYS[0])
        await rig.settle()
        assert isinstance(both.error, InferenceFailed)
        assert rig.told("stable") == wanted
        assert rig.told()["errors"] == 1
        rig.check_nothing_is_held()

    run(scenario)


def test_what_is_no_fault_of_the_version_counts_for_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, SPLIT_FLAG)
        wrong = rig.ask(1, key=CANARY_KEYS[0], body=b"{")
        first, shared = rig.ask(1, key=CANARY_KEYS[0]), rig.ask(1, key=CANARY_KEYS[1])
        forced, pinned = rig.ask(2, variant="canary"), rig.ask(3, pinned="2")
        gone = rig.ask(4, key=CANARY_KEYS[2])
        await rig.turn()
        rig.leave(gone)
        await rig.settle()
        hit = rig.ask(1, key=CANARY_KEYS[3])
        await rig.settle()
        assert isinstance(wrong.error, InvalidInput)
        assert "x-model-fallback" not in wrong.headers
        assert [caller.headers["x-cache"] for caller in (first, shared, hit)] == ["miss", "shared", "hit"]
        for caller in (first, shared, forced, pinned, hit):
            check_own(caller)
        assert rig.told() == {"eligible": 1, "errors": 0, "timeouts": 0, "invalid": 0, "fallbacks": 0, "keys": 4}
        rig.check_nothing_is_held()

    run(scenario)


def test_a_rule_that_names_the_candidate_has_the_default_variant_behind_it_but_does_not_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, SPLIT_FLAG)
        rig.canary.fault = "raise"
        for number in range(7):
            caller = rig.ask(number, variant="canary")
            await rig.settle()
            check_fell_back(caller)
        assert rig.canary.bad_calls == MAX_ROW
        assert rig.told()["eligible"] == 0
        rig.check_nothing_is_held()

    run(scenario)


# -- in time ------------------------------------------------------------------------------------------


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


def test_a_kill_switch_leaves_nobody_with_an_answer_that_is_no_good(tmp_path: Path) -> None:
    """What falls back a moment before the candidate is taken out does so a moment after, too."""

    async def scenario() -> None:
        for fault in FAULTS:
            rig = FaultyRig(tmp_path)
            rig.canary.fault = fault
            callers = [rig.ask(1, key=CANARY_KEYS[0], codec="native"), rig.ask(2, 3, key=CANARY_KEYS[1])]
            await rig.turn()
            rig.adopt({**PLAIN_FLAG, "state": "DISABLED", "metadata": {"revision": 2}})
            await rig.settle()
            for caller in callers:
                check_fell_back(caller)
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


# -- back to health -------------------------------------------------------------------------------------


def test_a_candidate_that_is_well_again_gets_its_share_back_by_and_by(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        rig.canary.fault = "raise"
        for number in range(MAX_ROW):
            rig.ask(number, key=CANARY_KEYS[number])
            await rig.settle()
        rig.canary.fault = ""
        rig.clock.advance(FIRST_OPEN_S)
        seen = []
        for _ in range(5):
            callers = [rig.ask(number, key=CANARY_KEYS[number]) for number in range(20)]
            await rig.settle()
            seen.append(sum(caller.headers["x-model-version"] == "2" for caller in callers))
        assert seen == [1, 2, 4, 8, 20]
        assert rig.breaker()["state"] == "closed"
        assert rig.changes == 3
        rig.check_nothing_is_held()

    run(scenario)


def test_the_breaker_stays_as_it_is_when_the_weights_change_and_goes_with_the_candidate(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        rig.canary.fault = "raise"
        for number in range(MAX_ROW):
            rig.ask(number, key=CANARY_KEYS[number])
            await rig.settle()
        more = {
            **PLAIN_FLAG,
            "metadata": {"revision": 7},
            "targeting": {"fractional": [["canary", 60], ["stable", 40]]},
        }
        rig.adopt(more)
        assert rig.breaker()["state"] == "open"
        rig.adopt({**FLAG, "targeting": None})
        assert rig.guards.to_json()["breakers"] == []
        rig.canary.fault = ""
        rig.adopt()
        caller = rig.ask(1, variant="canary")
        await rig.settle()
        check_own(caller)

    run(scenario)


def test_who_came_just_before_the_kill_switch_still_has_somebody_behind_them(tmp_path: Path) -> None:
    """Even if nothing of the candidate's runs or waits yet at that moment."""

    async def scenario() -> None:
        rig = FaultyRig(tmp_path)
        rig.canary.fault = "nan"
        caller = rig.ask(1, key=CANARY_KEYS[0])
        rig.adopt({**PLAIN_FLAG, "state": "DISABLED"})
        rig.advance(0.05)
        await rig.settle()
        check_fell_back(caller)

    run(scenario)


# -- whatever happens -----------------------------------------------------------------------------------

ASK = st.fixed_dictionaries(
    {
        "values": st.lists(st.sampled_from([1.0, 2.0, 3.0, POISON]), min_size=1, max_size=4),
        "codec": st.sampled_from(["oip", "native"]),
        "key": st.sampled_from([*CANARY_KEYS[:4], *STABLE_KEYS[:2], None]),
        "variant": st.sampled_from([None] * 5 + ["canary", "twin"]),
        "pinned": st.sampled_from([None] * 5 + ["1", "2"]),
        "timeout_s": st.sampled_from([0.2, 1.0, 5.0, 5.0]),
    }
)
ROUTES: dict[str, dict[str, Any]] = {
    "split": SPLIT_FLAG,
    "killed": {**SPLIT_FLAG, "state": "DISABLED"},
    "promoted": {**SPLIT_FLAG, "defaultVariant": "canary", "targeting": None},
    "no fallback": {**SPLIT_FLAG, "metadata": {"fallback": False}},
}
STEPS = st.lists(
    st.one_of(
        ASK.map(lambda ask: ("ask", ask)),
        ASK.map(lambda ask: ("ask", ask)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.sampled_from([0.05, 0.4, 1.0, 11.0])),
        st.tuples(st.just("fault"), st.sampled_from(["", *FAULTS])),
        st.tuples(st.just("poison"), st.booleans()),
        st.tuples(st.just("adopt"), st.sampled_from(sorted(ROUTES))),
        st.tuples(st.sampled_from(["turn", "run", "run last"]), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, cache=st.booleans(), max_batch_rows=st.integers(1, 6), max_queue_rows=st.sampled_from([7, 1000]))
def test_everybody_is_told_once_and_rightly_whatever_the_candidate_does(
    tmp_path: Path, steps: list[tuple[str, Any]], cache: bool, max_batch_rows: int, max_queue_rows: int
) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, SPLIT_FLAG, cache=cache, max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows)
        for kind, detail in steps:
            if kind == "ask":
                rig.ask(*detail["values"], **{name: value for name, value in detail.items() if name != "values"})
            elif kind == "leave" and rig.callers:
                rig.leave(rig.callers[detail % len(rig.callers)])
            elif kind == "advance":
                rig.advance(detail)
            elif kind == "fault":
                rig.canary.fault = detail
            elif kind == "poison":
                rig.canary.only_poison = detail
            elif kind == "adopt":
                rig.adopt(ROUTES[detail], cached=cache)
            elif kind == "run" and rig.pool.is_busy:
                rig.pool.run_one()
            elif kind == "run last" and rig.pool.is_busy:
                rig.pool.take()()
            elif kind == "turn":
                await rig.turn()
        await rig.settle()
        for caller in rig.callers:
            check_any(caller)
        for variant in ("canary", "stable"):
            told = rig.told(variant)
            assert max(told["errors"], told["timeouts"], told["invalid"], told["fallbacks"]) <= told["eligible"]
        later = [rig.ask(*caller.values, pinned="2") for caller in list(rig.callers)]
        await rig.settle()
        assert all(caller.answers for caller in later)  # and waits for no run that will never end
        rig.check_nothing_is_held()

    run(scenario)


def check_any(caller: Caller) -> None:
    call = caller.call
    if caller.left:
        assert not caller.answers
        return
    ((error, headers, _),) = caller.answers
    fell_back = "x-model-fallback" in headers
    if fell_back:
        assert call.pinned is None
        assert call.headers.get("x-targeting-key") in (*CANARY_KEYS, None) or call.headers.get("x-variant") == "canary"
        assert headers["x-model-variant"] == "stable"
    assert call.decision is not None
    if call.decision.version == "2" and (call.route.default_version == "2" or not call.route.falls_back):
        return  # there is nobody to answer in its place
    if error is not None:
        # Only the candidate fails; who may fall back does so unless there is no time or no room for it.
        assert isinstance(error, DeadlineExceeded | Refused) or (call.pinned == "2" and not fell_back)
    elif fell_back or headers["x-model-version"] == "1" or call.pinned is None:
        assert caller.outputs() == [2 * value for value in caller.values]
