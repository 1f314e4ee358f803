"""Named values that must not be written as they are, and what stands in their place: nothing, a keyed hash, a range."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

KEY_BYTES = 32
HASH_PREFIX = "hmac:"
ANY_MODEL = "*"
_HASH_CHARS = 16  # 64 bits: two of a million values have the same one with a chance of 3e-8

_STRICTEST = ("drop", "hash", "bucket")
_FORMS = 'drop, hash, or bucket with rising numbers, as "bucket 18 30 65"'


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one name's values. edges, labels: of a bucket: between n edges are n + 1 ranges."""

    kind: Literal["drop", "hash", "bucket"]
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def replace(self, name: str, value: Any, key: bytes) -> Any:
        """What is written for a *value* of JSON under *name*; None for what is missing or dropped. key: of the hash."""
        if value is None or self.kind == "drop":
            return None
        if self.kind == "hash":
            # By its name too, so that equal values of two features do not show as equal.
            made = hmac.digest(key, f"{name}\0{json.dumps(value)}".encode(), hashlib.sha256)
            return HASH_PREFIX + made.hex()[:_HASH_CHARS]
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return None if math.isnan(number) else self.labels[bisect_right(self.edges, number)]


Rules = Mapping[str, Rule]  # by the name of a feature, an output column or a tensor
NOTHING: Rules = {}


def parse_rule(text: Any) -> Rule:
    """``drop``, ``hash`` or ``bucket 18 30 65``. Raises ValueError."""
    kind, *texts = text.split() if isinstance(text, str) and text.strip() else [""]
    if kind == "bucket" and texts:
        edges = tuple(map(_number, texts))
        if all(math.isfinite(edge) for edge in edges) and all(a < b for a, b in pairwise(edges)):
            between = (f"[{a}, {b})" for a, b in pairwise(texts))
            return Rule("bucket", edges, (f"< {texts[0]}", *between, f">= {texts[-1]}"))
    elif kind in ("drop", "hash") and not texts:
        return Rule("drop" if kind == "drop" else "hash")
    raise ValueError(f"expected {_FORMS}, got {text!r}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_card(plain: Any) -> Rules:
    """The ``redact`` of a package's card: {name: rule}. Raises ValueError naming what is wrong."""
    if plain is None:
        return NOTHING
    if not isinstance(plain, dict):
        raise ValueError(f"redact must be an object of names and rules, got {type(plain).__name__}")
    found: dict[str, Rule] = {}
    for name, text in plain.items():
        try:
            found[name] = parse_rule(text)
        except ValueError as error:
            raise ValueError(f"redact.{name}: {error}") from error
    return found


def parse_setting(text: str) -> dict[str, Rules]:
    """``MODEL.NAME=RULE; ...`` by model, where ``*`` stands for all models. Raises ValueError."""
    found: dict[str, dict[str, Rule]] = {}
    for entry in filter(None, map(str.strip, text.split(";"))):
        name, equals, rule = entry.rpartition("=")
        model, dot, feature = name.strip().partition(".")  # names of models have no dots
        if not (equals and dot and model and feature):
            raise ValueError(f"{entry!r} is not of the form MODEL.NAME=RULE")
        try:
            found.setdefault(model, {})[feature] = parse_rule(rule)
        except ValueError as error:
            raise ValueError(f"{entry!r}: {error}") from error
    return dict(found)


def rules_for(
    model: str, card: Rules, setting: Mapping[str, Rules], parts: Mapping[str, Sequence[str]] | None = None
) -> Rules:
    """All rules of one version together; of two for one name, the stricter.

    parts: by tensor, the names of its features or output columns (`Signature.parts`): a rule for it is one for each.
    """
    rules: dict[str, Rule] = {}
    for more in (card, setting.get(ANY_MODEL, NOTHING), setting.get(model, NOTHING)):
        for name, rule in more.items():
            for each in {name, *(parts or {}).get(name, ())}:
                rules[each] = min(rules.get(each, rule), rule, key=lambda one: _STRICTEST.index(one.kind))
    return rules


def load_key(path: Path) -> bytes:
    """The key of the hashes, made if there is none yet; whoever comes first makes it for all. Raises OSError."""
    with suppress(FileNotFoundError):
        return _read_key(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fd = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(mine, path)  # never over another one, unlike a rename
    finally:
        mine.unlink()
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise OSError(f"{path} has {len(key)} bytes, expected {KEY_BYTES}")
    return key
