"""What the calls in flight may hold in memory: within the bound all the time, and nothing once all have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.errors import BodyTooLarge, TooManyBytesInFlight
from gateway.serving.admission import Admission
from gateway.serving.target import Target
from gateway.settings import LimitSettings
from tests.serving.rig import CODECS, Rig, run
from tests.serving.steps import STEPS

TARGET = Target(CODECS[0], "m", None)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_what_is_held_is_given_back_in_every_ending(tmp_path: Path, steps: list[tuple[str, Any]]) -> None:
    """Answers, errors, refusals, callers that leave, deadlines that pass; rows read together and rows read alone."""
    most_bytes = 1200

    async def scenario() -> None:
        rig = Rig(tmp_path, most_bytes=most_bytes)
        for kind, detail in steps:
            if kind == "ask":
                try:
                    rig.ask(*detail["values"], **{name: value for name, value in detail.items() if name != "values"})
                except TooManyBytesInFlight:
                    assert rig.admission.in_flight_bytes + 100 > most_bytes / 2
            elif kind == "leave" and rig.callers:
                rig.leave(rig.callers[detail % len(rig.callers)])
            elif kind == "advance":
                rig.advance(detail)
            elif kind == "run" and rig.pool.is_busy:
                rig.pool.run_one()
            elif kind == "turn":
                await rig.turn()
            waiting = [caller.call for caller in rig.callers if not caller.answers and not caller.left]
            assert rig.admission.in_flight_bytes == sum(call.held_bytes for call in waiting)
            assert all(call.held_bytes >= len(call.body) for call in waiting)
            assert rig.admission.in_flight_bytes <= most_bytes + 8 * len(waiting)  # one row each is let through
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)


def test_tensors_count_beside_their_bodies_and_find_no_room_either(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, most_bytes=2000)
        many = rig.ask(*[1.0] * 60)
        await rig.turn()
        assert many.call.held_bytes == len(many.call.body) + 60 * 8
        body = b'{"rows":[' + b",".join([b'{"x":1}'] * 99) + b"]}"
        refused = rig.ask(*[1.0] * 99, codec="native", body=body)  # its numbers take as much again
        assert rig.admission.in_flight_bytes == many.call.held_bytes + len(body)
        await rig.turn()
        assert isinstance(refused.error, TooManyBytesInFlight)
        await rig.settle()
        alone = rig.ask(*[1.0] * 180, codec="native", body=b'{"rows":[' + b",".join([b'{"x":1}'] * 180) + b"]}")
        await rig.settle()
        assert isinstance(alone.error, BodyTooLarge), "waiting would not help it"
        rig.check_nothing_is_held()

    run(scenario)


def test_a_body_without_a_length_is_counted_as_it_comes() -> None:
    admission = Admission(LimitSettings(), max_in_flight_bytes=100)
    first, second = admission.open(TARGET, {}), admission.open(TARGET, {"content-length": "30"})
    admission.hold(first, 20)
    admission.hold(first, 60)
    admission.hold(second, 30)
    assert admission.in_flight_bytes == 90
    with pytest.raises(TooManyBytesInFlight):
        admission.hold(first, 71)
    with pytest.raises(TooManyBytesInFlight):
        admission.open(TARGET, {"content-length": "11"})
    with pytest.raises(BodyTooLarge):
        admission.open(TARGET, {"content-length": "101"})
    admission.close(first)
    assert (admission.in_flight, admission.in_flight_bytes) == (1, 30)
    admission.close(second)
    assert (admission.in_flight, admission.in_flight_bytes) == (0, 0)
