"""The stores: compare-and-set, followers, records and history, over both of them."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path

import pytest

from gateway.errors import RevisionConflict, StoreUnavailable, UnknownFlag
from gateway.flags import audit
from gateway.flags import store as writes
from gateway.flags.audit import SYSTEM
from gateway.flags.document import FlagDocument, change, parse
from gateway.flags.postgres import PostgresStore
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import FlagStore, Note, RecordWrite
from tests.flags.stores import ADA, flag, over_both, put, read_records


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


@over_both
def test_history_pages_forward_and_filters_by_target(store: FlagStore) -> None:
    for i in range(6):
        key = f"m{i % 2}.route"
        put(store, flag(key, metadata={"step": i}), None, key)
    assert [row.seq for row in store.history(after=2, limit=3)] == [3, 4, 5]
    assert [row.seq for row in store.history("m1.route")] == [2, 4, 6]
    assert [row.seq for row in store.history("m1.route", newest_first=True, limit=2)] == [6, 4]


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
