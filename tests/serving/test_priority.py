"""The Open Inference Protocol's priorities beside the header's: what each number means, and who goes first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.serving.priority import CRITICAL, NORMAL, SHEDDABLE, priority_of_number
from tests.serving.rig import Rig, run

MEANINGS = [(0, NORMAL), (1, CRITICAL), (2, NORMAL), (3, SHEDDABLE), (2**64, SHEDDABLE)]


@pytest.mark.parametrize(("number", "priority"), MEANINGS)
def test_one_is_the_highest_and_zero_is_what_is_usual(number: int, priority: int) -> None:
    assert priority_of_number(number) == priority


def test_the_parameter_counts_unless_the_head_says_it(tmp_path: Path) -> None:
    def body(number: int | None) -> bytes:
        tensor = {"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1.0]}
        parameters = {} if number is None else {"parameters": {"priority": number}}
        return json.dumps({"inputs": [tensor], **parameters}).encode()

    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        asked = [(1, None), (5, None), (None, None), (1, "sheddable"), (5, "critical"), (None, "critical")]
        callers = [rig.ask(1.0, body=body(number), priority=header) for number, header in asked]
        await rig.turn()
        found = [caller.call.priority for caller in callers]
        assert found == [CRITICAL, SHEDDABLE, NORMAL, SHEDDABLE, CRITICAL, CRITICAL]
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)
