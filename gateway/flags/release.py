"""What a rollout does to a route, as flagd JSON: declare a candidate, share, preview, promote; all from where it began.

Every form of the route is made from the one before the rollout, so an abort is that one again, and doing a step twice
is doing it once.
"""

from __future__ import annotations

import copy
from typing import Any

from gateway.errors import ChangeRefused
from gateway.flags import edit
from gateway.flags.document import FALLBACK, SHADOW, Json

PREVIEW_HEADER = "x-model-variant"
PREVIOUS = "previous"  # the variant that keeps the version before the last promotion warm
_COLOURS = {"blue": "green", "green": "blue"}


def candidate_variant(base: Json, strategy: str) -> str:
    """The name under which a strategy's candidate goes if its plan gives none."""
    if strategy == "bluegreen":
        return _COLOURS.get(base["defaultVariant"], "green")
    return {"shadow": SHADOW, "experiment": "candidate"}.get(strategy, "canary")


def check_startable(base: Json, variant: str, version: str) -> None:
    """Raise ChangeRefused unless a rollout can begin on this route."""
    default = base["defaultVariant"]
    if base["state"] != "ENABLED":
        raise ChangeRefused("the route is DISABLED: enable it before a rollout")
    if base["variants"][default] == version:
        raise ChangeRefused(f"version {version} is what {default!r} answers with already")
    if variant == default:
        raise ChangeRefused(f"{variant!r} is the default variant: a candidate needs another name")
    shares = edit.split_of(base) or {}
    busy = [f"{name} {share * 100:g} %" for name, share in shares.items() if share and name != default]
    if busy:
        raise ChangeRefused(f"the route gives traffic to {', '.join(busy)} already: bring that to an end first")
    # A weight of 0, as a canary leaves it that was taken back by hand, is where the candidate's share will stand.
    if variant in base["variants"] and _names(_with_shares_alone(base.get("targeting")), variant):
        raise ChangeRefused(
            f"a rule of the route names {variant!r}: give the candidate's variant another name (`--variant NAME`), or "
            f"take the rule away first"
        )


def at_weight(base: Json, variant: str, version: str, weight: int, *, fallback: bool) -> Json:
    """The route with the candidate declared and given *weight* of 10,000."""
    after = edit.edit_route(base, shares={variant: weight} if weight else {}, declare={variant: version})
    if not fallback:
        after["metadata"] = {**after.get("metadata", {}), FALLBACK: False}
    return after


def previewed(base: Json, variant: str, version: str) -> Json:
    """The route with the candidate given to those only who ask for it by header."""
    after: dict[str, Any] = copy.deepcopy(base)
    after["variants"][variant] = version
    asked = {"===": [{"var": f"headers.{PREVIEW_HEADER}"}, variant]}
    rest = [] if after.get("targeting") is None else [after["targeting"]]
    after["targeting"] = {"if": [asked, variant, *rest]}
    return after


def promoted(base: Json, version: str, *, keep: int) -> Json:
    """The route whose default variant answers with *version*; the versions before it stay warm as ``previous``.

    keep: how many of them; the older ones are called ``previous-2`` and so on.
    """
    after: dict[str, Any] = copy.deepcopy(base)
    variants = after["variants"]
    default = after["defaultVariant"]
    names = [PREVIOUS, *(f"{PREVIOUS}-{n}" for n in range(2, 100))]
    before = [variants.pop(name) for name in names if name in variants and not _names(after.get("targeting"), name)]
    older = [variants[default], *before]
    kept = [old for place, old in enumerate(older) if old != version and old not in older[:place]]
    variants[default] = version
    variants.update(zip(names, kept[:keep], strict=False))
    return after


def flipped(base: Json, variant: str, version: str) -> Json:
    """The route whose default is the candidate's variant; the one before stays declared and warm, for the way back.

    A split that an earlier release has left behind goes along: it would keep all on the variant before.
    """
    return edit.edit_route(base, shares={}, declare={variant: version}, default=variant)


def keeping_state(wanted: Json, current: Json | None) -> Json:
    """*wanted*, but DISABLED if somebody has pulled the kill switch meanwhile."""
    return {**wanted, "state": current["state"]} if current is not None else wanted


def _with_shares_alone(expression: Json) -> Json:
    """The rule without the parts of its splits that get nothing."""
    if isinstance(expression, dict):
        return {
            name: [part for part in args if not _is_nothing(part)]
            if name == "fractional" and isinstance(args, list)
            else _with_shares_alone(args)
            for name, args in expression.items()
        }
    return [_with_shares_alone(part) for part in expression] if isinstance(expression, list) else expression


def _is_nothing(fraction: Json) -> bool:
    return isinstance(fraction, list) and len(fraction) == 2 and isinstance(fraction[0], str) and fraction[1] == 0


def _names(expression: Json, variant: str) -> bool:
    """Whether a variant's name stands anywhere in a rule."""
    if isinstance(expression, dict):
        return any(_names(value, variant) for value in expression.values())
    if isinstance(expression, list):
        return any(_names(value, variant) for value in expression)
    return bool(expression == variant)
