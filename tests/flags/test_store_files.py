"""What becomes of SQLite's file: of other releases, replaced, damaged, touched, or left by kill -9."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import AuditBroken, StoreUnavailable
from gateway.flags import store as writes
from gateway.flags.document import FlagDocument, parse
from gateway.flags.lastgood import read_last_known_good, write_last_known_good
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import FlagStore
from tests.flags.stores import flag, put
from tests.flags.test_store import SCHEMA_1


def test_a_store_of_an_older_gateway_is_read_as_it_is_and_upgraded_by_its_writer(
    path: Path, store: FlagStore, follower: FlagStore
) -> None:
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA_1)
    assert follower.load() == FlagDocument(4)
    assert store.records("rollout") == []
    assert put(store, flag(), 0).revision == 5
    found = follower.load()
    assert found is not None
    assert found.revision == 5


def test_a_follower_sees_a_file_that_was_put_in_place_of_the_old_one(
    store: FlagStore, follower: FlagStore, path: Path, tmp_path: Path
) -> None:
    put(store, flag(), 0)
    assert follower.load() is not None
    with contextlib.closing(SqliteStore(tmp_path / "other.sqlite")) as other:
        restored = put(other, flag("wine.route"), 0, "wine.route")
    store.close()
    for beside in ("-wal", "-shm"):  # they belong to the old file, as SQLite's manual says
        path.with_name(path.name + beside).unlink(missing_ok=True)
    (tmp_path / "other.sqlite").replace(path)
    assert follower.changed()
    assert follower.load() == restored
    path.unlink()
    assert follower.changed()
    assert follower.load() is None


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be read as one" * 100, b"\0" * 4096])
def test_a_file_that_is_no_store_is_unavailable(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for read_only in (True, False):
        with contextlib.closing(SqliteStore(path, read_only=read_only)) as broken:
            with pytest.raises(StoreUnavailable, match=r"flags\.sqlite"):
                broken.load()
            with pytest.raises(StoreUnavailable):
                broken.history()


def test_a_store_damaged_under_a_follower_is_unavailable_until_it_is_whole_again(
    store: FlagStore, follower: FlagStore, path: Path, tmp_path: Path
) -> None:
    document = put(store, flag(), 0)
    store.close()
    shutil.copy(path, tmp_path / "copy.sqlite")
    follower.close()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreUnavailable):
        follower.load()
    shutil.copy(tmp_path / "copy.sqlite", path)
    assert follower.changed()
    assert follower.load() == document


def test_a_store_of_a_newer_gateway_is_left_alone(path: Path, store: FlagStore) -> None:
    put(store, flag(), 0)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreUnavailable, match="99"):
        store.load()


def tamper(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DROP TRIGGER audit_stays")
        raw.execute("DROP TRIGGER audit_remains")
        for statement in statements:
            raw.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET body = replace(body, 'because', 'whim') WHERE seq = 2",
        "UPDATE audit SET body = '{}' WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 3",
        "UPDATE audit SET seq = -seq WHERE seq = 2",
        "UPDATE document SET body = replace(body, '\"ENABLED\"', '\"DISABLED\"')",
        "DELETE FROM document",
    ],
)
def test_verify_finds_what_was_done_behind_the_gateways_back(store: FlagStore, path: Path, statement: str) -> None:
    put(store, flag(), 0)
    put(store, flag(default="canary"), 1)
    put(store, flag(default="stable"), 2)
    assert writes.verify_trail(store).seq == 3
    store.close()
    tamper(path, statement)
    with pytest.raises(AuditBroken):
        writes.verify_trail(store)


def test_audit_rows_cannot_be_changed_by_accident(store: FlagStore, path: Path) -> None:
    put(store, flag(), 0)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        for statement in ("DELETE FROM audit", "UPDATE audit SET hash = ''"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                raw.execute(statement)


WRITER = """
import sys
from pathlib import Path
from gateway.flags.audit import SYSTEM
from gateway.flags.document import parse_flag
from gateway.flags.lastgood import write_last_known_good
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import put
path = Path(sys.argv[1])
store = SqliteStore(path)
step = (store.load() and int(store.load().flags["iris.route"].metadata["step"])) or 0
while True:
    step += 1
    flag = parse_flag("iris.route", {"state": "ENABLED", "variants": {"a": "1"}, "defaultVariant": "a",
                                     "metadata": {"step": step}})
    document = put(store, "iris.route", flag, expected_revision=None, author=SYSTEM, verb="flag.put", reason="step")
    print(document.revision, step, flush=True)
    write_last_known_good(path.with_name("flags.lkg.json"), document)
"""


def test_kill_9_loses_no_acknowledged_change_and_the_chain_verifies(path: Path) -> None:
    acknowledged = (0, 0)
    for acknowledgements in (1, 7, 20, 3, 11):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(acknowledgements):
                writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
            lines = writer.stdout.read().splitlines()  # what it said before it died
        if lines and len(lines[-1].split()) == 2:
            revision, step = map(int, lines[-1].split())
            acknowledged = (revision, step)
        with contextlib.closing(SqliteStore(path, read_only=True)) as follower:  # first to open it after the crash
            document = follower.load()
        assert document is not None
        step = int(document.flags["iris.route"].metadata["step"])
        assert document.revision >= acknowledged[0]
        assert step >= acknowledged[1]
        with contextlib.closing(SqliteStore(path)) as store:
            assert writes.verify_trail(store).seq == document.revision == step
        last_known_good = read_last_known_good(path.with_name("flags.lkg.json"))
        assert last_known_good is None or document.revision - 2 <= last_known_good.revision <= document.revision


def test_the_last_known_good_document_reads_back_and_a_torn_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "flags.lkg.json"
    assert read_last_known_good(path) is None
    stored = {"state": "ENABLED", "variants": {"stable": "1"}, "defaultVariant": "stable", "metadata": {"revision": 2}}
    document = parse({"metadata": {"revision": 3}, "flags": {"iris.route": stored}})
    write_last_known_good(path, document)
    assert read_last_known_good(path) == document
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreUnavailable, match="lkg"):
        read_last_known_good(path)
