"""What a sampling flag says: the share that is written to the sample log, and what is written whatever chance says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import InvalidFlag

MAX_NAMED = 1000  # keys of one flag, headers, values of one header
MAX_NAMED_CHARS = 256


@dataclass(frozen=True, slots=True)
class SamplingRules:
    """Which predictions are written though chance did not draw them.

    errors: those that ended in an error. slow_s: those that took longer. low_confidence: those whose largest
    probability is below it. keys: those with one of these targeting keys. headers: those with one of these values in
    a header, by lower-case name. outliers: those with an input outside of what the package's reference holds.
    """

    errors: bool = False
    slow_s: float | None = None
    low_confidence: float | None = None
    keys: frozenset[str] = frozenset()
    headers: tuple[tuple[str, frozenset[str]], ...] = ()
    outliers: bool = False

    @property
    def looks_at_answers(self) -> bool:
        """Whether an answered prediction can be written by a rule."""
        rest = self.slow_s is not None or self.low_confidence is not None or self.outliers
        return rest or bool(self.keys) or bool(self.headers)


def check_sampling(where: str, value: Any) -> None:
    """Raise InvalidFlag unless *value* is a number from 0 to 1, or an object of the fields below."""
    if not isinstance(value, dict):
        if not _is_share(value):
            raise InvalidFlag(where, _shown(value), 'a number from 0 to 1, or an object such as {"rate": 0.01}')
        return
    for name, field in value.items():
        if name not in _FIELDS:
            raise InvalidFlag(f"{where}.{name}", "an unknown field", f"only {', '.join(_FIELDS)}")
        is_right, wanted = _FIELDS[name]
        if not is_right(field):
            raise InvalidFlag(f"{where}.{name}", _shown(field), wanted)


def rate_of(value: Any) -> float | None:
    """The share that chance draws; None where the settings decide. value: one that check_sampling has passed."""
    rate = value.get("rate") if isinstance(value, dict) else value
    return None if rate is None else float(rate)


def rules_of(value: Any) -> SamplingRules | None:
    """The rules of a value that check_sampling has passed; None if there are none."""
    if not isinstance(value, dict):
        return None
    slow_s, low_confidence = value.get("slow_s"), value.get("low_confidence")
    rules = SamplingRules(
        errors=value.get("errors", False),
        slow_s=None if slow_s is None else float(slow_s),
        low_confidence=None if low_confidence is None else float(low_confidence),
        keys=frozenset(value.get("keys", ())),
        headers=tuple((name.lower(), frozenset(_texts(wanted))) for name, wanted in value.get("headers", {}).items()),
        outliers=value.get("outliers", False),
    )
    return rules if rules != SamplingRules() else None


def is_durable(value: Any) -> bool:
    """Whether a sampled answer waits until the disk has it. value: one that check_sampling has passed."""
    return isinstance(value, dict) and bool(value.get("durable", False))


def of_one_type(variants: Mapping[str, Any]) -> dict[str, Any]:
    """The variants of a sampling flag, of which flagd wants one type: beside an object, a number n is {"rate": n}."""
    if not any(isinstance(value, dict) for value in variants.values()):
        return dict(variants)
    return {name: value if isinstance(value, dict) else {"rate": value} for name, value in variants.items()}


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_NAMED
        and all(isinstance(text, str) and 0 < len(text) <= MAX_NAMED_CHARS for text in value)
    )


def _are_headers(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and 0 < len(value) <= MAX_NAMED
        and len({name.lower() for name in value}) == len(value)
        and all(0 < len(name) <= MAX_NAMED_CHARS and _are_texts(_texts(wanted)) for name, wanted in value.items())
    )


_TRUTH = (_is_truth, "true or false")
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "rate": (_is_share, "a number from 0 to 1"),
    "errors": _TRUTH,
    "slow_s": (lambda value: _is_number(value) and 0 < value <= 3600, "a number of seconds above 0, at most 3600"),
    "low_confidence": (lambda value: _is_share(value) and value > 0, "a number above 0 and at most 1"),
    "keys": (_are_texts, f"a list of 1 to {MAX_NAMED} targeting keys"),
    "headers": (_are_headers, 'an object such as {"x-tier": ["gold"]}, each name once'),
    "outliers": _TRUTH,
    "durable": _TRUTH,
}


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
