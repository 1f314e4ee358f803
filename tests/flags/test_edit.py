"""Shares, declarations and flips in the words of people."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidInput
from gateway.flags.compile import compile_route
from gateway.flags.document import parse_flag
from gateway.flags.edit import edit_route, split_of

VARIANTS = {"stable": "1", "canary": "2", "other": "3"}
HEADER = {"==": [{"var": "headers.x-v"}, "2"]}


def flag(targeting: Any = None, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": "stable", **changes}
    return plain if targeting is None else {**plain, "targeting": targeting}


def split(**weights: int) -> dict[str, Any]:
    return {"fractional": [[name, weight] for name, weight in weights.items()]}


def edited(plain: dict[str, Any], shares: dict[str, int], default: str | None = None) -> dict[str, Any]:
    after: dict[str, Any] = edit_route(plain, shares=shares, declare={}, default=default)
    compile_route("iris", parse_flag("iris.route", after))  # it must be a valid route
    return after


@pytest.mark.parametrize(
    ("before", "shares", "after"),
    [
        (None, {"canary": 1000}, split(canary=1000, stable=9000)),
        (None, {"canary": 1}, split(canary=1, stable=9999)),
        (None, {"canary": 500, "other": 300}, split(canary=500, other=300, stable=9200)),
        (split(canary=5, stable=95), {"canary": 2000}, split(canary=2000, stable=8000)),
        (split(stable=95, canary=5), {"canary": 0}, split(stable=10000, canary=0)),
        (split(canary=5, stable=95), {"other": 100}, split(canary=500, stable=9400, other=100)),
        (split(canary=1, other=1, stable=2), {"canary": 0}, split(canary=0, other=2500, stable=7500)),
        (split(canary=1), {"canary": 100}, split(canary=100, stable=9900)),
        ({"if": [HEADER, "canary"]}, {"other": 100}, {"if": [HEADER, "canary", split(other=100, stable=9900)]}),
        ({"if": [HEADER, "canary", "stable"]}, {"other": 1}, {"if": [HEADER, "canary", split(other=1, stable=9999)]}),
        (
            {"if": [HEADER, "other", split(canary=5, stable=95)]},
            {"canary": 1000},
            {"if": [HEADER, "other", split(canary=1000, stable=9000)]},
        ),
        (
            {"fractional": [{"var": "headers.x-tenant"}, ["canary", 1], ["stable", 1]]},
            {"canary": 1000},
            {"fractional": [{"var": "headers.x-tenant"}, ["canary", 1000], ["stable", 9000]]},
        ),
    ],
)
def test_a_share_is_set_and_the_default_takes_the_rest(before: Any, shares: dict[str, int], after: Any) -> None:
    plain = flag(before)
    assert edited(plain, shares)["targeting"] == after
    assert plain == flag(before)  # a copy was changed


def test_a_flip_moves_all_traffic_to_the_new_default() -> None:
    flipped = edited(flag(), {}, "canary")
    assert (flipped["defaultVariant"], flipped.get("targeting")) == ("canary", None)
    flipped = edited(flag(split(canary=1000, stable=9000)), {}, "canary")
    assert (flipped["defaultVariant"], flipped["targeting"]) == ("canary", split(canary=10000, stable=0))
    flipped = edited(flag(split(canary=1000, stable=9000)), {"stable": 500}, "canary")
    assert (flipped["defaultVariant"], flipped["targeting"]) == ("canary", split(canary=9500, stable=500))
    back = edited(flipped, {}, "stable")
    assert (back["defaultVariant"], back["targeting"]) == ("stable", split(canary=0, stable=10000))


def test_a_version_is_declared_at_weight_0() -> None:
    added = edit_route(flag(), shares={}, declare={"next": "9"})
    assert (added["variants"]["next"], added.get("targeting")) == ("9", None)
    moved = edit_route(flag(split(canary=1000, stable=9000)), shares={}, declare={"canary": "9"})
    assert (moved["variants"]["canary"], moved["targeting"]) == ("9", split(canary=0, stable=10000))
    with pytest.raises(InvalidInput, match="default variant"):
        edit_route(flag(), shares={}, declare={"stable": "9"})


@pytest.mark.parametrize(
    ("plain", "shares", "default", "words"),
    [
        (flag(), {"gone": 1}, None, "gone: expected one of stable, canary, other"),
        (flag(), {"stable": 1}, None, "the default takes what they leave"),
        (flag(), {}, "gone", "gone: expected one of"),
        (flag(), {"canary": 6000, "other": 5000}, None, "at most 100 %"),
        (flag({"if": [HEADER, split(canary=1, stable=1), split(other=1, stable=1)]}), {"canary": 1}, None, "2 splits"),
        (flag({"if": [HEADER, "canary", "other"]}), {"canary": 1}, None, "leaves nothing"),
        (flag({"var": "headers.x-v"}), {"canary": 1}, None, "leaves nothing"),
        (flag({"fractional": [[{"if": [HEADER, "canary"]}, 1], ["stable", 1]]}), {"canary": 1}, None, "between rules"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    plain: dict[str, Any], shares: dict[str, int], default: str | None, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        edit_route(plain, shares=shares, declare={}, default=default)


@given(st.lists(st.tuples(st.sampled_from(["canary", "other"]), st.integers(0, 5000)), max_size=6))
def test_after_any_edits_the_weights_add_up_and_the_order_stays(steps: list[tuple[str, int]]) -> None:
    plain = edited(flag(), {"canary": 0})
    for name, weight in steps:
        before = [fraction[0] for fraction in plain["targeting"]["fractional"]]
        plain = edited(plain, {name: weight})
        fractions = plain["targeting"]["fractional"]
        assert sum(weight for _, weight in fractions) == 10_000
        assert [name for name, _ in fractions][: len(before)] == before
        shares = split_of(plain)
        assert shares is not None
        assert shares.get(name, 0) == weight / 10_000


def test_a_route_without_one_plain_split_has_no_shares_to_show() -> None:
    assert split_of(flag()) is None
    assert split_of(flag({"fractional": [[{"if": [HEADER, "canary"]}, 1]]})) is None
    assert split_of(flag(split(canary=1, stable=3))) == {"canary": 0.25, "stable": 0.75}
