"""Whether a model can be shadowed as its flags say: a version must be named for it, and no client may be given that."""

from __future__ import annotations

from gateway.errors import InvalidFlag
from gateway.flags.compile import Route, compile_options, compile_route
from gateway.flags.document import ROUTE, SHADOW, Flag, FlagDocument, route_key


def check_shadow(before: FlagDocument, after: FlagDocument, changed: Flag) -> None:
    """Check a change of *changed*, a flag of *after* that compiles. Raises InvalidFlag.

    A share above 0 needs a route with a variant "shadow" that no rule gives and that is not what answers anyway. Later
    the route may lose that variant, or be killed (then nothing is shadowed), but no rule may begin to give it.
    """
    if changed.kind == SHADOW and compile_options(after, changed.model).shadow_rate > 0:
        _check_share(after, changed)
    elif changed.kind == ROUTE and _is_given(_route(after, changed.model)) and not _is_given(_old(before, changed)):
        try:
            rate = compile_options(after, changed.model).shadow_rate
        except InvalidFlag:  # a flag from elsewhere, which no worker follows
            return
        if rate > 0:
            raise InvalidFlag(
                f"flags.{changed.key}",
                "one that does",
                f"no rule or default that gives the variant {SHADOW!r} to clients while {changed.model}.{SHADOW} is "
                f"{rate:g} (set that to 0 first, or give the version under another variant's name)",
            )


def _check_share(document: FlagDocument, changed: Flag) -> None:
    model, where = changed.model, f"flags.{changed.key}"
    route_name = route_key(model)
    flag = document.flags.get(route_name)
    if flag is None or SHADOW not in flag.variants:
        declare = f"sluicegate flags set {route_name} --declare {SHADOW}=VERSION"
        raise InvalidFlag(where, "none", f"a variant {SHADOW!r} in {route_name} to run the copies ({declare})")
    route = compile_route(model, flag, document.bucketing)
    if _is_given(route):
        raise InvalidFlag(
            where, "one that they give", f"a variant {SHADOW!r} that no rule or default of {route_name} gives"
        )
    if route.default_version == str(flag.variants[SHADOW]):
        came = f"version {route.default_version}, which answers already"
        raise InvalidFlag(where, came, f"another version as the variant {SHADOW!r} of {route_name}")


def _old(before: FlagDocument, changed: Flag) -> Route | None:
    try:
        return _route(before, changed.model)
    except InvalidFlag:
        return None


def _route(document: FlagDocument, model: str) -> Route | None:
    flag = document.flags.get(route_key(model))
    return None if flag is None else compile_route(model, flag, document.bucketing)


def _is_given(route: Route | None) -> bool:
    return route is not None and SHADOW in route.given
