"""The stores: compare-and-set and followers over both; and what becomes of SQLite's file, by kill -9 or otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import AuditBroken, RevisionConflict, StoreUnavailable, UnknownFlag
from gateway.flags import audit
from gateway.flags import store as writes
from gateway.flags.audit import SYSTEM, Author
from gateway.flags.document import Flag, FlagDocument, change, parse, parse_flag
from gateway.flags.lastgood import read_last_known_good, write_last_known_good
from gateway.flags.postgres import PostgresStore
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import FlagStore, Note, RecordWrite

ADA = Author("ada", token_id="t1")


def flag(key: str = "iris.route", default: str = "stable", **changes: Any) -> Flag:
    plain = {"state": "ENABLED", "variants": {"stable": "1", "canary": "2"}, "defaultVariant": default, **changes}
    return parse_flag(key, plain)


def put(store: FlagStore, new: Flag | None, expected: int | None, key: str = "iris.route") -> FlagDocument:
    return writes.put(store, key, new, expected_revision=expected, author=ADA, verb="flag.put", reason="because")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "flags.sqlite"


@pytest.fixture
def store_kind() -> str:
    return "sqlite"


over_both = pytest.mark.parametrize("store_kind", ["sqlite", "postgres"])


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


def test_a_store_that_was_never_written_is_empty_and_a_follower_does_not_make_it(
    store: FlagStore, follower: FlagStore, path: Path
) -> None:
    assert follower.changed()
    assert follower.load() is None
    assert not follower.changed()
    assert follower.history() == []
    assert not path.exists()
    assert store.load() is None
    assert writes.verify_trail(store) == audit.GENESIS
    assert follower.changed()
    assert follower.load() is None


def test_a_follower_that_is_there_first_finds_no_store_or_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "flags.sqlite"
    for _ in range(20):
        done = threading.Event()
        found: list[FlagDocument | str | None] = []

        def follow(done: threading.Event = done, found: list[FlagDocument | str | None] = found) -> None:
            with contextlib.closing(SqliteStore(path, read_only=True)) as reader:
                while not done.is_set():
                    try:
                        found.append(reader.load())
                    except StoreUnavailable as error:
                        found.append(str(error))

        following = threading.Thread(target=follow)
        following.start()
        with contextlib.closing(SqliteStore(path)) as store:
            written = put(store, flag(), None)
            done.set()
            following.join()
        assert [one for one in found if one not in (None, written)] == []
        path.unlink()
    assert list(tmp_path.iterdir()) == []


@over_both
def test_a_change_is_written_with_its_audit_row_and_seen_by_followers(store: FlagStore, follower: FlagStore) -> None:
    assert put(store, flag(), 0).revision == 1
    assert follower.changed()
    assert follower.load() == store.load()
    assert not follower.changed()
    after = put(store, flag(default="canary"), 1)
    assert (after.revision, after.flags["iris.route"].revision) == (2, 2)
    assert follower.changed()
    assert follower.changed()  # until it has loaded
    assert follower.load() == after
    assert not follower.changed()
    row = store.history(newest_first=True)[0]
    assert (row.seq, row.actor, row.token_id, row.verb, row.target) == (2, "ada", "t1", "flag.put", "iris.route")
    assert (row.revision, row.reason) == (2, "because")
    assert (row.before["defaultVariant"], row.after["defaultVariant"]) == ("stable", "canary")
    assert writes.verify_trail(store).seq == 2


@over_both
def test_a_stale_revision_is_refused_and_changes_nothing(store: FlagStore) -> None:
    put(store, flag(), 0)
    put(store, flag("wine.route"), 0, "wine.route")
    for expected in (0, 2):
        with pytest.raises(RevisionConflict) as refused:
            put(store, flag(default="canary"), expected)
        assert refused.value.current_revision == 1
    with pytest.raises(RevisionConflict, match="does not exist"):
        put(store, flag("new.route"), 3, "new.route")
    assert len(store.history()) == 2
    # another flag's change does not make this one's revision stale
    assert put(store, flag(default="canary"), 1).flags["iris.route"].revision == 3


@over_both
def test_a_change_that_changes_nothing_is_not_written(store: FlagStore) -> None:
    put(store, flag(), 0)
    assert put(store, flag(), 1).revision == 1
    assert len(store.history()) == 1


@over_both
def test_a_deleted_flag_is_gone_and_its_history_stays(store: FlagStore) -> None:
    put(store, flag(), 0)
    assert put(store, None, 1) == FlagDocument(revision=2)
    with pytest.raises(UnknownFlag):
        put(store, None, None)
    assert [row.after is None for row in store.history("iris.route")] == [False, True]
    assert put(store, flag(), 0).flags["iris.route"].revision == 3
    assert writes.verify_trail(store).seq == 3


@over_both
def test_a_whole_document_is_one_revision_with_a_row_per_change(store: FlagStore) -> None:
    for key in ("a.route", "b.route", "c.route"):
        put(store, flag(key), 0, key)
    plain = {
        "metadata": {"bucketing": "flagd-v2"},
        "flags": {
            "a.route": {"state": "DISABLED", "variants": {"stable": "1"}, "defaultVariant": "stable"},
            "b.route": {"state": "ENABLED", "variants": {"stable": "1", "canary": "2"}, "defaultVariant": "stable"},
        },
    }
    with pytest.raises(RevisionConflict):
        writes.replace(store, parse(plain), expected_revision=2, author=ADA, verb="flags.put", reason="import")
    after = writes.replace(store, parse(plain), expected_revision=3, author=ADA, verb="flags.put", reason="import")
    assert {key: found.revision for key, found in after.flags.items()} == {"a.route": 4, "b.route": 2}
    assert after.bucketing == "flagd-v2"
    assert store.load() == after
    assert [row.target for row in store.history(after=3)] == ["a.route", "c.route", "document"]
    assert {row.revision for row in store.history(after=3)} == {4}
    assert writes.verify_trail(store).seq == 6


@over_both
def test_other_events_are_recorded_in_the_same_chain(store: FlagStore) -> None:
    put(store, flag(), 0)
    writes.note(store, Note("token.create", "token:t9", after={"scope": "viewer"}), author=SYSTEM, reason="new")
    (row,) = store.history("token:t9")
    assert (row.seq, row.revision) == (2, 1)
    assert writes.verify_trail(store).seq == 2


def read_records(store: FlagStore, kind: str = "rollout") -> dict[str, tuple[int, Any]]:
    return {record.id: (record.revision, record.body) for record in store.records(kind)}


@over_both
def test_records_flags_and_notes_are_written_together_or_not_at_all(store: FlagStore) -> None:
    def canary(before: FlagDocument) -> FlagDocument:
        return change(before, put=[flag(default="canary")])

    def start(expected_revision: int | None, step: int) -> FlagDocument:
        return store.commit(
            canary,
            author=ADA,
            verb="rollout.step",
            reason="step",
            records=[RecordWrite("rollout", "iris-1", {"step": step}, expected_revision)],
            notes=[Note("rollout.step", "rollout:iris-1", after={"step": step})],
        )

    assert store.records("rollout") == []
    assert start(0, 1).revision == 1
    assert [(row.verb, row.target) for row in store.history()] == [
        ("rollout.step", "iris.route"),
        ("rollout.step", "rollout:iris-1"),
    ]
    with pytest.raises(RevisionConflict, match="rollout 'iris-1' exists already"):
        start(0, 2)
    assert start(1, 2).revision == 1  # the flag is as it was: only record and note are written
    assert read_records(store) == {"iris-1": (2, {"step": 2})}
    assert store.record("rollout", "iris-1") == store.records("rollout")[0]
    assert store.record("rollout", "iris-2") is None

    def refuse(_before: FlagDocument) -> FlagDocument:
        raise UnknownFlag("called off")

    with pytest.raises(UnknownFlag, match="called off"):
        store.commit(refuse, author=ADA, verb="v", reason="r", records=[RecordWrite("rollout", "iris-1", {})])
    store.commit(author=ADA, verb="v", reason="r", records=[RecordWrite("cursor", "webhooks", {"seq": 3})])
    store.commit(author=ADA, verb="v", reason="r", records=[RecordWrite("rollout", "iris-1", None, 2)])
    assert read_records(store) == {}
    assert read_records(store, "cursor") == {"webhooks": (1, {"seq": 3})}
    assert writes.verify_trail(store).seq == 3


def test_a_follower_reads_the_flags_only_when_they_changed(store: FlagStore, follower: FlagStore) -> None:
    put(store, flag(), 0)
    first = follower.load()
    store.commit(author=ADA, verb="v", reason="r", records=[RecordWrite("cursor", "webhooks", {"seq": 3})])
    assert follower.changed()
    assert follower.load() is first
    put(store, flag(default="canary"), 1)
    assert follower.load() != first


def test_a_copy_of_another_store_is_held_under_its_own_revision_and_goes_back_with_it(
    store: FlagStore, follower: FlagStore
) -> None:
    assert isinstance(store, SqliteStore)
    at_7 = FlagDocument(7, {"iris.route": dataclasses.replace(flag(), revision=7)})
    restored = FlagDocument(7, {"iris.route": dataclasses.replace(flag(default="canary"), revision=7)})
    older = FlagDocument(5, {"iris.route": dataclasses.replace(flag(), revision=5)})
    assert store.mirror(at_7) is None
    assert follower.load() == at_7
    assert store.mirror(at_7) == at_7
    assert not follower.changed(), "nothing was written"
    for document, before in ((restored, at_7), (older, restored)):
        assert store.mirror(document) == before
        assert follower.changed()
        assert follower.load() == document
    assert store.history() == []


SCHEMA_1 = """
CREATE TABLE document (only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE audit (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL,
                    target TEXT GENERATED ALWAYS AS (json_extract(body, '$.target')) VIRTUAL);
INSERT INTO document VALUES (1, 4, '{"metadata": {"revision": 4}, "flags": {}}');
PRAGMA user_version = 1;
"""


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


@over_both
def test_history_pages_forward_and_filters_by_target(store: FlagStore) -> None:
    for i in range(6):
        key = f"m{i % 2}.route"
        put(store, flag(key, metadata={"step": i}), None, key)
    assert [row.seq for row in store.history(after=2, limit=3)] == [3, 4, 5]
    assert [row.seq for row in store.history("m1.route")] == [2, 4, 6]
    assert [row.seq for row in store.history("m1.route", newest_first=True, limit=2)] == [6, 4]


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


@over_both
def test_editors_at_the_same_time_lose_no_update(
    store_kind: str, store: FlagStore, path: Path, request: pytest.FixtureRequest
) -> None:
    database = request.getfixturevalue("database") if store_kind == "postgres" else ""

    def edit(worker: int) -> None:
        with contextlib.closing(PostgresStore(database) if database else SqliteStore(path)) as mine:
            done = 0
            while done < 20:
                document = mine.load() or FlagDocument()
                found = document.flags.get("iris.route")
                count = int(found.metadata["count"]) if found else 0
                try:
                    put(mine, flag(metadata={"count": count + 1, "by": worker}), found.revision if found else 0)
                    done += 1
                except RevisionConflict:
                    continue

    assert store.load() is None
    threads = [threading.Thread(target=edit, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    document = store.load()
    assert document is not None
    assert document.flags["iris.route"].metadata["count"] == 60
    assert writes.verify_trail(store).seq == 60


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
