"""Plans of rollouts as documents: which make no sense, and that they read back as they were written."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.control import plan as plans
from gateway.control import rollout
from gateway.control.rollout import State
from gateway.errors import InvalidInput


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        ({"strategy": "wild"}, "strategy"),
        ({"version": 2}, "version"),
        ({"steps": []}, "steps"),
        ({"steps": [{"weight_percent": 1e308}]}, "steps[0].weight_percent"),
        ({"steps": [{"weight_percent": float("inf")}]}, "steps[0].weight_percent"),
        ({"steps": [{"weight_percent": 0}]}, "steps[0].weight_percent"),
        ({"steps": [{"weight_percent": 0.005}]}, "steps[0].weight_percent"),
        ({"steps": [{"weight_percent": "5"}]}, "steps[0].weight_percent"),
        ({"steps": [{"weight_percent": 5}, {"weight_percent": 5}]}, "steps[1].weight_percent"),
        ({"steps": [{"weight_percent": 5, "min_requests": 1.5}]}, "steps[0].min_requests"),
        ({"steps": [{"weight": 5}]}, "steps[0].weight"),
        ({"strategy": "bluegreen", "steps": [{"weight_percent": 5}]}, "steps"),
        ({"strategy": "experiment", "steps": [{"weight_percent": 5}, {"weight_percent": 6}]}, "steps"),
        ({"min_pairs": 5}, "min_pairs"),
        ({"judge": {"alpha": 2}}, "judge"),
        ({"judge": {"signals": {"colour": {}}}}, "judge"),
        ({"pause_timeout_s": -1}, "pause_timeout_s"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_plans_that_make_no_sense_are_refused_by_field(plan: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        plans.parse({"strategy": "canary", "version": "2", **plan})
    assert refused.value.field == field


@pytest.mark.parametrize("strategy", plans.STRATEGIES)
def test_plan_and_state_read_back_as_they_were_written(strategy: str) -> None:
    plan = plans.parse({"strategy": strategy, "version": "2"})
    assert plans.parse(plan.to_json()) == plan
    state = State(phase="paused", step=1, reason="gate", said=("errors:pause",))
    assert rollout.state_from_json(state.to_json()) == state
