"""The follower in this process, against a real database: what it copies, what it keeps, and what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.flags import store as writes
from gateway.flags.audit import SYSTEM
from gateway.flags.document import FlagDocument, dump, parse_flag
from gateway.flags.lastgood import read_last_known_good
from gateway.flags.pglink import CHANNEL, read_address
from gateway.flags.postgres import PostgresStore
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import KEYS, RecordWrite
from gateway.following.follower import Follower
from gateway.following.line import Line
from tests.postgres import PostgresServer, database_of

LISTEN = f"LISTEN {CHANNEL}"


def put(store: PostgresStore, step: int = 0) -> FlagDocument:
    plain: dict[str, Any] = {"state": "ENABLED", "variants": {"a": "1"}, "defaultVariant": "a"}
    flag = parse_flag("iris.route", {**plain, "metadata": {"step": step}})
    return writes.put(store, flag.key, flag, expected_revision=None, author=SYSTEM, verb="put", reason="because")


@pytest.fixture
def store(database: str) -> Iterator[PostgresStore]:
    with contextlib.closing(PostgresStore(database)) as opened:
        yield opened


class Host:
    """The files of a host, and its follower while `following`."""

    def __init__(self, root: Path, database: str) -> None:
        self.snapshot_path = root / "flags.snapshot.sqlite"
        self.last_known_good = root / "flags.lkg.json"
        self.status_dir = root / "status"
        self.status_dir.mkdir()
        self._address = read_address(database, application="a test")
        self._reader = SqliteStore(self.snapshot_path, read_only=True)

    def document(self) -> FlagDocument | None:
        """What a worker reads; None while the file is being made."""
        try:
            return self._reader.load()
        except StoreUnavailable:
            return None

    def keys(self) -> dict[str, Any]:
        """The API keys that a worker reads, by id."""
        try:
            return {record.id: record.body for record in self._reader.records(KEYS)}
        except StoreUnavailable:
            return {}

    @contextlib.asynccontextmanager
    async def following(self, *, greeting: str = LISTEN, copies_keys: bool = True) -> AsyncIterator[None]:
        line, ear = Line(self._address), Line(self._address, greeting)
        snapshot = SqliteStore(self.snapshot_path)
        follower = Follower(
            line,
            ear,
            snapshot,
            last_known_good=self.last_known_good,
            status_dir=self.status_dir,
            host="here",
            boot="boot-1",
            copies_keys=copies_keys,
        )
        tasks = [asyncio.create_task(each) for each in follower.tasks()]
        try:
            yield
            assert not [task for task in tasks if task.done()], "a follower never ends by itself"
            await follower.say_farewell()
        finally:
            await line.close()
            await ear.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            snapshot.close()
            self._reader.close()

    def write_status(self, slot: int, *, age_s: float = 0.0) -> None:
        document = {"slot": slot, "boot": "boot-1", "written_at": time.time() - age_s}
        draft = self.status_dir / "draft"
        draft.write_text(json.dumps(document))
        draft.replace(self.status_dir / f"worker-{slot}.json")


@pytest.fixture
def host(tmp_path: Path, database: str) -> Host:
    return Host(tmp_path, database)


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(check):
            await asyncio.sleep(0.01)


def test_a_change_is_copied_with_its_revision_and_the_last_known_good_file_follows(
    host: Host, store: PostgresStore
) -> None:
    first = put(store, 1)

    async def follow() -> None:
        async with host.following():
            await until(lambda: host.document() == first)
            second = await asyncio.to_thread(put, store, 2)
            await until(lambda: host.document() == second)
            await until(lambda: read_last_known_good(host.last_known_good) == second)
            host.last_known_good.unlink()
            await until(lambda: read_last_known_good(host.last_known_good) == second)

    asyncio.run(follow())


def test_a_change_is_found_when_its_notification_is_lost(host: Host, store: PostgresStore) -> None:
    async def follow() -> None:
        async with host.following(greeting=""):  # an ear that does not listen hears nothing
            for step in range(2):
                document = await asyncio.to_thread(put, store, step)
                await until(lambda document=document: host.document() == document)  # type: ignore[misc]

    asyncio.run(follow())


def test_api_keys_are_copied_and_taken_away_at_each_change(host: Host, store: PostgresStore) -> None:
    put(store)

    def write(key_id: str, body: dict[str, Any] | None) -> None:
        store.commit(author=SYSTEM, verb="a test", reason="", records=[RecordWrite(KEYS, key_id, body)])

    async def follow() -> None:
        async with host.following():
            await until(host.document)
            await asyncio.to_thread(write, "b", {"name": "ü"})
            await until(lambda: host.keys() == {"b": {"name": "ü"}})
            await asyncio.to_thread(write, "a", {"name": "x"})
            await asyncio.to_thread(write, "b", {"name": "y"})
            await until(lambda: host.keys() == {"a": {"name": "x"}, "b": {"name": "y"}})
            host.snapshot_path.write_bytes(b"no database, but long enough to be read as one" * 200)
            await asyncio.to_thread(put, store, 2)
            await until(lambda: host.keys() == {"a": {"name": "x"}, "b": {"name": "y"}})
            await asyncio.to_thread(write, "a", None)
            await until(lambda: host.keys() == {"b": {"name": "y"}})

    asyncio.run(follow())


def test_where_no_keys_are_asked_for_none_are_copied(host: Host, store: PostgresStore) -> None:
    write = RecordWrite(KEYS, "a", {"name": "x"})
    store.commit(author=SYSTEM, verb="a test", reason="", records=[write])

    async def follow() -> None:
        async with host.following(copies_keys=False):
            first = put(store, 1)
            await until(lambda: read_last_known_good(host.last_known_good) == first)
            assert host.keys() == {}

    asyncio.run(follow())


def test_the_file_says_when_the_database_was_last_heard_of(
    host: Host, store: PostgresStore, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, 1)

    def heard_at() -> float:
        return host.last_known_good.stat().st_mtime if host.last_known_good.exists() else 0.0

    async def follow() -> None:
        async with host.following():
            await until(lambda: heard_at() > 0)
            first = heard_at()
            await until(lambda: heard_at() > first)
            postgres.execute(database_of(store.shown), "ALTER TABLE sluicegate.document RENAME TO away")
            await until(lambda: "cannot be followed" in caplog.text)
            last = heard_at()
            host.write_status(0)
            await until(lambda: store.statuses()[0])
            assert heard_at() == last, "the database lives, but it did not say what it holds"

    asyncio.run(follow())


def test_an_empty_database_empties_no_host(host: Host, store: PostgresStore, postgres: PostgresServer) -> None:
    document = put(store, 1)
    name = database_of(store.shown)

    async def follow() -> None:
        async with host.following():
            await until(lambda: host.document() == document)
            postgres.execute(name, "DELETE FROM sluicegate.document")
            # whoever reads worker_status afterwards reads what was pushed after the look at the empty table
            host.write_status(0)
            await until(lambda: [status.document["slot"] for status in store.statuses()[0]] == [0])
            assert host.document() == document

    asyncio.run(follow())


def test_a_damaged_snapshot_is_made_anew(host: Host, store: PostgresStore) -> None:
    document = put(store, 1)
    host.snapshot_path.write_bytes(b"no database, but long enough to be read as one" * 200)

    async def follow() -> None:
        async with host.following():
            await until(lambda: host.document() == document)

    assert host.document() is None
    asyncio.run(follow())


def test_a_database_that_was_restored_is_followed_back(
    host: Host, store: PostgresStore, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, 1)
    older = store.load()
    name = database_of(store.shown)

    async def follow() -> None:
        async with host.following():
            newer = await asyncio.to_thread(put, store, 2)
            await until(lambda: host.document() == newer)
            assert older is not None
            body = json.dumps(dump(older))
            postgres.execute(name, f"UPDATE sluicegate.document SET revision = 1, body = '{body}'")
            await until(lambda: host.document() == older)

    asyncio.run(follow())
    assert "the database went back" in caplog.text


def test_the_database_is_told_of_the_workers_that_live_here(host: Host, store: PostgresStore) -> None:
    store.load()

    def told() -> dict[int, int]:
        return {status.document["slot"]: round(status.age_s) for status in store.statuses()[0]}

    async def follow() -> None:
        async with host.following():
            host.write_status(0)
            host.write_status(1, age_s=7)
            await until(lambda: set(told()) == {0, 1})
            assert told()[1] >= 7
            (host.status_dir / "worker-0.json").unlink()  # its worker died, and the supervisor cleared it away
            await until(lambda: set(told()) == {1})
        assert told() == {}, "all left in order"

    asyncio.run(follow())
