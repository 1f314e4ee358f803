"""Sampling flags: a number as ever, or an object with rules; whatever is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidFlag
from gateway.flags.compile import ModelOptions, compile_options, validate
from gateway.flags.document import FlagDocument, parse, parse_flag
from gateway.flags.sampling import SamplingRules, of_one_type


def flag(value: Any) -> dict[str, Any]:
    return {"state": "ENABLED", "variants": {"set": value}, "defaultVariant": "set"}


def options(value: Any) -> ModelOptions:
    document: FlagDocument = parse({"flags": {"m.sampling": flag(value)}})
    validate(document.flags["m.sampling"])
    return compile_options(document, "m")


def test_a_number_and_an_object_of_only_a_rate_mean_the_same() -> None:
    assert options(0.25) == options({"rate": 0.25}) == ModelOptions(sampling_rate=0.25)
    assert options({}) == ModelOptions()  # the rate is that of the settings


def test_an_object_gives_rules_with_header_names_in_lower_case() -> None:
    found = options({"errors": True, "slow_s": 1, "keys": ["a"], "headers": {"X-Tier": "gold", "x-b": ["1", "2"]}})
    assert found.sampling_rate is None
    assert found.sampling_rules == SamplingRules(
        errors=True,
        slow_s=1.0,
        keys=frozenset({"a"}),
        headers=(("x-tier", frozenset({"gold"})), ("x-b", frozenset({"1", "2"}))),
    )


def test_rules_of_errors_alone_need_no_look_at_answers() -> None:
    assert not SamplingRules(errors=True).looks_at_answers
    for rules in (
        {"slow_s": 1.0},
        {"low_confidence": 0.5},
        {"keys": ["a"]},
        {"headers": {"a": "b"}},
        {"outliers": True},
    ):
        found = options(rules).sampling_rules
        assert found is not None
        assert found.looks_at_answers


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (1.5, ""),
        ("0.5", ""),
        ({"rate": 2}, ".rate"),
        ({"rate": True}, ".rate"),
        ({"errors": 1}, ".errors"),
        ({"slow_s": 0}, ".slow_s"),
        ({"low_confidence": 0}, ".low_confidence"),
        ({"low_confidence": 1.1}, ".low_confidence"),
        ({"keys": []}, ".keys"),
        ({"keys": "ann"}, ".keys"),
        ({"keys": [""]}, ".keys"),
        ({"keys": ["a"] * 1001}, ".keys"),
        ({"headers": {}}, ".headers"),
        ({"headers": {"a": 1}}, ".headers"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, ".headers"),
        ({"outliers": "yes"}, ".outliers"),
        ({"error": True}, ".error"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(value: Any, field: str) -> None:
    with pytest.raises(InvalidFlag) as refused:
        validate(parse_flag("m.sampling", flag(value)))
    assert refused.value.field == f"flags.m.sampling.variants.set{field}"


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 1) | st.builds(lambda rate: {"rate": rate}, st.floats(0, 1)))
)
def test_variants_made_of_one_type_keep_their_meaning(variants: dict[str, Any]) -> None:
    found = of_one_type(variants)
    assert len({type(value) for value in found.values()}) <= 1
    for name, value in variants.items():
        assert options(found[name]) == options(value)
