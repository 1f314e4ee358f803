"""Changes of a route in the words that people use: shares in percent, a version to declare, another default."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gateway.errors import InvalidInput
from gateway.flags.document import Json

TOTAL_WEIGHT = 10_000  # so that a weight of 1 is 0.01 %

_Fractions = list[Any]  # of [variant, weight], perhaps led by the expression that is bucketed by


def edit_route(
    plain: Json, *, shares: Mapping[str, int], declare: Mapping[str, str], default: str | None = None
) -> Json:
    """A changed copy of a route's flagd JSON; what the words do not touch stays as it is.

    shares: variant -> weight of 10,000; the default variant takes what the others leave. declare: variant -> version;
    the variant is added, or moved to that version, at weight 0. default: the variant that becomes the default and takes
    all traffic but what *shares* say. The order of variants in a split never changes, so only the keys that must move
    do. Raises InvalidInput naming the variant.
    """
    after: dict[str, Any] = copy.deepcopy(plain)
    variants: dict[str, Json] = after["variants"]
    for name, version in declare.items():
        if name == after["defaultVariant"] and variants[name] != version:
            raise InvalidInput(
                name, "the default variant", "another variant: a version is declared without traffic first"
            )
        variants[name] = version
    if default is not None:
        _known(default, variants)
        after["defaultVariant"] = default
    taker = after["defaultVariant"]
    for name in shares:
        _known(name, variants)
        if name == taker:
            raise InvalidInput(name, "the default variant", "other variants; the default takes what they leave")
    wanted = {name: 0 for name in declare if name != taker} | dict(shares)
    if default is not None:
        wanted = {name: 0 for name in variants if name != taker} | wanted
    _split(after, taker, wanted, must_exist=bool(shares))
    return after


def split_of(plain: Json) -> dict[str, float] | None:
    """Variant -> share from 0 to 1 of the one split of a route; None if it has none or several."""
    found = _fractions(plain.get("targeting"))
    if len(found) != 1:
        return None
    try:
        weights = _weights(found[0])
    except InvalidInput:  # it splits between rules, not variants
        return None
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total else None


def _split(flag: dict[str, Any], taker: str, wanted: Mapping[str, int], *, must_exist: bool) -> None:
    """Give the variants of the flag's one split the *wanted* weights, and *taker* what is left."""
    found = _fractions(flag.get("targeting"))
    if len(found) > 1:
        raise InvalidInput("targeting", f"a rule with {len(found)} splits", "one split; write the whole flag instead")
    if not found and not must_exist:
        return
    fractions = found[0] if found else _new_split(flag, taker)
    weights = _scaled(_weights(fractions))
    for name, weight in wanted.items():
        if weight or name in weights:
            weights[name] = weight
    others = sum(weight for name, weight in weights.items() if name != taker)
    if others > TOTAL_WEIGHT:
        named = ", ".join(f"{name} {weight / 100:g} %" for name, weight in weights.items() if name != taker)
        raise InvalidInput("shares", f"{others / 100:g} % in all ({named})", "at most 100 %")
    weights[taker] = TOTAL_WEIGHT - others
    lead = [part for part in fractions[:1] if not isinstance(part, list)]
    fractions[:] = [*lead, *([name, weight] for name, weight in weights.items())]


def _new_split(flag: dict[str, Any], taker: str) -> _Fractions:
    """A split put where the rules leave the decision to the default variant."""
    fractions: _Fractions = []
    split = {"fractional": fractions}
    targeting = flag.get("targeting")
    if targeting is None:
        flag["targeting"] = split
        return fractions
    steps = targeting.get("if") if isinstance(targeting, dict) else None
    if isinstance(steps, list) and len(steps) > 1 and len(steps) % 2 == 0:
        steps.append(split)
    elif isinstance(steps, list) and len(steps) > 1 and steps[-1] in (None, taker):
        steps[-1] = split
    else:
        raise InvalidInput("targeting", "a rule that leaves nothing to a split", "one; write the whole flag instead")
    return fractions


def _fractions(targeting: Json) -> list[_Fractions]:
    """The splits at places where a rule names the variant outright."""
    if not isinstance(targeting, dict) or len(targeting) != 1:
        return []
    name, args = next(iter(targeting.items()))
    if name == "fractional" and isinstance(args, list):
        return [args]
    if name == "if" and isinstance(args, list):
        results = [arg for i, arg in enumerate(args) if i % 2 == 1 or i == len(args) - 1]
        return [found for result in results for found in _fractions(result)]
    return []


def _weights(fractions: _Fractions) -> dict[str, int]:
    weights: dict[str, int] = {}
    for i, fraction in enumerate(fractions):
        if isinstance(fraction, list) and fraction and isinstance(fraction[0], str):
            weights[fraction[0]] = weights.get(fraction[0], 0) + (fraction[1] if len(fraction) > 1 else 1)
        elif i > 0 or isinstance(fraction, list):
            raise InvalidInput(
                "targeting", "a split between rules", "one between variants; write the whole flag instead"
            )
    return weights


def _scaled(weights: dict[str, int]) -> dict[str, int]:
    """The same shares as weights of 10,000, rounded to the nearest."""
    total = sum(weights.values())
    if total in (0, TOTAL_WEIGHT):
        return weights
    return {name: (weight * TOTAL_WEIGHT + total // 2) // total for name, weight in weights.items()}


def _known(name: str, variants: Mapping[str, Json]) -> None:
    if name not in variants:
        declare = f"`--declare {name}=VERSION`"
        wanted = f"one of {', '.join(variants)}"
        raise InvalidInput(name, f"an unknown variant (a new one is declared first: {declare})", wanted)
