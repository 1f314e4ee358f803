"""The life of a rollout: one pure function from what is and what is seen to what shall be.

::

    declared -> progressing <-> paused -> promoting -> healthy
    from each of them: aborting -> rolled_back; from healthy too, by the verb rollback

No clock and no disk: the controller says how much time has passed, and commits what comes out of it, the route and the
state, in one transaction. Every wait has an end, and abort works everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.control.plan import AUTO, BLUEGREEN, CANARY, EXPERIMENT, NOTIFY, PAUSE, ROLLBACK, SHADOW, Plan
from gateway.flags import release
from gateway.flags.document import SHADOW as SHADOW_KIND
from gateway.flags.document import Json

DECLARED, PROGRESSING, PAUSED, PROMOTING, HEALTHY = "declared", "progressing", "paused", "promoting", "healthy"
ABORTING, ROLLED_BACK = "aborting", "rolled_back"
ENDED = (HEALTHY, ROLLED_BACK)
PHASES = (DECLARED, PROGRESSING, PAUSED, PROMOTING, HEALTHY, ABORTING, ROLLED_BACK)

# Why a rollout is paused.
BY_HAND, GATE, INCONCLUSIVE, GUARDRAIL, BREAKER, EDITED, COMPLETE = (
    "manual", "gate", "inconclusive", "guardrail", "breaker", "edited", "complete",
)  # fmt: skip

# For all live workers to have adopted what was written; a worker that hangs must not hold the books open.
CONFIRM_TIMEOUT_S = 60.0
_MAX_SAID = 100


@dataclass(frozen=True, slots=True)
class State:
    """Where a rollout stands. All times are sums of time that a controller was there to see, in seconds.

    step: of the plan, -1 before the first. reason: of a pause. why: in words, of the last transition, or what a step
    still lacks. in_phase_s, in_step_s: since phase and step began. step_requests: answered by the candidate's arm in
    this step. wrote_revision: of the route, as this rollout last wrote it. resume_phase: before a pause. said: the
    marks of what was told already.
    """

    phase: str = DECLARED
    step: int = -1
    reason: str = ""
    why: str = "declared at weight 0"
    in_phase_s: float = 0.0
    in_step_s: float = 0.0
    step_requests: int = 0
    wrote_revision: int = 0
    resume_phase: str = ""
    said: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return {**dataclasses.asdict(self), "said": list(self.said)}


def state_from_json(plain: Mapping[str, Json]) -> State:
    """The inverse of State.to_json."""
    return State(**{**plain, "said": tuple(plain["said"])})


@dataclass(frozen=True, slots=True)
class Found:
    """Something that the judge, a worker or the report has to say. action: rollback, pause or notify.

    once: what it is told once for; by default, the signal and the action.
    """

    signal: str
    action: str
    text: str
    once: str = ""

    @property
    def mark(self) -> str:
        return self.once or f"{self.signal}:{self.action}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the controller sees at one look.

    elapsed_s: since the look before. route: the route flag as flagd JSON now, None if it is gone. route_revision: its
    revision. not_warm: workers that have not warmed the candidate, in words. broken: why the candidate cannot be
    served, in words. adopted: every live worker follows route_revision. new_requests: answered by the candidate's arm
    since the look before. promotion: None if the candidate may be promoted as far as the judge is concerned, else why
    not. approvals_missing: how many people have to agree before exposure may rise. pairs: compared by a shadow.
    """

    elapsed_s: float
    route: Json | None
    route_revision: int
    not_warm: Sequence[str] = ()
    broken: str = ""
    adopted: bool = True
    new_requests: int = 0
    found: Sequence[Found] = ()
    promotion: str | None = None
    approvals_missing: int = 0
    pairs: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """What shall be committed.

    verb: of the audit row, "" for none. route: what the route shall be now, None to leave it. shadow_rate: what
    ``<model>.shadow`` shall be; None to leave it, 0 to remove it.
    """

    state: State
    verb: str = ""
    route: Json | None = None
    shadow_rate: float | None = None
    notes: tuple[Found, ...] = field(default=())


def begin(plan: Plan, base: Json) -> Move:
    """The first move: the candidate declared at weight 0. Raises ChangeRefused."""
    variant = variant_of(plan, base)
    release.check_startable(base, variant, plan.version)
    return Move(State(), "rollout.start", route_at(plan, base, -1))


def variant_of(plan: Plan, base: Json) -> str:
    """The candidate's variant."""
    if plan.strategy == SHADOW:
        return SHADOW_KIND
    return plan.variant or release.candidate_variant(base, plan.strategy)


def share_of(plan: Plan, state: State) -> float:
    """The candidate's configured share of traffic now, from 0 to 1."""
    if state.phase in (PROMOTING, HEALTHY):
        return 0.0 if plan.strategy == SHADOW else 1.0
    if state.phase in (ABORTING, ROLLED_BACK) or not 0 <= state.step < len(plan.steps):
        return 0.0
    return plan.steps[state.step].weight / 10_000


def last_step(plan: Plan) -> int:
    """The number of the last step; strategies without weights have one step too: the preview, or the shadow."""
    return max(0, len(plan.steps) - 1)


# -- what time and the workers bring --------------------------------------------------------------


def step(plan: Plan, base: Json, state: State, seen: Seen) -> Move:
    """The next move, after one look. A move without a verb changes nothing but the times."""
    if state.phase in ENDED:
        return Move(state)
    state = later(state, seen)
    if state.phase == PROMOTING:
        return _confirm(state, seen, HEALTHY, "rollout.promoted", "every live worker gives the new version to all")
    if state.phase == ABORTING:
        return _confirm(state, seen, ROLLED_BACK, "rollout.rolled_back", "every live worker follows the route before")
    move = _guarded(plan, base, state, seen)
    if move is not None:
        return move
    if state.phase == DECLARED:
        return _wait_for_warmth(plan, base, state, seen)
    if state.phase == PAUSED:
        return _wait_for_somebody(plan, base, state, seen)
    return _progress(plan, base, state, seen)


def later(state: State, seen: Seen) -> State:
    """The same state with the time that has passed, and the requests that came."""
    progressing = state.phase == PROGRESSING
    return dataclasses.replace(
        state,
        in_phase_s=state.in_phase_s + seen.elapsed_s,
        in_step_s=state.in_step_s + (seen.elapsed_s if progressing else 0.0),
        step_requests=state.step_requests + (seen.new_requests if progressing else 0),
    )


def _guarded(plan: Plan, base: Json, state: State, seen: Seen) -> Move | None:
    """What ends or stops a rollout in any phase with a candidate; None if nothing does."""
    if seen.route is None:
        return _end(state, ROLLED_BACK, "rollout.rolled_back", "the route is gone")
    if seen.route["state"] != "ENABLED":
        return abort(base, state, seen.route, "the kill switch was pulled")
    if seen.broken:
        return abort(base, state, seen.route, seen.broken)
    new = [found for found in seen.found if found.mark not in state.said]
    for found in new:
        if found.action == ROLLBACK:
            return _with(abort(base, state, seen.route, found.text), new)
    if state.phase == PROGRESSING:
        for found in new:
            if found.action == PAUSE:
                reason = BREAKER if found.signal == "breaker" else GUARDRAIL
                return _with(pause(state, reason, found.text), new)
    if state.phase != PAUSED and seen.route_revision != state.wrote_revision:
        return pause(state, EDITED, f"somebody else changed the route (revision {seen.route_revision})")
    if any(found.action == NOTIFY for found in new):
        return _with(Move(state, "rollout.finding"), new)
    return None


def _wait_for_warmth(plan: Plan, base: Json, state: State, seen: Seen) -> Move:
    if seen.not_warm:
        if state.in_phase_s > plan.warm_timeout_s:
            return abort(base, state, seen.route, f"not warm in time: {'; '.join(seen.not_warm)[:300]}")
        return Move(state)
    if seen.approvals_missing:
        return pause(state, GATE, _waiting_for(seen.approvals_missing))
    return _enter(plan, base, state, seen, 0)


def _wait_for_somebody(plan: Plan, base: Json, state: State, seen: Seen) -> Move:
    if state.in_phase_s > plan.pause_timeout_s:
        return abort(
            base, state, seen.route, f"paused ({state.reason}) for {span(plan.pause_timeout_s)} and nobody came"
        )
    if state.reason == GATE and state.resume_phase == DECLARED and not seen.approvals_missing:
        if seen.not_warm:
            return Move(state)
        return _enter(plan, base, state, seen, 0)
    return Move(state)


def _progress(plan: Plan, base: Json, state: State, seen: Seen) -> Move:
    last = state.step >= last_step(plan)
    lacking = _lacking(plan, state, seen)
    judged = plan.strategy == CANARY or (plan.strategy == EXPERIMENT and plan.promote == AUTO)
    if last and not lacking and seen.promotion is not None and judged:
        lacking = seen.promotion
    goes_on = plan.strategy != SHADOW and (not last or plan.promote == AUTO)
    if not lacking and seen.not_warm and goes_on:
        lacking = f"not warm: {'; '.join(seen.not_warm)[:300]}"
    if lacking:
        if state.in_step_s > plan.step_timeout_s:
            return pause(state, INCONCLUSIVE, f"not complete after {span(plan.step_timeout_s)}: {lacking}")
        return Move(dataclasses.replace(state, why=lacking))
    if not last:
        return _enter(plan, base, state, seen, state.step + 1)
    if plan.strategy == SHADOW:
        return _end_shadow(base, state, seen)
    if plan.promote == AUTO:
        return promote(plan, base, state, seen.route)
    reason = COMPLETE if plan.strategy == EXPERIMENT else GATE
    return pause(state, reason, "complete; promote it or abort it")


def _lacking(plan: Plan, state: State, seen: Seen) -> str:
    """What this step still lacks, in words; empty if nothing."""
    if plan.strategy == SHADOW:
        if seen.pairs < plan.min_pairs:
            return f"{seen.pairs} of {plan.min_pairs} rows compared in pairs"
        wanted_s, requests = plan.min_time_s, 0
    elif plan.strategy == BLUEGREEN:
        wanted_s, requests = plan.min_time_s, 0
    else:
        current = plan.steps[state.step]
        wanted_s, requests = current.min_time_s, current.min_requests
    if state.step_requests < requests:
        return f"{state.step_requests} of {requests} requests answered by the candidate in this step"
    if state.in_step_s < wanted_s:
        return f"{state.in_step_s:.0f} of {wanted_s:g} s in this step"
    return ""


def _confirm(state: State, seen: Seen, phase: str, verb: str, why: str) -> Move:
    if seen.adopted:
        return _end(state, phase, verb, f"{state.why}; {why}")
    if state.in_phase_s > CONFIRM_TIMEOUT_S:
        late = f"{state.why}; some live worker had not confirmed it after {CONFIRM_TIMEOUT_S:g} s"
        return _end(state, phase, verb, late)
    return Move(state)


# -- moves ----------------------------------------------------------------------------------------


def abort(base: Json, state: State, route: Json | None, why: str) -> Move:
    """Back to the route before."""
    return Move(moved(state, ABORTING, why), "rollout.abort", release.keeping_state(base, route), shadow_rate=0.0)


def promote(plan: Plan, base: Json, state: State, route: Json | None) -> Move:
    """All traffic to the candidate."""
    if plan.strategy == BLUEGREEN:
        wanted = release.flipped(base, variant_of(plan, base), plan.version)
    else:
        wanted = release.promoted(base, plan.version, keep=plan.keep_previous)
    why = f"promoted: version {plan.version} answers all"
    return Move(moved(state, PROMOTING, why), "rollout.promote", release.keeping_state(wanted, route))


def _enter(plan: Plan, base: Json, state: State, seen: Seen, number: int) -> Move:
    return at_step(plan, base, moved(state, PROGRESSING, ""), number)


def at_step(plan: Plan, base: Json, state: State, number: int) -> Move:
    state = dataclasses.replace(state, step=number, in_step_s=0.0, step_requests=0, reason="")
    if plan.strategy == SHADOW:
        state = dataclasses.replace(
            state, why=f"{100 * plan.shadow_rate:g} % of what is answered is run by the candidate too"
        )
        return Move(state, "rollout.step", route_at(plan, base, number), shadow_rate=plan.shadow_rate)
    if plan.strategy == BLUEGREEN:
        asked = f"{release.PREVIEW_HEADER}: {variant_of(plan, base)}"
        state = dataclasses.replace(state, why=f"previewed by those who send {asked}")
    else:
        percent = plan.steps[number].weight / 100
        state = dataclasses.replace(state, why=f"step {number + 1} of {len(plan.steps)}: {percent:g} %")
    return Move(state, "rollout.step", route_at(plan, base, number))


def route_at(plan: Plan, base: Json, number: int) -> Json:
    """The route at a step; -1: declared only."""
    variant = variant_of(plan, base)
    if plan.strategy == BLUEGREEN and number >= 0:
        return release.previewed(base, variant, plan.version)
    weight = plan.steps[number].weight if number >= 0 and plan.steps else 0
    return release.at_weight(base, variant, plan.version, weight, fallback=plan.fallback)


def pause(state: State, reason: str, why: str) -> Move:
    paused = dataclasses.replace(moved(state, PAUSED, why), reason=reason, resume_phase=state.phase)
    return Move(paused, "rollout.pause")


def _end_shadow(base: Json, state: State, seen: Seen) -> Move:
    why = f"{seen.pairs} rows compared in pairs"
    return Move(moved(state, PROMOTING, why), "rollout.finish", release.keeping_state(base, seen.route), 0.0)


def _end(state: State, phase: str, verb: str, why: str) -> Move:
    return Move(moved(state, phase, why), verb)


def moved(state: State, phase: str, why: str) -> State:
    return dataclasses.replace(state, phase=phase, why=why, in_phase_s=0.0, reason="", resume_phase="")


def _with(move: Move, found: Sequence[Found]) -> Move:
    said = tuple(dict.fromkeys((*move.state.said, *(each.mark for each in found))))[-_MAX_SAID:]
    return dataclasses.replace(move, state=dataclasses.replace(move.state, said=said), notes=tuple(found))


def span(seconds: float) -> str:
    """A span of time for people: in the largest unit of which it has two."""
    for unit_s, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds:.0f} s"


def _waiting_for(approvals: int) -> str:
    people = "one more person" if approvals == 1 else f"{approvals} more people"
    return f"waits for {people} to approve it"
