"""What a rollout shall do: strategy, steps, waits and guards, read from JSON and checked before anything happens."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.control.policy import Policy
from gateway.errors import InvalidInput
from gateway.flags.document import VARIANT_PATTERN, VERSION_PATTERN, Json
from gateway.flags.edit import TOTAL_WEIGHT

BLUEGREEN, CANARY, SHADOW, EXPERIMENT = "bluegreen", "canary", "shadow", "experiment"
STRATEGIES = (BLUEGREEN, CANARY, SHADOW, EXPERIMENT)
AUTO, MANUAL = "auto", "manual"
ROLLBACK, PAUSE, NOTIFY = "rollback", "pause", "notify"
ACTIONS = (ROLLBACK, PAUSE, NOTIFY)

MAX_STEPS = 20
_DAY_S = 86_400.0
_LONGEST_S = 90 * _DAY_S


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One stage of exposure. weight: of 10,000; min_requests: that the candidate's arm has to answer first."""

    weight: int
    min_time_s: float = 60.0
    min_requests: int = 100

    def to_json(self) -> Json:
        return {
            "weight_percent": self.weight / 100,
            "min_time_s": self.min_time_s,
            "min_requests": self.min_requests,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollout of one version. Every wait in it has an end.

    steps: of a canary, in rising weight; an experiment has one; the others none. judge: what is looked at, and what is
    done about it. on_breaker: what happens when a worker's breaker opens on the candidate.
    warm_timeout_s: until every live worker has warmed the candidate, else abort. step_timeout_s: for one step, else
    pause. pause_timeout_s: for a pause, a gate too, else abort. keep_previous: how many versions stay warm for a
    rollback after the promotion.
    """

    strategy: str
    version: str
    variant: str = ""
    steps: tuple[PlanStep, ...] = ()
    promote: str = AUTO
    judge: Policy = field(default_factory=Policy)
    on_breaker: str = PAUSE
    fallback: bool = True
    warm_timeout_s: float = 600.0
    step_timeout_s: float = _DAY_S
    pause_timeout_s: float = _DAY_S
    keep_previous: int = 1
    shadow_rate: float = 0.1
    min_pairs: int = 1000
    min_time_s: float = 0.0  # of a preview or a shadow
    max_flip_rate: float = 1.0

    def to_json(self) -> Json:
        """The plan as `parse` reads it."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {**plain, "steps": [step.to_json() for step in self.steps], "judge": self.judge.to_json()}


_DEFAULTS = {each.name: each.default for each in dataclasses.fields(Plan)}
DEFAULT_STEPS = (PlanStep(100, 60, 100), PlanStep(500, 120, 500), PlanStep(2000, 300, 1000), PlanStep(5000, 300, 2000))
_DEFAULT_SPLIT = (PlanStep(5000, 600, 1000),)


def parse(plain: Json) -> Plan:
    """Read a plan. Raises InvalidInput naming the field."""
    if not isinstance(plain, Mapping):
        raise InvalidInput("body", type(plain).__name__, "a JSON object with strategy and version")
    for name in plain:
        if name not in _CHECKS:
            raise InvalidInput(name, "an unknown field", f"only {', '.join(_CHECKS)}")
    for name in ("strategy", "version"):
        if name not in plain:
            raise InvalidInput(name, "nothing", _CHECKS[name][1])
    values: dict[str, Any] = {}
    for name, value in plain.items():
        check, wanted = _CHECKS[name]
        if not check(value):
            raise InvalidInput(name, repr(value)[:80], wanted)
        values[name] = value
    strategy = values["strategy"]
    try:
        values["judge"] = Policy.from_json(values.get("judge", {}))
    except ValueError as error:
        raise InvalidInput(
            "judge", f"one that is none: {error}", "a policy as `docs/operate.md` describes it"
        ) from error
    values["steps"] = _steps(values.get("steps"), strategy)
    if strategy in (BLUEGREEN, EXPERIMENT):
        values.setdefault("promote", MANUAL)
    for name in ("shadow_rate", "min_pairs", "max_flip_rate"):
        if strategy != SHADOW and values.get(name, _DEFAULTS[name]) != _DEFAULTS[name]:
            raise InvalidInput(name, f"a plan of strategy {strategy}", f"it only in one of strategy {SHADOW}")
    return Plan(**values)


def _steps(plain: Json | None, strategy: str) -> tuple[PlanStep, ...]:
    if strategy in (BLUEGREEN, SHADOW):
        if plain:
            raise InvalidInput("steps", f"{len(plain)} steps", f"none: strategy {strategy} has no weights")
        return ()
    if plain is None:
        return DEFAULT_STEPS if strategy == CANARY else _DEFAULT_SPLIT
    if not plain:
        raise InvalidInput("steps", "none", f"at least one for strategy {strategy}")
    steps = tuple(_step(each, f"steps[{place}]") for place, each in enumerate(plain))
    if strategy == EXPERIMENT and len(steps) != 1:
        raise InvalidInput("steps", f"{len(steps)} steps", "one: an experiment keeps its split")
    for place, (before, after) in enumerate(itertools.pairwise(steps), 1):
        if after.weight <= before.weight:
            came = f"{after.weight / 100:g} after {before.weight / 100:g}"
            raise InvalidInput(f"steps[{place}].weight_percent", came, "more than in the step before")
    return steps


def _step(plain: Json, where: str) -> PlanStep:
    if not isinstance(plain, Mapping):
        raise InvalidInput(where, repr(plain)[:80], 'an object such as {"weight_percent": 5, "min_time_s": 60}')
    for name in plain:
        if name not in ("weight_percent", "min_time_s", "min_requests"):
            raise InvalidInput(f"{where}.{name}", "an unknown field", "weight_percent, min_time_s and min_requests")
    percent = plain.get("weight_percent", 0)
    weight = round(percent * 100) if _is_number(percent) and percent <= 100 else 0
    if not 0 < weight <= TOTAL_WEIGHT or abs(weight - percent * 100) > 1e-6:
        came = repr(percent)[:80] if "weight_percent" in plain else "nothing"
        raise InvalidInput(f"{where}.weight_percent", came, "percent from 0.01 to 100 with at most two decimals")
    min_time_s, min_requests = plain.get("min_time_s", 60), plain.get("min_requests", 100)
    if not _is_time(min_time_s):
        raise InvalidInput(f"{where}.min_time_s", repr(min_time_s)[:80], _TIME)
    if not _is_whole(min_requests, 0, 10**9):
        raise InvalidInput(f"{where}.min_requests", repr(min_requests)[:80], "a whole number from 0 to 1e9")
    return PlanStep(weight, float(min_time_s), min_requests)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_time(value: Json) -> bool:
    return _is_number(value) and 0 <= value <= _LONGEST_S


def _is_share(value: Json) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_whole(value: Json, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _one_of(choices: tuple[str, ...]) -> tuple[Callable[[Json], bool], str]:
    return (lambda value: isinstance(value, str) and value in choices), f"one of {', '.join(choices)}"


_TIME = f"seconds from 0 to {_LONGEST_S:g}"
# Field -> what it must satisfy, and how a message says it.
_CHECKS: Mapping[str, tuple[Callable[[Json], bool], str]] = {
    "strategy": _one_of(STRATEGIES),
    "version": (
        lambda value: isinstance(value, str) and bool(VERSION_PATTERN.fullmatch(value)),
        f"a version as text matching {VERSION_PATTERN.pattern}",
    ),
    "variant": (
        lambda value: value == "" or (isinstance(value, str) and bool(VARIANT_PATTERN.fullmatch(value))),
        f"a name matching {VARIANT_PATTERN.pattern}",
    ),
    "steps": (
        lambda value: isinstance(value, list | tuple) and len(value) <= MAX_STEPS,
        f"a list of at most {MAX_STEPS} steps",
    ),
    "promote": _one_of((AUTO, MANUAL)),
    "judge": (lambda value: isinstance(value, Mapping), "an object: alpha, signals, min_requests and so on"),
    "on_breaker": _one_of(ACTIONS),
    "fallback": (lambda value: isinstance(value, bool), "true or false"),
    "warm_timeout_s": (_is_time, _TIME),
    "step_timeout_s": (_is_time, _TIME),
    "pause_timeout_s": (_is_time, _TIME),
    "keep_previous": (lambda value: _is_whole(value, 0, 5), "a whole number from 0 to 5"),
    "shadow_rate": (_is_share, "a share from 0 to 1"),
    "min_pairs": (lambda value: _is_whole(value, 1, 10**9), "a whole number from 1 to 1e9"),
    "min_time_s": (_is_time, _TIME),
    "max_flip_rate": (_is_share, "a share from 0 to 1"),
}
