"""What a compiled route decides, what it says of itself, and which rules are refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidFlag, TargetingKeyMissing
from gateway.flags.bucket import FLAGD_V2, FLAGD_V3, key_hash, place
from gateway.flags.compile import DEFAULT, DISABLED, SPLIT, STATIC, TARGETING_MATCH, Route, compile_route
from gateway.flags.document import Flag, parse
from gateway.flags.rules import MAX_DEPTH, MAX_NODES

VARIANTS = {"stable": "1", "canary": "2", "old": "0"}
SPLIT_RULE = {"fractional": [["canary", 1000], ["stable", 9000]]}


def flag(targeting: Any = None, *, evaluators: dict[str, Any] | None = None, **changes: Any) -> Flag:
    plain = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": "stable", "targeting": targeting, **changes}
    return parse({"flags": {"iris.route": plain}, "$evaluators": evaluators or {}}).flags["iris.route"]


def route(targeting: Any = None, bucketing: str = FLAGD_V3, **changes: Any) -> Route:
    return compile_route("iris", flag(targeting, **changes), bucketing)


def decide(compiled: Route, key: str | None = "u", prediction_id: str = "p", **headers: str) -> tuple[str, str, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return tuple(compiled.decide(key, prediction_id, named, "native"))  # type: ignore[return-value]  # a NamedTuple


def test_a_route_without_rules_is_static_and_names_all_its_versions() -> None:
    compiled = route()
    assert decide(compiled) == ("stable", "1", STATIC)
    assert compiled.named == {"0", "1", "2"}
    assert compiled.reachable == {"1"}
    assert compiled.default_version == "1"
    assert compiled.header_names == ()


def test_a_split_says_the_weight_that_it_gives_each_variant() -> None:
    assert route().weights == {}
    assert route(SPLIT_RULE).weights == {"canary": 0.1, "stable": 0.9}
    behind_a_rule = {"if": [{"==": [{"var": "headers.x-v"}, "1"]}, "old", SPLIT_RULE]}
    assert route(behind_a_rule).weights == {"canary": 0.1, "stable": 0.9}
    two_splits = {
        "if": [{"==": [{"var": "headers.x-v"}, "1"]}, {"fractional": [["canary", 1], ["old", 1]]}, SPLIT_RULE]
    }
    assert route(two_splits).weights == {"stable": 0.9, "old": 0.5}


def test_the_kill_switch_gives_everyone_the_default_variant() -> None:
    compiled = route({"if": [{"==": [{"var": "headers.x-v"}, "1"]}, "canary", SPLIT_RULE]}, state="DISABLED")
    assert {decide(compiled, f"user-{i}", x_v="1") for i in range(100)} == {("stable", "1", DISABLED)}
    assert compiled.reachable == {"1"}
    assert compiled.named == {"0", "1", "2"}
    assert compiled.header_names == ()


@pytest.mark.parametrize("bucketing", [FLAGD_V2, FLAGD_V3])
def test_a_split_gives_each_key_the_variant_of_its_place_and_always_the_same(bucketing: str) -> None:
    compiled = route(SPLIT_RULE, bucketing)
    hashed = key_hash("iris.route", bucketing)
    seen: Counter[str] = Counter()
    for i in range(5000):
        variant, version, reason = decide(compiled, f"user-{i}", f"p{i}")
        assert variant == ("canary" if place(hashed(f"user-{i}"), 10_000) < 1000 else "stable")
        assert (version, reason) == (VARIANTS[variant], SPLIT)
        assert decide(compiled, f"user-{i}", "another prediction")[0] == variant
        seen[variant] += 1
    assert 400 < seen["canary"] < 600
    assert compiled.reachable == {"1", "2"}


def test_the_two_bucketings_draw_independently() -> None:
    old, new = route(SPLIT_RULE, FLAGD_V2), route(SPLIT_RULE, FLAGD_V3)
    assert any(decide(old, f"user-{i}") != decide(new, f"user-{i}") for i in range(200))


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.text(min_size=1))
def test_growing_a_share_takes_keys_from_the_default_only(low: int, high: int, key: str) -> None:
    low, high = sorted((low, high))
    before = route({"fractional": [["canary", low], ["stable", 10_000 - low]]})
    after = route({"fractional": [["canary", high], ["stable", 10_000 - high]]})
    if decide(before, key)[0] == "canary":
        assert decide(after, key)[0] == "canary"


def test_without_a_key_a_split_follows_the_policy() -> None:
    anonymous = Counter(decide(route(SPLIT_RULE), None, f"prediction-{i}") for i in range(2000))
    assert set(anonymous) == {("canary", "2", SPLIT), ("stable", "1", SPLIT)}
    assert 130 < anonymous["canary", "2", SPLIT] < 270
    by_default = route(SPLIT_RULE, metadata={"missingKey": "default"})
    assert {decide(by_default, None, f"prediction-{i}") for i in range(100)} == {("stable", "1", DEFAULT)}
    refusing = route(SPLIT_RULE, metadata={"missingKey": "reject"})
    for key in (None, ""):
        with pytest.raises(TargetingKeyMissing, match="x-targeting-key"):
            decide(refusing, key)
    assert decide(refusing, "u")[2] == SPLIT


def test_a_policy_that_rejects_lets_pass_what_a_rule_decides_without_the_key() -> None:
    rule = {"if": [{"==": [{"var": "headers.x-v"}, "canary"]}, "canary", SPLIT_RULE]}
    compiled = route(rule, metadata={"missingKey": "reject"})
    assert decide(compiled, None, x_v="canary") == ("canary", "2", TARGETING_MATCH)
    assert compiled.header_names == ("x-v",)


SALTED = {"cat": ["salt", {"var": "targetingKey"}]}


def test_a_salted_split_without_a_key_follows_the_policy_too() -> None:
    rule = {"fractional": [SALTED, ["canary", 1], ["stable", 1]]}
    assert {decide(route(rule), None, f"p{i}")[0] for i in range(50)} == {"canary", "stable"}
    by_default = route(rule, metadata={"missingKey": "default"})
    assert {decide(by_default, None, f"p{i}") for i in range(50)} == {("stable", "1", DEFAULT)}
    with pytest.raises(TargetingKeyMissing):
        decide(route(rule, metadata={"missingKey": "reject"}), None)


def test_a_split_by_a_header_without_that_header_follows_the_policy() -> None:
    rule = {"fractional": [{"var": "headers.x-tenant"}, ["canary", 1], ["stable", 1]]}
    assert {decide(route(rule), "u", f"p{i}")[0] for i in range(50)} == {"canary", "stable"}
    assert len({decide(route(rule), f"u{i}", f"p{i}", x_tenant="acme")[0] for i in range(50)}) == 1
    by_default = route(rule, metadata={"missingKey": "default"})
    assert decide(by_default) == ("stable", "1", DEFAULT)
    with pytest.raises(TargetingKeyMissing):
        decide(route(rule, metadata={"missingKey": "reject"}))


@pytest.mark.parametrize(
    ("targeting", "reachable"),
    [
        ({"fractional": [["canary", 0], ["stable", 1]]}, {"1"}),
        ({"fractional": [["canary", 1], ["old", 0]]}, {"1", "2"}),
        ({"if": [{"==": [{"var": "headers.a"}, "canary"]}, "old"]}, {"0", "1"}),
        ({"if": [{"var": "headers.a"}, "stable", {"fractional": [["old", 1], ["stable", 0]]}]}, {"0", "1"}),
        ({"var": "headers.a"}, {"0", "1", "2"}),
        ({"fractional": [[{"if": [{"var": "headers.a"}, "canary", "stable"]}, 0], ["stable", 1]]}, {"1"}),
        ({"if": [{"$ref": "toOld"}]}, {"0", "1"}),
    ],
)
def test_reachable_are_the_versions_that_a_request_can_be_given(targeting: Any, reachable: set[str]) -> None:
    assert route(targeting, evaluators={"toOld": {"if": [True, "old"]}}).reachable == reachable


def test_a_rule_may_read_model_protocol_and_flag_key() -> None:
    rule = {
        "if": [
            {
                "and": [
                    {"==": [{"var": "model"}, "iris"]},
                    {"==": [{"var": "protocol"}, "oip"]},
                    {"==": [{"var": "$flagd.flagKey"}, "iris.route"]},
                ]
            },
            "canary",
        ]
    }
    compiled = route(rule)
    assert compiled.decide(None, "p", {}, "oip") == ("canary", "2", TARGETING_MATCH)
    assert compiled.decide(None, "p", {}, "native") == ("stable", "1", DEFAULT)


def nested(depth: int) -> Any:
    rule: Any = True
    for _ in range(depth):
        rule = {"!": [rule]}
    return {"if": [rule, "canary"]}


def bomb() -> dict[str, Any]:
    """Named rules that double eleven times: small as text, 2,048 times as large when spelt out."""
    rules: dict[str, Any] = {"r0": {"var": "targetingKey"}}
    for i in range(11):
        rules[f"r{i + 1}"] = {"or": [{"$ref": f"r{i}"}, {"$ref": f"r{i}"}]}
    return rules


T = "flags.iris.route.targeting"
REFUSED: list[tuple[Any, str]] = [
    ({"if": [True, "gone"]}, f"{T}.if[1]"),
    ({"if": [True, 7]}, f"{T}.if[1]"),
    ({"if": [True, ["canary"]]}, f"{T}.if[1]"),
    ({"if": []}, f"{T}.if"),
    ({"if": [True, "canary"], "else": "stable"}, T),
    ({"exec": ["rm"]}, T),
    ({"==": [1, 1]}, f"{T}.=="),
    ({"if": [{"==": [1]}, "canary"]}, f"{T}.if[0].=="),
    ({"if": [{"map": [[1], {"var": ""}]}, "canary"]}, f"{T}.if[0]"),
    ({"if": [{"!": []}, "canary"]}, f"{T}.if[0].!"),
    ({"if": [{"var": ""}, "canary"]}, f"{T}.if[0].var"),
    ({"if": [{"var": "tenant"}, "canary"]}, f"{T}.if[0].var"),
    ({"if": [{"var": "$flagd.timestamp"}, "canary"]}, f"{T}.if[0].var"),
    ({"if": [{"var": "headers.X-Tenant"}, "canary"]}, f"{T}.if[0].var"),
    ({"if": [{"var": "headers.a.b"}, "canary"]}, f"{T}.if[0].var"),
    ({"if": [{"var": {"cat": ["headers.", "x"]}}, "canary"]}, f"{T}.if[0].var"),
    ({"if": [{"sem_ver": ["1.0.0", "=>", "1.0.0"]}, "canary"]}, f"{T}.if[0].sem_ver"),
    ({"fractional": [["canary", -1], ["stable", 2]]}, f"{T}.fractional[0][1]"),
    ({"fractional": [["canary", 0.5], ["stable", 99.5]]}, f"{T}.fractional[0][1]"),
    ({"fractional": [["canary", True]]}, f"{T}.fractional[0][1]"),
    ({"fractional": [["canary", {"var": "targetingKey"}]]}, f"{T}.fractional[0][1]"),
    ({"fractional": [["canary", 0], ["stable", 0]]}, f"{T}.fractional"),
    ({"fractional": [["canary", 2**31 - 1], ["stable", 1]]}, f"{T}.fractional"),
    ({"fractional": [["gone", 1], ["stable", 1]]}, f"{T}.fractional[0][0]"),
    ({"fractional": [["canary", 1, 2]]}, f"{T}.fractional[0]"),
    ({"fractional": []}, f"{T}.fractional"),
    ({"fractional": ["salt"]}, f"{T}.fractional[0]"),
    ({"fractional": [7, ["canary", 1]]}, f"{T}.fractional[0]"),
    ({"fractional": [{"var": "targetingKey"}, ["gone", 1]]}, f"{T}.fractional[1][0]"),
    ({"$ref": "loop"}, T),
    ({"if": [{"$ref": "gone"}]}, f"{T}.if[0].$ref"),
    ({"if": [{"$ref": "loop"}]}, f"{T}.if[0].$ref.if[0].$ref"),
    ({"if": [{"$ref": ["r1"]}, "canary"]}, f"{T}.if[0].$ref"),
    ({"if": "canary"}, f"{T}.if"),
    ({"if": [{"and": True}, "canary"]}, f"{T}.if[0].and"),
    ({"if": [{">": [3, 2, 1]}, "canary"]}, f"{T}.if[0].>"),
    ({"if": [{"starts_with": [{"var": "model"}, 1]}, "canary"]}, f"{T}.if[0].starts_with[1]"),
    ({"if": [{"ends_with": [{"$ref": "r1"}, "x"]}, "canary"]}, f"{T}.if[0].ends_with[0]"),
    ({"if": [{"sem_ver": [{"var": "headers.v"}, ">", "v1.2"]}, "canary"]}, f"{T}.if[0].sem_ver[2]"),
    ({"fractional": [{"$ref": "r1"}, ["canary", 1]]}, f"{T}.fractional[0]"),
    ({"if": [{"$ref": "r11"}, "canary"]}, ""),
    (nested(MAX_DEPTH), ""),
    ({"if": [{"cat": ["x"] * MAX_NODES}, "canary"]}, f"{T}.if[0].cat[{MAX_NODES - 2}]"),
]


@pytest.mark.parametrize(("targeting", "field"), REFUSED)
def test_a_wrong_rule_is_refused_by_its_place(targeting: Any, field: str) -> None:
    evaluators = {**bomb(), "loop": {"if": [{"$ref": "loop"}, "canary"]}}
    with pytest.raises(InvalidFlag) as refused:
        route(targeting, evaluators=evaluators)
    assert refused.value.field.startswith(T)
    assert not field or refused.value.field == field


@pytest.mark.parametrize("header", ["9" * 5000, "1.2.3-" + "9" * 5000, "1." * 5000])
def test_a_header_of_any_length_is_compared_as_a_version_or_is_none(header: str) -> None:
    compiled = route({"if": [{"sem_ver": [{"var": "headers.x-app"}, ">=", "1.0.0"]}, "canary", "stable"]})
    assert decide(compiled, x_app="2.0.0")[0] == "canary"
    assert decide(compiled, x_app=header)[0] == "stable"


def test_a_wrong_rule_is_refused_while_the_flag_is_disabled_too() -> None:
    with pytest.raises(InvalidFlag):
        route({"if": [True, "gone"]}, state="DISABLED")


def test_a_rule_at_the_cap_of_depth_still_compiles() -> None:
    assert decide(route(nested(MAX_DEPTH - 3)))[0] in VARIANTS
