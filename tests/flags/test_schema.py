"""All that we accept is valid by flagd's published schema; what it allows beyond that is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from gateway.errors import InvalidFlag
from gateway.flags.compile import check_evaluators, validate
from gateway.flags.document import FlagDocument, dump, parse
from gateway.flags.rules import OPERATORS
from tests.flags.test_oracle import EVALUATORS, VARIANTS, Rules


def published(name: str) -> Any:
    return json.loads((Path(__file__).parent / "schema" / f"{name}.json").read_text())


BASE = "https://flagd.dev/schema/v0"
REGISTRY: Registry[Any] = Registry().with_resources(
    [(f"{BASE}/{name}.json", Resource.from_contents(published(name))) for name in ("flags", "targeting")]
)
FLAGD = Draft7Validator({"$ref": f"{BASE}/flags.json"}, registry=REGISTRY)


def checked(plain: Any) -> FlagDocument:
    """The document, if all of it may be written. Raises InvalidFlag."""
    document = parse(plain)
    check_evaluators(document)
    for flag in document.flags.values():
        validate(flag, document.bucketing)
    return document


def without_nulls(plain: Any) -> Any:
    """As a merge patch would have it: for us a targeting or metadata of null is one that was left out."""
    cleaned = {**plain, "flags": {key: dict(flag) for key, flag in plain["flags"].items()}}
    for part in (cleaned, *cleaned["flags"].values()):
        for name in ("targeting", "metadata"):
            if part.get(name, 0) is None:
                del part[name]
    return cleaned


def problems(plain: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in FLAGD.iter_errors(plain)]


def hold_against_schema(plain: Any) -> bool:
    """Whether we accept *plain*; if so, the schema must, and also what we would tell of it."""
    try:
        document = checked(plain)
    except InvalidFlag:
        return False
    assert not problems(without_nulls(plain)), plain
    assert not problems(dump(document)), plain
    return True


TEXTS = st.sampled_from(
    ["a", "stable", "canary", "1.2.0", "v1.2", "=", ">=", "^", "x", "", "targetingKey", "headers.x-a"]
)
SCALARS = st.one_of(TEXTS, st.none(), st.booleans(), st.sampled_from([0, 1, 2, 100, -1, 0.5, 1.0, 2**31]))
VARIABLES = st.sampled_from(
    ["targetingKey", "model", "headers.x-a", "headers.X", "$flagd.flagKey", "$flagd.x", ""]
).map(lambda name: {"var": name})
REFERENCES = st.sampled_from(["a", "b", "none"]).map(lambda name: {"$ref": name})
NAMES = st.sampled_from([*sorted(OPERATORS - {"var", "$ref"}), "+", "map", "missing", "reduce", "max", "exec"])


def operations(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fractions = st.lists(st.one_of(st.tuples(TEXTS, SCALARS).map(list), st.lists(inner, max_size=3)), max_size=3)
    return st.one_of(
        st.builds(lambda name, args: {name: args}, NAMES, st.lists(inner, max_size=4)),
        st.builds(lambda name, args: {name: args}, NAMES, st.lists(inner, min_size=2, max_size=2)),
        st.builds(lambda name, arg: {name: arg}, NAMES, inner),
        st.builds(lambda test, a, b: {"sem_ver": [a, test, b]}, st.sampled_from(["=", "~", "<=", "x"]), inner, inner),
        st.builds(lambda args: {"var": args}, st.lists(inner, max_size=3)),
        st.builds(lambda lead, rest: {"fractional": [*lead, *rest]}, st.lists(inner, max_size=1), fractions),
        st.builds(lambda steps: {"if": steps}, st.lists(inner, min_size=1, max_size=3)),
        st.lists(inner, max_size=3),
        st.dictionaries(NAMES, inner, max_size=2),
    )


RULES = st.recursive(st.one_of(SCALARS, VARIABLES, REFERENCES), operations, max_leaves=6)


def document_of(targeting: Any, evaluators: Any) -> dict[str, Any]:
    flag = {"state": "ENABLED", "variants": {"stable": "1", "canary": "2", "true": "3", "false": "4"}}
    flag |= {"defaultVariant": "stable", "targeting": targeting}
    return {"flags": {"iris.route": flag}, "$evaluators": evaluators}


@settings(max_examples=100)
@given(RULES, st.fixed_dictionaries({"a": RULES, "b": RULES}))
def test_whatever_rule_we_accept_flagd_accepts(targeting: Any, evaluators: Any) -> None:
    hold_against_schema(document_of(targeting, {}))
    hold_against_schema(document_of({"if": [targeting, "canary", targeting]}, {"a": {"!!": [1]}, "b": {"if": [True]}}))
    hold_against_schema(document_of(None, evaluators))


@pytest.mark.parametrize("name", sorted(OPERATORS))
@settings(max_examples=30)
@given(data=st.data())
def test_the_arguments_that_an_operator_takes_of_us_it_takes_of_flagd(name: str, data: st.DataObject) -> None:
    simple: st.SearchStrategy[Any] = st.one_of(
        SCALARS, VARIABLES, REFERENCES, st.lists(SCALARS, max_size=2), st.just({})
    )
    args = data.draw(st.one_of(simple, st.lists(simple, max_size=4)))
    evaluators = {"a": {"var": "model"}, "b": {"cat": ["x"]}}
    hold_against_schema(document_of({name: args}, evaluators))
    hold_against_schema(document_of({"if": [{name: args}, "canary"]}, evaluators))


@pytest.mark.parametrize("seed", range(2))
def test_rules_that_flagd_decides_as_we_do_are_valid_by_its_schema(seed: int) -> None:
    rules = Rules(seed)
    for _ in range(60):
        flag = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": "blue", "targeting": rules.targeting()}
        assert hold_against_schema({"flags": {"m.route": flag}, "$evaluators": EVALUATORS})


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 5), st.floats(0, 2), st.sampled_from(["a", "b", "1", "flagd-v2"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["a", "b", "", "enabled", "ttl_s", "max_rows", "a\nb"]), inner, max_size=3),
    ),
    max_leaves=4,
)
VALUES = st.one_of(
    st.just("1"), st.just(0.5), st.just({"enabled": True}), st.just({"enabled": False, "ttl_s": 2.5}), ANYTHING
)
FLAGS = st.fixed_dictionaries(
    {"state": st.sampled_from(["ENABLED", "DISABLED", "ENABLED", "on", None])},
    optional={
        "variants": st.one_of(st.dictionaries(st.sampled_from(["a", "b", "", "a\nb"]), VALUES, max_size=2), ANYTHING),
        "defaultVariant": st.sampled_from(["a", "b", None, 1]),
        "targeting": st.sampled_from([None, {}, {"if": ["a"]}, {"if": ["a"], "or": [1]}, [], "a"]),
        "metadata": st.one_of(st.none(), st.dictionaries(st.sampled_from(["a", "revision", "owner"]), ANYTHING)),
        "more": ANYTHING,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "flags": st.one_of(
            st.dictionaries(
                st.sampled_from(["m.route", "m.sampling", "m.cache", "m.batching", "m.shadow", "", "m.x"]),
                FLAGS,
                max_size=2,
            ),
            ANYTHING,
        ),
        "$schema": st.sampled_from(["https://flagd.dev/schema/v0/flags.json", 1]),
        "$evaluators": st.one_of(st.dictionaries(st.sampled_from(["a", "", "a\nb"]), RULES, max_size=2), ANYTHING),
        "metadata": st.one_of(st.none(), st.dictionaries(st.sampled_from(["flagSetId", "version", "a"]), ANYTHING)),
        "more": ANYTHING,
    },
)


@settings(max_examples=200)
@given(DOCUMENTS)
def test_whatever_document_we_accept_flagd_accepts(plain: Any) -> None:
    hold_against_schema(plain)


# -- what the schema allows and we do not ---------------------------------------------------------------

T = "flags.iris.route.targeting"
BEYOND: list[tuple[dict[str, Any], str, str]] = [
    ({"if": [{"%": [1, 2]}, "canary"]}, f"{T}.if[0]", "one of"),
    ({"if": [{"missing": ["a"]}, "canary"]}, f"{T}.if[0]", "one of"),
    ({"if": [{"map": [[1], {"var": ""}]}, "canary"]}, f"{T}.if[0]", "one of"),
    ({"if": [{"reduce": [[1], {"var": "current"}, 0]}, "canary"]}, f"{T}.if[0]", "one of"),
    ({"if": [{"max": [1, 2]}, "canary"]}, f"{T}.if[0]", "one of"),
    ({"if": [True], "==": [1, 1]}, T, "one operator"),
    ({"if": [{"<": [{"var": "$flagd.timestamp"}, 9]}, "canary"]}, f"{T}.if[0].<[0].var", "headers.<lower-case name>"),
    ({"if": [{"var": "email"}, "canary"]}, f"{T}.if[0].var", "targetingKey"),
    ({"if": [True, "gone"]}, f"{T}.if[1]", "a variant (stable, canary"),
    ({"if": [True, 7]}, f"{T}.if[1]", "a variant"),
    ({"if": [{"$ref": "gone"}, "canary"]}, f"{T}.if[0].$ref", "the name of a rule in $evaluators"),
    ({"fractional": [["canary", {"if": [True, 1]}]]}, f"{T}.fractional[0][1]", "a whole number"),
    ({"fractional": [["canary", 0]]}, f"{T}.fractional", "a total from 1"),
    ({"fractional": [["canary", 2**31]]}, f"{T}.fractional", "a total from 1 to 2147483647"),
    ({"fractional": [{"var": "targetingKey"}]}, f"{T}.fractional", "1 to 64 of [variant, weight]"),
]


@pytest.mark.parametrize(("targeting", "field", "expected"), BEYOND)
def test_a_rule_that_flagd_allows_and_we_do_not_is_refused_with_a_reason(
    targeting: Any, field: str, expected: str
) -> None:
    plain = document_of(targeting, {})
    assert not problems(plain)
    with pytest.raises(InvalidFlag) as refused:
        checked(plain)
    assert refused.value.field == field
    assert expected in refused.value.expected


ROUTE = document_of({}, {})["flags"]["iris.route"]
BEYOND_RULES: list[tuple[dict[str, Any], str, str]] = [
    ({"flags": {"welcome": ROUTE}}, "flags.welcome", "a key such as <model>.route"),
    ({"flags": {"iris.route": {**ROUTE, "variants": {"a": True}, "defaultVariant": "a"}}}, "", "a version as text"),
    ({"flags": {"iris.route": {**ROUTE, "defaultVariant": None}}}, "flags.iris.route.defaultVariant", "one of stable"),
    ({"flags": {"iris.route": {**ROUTE, "defaultVariant": "x"}}}, "flags.iris.route.defaultVariant", "one of stable"),
    ({"flags": {"iris.route": {**ROUTE, "note": "x"}}}, "flags.iris.route.note", "only state, variants"),
    ({"flags": {}, "note": "x"}, "document.note", "only $schema"),
    ({"flags": {}, "metadata": {"bucketing": "flagd-v1"}}, "metadata.bucketing", "one of flagd-v3"),
    ({"flags": {}, "$evaluators": {"a": {"max": [1, 2]}}}, "$evaluators.a", "one of"),
]


@pytest.mark.parametrize(("plain", "field", "expected"), BEYOND_RULES)
def test_a_document_that_flagd_allows_and_we_do_not_is_refused_with_a_reason(
    plain: Any, field: str, expected: str
) -> None:
    assert not problems(plain)
    with pytest.raises(InvalidFlag) as refused:
        checked(plain)
    assert not field or refused.value.field == field
    assert expected in refused.value.expected


def test_a_list_of_flags_as_the_daemon_takes_it_is_refused_by_name() -> None:
    with pytest.raises(InvalidFlag, match="flagd's daemon"):
        parse({"flags": [{"key": "iris.route", **ROUTE}]})
