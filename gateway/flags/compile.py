"""A route flag as one small pure function from request to version, and the other flags of a model as plain options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.errors import InvalidFlag
from gateway.flags.bucket import FLAGD_V3
from gateway.flags.document import (
    BATCHING,
    CACHE,
    FALLBACK,
    MISSING_KEY,
    RANDOM_KEY,
    ROUTE,
    SAMPLING,
    SHADOW,
    Flag,
    FlagDocument,
    Json,
    check_kind,
    purges,
)
from gateway.flags.rules import (
    BOOLEAN_OPERATORS,
    Context,
    Hash,
    RuleCompiler,
    choose,
    picker,
    refuse_reference,
)
from gateway.flags.sampling import SamplingRules, is_durable, rate_of, rules_of

STATIC = "STATIC"  # the flag has no rule
TARGETING_MATCH = "TARGETING_MATCH"  # a rule named the variant
SPLIT = "SPLIT"  # a fractional did
DEFAULT = "DEFAULT"  # the rules left it to the default variant
DISABLED = "DISABLED"  # the kill switch
PINNED = "PINNED"  # the request named a version itself
ERROR = "ERROR"  # a rule computed something that is no variant; the default variant answers
FELL_BACK = "FALLBACK"  # the variant that was chosen failed, or is known to fail; the default variant answers


class Decision(NamedTuple):
    """Which version answers, under which variant's name, and why."""

    variant: str
    version: str
    reason: str


_Result = Callable[[Context], Decision | None]  # None: the rules leave it to the default variant


@dataclass(frozen=True, slots=True)
class Route:
    """One compiled route.

    named: every version that a variant names; these are declared, that is loaded and kept warm. reachable: the versions
    that some request could be given now; given: the variants. shares: per version, its share at each place of the rule
    that can give it (1.0 where a rule names it outright), in the order of the rule. variants: all, with their versions.
    split: the variants that a split could give now, with their versions; weights: the share, 0 to 1, that it gives each
    of them, unless several splits do. falls_back: the default variant answers where another one fails. header_names:
    what `decide` reads of *headers*.
    """

    model: str
    revision: int
    default_version: str
    named: frozenset[str]
    reachable: frozenset[str]
    given: frozenset[str]
    header_names: tuple[str, ...]
    shares: Mapping[str, tuple[float, ...]]
    variants: Mapping[str, str]
    split: Mapping[str, str]
    weights: Mapping[str, float]
    falls_back: bool
    default: Decision
    shadow_version: str | None  # what runs copies of answered requests: named "shadow", and given to no client
    is_sticky: bool  # with a targeting key, the decision depends on nothing but the key
    _rule: _Result | None

    def decide(
        self, targeting_key: str | None, prediction_id: str, headers: Mapping[str, str], protocol: str | None
    ) -> Decision:
        """Pure; about 1 us. headers: by lower-case name.

        Raises TargetingKeyMissing if the rules need a key that did not come and the route's policy is "reject".
        """
        if self._rule is None:
            return self.default
        return self._rule((targeting_key or None, prediction_id, headers, protocol)) or self.default


def compile_route(model: str, flag: Flag, bucketing: str = FLAGD_V3) -> Route:
    """Compile the flag ``<model>.route``. bucketing: the document's. Raises InvalidFlag."""
    check_kind(flag)
    assert flag.default_variant is not None  # check_kind has seen to it
    compiler = _RouteCompiler(model, flag, bucketing)
    # Compiled even if disabled: a rule that is wrong must not be found only when the switch goes back on.
    rule = None if flag.targeting is None else compiler.targeting(flag.targeting, f"flags.{flag.key}.targeting")
    default_version = str(flag.variants[flag.default_variant])
    reachable, given = {default_version}, {flag.default_variant}
    if flag.enabled:
        given |= compiler.given
        reachable |= {version for version, shares in compiler.shares.items() if any(shares)}
    reason = DEFAULT if rule is not None else STATIC
    return Route(
        model=model,
        revision=flag.revision,
        default_version=default_version,
        named=frozenset(map(str, flag.variants.values())),
        reachable=frozenset(reachable),
        given=frozenset(given),
        header_names=tuple(sorted(compiler.headers)) if flag.enabled else (),
        shares={version: tuple(shares) for version, shares in compiler.shares.items()} if flag.enabled else {},
        variants={name: str(version) for name, version in flag.variants.items()},
        split=compiler.split if flag.enabled else {},
        weights={name: found[0] for name, found in compiler.weights.items() if len(found) == 1},
        falls_back=bool(flag.metadata.get(FALLBACK, True)),
        default=Decision(flag.default_variant, default_version, reason if flag.enabled else DISABLED),
        shadow_version=_shadow_version(flag, given),
        is_sticky=flag.enabled and _is_split_by_key(flag.targeting),
        _rule=rule if flag.enabled else None,
    )


def _shadow_version(flag: Flag, given: set[str]) -> str | None:
    """What the variant "shadow" names. None: there is none, a client could be given it, or the route is killed."""
    if not flag.enabled or SHADOW in given or SHADOW not in flag.variants:
        return None
    return str(flag.variants[SHADOW])


def _is_split_by_key(targeting: Json) -> bool:
    """Whether a rule is nothing but a split between named variants, by the targeting key."""
    if not isinstance(targeting, dict) or targeting.keys() != {"fractional"}:
        return False
    fractions = targeting["fractional"]
    return isinstance(fractions, list) and all(
        isinstance(fraction, list) and fraction and isinstance(fraction[0], str) for fraction in fractions
    )


class _RouteCompiler(RuleCompiler):
    """Compiles the places of a rule whose value is a variant straight to prepared decisions."""

    def __init__(self, model: str, flag: Flag, bucketing: str) -> None:
        super().__init__(
            flag_key=flag.key,
            model=model,
            evaluators=flag.evaluators,
            bucketing=bucketing,
            missing_key=str(flag.metadata.get(MISSING_KEY, RANDOM_KEY)),
        )
        self.shares: dict[str, list[float]] = {}
        self.given: set[str] = set()  # variants that some request could be given
        self.split: dict[str, str] = {}
        self.weights: dict[str, list[float]] = {}
        self._variants = flag.variants
        default = str(flag.default_variant)
        self._wrong = Decision(default, str(flag.variants[default]), ERROR)

    def targeting(self, expression: Json, where: str) -> _Result:
        """The whole rule of the flag."""
        refuse_reference(expression, where)
        return self.result(expression, where)

    def result(self, expression: Json, where: str, share: float = 1.0, reason: str = TARGETING_MATCH) -> _Result:
        """An expression whose value names the variant. share: of the requests that come to this place."""
        with self.inside(where):
            if not isinstance(expression, dict):
                return self._literal(expression, where, share, reason)
            name, args, where = self.operation(expression, where)
            if name == "$ref":
                with self.named_rule(args, where) as rule:
                    return self.result(rule, where, share, reason)
            if name == "fractional":
                return self._split(args, where, share)
            if name == "if":
                return self._branches(args, where, share, reason)
            return self._computed(name, expression, where, share, reason)

    def _literal(self, literal: Json, where: str, share: float, reason: str) -> _Result:
        if literal is None:
            return lambda _c: None
        decision = self._decision(literal, where, share, reason)
        return lambda _c: decision

    def _decision(self, literal: Json, where: str, share: float, reason: str) -> Decision:
        variant = _variant_name(literal)
        if variant is None or variant not in self._variants:
            raise InvalidFlag(where, repr(literal)[:80], f"a variant ({', '.join(self._variants)}) or null")
        version = str(self._variants[variant])
        self.shares.setdefault(version, []).append(share)
        if share:
            self.given.add(variant)
        if reason == SPLIT and share:
            self.split[variant] = version
            self.weights.setdefault(variant, []).append(share)
        return Decision(variant, version, reason)

    def _split(self, args: Json, where: str, share: float) -> _Result:
        hash_of, fractions = self.fractional(args, where)
        total = sum(weight for _, weight, _ in fractions)
        if len(fractions) == 2 and all(isinstance(expression, str) for expression, _, _ in fractions):
            return self._split_in_two(hash_of, fractions, share)
        results = [self.result(expression, at, share * weight / total, SPLIT) for expression, weight, at in fractions]
        pick = picker([weight for _, weight, _ in fractions])

        def split(c: Context) -> Decision | None:
            hashed = hash_of(c)
            return None if hashed is None else results[pick(hashed)](c)

        return split

    def _split_in_two(self, hash_of: Hash, fractions: list[tuple[Json, int, str]], share: float) -> _Result:
        """A split between two variants, stable and a candidate: the usual case, in one step instead of three."""
        (_, weight, _), (_, other, _) = fractions
        total = weight + other
        decisions: list[Decision] = []
        for variant, part, at in fractions:
            with self.inside(at):
                decisions.append(self._decision(variant, at, share * part / total, SPLIT))
        first, second = decisions

        def split(c: Context) -> Decision | None:
            hashed = hash_of(c)
            if hashed is None:
                return None
            return first if (hashed * total) >> 32 < weight else second

        return split

    def _branches(self, args: Json, where: str, share: float, reason: str) -> _Result:
        if not isinstance(args, list) or not args:
            raise InvalidFlag(where, repr(args)[:80], "a list of 1 or more arguments")
        steps: list[Callable[[Context], Any]] = []
        for i, arg in enumerate(args):
            is_condition = i % 2 == 0 and i + 1 < len(args)
            at = f"{where}[{i}]"
            steps.append(self.value(arg, at) if is_condition else self.result(arg, at, share, reason))
        return choose(tuple(steps))

    def _computed(self, name: str, expression: Json, where: str, share: float, reason: str) -> _Result:
        """A variant's name that is worked out per request, as ``{"var": "headers.x-variant"}``: it may be any."""
        table: dict[str, Decision] = {}
        for variant in ("true", "false") if name in BOOLEAN_OPERATORS else self._variants:
            if variant not in self._variants:
                raise InvalidFlag(where, "a comparison as the result", 'variants named "true" and "false"')
            table[variant] = self._decision(variant, where, share, reason)
        value, wrong = self.value(expression, where.removesuffix(f".{name}")), self._wrong

        def look_up(c: Context) -> Decision | None:
            found = value(c)
            if found is None:
                return None
            return table.get(_variant_name(found) or str(found), wrong)

        return look_up


def _variant_name(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What the flags of a model set besides its route; None where the settings decide, or until they are asked.

    cache_purges: version ("": all) -> revision at which its cached answers were last forgotten.
    """

    sampling_rate: float | None = None
    cache_enabled: bool = True
    cache_ttl_s: float | None = None
    batching_enabled: bool = True
    max_batch_rows: int | None = None
    cache_purges: Mapping[str, int] = field(default_factory=dict)
    shadow_rate: float = 0.0
    sampling_rules: SamplingRules | None = None
    is_durable: bool = False


def compile_options(document: FlagDocument, model: str) -> ModelOptions:
    """The options of *model* under *document*. A flag that is absent or DISABLED leaves its options to the settings.

    A purge holds whatever the state of its flag. Raises InvalidFlag.
    """
    sampling = _option(document, model, SAMPLING)
    cache = _option(document, model, CACHE) or {}
    batching = _option(document, model, BATCHING) or {}
    cache_flag = document.flags.get(f"{model}.{CACHE}")
    shadow = _option(document, model, SHADOW)
    ttl_s, max_rows = cache.get("ttl_s"), batching.get("max_rows")
    return ModelOptions(
        sampling_rate=rate_of(sampling),
        cache_enabled=cache.get("enabled", True),
        cache_ttl_s=None if ttl_s is None else float(ttl_s),
        batching_enabled=batching.get("enabled", True),
        max_batch_rows=None if max_rows is None else int(max_rows),
        cache_purges={} if cache_flag is None else purges(cache_flag),
        shadow_rate=0.0 if shadow is None else float(shadow),
        sampling_rules=rules_of(sampling),
        is_durable=is_durable(sampling),
    )


def _option(document: FlagDocument, model: str, kind: str) -> Json | None:
    flag = document.flags.get(f"{model}.{kind}")
    if flag is None or not flag.enabled or flag.default_variant is None:
        return None
    check_kind(flag)
    return flag.variants[flag.default_variant]


def check_evaluators(document: FlagDocument) -> None:
    """Check each named rule of *document* by itself, whether a flag refers to it or not. Raises InvalidFlag."""
    for name, rule in document.evaluators.items():
        where = f"$evaluators.{name}"
        if not name.isprintable() or not name:
            raise InvalidFlag("$evaluators", repr(name)[:80], "names of at least one printable character")
        if not isinstance(rule, dict):
            raise InvalidFlag(where, repr(rule)[:80], "a rule")
        refuse_reference(rule, where)
        compiler = RuleCompiler(
            flag_key="", model="", evaluators=document.evaluators, bucketing=document.bucketing, missing_key=RANDOM_KEY
        )
        compiler.value(rule, where)


def validate(flag: Flag, bucketing: str = FLAGD_V3) -> None:
    """Everything that must hold of a flag before it is written. Raises InvalidFlag."""
    check_kind(flag)
    if flag.kind == ROUTE:
        compile_route(flag.model, flag, bucketing)
