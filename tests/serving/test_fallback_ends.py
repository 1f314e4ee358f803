"""How falling back ends: the candidate is well again, gets other weights, or is taken out."""

from __future__ import annotations

from pathlib import Path

from gateway.serving.breaker import FIRST_OPEN_S, MAX_ROW
from tests.serving.faulty import CANARY_KEYS, FAULTS, PLAIN_FLAG, FaultyRig, check_fell_back, check_own
from tests.serving.rig import FLAG, run


async def with_an_open_breaker(root: Path) -> FaultyRig:
    """A rig whose candidate has failed as often in a row as it may."""
    rig = FaultyRig(root)
    rig.canary.fault = "raise"
    for number in range(MAX_ROW):
        rig.ask(number, key=CANARY_KEYS[number])
        await rig.settle()
    return rig


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


def test_a_candidate_that_is_well_again_gets_its_share_back_by_and_by(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = await with_an_open_breaker(tmp_path)
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
        rig = await with_an_open_breaker(tmp_path)
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
