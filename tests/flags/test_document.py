"""Reading, checking, changing and writing flag documents."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import InvalidFlag
from gateway.flags import document as flags
from gateway.flags.compile import ModelOptions, compile_options, validate
from gateway.models import manifest


def route(**changes: Any) -> dict[str, Any]:
    plain = {"state": "ENABLED", "variants": {"stable": "1", "canary": "2"}, "defaultVariant": "stable", **changes}
    return {name: value for name, value in plain.items() if value is not ...}


def document(**by_name: dict[str, Any]) -> flags.FlagDocument:
    return flags.parse({"flags": {name.replace("__", "."): flag for name, flag in by_name.items()}})


def test_a_document_dumps_to_flagd_json_and_reads_back_the_same() -> None:
    plain = {
        "$schema": flags.SCHEMA_ADDRESS,
        "metadata": {"flagSetId": "prod", "bucketing": "flagd-v2", "revision": 7},
        "$evaluators": {"internal": {"ends_with": [{"var": "targetingKey"}, "@corp"]}},
        "flags": {
            "iris.route": {
                **route(targeting={"if": [{"$ref": "internal"}, "canary"]}),
                "metadata": {"owner": "ml", "revision": 6},
            },
            "iris.sampling": {"state": "DISABLED", "variants": {"few": 0.01}, "defaultVariant": None, "metadata": {}},
        },
    }
    read = flags.parse(plain)
    assert read.revision == 7
    assert read.bucketing == "flagd-v2"
    assert read.flags["iris.route"].revision == 6
    assert flags.parse(flags.dump(read)) == read
    assert list(read.routes()) == ["iris"]
    plain["flags"]["iris.sampling"]["metadata"] = {"revision": 0}  # type: ignore[index]  # the tests own this literal
    assert flags.dump(read) == plain


def test_names_of_models_and_versions_are_those_of_packages() -> None:
    assert flags.MODEL_PATTERN.pattern == manifest.NAME_PATTERN.pattern
    assert flags.VERSION_PATTERN.pattern == manifest.VERSION_PATTERN.pattern


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("iris.route", route(state="ON"), "flags.iris.route.state"),
    ("iris.route", route(state=...), "flags.iris.route.state"),
    ("iris.route", route(variants={}), "flags.iris.route.variants"),
    ("iris.route", route(variants={"stable": "1", "canary": 2}), "flags.iris.route.variants.canary"),
    ("iris.route", route(variants={"stable": 1}), "flags.iris.route.variants.stable"),
    ("iris.route", route(variants={"stable": "../1"}), "flags.iris.route.variants.stable"),
    ("iris.route", route(variants={"a b": "1"}, defaultVariant="a b"), "flags.iris.route.variants"),
    ("iris.route", route(defaultVariant="gone"), "flags.iris.route.defaultVariant"),
    ("iris.route", route(defaultVariant=None), "flags.iris.route.defaultVariant"),
    ("iris.route", route(targeting=["canary"]), "flags.iris.route.targeting"),
    ("iris.route", route(tageting={}), "flags.iris.route.tageting"),
    ("iris.route", route(metadata={"missingKey": "guess"}), "flags.iris.route.metadata.missingKey"),
    ("iris.route", route(metadata={"owner": {"a": 1}}), "flags.iris.route.metadata.owner"),
    ("iris.route", route(metadata={"revision": "7"}), "flags.iris.route.metadata.revision"),
    ("iris.rout", route(), "flags.iris.rout"),
    ("a.b.route", route(), "flags.a.b.route"),
    (".route", route(), "flags..route"),
    ("iris.sampling", {"state": "ENABLED", "variants": {"x": 1.5}}, "flags.iris.sampling.variants.x"),
    ("iris.sampling", {"state": "ENABLED", "variants": {"x": True}}, "flags.iris.sampling.variants.x"),
    ("iris.cache", {"state": "ENABLED", "variants": {"x": {"ttl_s": 0}}}, "flags.iris.cache.variants.x.ttl_s"),
    ("iris.cache", {"state": "ENABLED", "variants": {"x": {"enabled": 1}}}, "flags.iris.cache.variants.x.enabled"),
    ("iris.cache", {"state": "ENABLED", "variants": {"x": {"tll_s": 1}}}, "flags.iris.cache.variants.x.tll_s"),
    (
        "iris.batching",
        {"state": "ENABLED", "variants": {"x": {"max_rows": 0.5}}},
        "flags.iris.batching.variants.x.max_rows",
    ),
    (
        "iris.sampling",
        {"state": "ENABLED", "variants": {"x": 1}, "targeting": {"if": ["x"]}},
        "flags.iris.sampling.targeting",
    ),
]


@pytest.mark.parametrize(("key", "plain", "field"), WRONG)
def test_a_wrong_flag_is_refused_by_the_name_of_its_field(key: str, plain: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFlag) as refused:
        validate(flags.parse_flag(key, plain))
    assert refused.value.field == field
    assert refused.value.came
    assert refused.value.expected


@pytest.mark.parametrize(
    ("plain", "field"),
    [
        ([], "document"),
        ({"flags": []}, "flags"),
        ({}, "flags"),
        ({"flag": {}}, "document.flag"),
        ({"metadata": {"bucketing": "flagd-v9"}}, "metadata.bucketing"),
        ({"$evaluators": []}, "$evaluators"),
        ({"flags": {"iris.route": None}}, "flags.iris.route"),
    ],
)
def test_a_wrong_document_is_refused_by_the_name_of_its_field(plain: Any, field: str) -> None:
    with pytest.raises(InvalidFlag) as refused:
        flags.parse(plain)
    assert refused.value.field == field


def test_a_change_gives_its_revision_only_to_the_flags_that_it_touches() -> None:
    before = flags.change(document(iris__route=route(), wine__route=route()))
    assert before.revision == 0  # nothing to change
    first = flags.change(flags.FlagDocument(), put=before.flags.values())
    assert {flag.revision for flag in first.flags.values()} == {1}
    moved = flags.parse_flag("iris.route", route(defaultVariant="canary"))
    second = flags.change(first, put=[moved])
    assert (second.revision, second.flags["iris.route"].revision, second.flags["wine.route"].revision) == (2, 2, 1)
    assert flags.change(second, put=[moved]) is second
    third = flags.change(second, drop=["wine.route"])
    assert (third.revision, list(third.flags)) == (3, ["iris.route"])


def test_another_bucketing_or_named_rule_gives_the_flags_that_it_moves_a_new_revision() -> None:
    split = route(targeting={"fractional": [["canary", 1], ["stable", 1]]})
    first = flags.change(flags.FlagDocument(), put=document(iris__route=split, wine__route=route()).flags.values())
    second = flags.change(first, metadata={"bucketing": "flagd-v2"})
    assert (second.flags["iris.route"].revision, second.flags["wine.route"].revision) == (2, 1)
    third = flags.change(second, evaluators={"x": {"!!": [True]}})
    assert (third.flags["iris.route"].revision, third.flags["wine.route"].revision) == (3, 1)
    assert third.flags["iris.route"].evaluators == {"x": {"!!": [True]}}
    assert flags.change(third, metadata={"bucketing": "flagd-v2", "owner": "ml"}).flags["iris.route"].revision == 3


def test_options_come_from_the_flags_and_a_disabled_flag_leaves_them_to_the_settings() -> None:
    assert compile_options(flags.FlagDocument(), "iris") == ModelOptions(None, True, None, True, None)
    plain: dict[str, dict[str, Any]] = {
        "iris__sampling": {"state": "ENABLED", "variants": {"some": 1, "none": 0}, "defaultVariant": "some"},
        "iris__cache": {"state": "ENABLED", "variants": {"off": {"enabled": False}}, "defaultVariant": "off"},
        "iris__batching": {"state": "ENABLED", "variants": {"x": {"max_rows": 16.0}}, "defaultVariant": "x"},
        "wine__cache": {"state": "ENABLED", "variants": {"short": {"ttl_s": 2}}, "defaultVariant": "short"},
    }
    read = document(**plain)
    assert compile_options(read, "iris") == ModelOptions(1.0, False, None, True, 16)
    assert compile_options(read, "wine") == ModelOptions(None, True, 2.0, True, None)
    plain["iris__sampling"]["state"] = "DISABLED"
    assert compile_options(document(**plain), "iris").sampling_rate is None
