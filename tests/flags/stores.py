"""Flags as they are written into stores."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flags import store as writes
from gateway.flags.audit import Author
from gateway.flags.document import Flag, FlagDocument, parse_flag
from gateway.flags.store import FlagStore

ADA = Author("ada", token_id="t1")


def flag(key: str = "iris.route", default: str = "stable", **changes: Any) -> Flag:
    plain = {"state": "ENABLED", "variants": {"stable": "1", "canary": "2"}, "defaultVariant": default, **changes}
    return parse_flag(key, plain)


def put(store: FlagStore, new: Flag | None, expected: int | None, key: str = "iris.route") -> FlagDocument:
    return writes.put(store, key, new, expected_revision=expected, author=ADA, verb="flag.put", reason="because")


over_both = pytest.mark.parametrize("store_kind", ["sqlite", "postgres"])


def read_records(store: FlagStore, kind: str = "rollout") -> dict[str, tuple[int, Any]]:
    return {record.id: (record.revision, record.body) for record in store.records(kind)}
