"""The flag document: what flagd's flag-definition JSON says, as frozen values, and the checks that need no rule.

The revision of a flag and of the document travel inside their metadata under the reserved name ``revision``, so that a
dumped document is plain flagd JSON and parses back to the same values.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gateway.errors import InvalidFlag
from gateway.flags.bucket import FLAGD_V3, GENERATIONS
from gateway.flags.sampling import check_sampling

Json: TypeAlias = Any  # a value that JSON can say

SCHEMA_ADDRESS = "https://flagd.dev/schema/v0/flags.json"
ENABLED = "ENABLED"
DISABLED = "DISABLED"

ROUTE = "route"
SAMPLING = "sampling"
CACHE = "cache"
BATCHING = "batching"
SHADOW = "shadow"  # also the name of the variant that runs the copies
KINDS = (ROUTE, SAMPLING, CACHE, BATCHING, SHADOW)

MISSING_KEY = "missingKey"  # metadata of a route: what a split does with a request that has no key
RANDOM_KEY, DEFAULT_KEY, REJECT_KEY = "random", "default", "reject"
FALLBACK = "fallback"  # metadata of a route: whether the default variant answers where another one fails
MISSING_KEY_POLICIES = (RANDOM_KEY, DEFAULT_KEY, REJECT_KEY)
FALLBACK = (
    "fallback"  # metadata of a route: whether the default variant answers where another one fails; true if absent
)

# Metadata of a cache flag: the revision at which cached answers were last forgotten, of all versions or of one.
PURGED = "purged"
_PURGED_VERSION = f"{PURGED}."

# The package manifest's patterns; a test holds the two together, since workshops do not import each other.
MODEL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
VERSION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Variant names become header values and metric labels.
VARIANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_REVISION = "revision"
_FLAG_FIELDS = ("state", "variants", "defaultVariant", "targeting", "metadata")
_DOCUMENT_FIELDS = ("$schema", "flags", "$evaluators", "metadata")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. revision: the document revision that last changed it.

    evaluators: the document's named rules, which targeting may refer to by ``{"$ref": name}``.
    """

    key: str
    state: str
    variants: Mapping[str, Json]
    default_variant: str | None
    targeting: Json | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)
    revision: int = 0
    evaluators: Mapping[str, Json] = field(default_factory=dict, repr=False, compare=False)

    @property
    def enabled(self) -> bool:
        return self.state == ENABLED

    @property
    def model(self) -> str:
        """``iris`` of ``iris.route``."""
        return self.key.rpartition(".")[0]

    @property
    def kind(self) -> str:
        """``route`` of ``iris.route``."""
        return self.key.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class FlagDocument:
    """All flags of a gateway at one revision. Revision 0 is the empty document that nobody has written yet."""

    revision: int = 0
    flags: Mapping[str, Flag] = field(default_factory=dict)
    metadata: Mapping[str, Json] = field(default_factory=dict)
    evaluators: Mapping[str, Json] = field(default_factory=dict)

    @property
    def bucketing(self) -> str:
        """The generation of the sticky hash that this document is pinned to."""
        return str(self.metadata.get("bucketing", FLAGD_V3))

    def routes(self) -> dict[str, Flag]:
        """The route flags by model."""
        return {flag.model: flag for flag in self.flags.values() if flag.kind == ROUTE}


def route_key(model: str) -> str:
    return f"{model}.{ROUTE}"


# -- JSON to document and back ------------------------------------------------------------------


def parse(plain: Json) -> FlagDocument:
    """Read flagd JSON. Raises InvalidFlag naming the path that is wrong.

    Checks shapes only, so that a stored document of a newer gateway can still be read; `check_kind` and
    `gateway.flags.compile.validate` check the meaning of what is written.
    """
    _is_object(plain, "document")
    _only_known(plain, _DOCUMENT_FIELDS, "document")
    evaluators = plain.get("$evaluators", {})
    _is_object(evaluators, "$evaluators")
    metadata, revision = _metadata(plain.get("metadata"), "metadata")
    if metadata.get("bucketing", FLAGD_V3) not in GENERATIONS:
        raise InvalidFlag("metadata.bucketing", repr(metadata["bucketing"]), f"one of {', '.join(GENERATIONS)}")
    flags = plain.get("flags")  # a document that forgot them must not pass for one that drops them all
    if isinstance(flags, list):
        raise InvalidFlag("flags", "a list (flagd's daemon takes it)", "an object with a flag per key")
    _is_object(flags, "flags")
    return FlagDocument(
        revision=revision,
        flags={key: parse_flag(key, flag, evaluators) for key, flag in flags.items()},
        metadata=metadata,
        evaluators=dict(evaluators),
    )


def parse_flag(key: str, plain: Json, evaluators: Mapping[str, Json] | None = None) -> Flag:
    """Read one flag of flagd JSON; its shape is checked, not its meaning. Raises InvalidFlag."""
    where = f"flags.{key}"
    _is_object(plain, where)
    _only_known(plain, _FLAG_FIELDS, where)
    state = plain.get("state")
    if state not in (ENABLED, DISABLED):
        raise InvalidFlag(f"{where}.state", _shown(state), "ENABLED or DISABLED")
    variants = plain.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise InvalidFlag(f"{where}.variants", _shown(variants), "an object with at least one variant")
    _one_type(variants, f"{where}.variants")
    default_variant = plain.get("defaultVariant")
    if default_variant is not None and (not isinstance(default_variant, str) or default_variant not in variants):
        raise InvalidFlag(f"{where}.defaultVariant", _shown(default_variant), f"one of {', '.join(variants)}, or null")
    targeting = plain.get("targeting")
    if targeting is not None and not isinstance(targeting, dict):
        raise InvalidFlag(f"{where}.targeting", _shown(targeting), "a JsonLogic object or null")
    metadata, revision = _metadata(plain.get("metadata"), f"{where}.metadata")
    return Flag(
        key=key,
        state=state,
        variants=dict(variants),
        default_variant=default_variant,
        targeting=targeting or None,
        metadata=metadata,
        revision=revision,
        evaluators=evaluators if evaluators is not None else {},
    )


def dump(document: FlagDocument) -> dict[str, Json]:
    """The document as flagd JSON; `parse` gives the same document back."""
    plain: dict[str, Json] = {
        "$schema": SCHEMA_ADDRESS,
        "metadata": {**document.metadata, _REVISION: document.revision},
        "flags": {key: dump_flag(flag) for key, flag in sorted(document.flags.items())},
    }
    if document.evaluators:
        plain["$evaluators"] = dict(document.evaluators)
    return plain


def dump_flag(flag: Flag) -> dict[str, Json]:
    """One flag as flagd JSON, with its revision in its metadata."""
    plain: dict[str, Json] = {
        "state": flag.state,
        "variants": dict(flag.variants),
        "defaultVariant": flag.default_variant,
        "metadata": {**flag.metadata, _REVISION: flag.revision},
    }
    if flag.targeting is not None:
        plain["targeting"] = flag.targeting
    return plain


def purges(flag: Flag) -> dict[str, int]:
    """Of a cache flag: version -> revision at which its answers were forgotten; "" stands for all versions."""
    return {
        name.removeprefix(PURGED).removeprefix("."): int(value)
        for name, value in flag.metadata.items()
        if name == PURGED or name.startswith(_PURGED_VERSION)
    }


# -- changes ------------------------------------------------------------------------------------


def change(
    document: FlagDocument,
    *,
    put: Iterable[Flag] = (),
    drop: Iterable[str] = (),
    metadata: Mapping[str, Json] | None = None,
    evaluators: Mapping[str, Json] | None = None,
) -> FlagDocument:
    """The next revision of *document*, or *document* itself if nothing would differ.

    A flag whose own words stay the same gets the new revision too when the change reaches what its rules mean: another
    bucketing, or other named rules. So one revision of a flag always stands for one and the same decision.
    """
    revision = document.revision + 1
    new_metadata = document.metadata if metadata is None else dict(metadata)
    new_evaluators = document.evaluators if evaluators is None else dict(evaluators)
    flags = {key: flag for key, flag in document.flags.items() if key not in set(drop)}
    for flag in put:
        before = document.flags.get(flag.key)
        if before is None or dataclasses.replace(flag, revision=before.revision) != before:
            flags[flag.key] = dataclasses.replace(flag, revision=revision)
    meaning_changed = new_evaluators != document.evaluators or (
        new_metadata.get("bucketing", FLAGD_V3) != document.bucketing
    )
    for key, flag in flags.items():
        moved = meaning_changed and flag.targeting is not None
        flags[key] = dataclasses.replace(flag, evaluators=new_evaluators, revision=revision if moved else flag.revision)
    after = FlagDocument(revision, flags, new_metadata, new_evaluators)
    same = dataclasses.replace(after, revision=document.revision) == document
    return document if same else after


# -- checks of meaning that need no rule ------------------------------------------------------------


def check_kind(flag: Flag) -> None:
    """Check that the variants are what this kind of flag needs. Raises InvalidFlag."""
    where = f"flags.{flag.key}"
    if flag.kind not in KINDS or not MODEL_PATTERN.fullmatch(flag.model):
        wanted = " or ".join(f"<model>.{kind}" for kind in KINDS)
        raise InvalidFlag(
            where, repr(flag.key), f"a key such as {wanted}, model names matching {MODEL_PATTERN.pattern}"
        )
    for name, value in flag.variants.items():
        if not VARIANT_PATTERN.fullmatch(name):
            raise InvalidFlag(f"{where}.variants", repr(name), f"names matching {VARIANT_PATTERN.pattern}")
        _CHECKS[flag.kind](f"{where}.variants.{name}", value)
    if flag.kind == CACHE:
        _check_purges(flag, where)
    if flag.kind == ROUTE:
        _check_route(flag, where)
    elif flag.targeting is not None:
        raise InvalidFlag(f"{where}.targeting", "a rule", f"none: {flag.kind} is one value per model")


def _check_route(flag: Flag, where: str) -> None:
    if flag.default_variant is None:
        raise InvalidFlag(f"{where}.defaultVariant", "null", f"one of {', '.join(flag.variants)}")
    policy = flag.metadata.get(MISSING_KEY, RANDOM_KEY)
    if policy not in MISSING_KEY_POLICIES:
        raise InvalidFlag(
            f"{where}.metadata.{MISSING_KEY}", _shown(policy), f"one of {', '.join(MISSING_KEY_POLICIES)}"
        )
    fallback = flag.metadata.get(FALLBACK, True)
    if not isinstance(fallback, bool):
        raise InvalidFlag(f"{where}.metadata.{FALLBACK}", _shown(fallback), "true or false")


def _check_purges(flag: Flag, where: str) -> None:
    for name, value in flag.metadata.items():
        is_purge = name == PURGED or name.startswith(_PURGED_VERSION)
        if is_purge and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InvalidFlag(f"{where}.metadata.{name}", _shown(value), "a whole number (`cache purge` writes it)")


def _check_version(where: str, value: Json) -> None:
    if not isinstance(value, str) or not VERSION_PATTERN.fullmatch(value):
        raise InvalidFlag(where, _shown(value), f"a version as text matching {VERSION_PATTERN.pattern}")


def _check_rate(where: str, value: Json) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise InvalidFlag(where, _shown(value), "a number from 0 to 1")


def _check_cache(where: str, value: Json) -> None:
    _check_switch(where, value, "ttl_s")
    ttl_s = value.get("ttl_s")
    if ttl_s is not None and (not _is_number(ttl_s) or not 0 < ttl_s <= 10**9):
        raise InvalidFlag(f"{where}.ttl_s", _shown(ttl_s), "a number of seconds above 0 and at most 1e9")


def _check_batching(where: str, value: Json) -> None:
    _check_switch(where, value, "max_rows")
    max_rows = value.get("max_rows")
    if max_rows is not None and (not _is_number(max_rows) or max_rows != int(max_rows) or not 1 <= max_rows <= 10**6):
        raise InvalidFlag(f"{where}.max_rows", _shown(max_rows), "a whole number from 1 to 1000000")


def _check_switch(where: str, value: Json, other: str) -> None:
    if not isinstance(value, dict):
        raise InvalidFlag(where, _shown(value), f'an object such as {{"enabled": true, "{other}": ...}}')
    _only_known(value, ("enabled", other), where)
    if not isinstance(value.get("enabled", True), bool):
        raise InvalidFlag(f"{where}.enabled", _shown(value["enabled"]), "true or false")


_CHECKS = {
    ROUTE: _check_version,
    SAMPLING: check_sampling,
    CACHE: _check_cache,
    BATCHING: _check_batching,
    SHADOW: _check_rate,
}


# -- shapes -----------------------------------------------------------------------------------------


def _metadata(plain: Json, where: str) -> tuple[dict[str, Json], int]:
    """The metadata without the revision, and the revision."""
    if plain is None:
        return {}, 0
    _is_object(plain, where)
    for name, value in plain.items():
        if not isinstance(value, str | bool | int | float):
            raise InvalidFlag(f"{where}.{name}", _shown(value), "text, a number, true or false")
    revision = plain.get(_REVISION, 0)
    if isinstance(revision, bool) or not isinstance(revision, int) or revision < 0:
        raise InvalidFlag(f"{where}.{_REVISION}", _shown(revision), "a whole number (the gateway writes it)")
    return {name: value for name, value in plain.items() if name != _REVISION}, revision


def _one_type(variants: Mapping[str, Json], where: str) -> None:
    types = {name: _type_name(value) for name, value in variants.items()}
    first = next(iter(types.values()))
    for name, found in types.items():
        if found == "null" or found != first:
            raise InvalidFlag(f"{where}.{name}", found, f"the type of the other variants ({first})")


def _type_name(value: Json) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if _is_number(value):
        return "number"
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else "null"


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_object(value: Json, where: str) -> None:
    if not isinstance(value, dict):
        raise InvalidFlag(where, _shown(value), "a JSON object")


def _only_known(plain: Mapping[str, Json], known: tuple[str, ...], where: str) -> None:
    for name in plain:
        if name not in known:
            raise InvalidFlag(f"{where}.{name}", "an unknown field", f"only {', '.join(known)}")


def _shown(value: Json) -> str:
    """A value as an error message can carry it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
