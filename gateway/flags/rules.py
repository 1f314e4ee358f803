"""Targeting rules, compiled once to closures: the whitelist of operators, the caps, and what a rule may read.

A compiled rule is a plain function of a Context. Nothing of a rule's text is ever executed: each operator is looked up
in a table here, and an operator that stands in no table is refused when the flag is written. What is accepted here is a
part of what flagd's published schema accepts, so that every other tool of that format can read our flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from gateway.errors import InvalidFlag, TargetingKeyMissing
from gateway.flags import jsonlogic
from gateway.flags.bucket import MAX_TOTAL_WEIGHT, key_hash, value_hash
from gateway.flags.document import DEFAULT_KEY, RANDOM_KEY, Json

MAX_DEPTH = 32
MAX_NODES = 2000
MAX_FRACTIONS = 64

# targeting key or None, prediction id, headers by lower-case name, protocol (None where nobody predicts: OFREP)
Context = tuple[str | None, str, Mapping[str, str], str | None]
Value = Callable[[Context], Any]
# bucketing hash of a request: None if the request has nothing to be bucketed by and the policy says "default"
Hash = Callable[[Context], int | None]

BOOLEAN_OPERATORS = frozenset(
    {"==", "!=", "===", "!==", "!", "!!", "<", "<=", ">", ">=", "in", "starts_with", "ends_with", "sem_ver"}
)
OPERATORS = BOOLEAN_OPERATORS | {"if", "and", "or", "cat", "var", "fractional", "$ref"}

_HEADER = re.compile(r"[a-z0-9!#$%&'*+^_`|~-]{1,128}")
# What these hold is a secret, and a rule that compares with one would have it written in flags, audit and events.
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key"})
_READABLE = "targetingKey, model, protocol, $flagd.flagKey or headers.<lower-case name>"

_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": jsonlogic.loose_equal,
    "!=": lambda a, b: not jsonlogic.loose_equal(a, b),
    "===": jsonlogic.strict_equal,
    "!==": lambda a, b: not jsonlogic.strict_equal(a, b),
    "in": jsonlogic.contains,
    "starts_with": jsonlogic.starts_with,
    "ends_with": jsonlogic.ends_with,
}


class RuleCompiler:
    """Compiles the expressions of one flag. Collects in *headers* the names of the headers that they read.

    Raises InvalidFlag naming the place inside the rule.
    """

    def __init__(
        self, *, flag_key: str, model: str, evaluators: Mapping[str, Json], bucketing: str, missing_key: str
    ) -> None:
        self.headers: set[str] = set()
        self._flag_key = flag_key
        self._model = model
        self._evaluators = evaluators
        self._missing_key = missing_key
        self._hash_key = key_hash(flag_key, bucketing)
        self._hash_value = value_hash(bucketing)
        self._nodes = 0
        self._depth = 0
        self._open_refs: list[str] = []
        self._bucketing_by_key = False  # True while compiling what a split buckets by
        self._reads_key = False

    # -- walking ------------------------------------------------------------------------------

    @contextmanager
    def inside(self, where: str) -> Iterator[None]:
        """Count one node of the rule and one level of nesting, within the caps."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidFlag(where, f"a rule of more than {MAX_NODES} nodes", "a smaller rule")
        if self._depth >= MAX_DEPTH:
            raise InvalidFlag(where, f"a rule nested more than {MAX_DEPTH} deep", "a flatter rule")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextmanager
    def named_rule(self, args: Json, where: str) -> Iterator[Json]:
        """The rule that a ``$ref`` names; it may refer on, but not to itself."""
        name = args
        if not isinstance(name, str) or name not in self._evaluators:
            known = ", ".join(sorted(self._evaluators)) or "none are defined"
            raise InvalidFlag(where, repr(name)[:80], f"the name of a rule in $evaluators ({known})")
        if name in self._open_refs:
            raise InvalidFlag(where, f"{name!r}, which refers to itself", "a rule without a cycle")
        self._open_refs.append(name)
        try:
            yield self._evaluators[name]
        finally:
            self._open_refs.pop()

    def operation(self, expression: Mapping[str, Json], where: str) -> tuple[str, Json, str]:
        """The operator of a JsonLogic object, its arguments as written, and where they stand."""
        if len(expression) != 1:
            came = f"an object with the keys {', '.join(map(repr, expression))}"[:80]
            raise InvalidFlag(where, came, "one operator (a merge patch keeps the old one unless it says null to it)")
        name, args = next(iter(expression.items()))
        if name not in OPERATORS:
            raise InvalidFlag(where, f"the operator {name!r}", f"one of {' '.join(sorted(OPERATORS))}")
        return name, args, f"{where}.{name}"

    # -- values -------------------------------------------------------------------------------

    def value(self, expression: Json, where: str) -> Value:
        """An expression that stands for a value, as in a condition."""
        with self.inside(where):
            if isinstance(expression, list):
                items = self._values(expression, where)
                return lambda c: [item(c) for item in items]
            if not isinstance(expression, dict):
                return lambda _c: expression
            name, args, where = self.operation(expression, where)
            if name == "$ref":
                with self.named_rule(args, where) as rule:
                    return self.value(rule, where)
            if name == "var":
                return self._var(args, where)
            if name == "fractional":
                return self._fractional_value(args, where)
            if not isinstance(args, list) and name not in ("!", "!!"):
                raise InvalidFlag(where, repr(args)[:80], "a list of arguments")
            return self._operator(name, args if isinstance(args, list) else [args], where)

    def _values(self, expressions: list[Json], where: str) -> tuple[Value, ...]:
        return tuple(self.value(expression, f"{where}[{i}]") for i, expression in enumerate(expressions))

    def _operator(self, name: str, args: list[Json], where: str) -> Value:
        if name == "in" and len(args) == 2 and isinstance(args[1], list) and all(isinstance(a, str) for a in args[1]):
            return self._in_texts(args, where)
        if name == "sem_ver":
            return self._sem_ver(args, where)
        if name in ("starts_with", "ends_with"):
            _texts_or_rules(args, where)
        values = self._values(args, where)
        if name in _BINARY:
            _arity(values, where, 2, 2)
            return _binary(_BINARY[name], *values)
        if name in jsonlogic.ORDERINGS:
            _arity(values, where, 2, 3 if name in ("<", "<=") else 2)
            return _ordering(jsonlogic.ORDERINGS[name], *values)
        _arity(values, where, 1, 1 if name in ("!", "!!") else MAX_NODES)
        return _VARIADIC[name](values)

    def _in_texts(self, args: list[Json], where: str) -> Value:
        needle = self.value(args[0], f"{where}[0]")
        with self.inside(f"{where}[1]"):
            texts = frozenset(args[1])

        def is_in(c: Context) -> bool:
            found = needle(c)
            return isinstance(found, str) and found in texts

        return is_in

    def _sem_ver(self, args: list[Json], where: str) -> Value:
        if len(args) != 3 or not isinstance(args[1], str) or args[1] not in jsonlogic.SEMVER_TESTS:
            raise InvalidFlag(where, repr(args)[:80], f"[version, {' '.join(jsonlogic.SEMVER_TESTS)}, version]")
        for i in (0, 2):
            if not _is_version_or_variable(args[i]):
                raise InvalidFlag(f"{where}[{i}]", repr(args[i])[:80], 'a whole version such as "1.2.0", or a var')
        test = jsonlogic.SEMVER_TESTS[args[1]]
        left, right = self.value(args[0], f"{where}[0]"), self.value(args[2], f"{where}[2]")

        def tested(c: Context) -> bool | None:
            a, b = jsonlogic.semver(left(c)), jsonlogic.semver(right(c))
            return None if a is None or b is None else test(a, b)

        return tested

    def _var(self, args: Json, where: str) -> Value:
        listed = args if isinstance(args, list) else [args]
        if not 1 <= len(listed) <= 2 or not isinstance(listed[0], str):
            raise InvalidFlag(where, repr(args)[:80], f"a name, or a name and a default; names are {_READABLE}")
        read = self._variable(listed[0], where)
        if len(listed) == 1:
            return read
        otherwise = self.value(listed[1], f"{where}[1]")

        def read_or_default(c: Context) -> Any:
            found = read(c)
            return otherwise(c) if found is None else found

        return read_or_default

    def _variable(self, name: str, where: str) -> Value:
        if name == "targetingKey":
            self._reads_key = True
            if self._bucketing_by_key and self._missing_key == RANDOM_KEY:
                return lambda c: c[0] or c[1]
            return lambda c: c[0]
        if name == "model":
            model = self._model
            return lambda _c: model
        if name == "protocol":
            return lambda c: c[3]
        if name == "$flagd.flagKey":
            flag_key = self._flag_key
            return lambda _c: flag_key
        header = name.removeprefix("headers.")
        if header == name or not _HEADER.fullmatch(header) or header in _SECRET_HEADERS:
            raise InvalidFlag(where, repr(name), _READABLE)
        self.headers.add(header)
        return lambda c: c[2].get(header)

    # -- splits -------------------------------------------------------------------------------

    def fractional(self, args: Json, where: str) -> tuple[Hash, list[tuple[Json, int, str]]]:
        """A split: the hash that decides, and (expression of the variant, weight, where) per fraction."""
        listed = args if isinstance(args, list) else [args]
        if listed and not isinstance(listed[0], list):
            hash_of, fractions, first = self._hash_of_value(listed[0], f"{where}[0]"), listed[1:], 1
        else:
            hash_of, fractions, first = self._hash_of_key(), listed, 0
        if not 1 <= len(fractions) <= MAX_FRACTIONS:
            raise InvalidFlag(where, f"{len(fractions)} fractions", f"1 to {MAX_FRACTIONS} of [variant, weight]")
        read = [_fraction(fraction, f"{where}[{first + i}]") for i, fraction in enumerate(fractions)]
        total = sum(weight for _, weight, _ in read)
        if not 0 < total <= MAX_TOTAL_WEIGHT:
            raise InvalidFlag(where, f"weights that add up to {total}", f"a total from 1 to {MAX_TOTAL_WEIGHT}")
        return hash_of, read

    def _hash_of_key(self) -> Hash:
        hash_key = self._hash_key
        if self._missing_key == RANDOM_KEY:
            return lambda c: hash_key(c[0] or c[1])
        if self._missing_key == DEFAULT_KEY:
            return lambda c: hash_key(c[0]) if c[0] else None
        model = self._model

        def hash_or_refuse(c: Context) -> int:
            if not c[0]:
                raise TargetingKeyMissing(f"the route of {model!r} splits by targeting key: send x-targeting-key")
            return hash_key(c[0])

        return hash_or_refuse

    def _hash_of_value(self, expression: Json, where: str) -> Hash:
        if not isinstance(expression, dict) or "$ref" in expression:
            raise InvalidFlag(where, repr(expression)[:80], "a rule to bucket by (not a $ref), or a [variant, weight]")
        outer_reads_key, self._reads_key, self._bucketing_by_key = self._reads_key, False, True
        value = self.value(expression, where)
        needs_key, self._reads_key, self._bucketing_by_key = self._reads_key, outer_reads_key, False
        hash_value, hash_key, policy, model = self._hash_value, self._hash_key, self._missing_key, self._model

        def hash_of(c: Context) -> int | None:
            # cat("salt", no key) is a text, but the same one for every request that has no key
            found = value(c) if c[0] or not needs_key or policy == RANDOM_KEY else None
            hashed = None if found is None else hash_value(found)
            if hashed is not None or policy == DEFAULT_KEY:
                return hashed
            if policy == RANDOM_KEY:
                return hash_key(c[1])
            raise TargetingKeyMissing(f"the route of {model!r} splits by a value that this request does not carry")

        return hash_of

    def _fractional_value(self, args: Json, where: str) -> Value:
        hash_of, fractions = self.fractional(args, where)
        values = [self.value(expression, at) for expression, _, at in fractions]
        pick = picker([weight for _, weight, _ in fractions])

        def value(c: Context) -> Any:
            hashed = hash_of(c)
            return None if hashed is None else values[pick(hashed)](c)

        return value


def refuse_reference(expression: Json, where: str) -> None:
    """A whole rule cannot be but a reference: flagd's schema knows them inside of rules only. Raises InvalidFlag."""
    if isinstance(expression, dict) and "$ref" in expression:
        raise InvalidFlag(where, "a $ref alone", '{"if": [{"$ref": ...}]}')


def picker(weights: list[int]) -> Callable[[int], int]:
    """A function from a 32-bit hash to the index of the fraction that it falls on."""
    ends = list(accumulate(weights))
    total = ends[-1]
    if len(ends) == 2:  # stable and one candidate: the usual case
        first = ends[0]
        return lambda hash32: 0 if (hash32 * total) >> 32 < first else 1

    def pick(hash32: int) -> int:
        bucket = (hash32 * total) >> 32
        for i, end in enumerate(ends):
            if bucket < end:
                return i
        raise AssertionError("a bucket is below the total")

    return pick


def _fraction(fraction: Json, where: str) -> tuple[Json, int, str]:
    if not isinstance(fraction, list) or not 1 <= len(fraction) <= 2:
        raise InvalidFlag(where, repr(fraction)[:80], "[variant, weight]")
    weight = fraction[1] if len(fraction) == 2 else 1
    if isinstance(weight, bool) or not isinstance(weight, int) or weight < 0:
        raise InvalidFlag(f"{where}[1]", repr(weight)[:80], "a whole number of at least 0 (0.5 % is 50 of 10000)")
    return fraction[0], weight, f"{where}[0]"


def _texts_or_rules(args: list[Json], where: str) -> None:
    """What the schema has ``starts_with`` and ``ends_with`` compare."""
    for i, arg in enumerate(args):
        if not isinstance(arg, str | dict) or (isinstance(arg, dict) and "$ref" in arg):
            raise InvalidFlag(f"{where}[{i}]", repr(arg)[:80], "a text, or a rule that gives one (not a $ref)")


def _is_version_or_variable(arg: Json) -> bool:
    if isinstance(arg, str):
        return jsonlogic.is_semver(arg)
    return isinstance(arg, dict) and arg.keys() == {"var"}


def _arity(values: tuple[Value, ...], where: str, low: int, high: int) -> None:
    if not low <= len(values) <= high:
        wanted = f"{low}" if low == high else f"{low} or more" if high == MAX_NODES else f"{low} to {high}"
        raise InvalidFlag(where, f"{len(values)} arguments", wanted)


def _binary(apply: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    return lambda c: apply(left(c), right(c))


def _ordering(compare: Callable[[Any, Any], bool], a: Value, b: Value, third: Value | None = None) -> Value:
    if third is None:
        return lambda c: compare(a(c), b(c))
    last = third

    def between(c: Context) -> bool:
        low, middle, high = a(c), b(c), last(c)
        return compare(low, middle) and (high is None or compare(middle, high))

    return between


def choose(steps: tuple[Value, ...]) -> Value:
    """JsonLogic's ``if``: condition, value, condition, value, ..., value otherwise."""
    pairs = list(zip(steps[:-1:2], steps[1::2], strict=False))
    otherwise = steps[-1] if len(steps) % 2 else None

    def chosen(c: Context) -> Any:
        for condition, value in pairs:
            if jsonlogic.truthy(condition(c)):
                return value(c)
        return None if otherwise is None else otherwise(c)

    return chosen


def _all(values: tuple[Value, ...]) -> Value:
    def last_or_first_false(c: Context) -> Any:
        found = None
        for value in values:
            found = value(c)
            if not jsonlogic.truthy(found):
                break
        return found

    return last_or_first_false


def _any(values: tuple[Value, ...]) -> Value:
    def first_true_or_last(c: Context) -> Any:
        found = None
        for value in values:
            found = value(c)
            if jsonlogic.truthy(found):
                break
        return found

    return first_true_or_last


_VARIADIC: Mapping[str, Callable[[tuple[Value, ...]], Value]] = {
    "if": choose,
    "and": _all,
    "or": _any,
    "!": lambda values: lambda c: not jsonlogic.truthy(values[0](c)),
    "!!": lambda values: lambda c: jsonlogic.truthy(values[0](c)),
    "cat": lambda values: lambda c: "".join([jsonlogic.to_text(value(c)) for value in values]),
}
