"""What people do with a rollout and want to know of it: the verbs, the stages of a plan, where it stands."""

from __future__ import annotations

import dataclasses
from typing import Any

from gateway.control import rollout
from gateway.control.plan import BLUEGREEN, SHADOW, Plan
from gateway.control.precedence import KILLED
from gateway.control.rollout import (
    ABORTING,
    BY_HAND,
    COMPLETE,
    DECLARED,
    ENDED,
    GATE,
    HEALTHY,
    PAUSED,
    PROGRESSING,
    PROMOTING,
    Move,
    State,
    abort,
    last_step,
    promote,
    share_of,
    variant_of,
)
from gateway.errors import ChangeRefused
from gateway.flags.document import ENABLED, Json

VERBS = ("pause", "resume", "promote", "promoteFull", "abort", "rollback")


# -- what operators ask for -----------------------------------------------------------------------


def command(plan: Plan, base: Json, state: State, verb: str, *, route: Json | None, route_revision: int) -> Move:
    """The move that a verb of an operator makes. Raises ChangeRefused where it makes no sense."""
    if verb == "abort":
        if state.phase in (*ENDED, ABORTING):
            raise ChangeRefused(f"the rollout is {state.phase}: there is nothing to abort")
        return abort(base, state, route, "aborted by hand")
    if verb == "rollback":
        return _roll_back(plan, base, state, route, route_revision)
    if verb == "pause":
        if state.phase != PROGRESSING:
            raise ChangeRefused(f"the rollout is {state.phase}: only one that is progressing can be paused")
        return rollout.pause(state, BY_HAND, "paused by hand")
    if route is None or route["state"] != ENABLED:
        raise ChangeRefused("the kill switch was pulled, or the route is gone: the rollout ends by itself")
    if verb == "resume":
        return _resume(plan, base, state)
    return _promote_by_hand(plan, base, state, verb, route)


def _roll_back(plan: Plan, base: Json, state: State, route: Json | None, route_revision: int) -> Move:
    if state.phase not in (HEALTHY, PROMOTING):
        raise ChangeRefused(f"the rollout is {state.phase}: abort ends one that goes on, rollback undoes a promotion")
    if plan.strategy == SHADOW:
        raise ChangeRefused("a shadow changes nothing that could be rolled back")
    if route is None or route["variants"][route["defaultVariant"]] != plan.version:
        raise ChangeRefused(f"the route does not give version {plan.version} by default any more: edit it by hand")
    if route_revision != state.wrote_revision and not _is_as_promoted(plan, base, state, route):
        raise ChangeRefused("the route was changed since the promotion: edit it by hand, or abort the newer rollout")
    return abort(base, state, route, "rolled back by hand after the promotion")


def _is_as_promoted(plan: Plan, base: Json, state: State, route: Json) -> bool:
    """Whether no more than the kill switch was touched: who pulled it first shall still get the version before."""
    wrote = promote(plan, base, state, route).route
    return bool(_words(wrote) == _words(route))


def _words(route: Json) -> Json:
    """A route without what says when it was written, and whether it is on."""
    metadata = {name: value for name, value in route.get("metadata", {}).items() if name not in ("revision", KILLED)}
    return {**route, "state": "", "metadata": metadata, "targeting": route.get("targeting")}


def _resume(plan: Plan, base: Json, state: State) -> Move:
    if state.phase != PAUSED:
        raise ChangeRefused(f"the rollout is {state.phase}: only one that is paused can be resumed")
    if state.resume_phase == DECLARED and state.reason != GATE:
        declared = rollout.moved(state, DECLARED, "resumed by hand")
        return Move(declared, "rollout.resume", rollout.route_at(plan, base, -1))
    if state.resume_phase == DECLARED:
        raise ChangeRefused(f"nothing can be resumed before the first step: {state.why}")
    if state.reason in (GATE, COMPLETE):
        raise ChangeRefused("all steps are complete: promote it, or abort it")
    # The step begins anew, and what it was paused for with new evidence: somebody has seen it and goes on.
    entered = dataclasses.replace(
        rollout.moved(state, PROGRESSING, "resumed by hand"),
        in_step_s=0.0,
        step_requests=0,
        said=tuple(mark for mark in state.said if mark.startswith("breaker:")),
    )
    return Move(entered, "rollout.resume", rollout.route_at(plan, base, state.step))


def _promote_by_hand(plan: Plan, base: Json, state: State, verb: str, route: Json | None) -> Move:
    if plan.strategy == SHADOW:
        raise ChangeRefused("a shadow is not promoted: start a canary with the version")
    if state.phase == DECLARED or (state.phase == PAUSED and state.resume_phase == DECLARED):
        raise ChangeRefused(f"the candidate has no traffic yet: {state.why}")
    if state.phase not in (PROGRESSING, PAUSED):
        raise ChangeRefused(f"the rollout is {state.phase}: there is nothing to promote")
    if verb == "promoteFull" or state.step >= last_step(plan):
        return promote(plan, base, state, route)
    after = rollout.moved(state, PROGRESSING, "promoted to the next step by hand")
    return rollout.at_step(plan, base, after, state.step + 1)


def stages(plan: Plan, base: Json) -> list[tuple[str, Json]]:
    """The route at each stage of a plan, in order, under the stage's name."""
    found = [("declared", rollout.route_at(plan, base, -1))]
    if plan.strategy == BLUEGREEN:
        found.append(("preview", rollout.route_at(plan, base, 0)))
    elif plan.strategy == SHADOW:
        return [*found, ("finished", base)]
    found += [
        (f"{each.weight / 100:g} %", rollout.route_at(plan, base, place)) for place, each in enumerate(plan.steps)
    ]
    promoted = promote(plan, base, State(), base).route
    return [*found, ("promoted", promoted)]


def _ways_out(state: State) -> str:
    """The verbs that end a pause."""
    if state.resume_phase == DECLARED:
        return "approve or abort"
    return "promote or abort" if state.reason in (GATE, COMPLETE) else "resume, promote or abort"


def describe(plan: Plan, base: Json, state: State) -> dict[str, Any]:
    """What people want to know: where it stands, what comes next, and why not yet."""
    steps = len(plan.steps) or 1
    following = {
        DECLARED: "traffic once every live worker has warmed it",
        PROMOTING: "healthy once every live worker confirms",
        ABORTING: "rolled back once every live worker confirms",
    }.get(state.phase, "")
    if state.phase == PROGRESSING:
        last = state.step >= last_step(plan)
        following = "the end" if plan.strategy == SHADOW else "the promotion"
        if not last:
            following = f"{plan.steps[state.step + 1].weight / 100:g} %"
    elif state.phase == PAUSED:
        left_s = max(0.0, plan.pause_timeout_s - state.in_phase_s)
        following = f"{_ways_out(state)}; aborted by itself in {rollout.span(left_s)}"
    return {
        "phase": state.phase,
        "reason": state.reason,
        "why": state.why,
        "next": following,
        "step": state.step + 1,
        "steps": steps,
        "weight_percent": share_of(plan, state) * 100,
        "in_phase_s": round(state.in_phase_s, 1),
        "in_step_s": round(state.in_step_s, 1),
        "step_requests": state.step_requests,
        "variant": variant_of(plan, base),
    }
