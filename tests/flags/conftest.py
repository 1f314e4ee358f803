"""Fixtures of the flag stores: one to write and one that follows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.flags.postgres import PostgresStore
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import FlagStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "flags.sqlite"


@pytest.fixture
def store_kind() -> str:
    return "sqlite"


@pytest.fixture
def store(store_kind: str, path: Path, request: pytest.FixtureRequest) -> Iterator[FlagStore]:
    is_file = store_kind == "sqlite"
    with contextlib.closing(
        SqliteStore(path) if is_file else PostgresStore(request.getfixturevalue("database"))
    ) as opened:
        yield opened


@pytest.fixture
def follower(store_kind: str, path: Path, request: pytest.FixtureRequest) -> Iterator[FlagStore]:
    """Somebody else who reads the same flags."""
    is_file = store_kind == "sqlite"
    with contextlib.closing(
        SqliteStore(path, read_only=True) if is_file else PostgresStore(request.getfixturevalue("database"))
    ) as opened:
        yield opened
