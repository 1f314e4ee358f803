"""Candidates that fail: the default version answers in their place, and it is counted against them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gateway.errors import InferenceFailed, InvalidInput
from gateway.serving.breaker import MAX_ROW
from tests.puppet import POISON
from tests.serving.faulty import (
    CANARY_KEYS,
    FAULTS,
    PLAIN_FLAG,
    SPLIT_FLAG,
    STABLE_KEYS,
    FaultyRig,
    check_fell_back,
    check_own,
)
from tests.serving.rig import FLAG, run


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
