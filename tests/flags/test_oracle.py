"""Random flags and contexts, decided by us and by flagd's own evaluator for Python."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import OpenFeatureError

from gateway.flags.compile import DEFAULT, DISABLED, ERROR, SPLIT, STATIC, TARGETING_MATCH, compile_route
from gateway.flags.document import parse

# Together 100,000 requests, which take about ten seconds.
SEEDS, FLAGS_PER_SEED, REQUESTS_PER_FLAG = 20, 1250, 4

HEADERS = ("x-tenant", "x-tier", "x-app-version", "x-model-variant")
VALUES = ("blue", "green", "acme", "a@corp", "1", "1.2.0", "v2.0.0-rc.1", "10", "", "true")
VARIANTS = {"blue": "7", "green": "8", "red": "9", "true": "1", "false": "2"}
EVALUATORS = {
    "internal": {"ends_with": [{"var": "headers.x-tenant"}, "@corp"]},
    "wide": {"or": [{"$ref": "narrow"}, {"==": [{"var": "protocol"}, "oip"]}]},
    "narrow": {"===": [{"var": "headers.x-tier"}, "1"]},
}


class Rules:
    """Makes random rules that are valid for us."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def variable(self) -> Any:
        name = self.random.choice(["targetingKey", "model", "protocol", *(f"headers.{h}" for h in HEADERS)])
        return {"var": [name, self.random.choice(VALUES)]} if self.random.random() < 0.2 else {"var": name}

    def literal(self) -> Any:
        return self.random.choice([*VALUES, 0, 1, 10, 1.5, -3, None])

    def value(self, depth: int) -> Any:
        roll = self.random.random()
        if depth <= 0 or roll < 0.55:
            return self.variable() if self.random.random() < 0.6 else self.literal()
        if roll < 0.7:
            return {"cat": [self.value(depth - 1) for _ in range(self.random.randint(1, 3))]}
        if roll < 0.8:
            return {"if": [self.condition(depth - 1), self.value(depth - 1), self.value(depth - 1)]}
        if roll < 0.9:
            return [self.value(depth - 1) for _ in range(self.random.randint(0, 3))]
        return self.split(depth - 1)

    def condition(self, depth: int) -> Any:
        def value() -> Any:
            return self.value(depth - 1)

        if depth <= 0:
            return {"==": [self.variable(), self.literal()]}
        operator = self.random.choice(["==", "!=", "===", "!==", "<", "<=", ">", ">=", "!", "!!", "in", "and", "or"])
        operator = self.random.choice([operator, operator, "starts_with", "ends_with", "sem_ver", "$ref"])
        if operator in ("==", "!="):
            return {operator: [value(), value()]}
        if operator in ("===", "!=="):  # lists aside: there flagd-core compares by Python's rules
            return {operator: [self.variable(), self.literal()]}
        if operator in ("<", "<=", ">", ">="):
            most = 3 if operator in ("<", "<=") else 2
            return {operator: [value() for _ in range(self.random.choice([2, 2, most]))]}
        if operator in ("!", "!!"):
            return {operator: [self.condition(depth - 1)]}
        if operator == "in":
            among: Any = [self.random.choice(VALUES) for _ in range(3)]
            return {"in": [value(), self.random.choice([among, value()])]}
        if operator in ("and", "or"):
            return {operator: [self.condition(depth - 1) for _ in range(self.random.randint(1, 3))]}
        if operator == "sem_ver":
            test = self.random.choice(["=", "!=", "<", "<=", ">", ">=", "^", "~"])
            return {"sem_ver": [self.variable(), test, self.random.choice(["1.2.0", "2.0.0", "10.0.1", "2.0.0-rc.2"])]}
        if operator == "$ref":
            return {"$ref": self.random.choice(["internal", "wide", "narrow"])}
        return {operator: [self.variable(), self.random.choice(["a", "1", "bl", "@corp", self.variable()])]}

    def split(self, depth: int) -> Any:
        fractions: list[Any] = []
        for _ in range(self.random.randint(1, 5)):
            variant: Any = self.random.choice(list(VARIANTS))
            if depth > 0 and self.random.random() < 0.1:
                variant = self.result(depth - 1)
            plain = self.random.random() < 0.1
            fractions.append([variant] if plain else [variant, self.random.choice([0, 1, 5, 95, 5000])])
        fractions.append([self.random.choice(list(VARIANTS)), self.random.choice([1, 100])])
        if self.random.random() < 0.3:
            salted = {"cat": [self.random.choice(["salt", {"var": "$flagd.flagKey"}]), self.variable()]}
            fractions.insert(0, salted)
        return {"fractional": fractions}

    def result(self, depth: int) -> Any:
        roll = self.random.random()
        if depth <= 0 or roll < 0.25:
            return self.random.choice([*VARIANTS, None, True])
        if roll < 0.65:
            return self.split(depth - 1)
        if roll < 0.9:
            steps: list[Any] = []
            for _ in range(self.random.randint(1, 2)):
                steps += [self.condition(depth - 1), self.result(depth - 1)]
            return {"if": steps + [self.result(depth - 1)] * self.random.randint(0, 1)}
        return self.random.choice([self.variable(), self.condition(1)])

    def targeting(self) -> Any:
        found = self.result(3)
        return found if isinstance(found, dict) and "$ref" not in found else {"if": [found]}

    def request(self) -> tuple[str, str, dict[str, str]]:
        key = self.random.choice([f"user-{self.random.randrange(10**6)}", "ü", "blue", "10", "k" * 300])
        headers = {h: self.random.choice(VALUES) for h in HEADERS if self.random.random() < 0.7}
        return key, self.random.choice(["native", "oip"]), headers


def oracle(document: dict[str, Any]) -> FlagdCore:
    core = FlagdCore()
    plain = copy.deepcopy(document)
    # flagd-core substitutes named rules once, in their order: those that others refer to go last
    core.set_flags(plain)
    return core


def wanted(core: FlagdCore, key: str | None, protocol: str, headers: dict[str, str]) -> tuple[str | None, str | None]:
    attributes = {"model": "m", "protocol": protocol, "headers": headers}
    try:
        found = core.resolve_string_value("m.route", "none", EvaluationContext(key, attributes))
    except OpenFeatureError:
        return None, ERROR
    return found.variant, str(found.reason)


@pytest.mark.filterwarnings("ignore")  # what the oracle warns of is its own affair
@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_decision_is_the_one_that_flagd_takes(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    rules = Rules(seed)
    seen: set[str] = set()
    for _ in range(FLAGS_PER_SEED):
        flag = {
            "state": "ENABLED",
            "variants": VARIANTS,
            "defaultVariant": rules.random.choice(list(VARIANTS)),
            "targeting": rules.targeting(),
            "metadata": {"missingKey": rules.random.choice(["default", "random", "reject"])},
        }
        document = {"flags": {"m.route": flag}, "$evaluators": EVALUATORS}
        route = compile_route("m", parse(document).flags["m.route"])
        core = oracle(document)
        for _ in range(REQUESTS_PER_FLAG):
            key, protocol, headers = rules.request()
            variant, reason = wanted(core, key, protocol, headers)
            ours = route.decide(key, "prediction-1", headers, protocol)
            assert ours.version == VARIANTS[ours.variant]
            assert ours.version in route.reachable
            assert set(route.header_names) <= set(HEADERS)
            seen.add(ours.reason)
            if reason == ERROR:
                assert ours.reason == ERROR, (flag, key, protocol, headers)
                assert ours.variant == flag["defaultVariant"]
            else:
                assert ours.variant == variant, (flag, key, protocol, headers)
                # flagd has no word for a split
                assert ours.reason in ({"DEFAULT": {DEFAULT}}.get(str(reason), {TARGETING_MATCH, SPLIT}))
    assert seen == {DEFAULT, TARGETING_MATCH, SPLIT, ERROR}


def test_without_a_key_the_policy_default_decides_as_flagd_does() -> None:
    flag = {
        "state": "ENABLED",
        "variants": VARIANTS,
        "defaultVariant": "blue",
        "targeting": {"fractional": [["green", 99], ["red", 1]]},
        "metadata": {"missingKey": "default"},
    }
    document = {"flags": {"m.route": flag}}
    route = compile_route("m", parse(document).flags["m.route"])
    assert wanted(oracle(document), None, "native", {}) == ("blue", "DEFAULT")
    assert route.decide(None, "p", {}, "native") == ("blue", "7", DEFAULT)


def test_a_flag_without_rules_and_a_disabled_one_name_their_reason() -> None:
    flag = {"state": "ENABLED", "variants": VARIANTS, "defaultVariant": "green"}
    route = compile_route("m", parse({"flags": {"m.route": flag}}).flags["m.route"])
    assert route.decide("u", "p", {}, "native") == ("green", "8", STATIC)
    off = parse({"flags": {"m.route": {**flag, "state": "DISABLED"}}}).flags["m.route"]
    assert compile_route("m", off).decide("u", "p", {}, "native") == ("green", "8", DISABLED)
