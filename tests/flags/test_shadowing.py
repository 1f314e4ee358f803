"""When a model can be shadowed: what is refused at write, and what then runs copies."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import InvalidFlag
from gateway.flags.compile import compile_options, compile_route
from gateway.flags.document import FlagDocument, parse
from gateway.flags.shadowing import check_shadow

VARIANTS = {"stable": "1", "shadow": "2"}
BY_HEADER = {"var": "headers.x-variant"}
GIVING: list[Any] = [
    {"if": [{"==": [{"var": "targetingKey"}, "me"]}, "shadow", None]},
    {"fractional": [["shadow", 1], ["stable", 99]]},
    {"if": [True, {"fractional": [["stable", 1], ["shadow", 1]]}]},
    BY_HEADER,  # whoever sends the name gets it
]


def route(targeting: Any = None, *, default: str = "stable", state: str = "ENABLED", **variants: str) -> dict[str, Any]:
    plain = {"state": state, "variants": variants or VARIANTS, "defaultVariant": default}
    return plain if targeting is None else {**plain, "targeting": targeting}


def share(rate: float) -> dict[str, Any]:
    return {"state": "ENABLED", "variants": {"set": rate}, "defaultVariant": "set"}


def document(plain_route: dict[str, Any] | None, rate: float | None = None) -> FlagDocument:
    flags = {} if plain_route is None else {"iris.route": plain_route}
    return parse({"flags": flags if rate is None else {**flags, "iris.shadow": share(rate)}})


def shadow_of(plain_route: dict[str, Any]) -> str | None:
    return compile_route("iris", document(plain_route).flags["iris.route"]).shadow_version


def set_share(plain_route: dict[str, Any] | None, rate: float) -> None:
    after = document(plain_route, rate)
    check_shadow(document(plain_route), after, after.flags["iris.shadow"])


def set_route(before: dict[str, Any], after: dict[str, Any], rate: float) -> None:
    new = document(after, rate)
    check_shadow(document(before, rate), new, new.flags["iris.route"])


def test_the_variant_named_shadow_runs_the_copies() -> None:
    assert shadow_of(route()) == "2"
    assert shadow_of(route({"fractional": [["shadow", 0], ["stable", 100]]})) == "2"
    assert shadow_of(route(stable="1", canary="2")) is None
    assert shadow_of(route(state="DISABLED")) is None  # the kill switch stops all that is not needed
    # Its version may answer under another name: then copies go on beside the canary.
    canary = route({"fractional": [["canary", 1], ["stable", 9]]}, stable="1", canary="2", shadow="2")
    assert shadow_of(canary) == "2"
    set_share(canary, 0.5)


@pytest.mark.parametrize("targeting", GIVING)
def test_a_shadow_that_a_rule_can_give_to_a_client_is_none(targeting: Any) -> None:
    assert shadow_of(route(targeting)) is None
    assert shadow_of(route(default="shadow")) is None
    with pytest.raises(InvalidFlag, match=r"a variant 'shadow' that no rule or default of iris.route gives, got one"):
        set_share(route(targeting), 0.1)
    set_share(route(targeting), 0.0)
    with pytest.raises(InvalidFlag, match=r"while iris.shadow is 0.1 \(set that to 0 first"):
        set_route(route(), route(targeting), 0.1)
    set_route(route(), route(targeting), 0.0)


def test_a_share_needs_another_version_to_run_the_copies() -> None:
    for plain in (None, route(stable="1")):
        with pytest.raises(InvalidFlag, match=r"flags set iris.route --declare shadow=VERSION"):
            set_share(plain, 0.1)
    with pytest.raises(InvalidFlag, match="got version 1, which answers already"):
        set_share(route(stable="1", shadow="1"), 0.1)


def test_what_lowers_exposure_is_never_refused() -> None:
    for after in (route(stable="1"), route(state="DISABLED"), route(GIVING[0], state="DISABLED")):
        set_route(route(), after, 0.5)
    set_route(route(GIVING[1]), route(GIVING[0]), 0.5)  # it was so before: this change is not to blame


def test_the_share_is_an_option_of_the_model() -> None:
    assert compile_options(document(route(), 0.25), "iris").shadow_rate == 0.25
    assert compile_options(document(route()), "iris").shadow_rate == 0.0
