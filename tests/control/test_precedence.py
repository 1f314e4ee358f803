"""What of a file of flags comes into force, what waits, and what hands may still do."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.control.precedence import KILLED, by_hand, declared, merged
from gateway.flags.compile import compile_route, validate
from gateway.flags.document import Flag, FlagDocument, dump, parse, parse_flag
from gateway.flags.exposure import raised
from tests.control.process import route, split

OPTION = {"state": "ENABLED", "variants": {"on": {"enabled": True}}, "defaultVariant": "on"}


def document(revision: int = 0, **flags: dict[str, Any]) -> FlagDocument:
    plain = {"flags": {key.replace("__", "."): flag for key, flag in flags.items()}, "metadata": {"revision": revision}}
    return parse(plain)


def flag(plain: dict[str, Any], **metadata: Any) -> Flag:
    return parse_flag("iris.route", {**plain, "metadata": metadata})


def test_the_file_has_the_last_word() -> None:
    file = document(iris__route=route(targeting=split(10)), iris__cache=OPTION)
    for in_force in (
        document(),
        document(7, iris__route=route(), wine__sampling={"state": "ENABLED", "variants": {"a": 1}}),
        document(8, iris__route={**route(), "state": "DISABLED"}),
    ):
        wanted = merged(in_force, file, {"iris"})
        assert wanted.revision == in_force.revision
        assert wanted.flags == file.flags


def test_the_route_of_a_model_that_the_file_does_not_name_stays_while_it_has_packages() -> None:
    in_force = document(3, wine__route=route(targeting=split(10)), wine__cache=OPTION, iris__route=route())
    file = document(iris__route=route("canary"))
    assert merged(in_force, file, {"iris", "wine"}).flags == {
        "iris.route": file.flags["iris.route"],
        "wine.route": in_force.flags["wine.route"],
    }
    assert merged(in_force, file, {"iris"}).flags.keys() == {"iris.route"}


def test_a_route_killed_by_hand_stays_disabled_until_the_file_says_so_too() -> None:
    killed = document(4, iris__route={**route(), "state": "DISABLED", "metadata": {KILLED: True}})
    file = document(iris__route={**route(targeting=split(5)), "metadata": {"owner": "ml"}})
    wanted = merged(killed, file, {"iris"}).flags["iris.route"]
    assert (wanted.state, wanted.metadata) == ("DISABLED", {"owner": "ml", KILLED: True})
    assert wanted.targeting == split(5)  # all else is the file's
    agreed = merged(killed, document(iris__route={**route(), "state": "DISABLED"}), {"iris"}).flags["iris.route"]
    assert (agreed.state, agreed.metadata) == ("DISABLED", {})


def test_only_the_gateway_sets_marks_and_notes() -> None:
    marked = {**route(), "metadata": {KILLED: True, "owner": "ml"}}
    noted = {**OPTION, "metadata": {"purged": 3, "purged.2": 4, "owner": "ml"}}
    file = document(iris__route=marked, iris__cache=noted)
    wanted = merged(document(), file, set())
    assert {key: dict(found.metadata) for key, found in wanted.flags.items()} == {
        "iris.route": {"owner": "ml"},
        "iris.cache": {"owner": "ml"},
    }
    in_force = document(9, iris__cache={**OPTION, "metadata": {"purged": 8, "purged.1": 9, "owner": "me"}})
    assert merged(in_force, file, set()).flags["iris.cache"].metadata == {"purged": 8, "purged.1": 9, "owner": "ml"}
    kept = merged(in_force, document(), set()).flags["iris.cache"]
    assert kept.metadata == {"purged": 8, "purged.1": 9}
    validate(kept)


def test_a_route_that_waits_names_its_versions_and_stays_as_it_is() -> None:
    in_force = document(5, iris__route=route(targeting=split(10)), wine__route=route())
    file = document(
        iris__route=route(stable="2", canary="3", next="4", targeting=split(50)), wine__route=route("canary")
    )
    partly = declared(in_force, file, {"iris.route"})
    assert partly.flags["wine.route"] == file.flags["wine.route"]
    iris = partly.flags["iris.route"]
    assert iris.targeting == split(10)
    assert iris.variants == {"stable": "1", "canary": "2", "declared-3": "3", "next": "4"}
    before = compile_route("iris", in_force.flags["iris.route"])
    after = compile_route("iris", iris)
    assert not raised(before, after)
    assert after.named == {"1", "2", "3", "4"}
    assert declared(partly, file, {"iris.route"}).flags["iris.route"] == iris  # once is enough


def test_names_for_declared_versions_never_collide() -> None:
    long = "v" * 64
    variants = {"stable": "1", "declared-2": "7", f"declared-{long}"[:64]: "8"}
    in_force = document(5, iris__route=route(**variants))
    file = document(iris__route=route(stable="2", **{"declared-2": long}))
    iris = declared(in_force, file, {"iris.route"}).flags["iris.route"]
    assert {"1", "7", "8", "2", long} == set(iris.variants.values())
    validate(iris)


def test_a_first_route_that_waits_gives_all_its_default() -> None:
    file = document(iris__route=route(targeting=split(10)))
    iris = declared(document(), file, {"iris.route"}).flags["iris.route"]
    assert (iris.targeting, iris.variants) == (None, {"stable": "1", "canary": "2"})


def test_while_a_route_waits_the_rules_that_it_still_follows_keep_their_meaning() -> None:
    rule = {"if": [{"$ref": "vip"}, "canary"]}
    evaluators = {"vip": {"starts_with": [{"var": "targetingKey"}, "vip-"]}}
    in_force = parse({"flags": {"iris.route": route(targeting=rule), "wine.route": route()}, "$evaluators": evaluators})
    file = document(iris__route=route(canary="3", stable="1", targeting=split(10)), wine__route=route("canary"))
    partly = declared(in_force, file, {"iris.route"})
    assert partly.evaluators == evaluators
    assert partly.flags["wine.route"] == in_force.flags["wine.route"]
    assert "3" in compile_route("iris", partly.flags["iris.route"]).named
    assert parse(dump(partly)) == partly


def test_a_flag_that_somebody_is_in_charge_of_is_left_alone() -> None:
    in_force = document(5, iris__route=route(targeting=split(10)), wine__route=route())
    file = document(iris__route=route(targeting=split(50)), wine__route=route("canary"), new__cache=OPTION)
    partly = declared(in_force, file, set(), {"iris.route", "new.cache"})
    assert partly.flags == {"iris.route": in_force.flags["iris.route"], "wine.route": file.flags["wine.route"]}
    assert declared(in_force, file, set(), set()) == file
    gone = declared(in_force, document(wine__route=route()), set(), {"iris.route"})
    assert gone.flags["iris.route"] == in_force.flags["iris.route"]


@pytest.mark.parametrize("metadata", [{}, {"owner": "ml"}])
def test_hands_may_pull_the_kill_switch_and_undo_it(metadata: dict[str, Any]) -> None:
    on, off = flag(route(targeting=split(10)), **metadata), {**route(targeting=split(10)), "state": "DISABLED"}
    killed = by_hand(on, flag(off, **metadata))
    assert killed is not None
    assert (killed.state, killed.metadata) == ("DISABLED", {**metadata, KILLED: True})
    back = by_hand(killed, flag(route(targeting=split(10)), **killed.metadata))
    assert back == on
    assert by_hand(killed, on) == on  # the mark itself may come back or not


NOT_FOR_HANDS: list[tuple[Flag | None, Flag | None]] = [
    (flag(route()), None),
    (None, flag(route())),
    (flag(route()), flag(route("canary"))),
    (flag(route(targeting=split(10))), flag(route(targeting=split(0)))),
    (flag(route()), flag({**route("canary"), "state": "DISABLED"})),
    (flag(route()), flag({**route(), "state": "DISABLED"}, owner="me")),
    (flag(route(), owner="ml"), flag({**route(), "state": "DISABLED"})),
    (flag({**route(), "state": "DISABLED"}), flag(route())),  # the file's own word
    (flag(route()), flag(route(), **{KILLED: True})),
    (flag({**route(), "state": "DISABLED"}, **{KILLED: True}), flag({**route("canary")})),
    (parse_flag("iris.cache", OPTION), parse_flag("iris.cache", {**OPTION, "state": "DISABLED"})),
]


@pytest.mark.parametrize(("before", "after"), NOT_FOR_HANDS)
def test_all_else_is_for_the_file(before: Flag | None, after: Flag | None) -> None:
    assert by_hand(before, after) is None
