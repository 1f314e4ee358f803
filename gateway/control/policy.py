"""What the judge looks at, what it does about it, and how often it may be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

Action = Literal["rollback", "pause", "notify"]
ACTIONS: tuple[str, ...] = get_args(Action)
# Of numbers in a policy: beyond them products and quotients of two would not be numbers any more.
LEAST, MOST = 1e-9, 1e9
_POSITIVE = f"a number from {LEAST:g} to {MOST:g}"


@dataclass(frozen=True, slots=True)
class CountSignal:
    """A kind of bad event, compared by counts.

    action: what is done when the canary's rate is found above margin * stable's + tolerance. weight: its part of alpha
    among the signals of the same action. together: how many such events may have one cause (requests of one run).
    promote_tolerance: to be promoted, the rate must be shown to be below margin * stable's + this, in shares of 1; None
    if nothing need be shown.
    """

    action: Action
    margin: float = 1.25
    tolerance: float = 0.0
    weight: float = 1.0
    together: float = 1.0
    promote_tolerance: float | None = 0.005


SIGNALS: Mapping[str, CountSignal] = {
    "errors": CountSignal("rollback", weight=4.0),
    # All requests of one run time out together.
    "timeouts": CountSignal("rollback", together=8.0, promote_tolerance=0.02),
    "invalid": CountSignal("rollback"),
    # Against all bad events of stable, which has nothing to fall back on. The breaker opens at half of the requests:
    # with margin 2 an outage that hits both arms alike does not look like the canary's fault.
    "fallbacks": CountSignal("rollback", margin=2.0, weight=2.0, together=8.0, promote_tolerance=0.02),
    "slow": CountSignal("rollback", margin=2.0, tolerance=0.01, together=32.0, promote_tolerance=0.05),
    # Wrong answers. Labels come late or never: that they are few must not hold up a promotion unless a plan says so.
    "accuracy": CountSignal("rollback", margin=1.0, tolerance=0.02, promote_tolerance=None),
}
SRM, OUTPUTS, DRIFT = "srm", "outputs", "drift"


@dataclass(frozen=True, slots=True)
class Policy:
    """alpha: how often a canary that is no worse is rolled back, at most, over a whole rollout, all signals together;
    and again for the signals that only pause or notify, srm apart.

    srm_alpha: for the split. promote_alpha: how often a canary that is worse by its promote_tolerance is called good.
    min_requests: of the canary, before it is promoted. slow_s: what is slow; None: slow_factor times the 99th
    percentile of stable, but slow_floor_s at least. min_effect: the population stability index below which a
    difference of the outputs is reported, but not acted on. drift_action: on an alarm of the monitor, whose own rule
    says how often it is wrong (it is no part of alpha); None: not looked at. Raises ValueError naming the field.
    """

    alpha: float = 0.01
    srm_alpha: float = 0.001
    promote_alpha: float = 0.05
    min_requests: int = 500
    slow_s: float | None = None
    slow_factor: float = 1.5
    slow_floor_s: float = 0.001
    min_effect: float = 0.25
    srm_action: Action = "pause"
    outputs_action: Action = "pause"
    outputs_weight: float = 1.0
    drift_action: Action | None = "pause"
    signals: Mapping[str, CountSignal] = field(default_factory=lambda: dict(SIGNALS))

    def __post_init__(self) -> None:
        for name in ("alpha", "srm_alpha", "promote_alpha"):
            _check(name, LEAST <= getattr(self, name) < 1, f"from {LEAST:g} to below 1")
        whole = isinstance(self.min_requests, int) and self.min_requests >= 0
        _check("min_requests", whole, "a whole number, 0 or more")
        for name in ("slow_factor", "slow_floor_s", "outputs_weight"):
            _check(name, LEAST <= getattr(self, name) <= MOST, _POSITIVE)
        _check("slow_s", self.slow_s is None or LEAST <= self.slow_s <= MOST, f"seconds, {_POSITIVE}")
        _check("min_effect", 0 <= self.min_effect <= MOST, f"0 to {MOST:g}")
        for name in ("srm_action", "outputs_action"):
            _check(name, getattr(self, name) in ACTIONS, f"one of {', '.join(ACTIONS)}")
        action = self.drift_action
        _check(f"signals.{DRIFT}.action", action is None or action in ACTIONS, f"one of {', '.join(ACTIONS)}")
        if self.srm_action == "rollback":
            _check("srm_alpha", self.srm_alpha < self.alpha, "below alpha, of which it is a part")
        for name, signal in self.signals.items():
            _check(f"signals.{name}", name in SIGNALS, f"one of {', '.join(SIGNALS)}")
            _check(f"signals.{name}.action", signal.action in ACTIONS, f"one of {', '.join(ACTIONS)}")
            for part in ("margin", "weight"):
                _check(f"signals.{name}.{part}", LEAST <= getattr(signal, part) <= MOST, _POSITIVE)
            _check(f"signals.{name}.tolerance", 0 <= signal.tolerance < 1, "from 0 to below 1")
            _check(f"signals.{name}.together", 1 <= signal.together <= 1e6, "from 1 to 1000000")
            shown = signal.promote_tolerance
            _check(f"signals.{name}.promote_tolerance", shown is None or 0 <= shown < 1, "from 0 to below 1, or null")

    def threshold(self, signal: str) -> float:
        """The evidence at which *signal* trips: 1 over its part of alpha.

        Parts are by weight among the signals that roll back, and among those that do not: by Bonferroni the chance
        that any of a family ever trips without cause is at most alpha, whatever depends on what.
        """
        if signal == SRM:
            return 1 / self.srm_alpha
        rolls_back = self._action(signal) == "rollback"
        alpha = self.alpha - (self.srm_alpha if rolls_back and self.srm_action == "rollback" else 0.0)
        names = [*self.signals, OUTPUTS]
        whole = sum(self._weight(name) for name in names if (self._action(name) == "rollback") == rolls_back)
        return whole / (alpha * self._weight(signal))

    def _action(self, signal: str) -> Action:
        return self.outputs_action if signal == OUTPUTS else self.signals[signal].action

    def _weight(self, signal: str) -> float:
        return self.outputs_weight if signal == OUTPUTS else self.signals[signal].weight

    def to_json(self) -> dict[str, Any]:
        """All of it, so that from_json gives the same policy whatever the defaults are by then."""
        signals = {name: asdict(self.signals[name]) if name in self.signals else None for name in SIGNALS}
        drift = None if self.drift_action is None else {"action": self.drift_action}
        plain = asdict(self) | {"signals": {**signals, DRIFT: drift}}
        del plain["drift_action"]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Policy:
        """A policy from what a plan says of it: what is not there is as by default, a signal that is null is left out.

        Raises ValueError naming the field.
        """
        known = {item.name for item in fields(cls)} - {"drift_action"}
        _known("policy", plain, known)
        signals = dict(SIGNALS)
        given = plain.get("signals", {})
        _check("signals", isinstance(given, Mapping), "an object")
        _known("signals", given, {*SIGNALS, DRIFT})
        rest = _typed("", {name: value for name, value in plain.items() if name != "signals"}, {"slow_s"})
        for name, changes in given.items():
            fields_of = {"action"} if name == DRIFT else {item.name for item in fields(CountSignal)}
            changed = None if changes is None else _changes(name, changes, fields_of)
            if name == DRIFT:
                rest["drift_action"] = None if changed is None else changed.get("action", "pause")
            elif changed is None:
                del signals[name]
            else:
                signals[name] = replace(signals[name], **changed)
        return cls(**rest, signals=signals)


def _changes(name: str, plain: Any, known: set[str]) -> dict[str, Any]:
    """What a plan says of one signal."""
    _check(f"signals.{name}", isinstance(plain, Mapping), "an object or null")
    _known(f"signals.{name}", plain, known)
    return _typed(f"signals.{name}.", plain, {"promote_tolerance"})


def _typed(where: str, plain: Mapping[str, Any], may_be_null: set[str]) -> dict[str, Any]:
    for name, value in plain.items():
        if name.endswith("action"):
            _check(where + name, isinstance(value, str), "text")
        elif not (value is None and name in may_be_null):
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            _check(where + name, number, "a number")
    return dict(plain)


def _known(where: str, plain: Mapping[str, Any], known: set[str]) -> None:
    for name in plain:
        if name not in known:
            raise ValueError(f"{where} has no {name!r}; it has {', '.join(sorted(known))}")


def _check(name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}")
