"""The rules of approval: when it is needed, who counts, how long it lasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.approvals import APPROVED, OPEN, Approvals, Change, digest_of, widens
from gateway.control.stakes import stakes_are_high
from gateway.errors import ChangeRefused, Forbidden
from gateway.flags.audit import Author
from gateway.flags.compile import compile_route
from gateway.flags.document import Flag, parse_flag
from tests import builders
from tests.control.people import ADA, BOB, CY, DAY_S
from tests.control.process import route, split


def flag(targeting: Any = None, *, default: str = "stable", state: str = "ENABLED", **metadata: Any) -> Flag:
    variants = {"stable": "1", "canary": "2"}
    plain = {
        "state": state,
        "variants": variants,
        "defaultVariant": default,
        "metadata": metadata,
        "targeting": targeting,
    }
    return parse_flag("iris.route", plain)


def people_needed(before: Flag | None, after: Flag, *, required: int = 2, high: bool = True) -> int:
    rules = Approvals(lambda _model: high, required=required, lifetime_s=DAY_S)
    old = None if before is None else compile_route("iris", before)
    new = compile_route("iris", after)
    return rules.needed("iris", old, new, widened=widens(before, after, old, new))


def beta(then: Any = "canary", otherwise: Any = None, value: str = "yes") -> dict[str, Any]:
    steps = [{"==": [{"var": "headers.x-beta"}, value]}, then]
    return {"if": [*steps, *([] if otherwise is None else [otherwise])]}


RAISES = [
    (flag(), flag(split(1))),
    (flag(split(5)), flag(split(6))),
    (flag(split(5), state="DISABLED"), flag(split(5))),
    (flag(), flag(default="canary")),
    (flag(default="canary"), flag()),
    (None, flag(split(1))),
    (flag(beta()), flag(beta(value="no"))),  # the condition is another one
    (flag(beta()), flag({"if": [True, "canary"]})),
    (flag(beta()), flag(split(10))),  # from a few to a share of all
    (flag(beta(split(50), split(1))), flag(beta(split(1), split(50)))),  # the shares change places
    (flag(beta(split(50))), flag(beta(split(51)))),
    (flag(split(5), missingKey="default"), flag(split(5), missingKey="random")),
]
LOWERS = [
    (flag(split(5)), flag(split(4))),
    (flag(split(5)), flag(split(0))),
    (flag(split(5)), flag()),
    (flag(split(5)), flag(split(5), state="DISABLED")),
    (flag(beta()), flag(beta(), state="DISABLED")),
    (flag(beta()), flag()),
    (flag(beta(split(50), split(10))), flag(beta(split(49), split(10)))),
    (flag(beta(split(50), split(10))), flag(beta(split(50), split(0)))),
    (flag(split(5)), flag(split(5), owner="risk")),
    (flag(beta()), flag(beta(), owner="risk")),
    (None, flag()),
]


@pytest.mark.parametrize(("before", "after"), RAISES)
def test_more_exposure_needs_approval_where_stakes_are_high(before: Flag | None, after: Flag) -> None:
    assert people_needed(before, after) == 2
    assert people_needed(before, after, high=False) == 0


@pytest.mark.parametrize(("before", "after"), LOWERS)
def test_less_exposure_never_needs_approval(before: Flag | None, after: Flag) -> None:
    assert people_needed(before, after) == 0


def test_stakes_are_what_any_card_of_the_model_says(models: Path) -> None:
    def write(version: str, card: Any) -> None:
        builders.write_package(models, builders.classifier("iris", version), card=card)

    assert not stakes_are_high(models, "iris")
    write("1", None)
    write("2", {"stakes": "low"})
    assert not stakes_are_high(models, "iris")
    write("3", {"stakes": "high"})
    write("4", None)
    assert stakes_are_high(models, "iris")
    assert not stakes_are_high(models, "wine")
    for model, card in (("odd", {"stakes": "HIGH"}), ("number", {"stakes": 1})):
        builders.write_package(models, builders.classifier(model, "1"), card=card)
        assert stakes_are_high(models, model)
    builders.write_package(models, builders.classifier("torn", "1"))
    (models / "torn" / "1" / "manifest.json").write_text("{")
    assert stakes_are_high(models, "torn")
    builders.write_bare(models, builders.classifier("bare", "1"))
    assert not stakes_are_high(models, "bare")


def proposed(rules: Approvals, author: Author = ADA, now_s: float = 0.0) -> Change:
    return rules.propose(
        model="iris",
        what="flag",
        verb="flag.put",
        target="iris.route",
        based_on=1,
        before=route(),
        after=route(targeting=split(10)),
        author=author,
        reason="a test",
        required=2,
        now_s=now_s,
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ada", "Ada", "ADA", "bob", "Bob", "cy"]),
            st.sampled_from(["a1", "b1", "c1", "x", ""]),
            st.floats(0, 2 * DAY_S),
        ),
        max_size=6,
    )
)
def test_whatever_is_tried_only_enough_other_people_in_time_approve(tries: list[tuple[str, str, float]]) -> None:
    rules = Approvals(lambda _model: True, required=2, lifetime_s=DAY_S)
    change = proposed(rules)
    for name, token_id, now_s in tries:
        try:
            change = rules.approve(change, Author(name, token_id=token_id), reason="", now_s=now_s)
        except (Forbidden, ChangeRefused):
            assert True
        people = {each.actor.casefold() for each in change.approvals}
        assert "ada" not in people
        assert "a1" not in {each.token_id for each in change.approvals}
        assert len(people) == len(change.approvals)
        assert all(each.at_s < DAY_S for each in change.approvals)
        assert rules.approved(change, 0.0) == (len(people) >= 2) == (change.state == APPROVED)
        assert not rules.approved(change, DAY_S)


def test_a_setting_that_was_raised_meanwhile_counts() -> None:
    change = proposed(Approvals(lambda _model: True, required=2, lifetime_s=DAY_S))
    stricter = Approvals(lambda _model: True, required=3, lifetime_s=DAY_S)
    for by in (BOB, CY):
        change = stricter.approve(change, by, reason="", now_s=1.0)
    assert (change.state, stricter.missing(change)) == (OPEN, 1)


@given(st.sampled_from(["what", "target", "based_on", "before", "after"]))
def test_the_digest_is_over_all_that_an_approver_agrees_to(name: str) -> None:
    fields: dict[str, Any] = {"what": "flag", "target": "iris.route", "based_on": 1, "before": {}, "after": {"a": 1}}
    other = {**fields, name: 2 if name == "based_on" else "other"}
    assert digest_of(**fields) != digest_of(**other)
