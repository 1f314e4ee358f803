"""A policy says how often it may be wrong, and refuses what makes no sense by the name of the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.control.policy import OUTPUTS, SIGNALS, SRM, Policy


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"signals": {"accuracy": None, "slow": {"action": "pause", "weight": 3}}},
        {"alpha": 0.05, "outputs_action": "rollback", "srm_action": "rollback"},
        {"signals": {"errors": {"action": "notify"}}, "outputs_action": "notify"},
        {"signals": {"drift": {"action": "rollback"}}},
    ],
)
def test_the_parts_of_alpha_of_what_rolls_back_are_together_no_more_than_alpha(plain: dict[str, Any]) -> None:
    policy = Policy.from_json(plain)
    actions = {name: signal.action for name, signal in policy.signals.items()}
    actions |= {OUTPUTS: policy.outputs_action, SRM: policy.srm_action}
    parts = {name: 1 / policy.threshold(name) for name in actions}
    rolls_back = sum(part for name, part in parts.items() if actions[name] == "rollback")
    others = sum(part for name, part in parts.items() if actions[name] != "rollback" and name != SRM)
    assert rolls_back <= policy.alpha * (1 + 1e-12)
    assert others <= policy.alpha * (1 + 1e-12)
    assert policy.threshold(SRM) == pytest.approx(1 / policy.srm_alpha)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"slow_s": 0.5, "signals": {"slow": None, "errors": {"margin": 1.5}}},
        {"signals": {"drift": None}},
        {"signals": {"drift": {"action": "notify"}}},
    ],
)
def test_a_policy_goes_to_json_and_back(plain: dict[str, Any]) -> None:
    policy = Policy.from_json(plain)
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@pytest.mark.parametrize(
    ("plain", "field"),
    [
        ({"alpha": 0}, "alpha"),
        ({"alpha": 1e-320}, "alpha"),
        ({"slow_s": 1e300}, "slow_s"),
        ({"slow_factor": 1e300}, "slow_factor"),
        ({"outputs_weight": 5e-324}, "outputs_weight"),
        ({"signals": {"errors": {"weight": 5e-324}}}, "signals.errors.weight"),
        ({"alpha": "much"}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"slow_s": -1}, "slow_s"),
        ({"min_requests": -1}, "min_requests"),
        ({"min_requests": 10.5}, "min_requests"),
        ({"min_effect": -0.1}, "min_effect"),
        ({"slow_factor": 0}, "slow_factor"),
        ({"srm_action": "explode"}, "srm_action"),
        ({"outputs_action": 3}, "outputs_action"),
        ({"srm_action": "rollback", "srm_alpha": 0.01}, "srm_alpha"),
        ({"colour": 1}, "colour"),
        ({"signals": 3}, "signals"),
        ({"signals": {"humidity": {}}}, "humidity"),
        ({"signals": {"errors": 3}}, "signals.errors"),
        ({"signals": {"errors": {"colour": 3}}}, "colour"),
        ({"signals": {"errors": {"margin": 0}}}, "signals.errors.margin"),
        ({"signals": {"errors": {"tolerance": 1}}}, "signals.errors.tolerance"),
        ({"signals": {"errors": {"together": 0}}}, "signals.errors.together"),
        ({"signals": {"errors": {"action": "explode"}}}, "signals.errors.action"),
        ({"signals": {"errors": {"promote_tolerance": 2}}}, "signals.errors.promote_tolerance"),
        ({"signals": {"errors": {"margin": None}}}, "signals.errors.margin"),
        ({"signals": {"drift": {"action": "explode"}}}, "signals.drift.action"),
        ({"signals": {"drift": {"action": None}}}, "signals.drift.action"),
        ({"signals": {"drift": {"margin": 2}}}, "signals.drift has no 'margin'"),
        ({"signals": {"drift": "pause"}}, "signals.drift"),
        ({"drift_action": "pause"}, "drift_action"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(plain: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Policy.from_json(plain)


@pytest.mark.parametrize(
    ("plain", "action"),
    [({}, "pause"), ({"drift": {}}, "pause"), ({"drift": {"action": "rollback"}}, "rollback"), ({"drift": None}, None)],
)
def test_an_alarm_of_the_monitor_pauses_unless_the_plan_wants_something_else(
    plain: dict[str, Any], action: str | None
) -> None:
    assert Policy.from_json({"signals": plain}).drift_action == action


def test_errors_have_the_largest_part_of_alpha() -> None:
    policy = Policy()
    assert policy.threshold("errors") == pytest.approx(250)
    assert all(policy.threshold(name) >= 250 for name in SIGNALS)
