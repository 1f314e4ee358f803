"""The follower: keeps the snapshot of this host as the database is, and tells the database of the workers here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Coroutine, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import orjson
import psycopg

from gateway.errors import StoreUnavailable
from gateway.flags.database import is_damage
from gateway.flags.document import FlagDocument
from gateway.flags.lastgood import write_last_known_good
from gateway.flags.pglink import AsyncConnection, read_document
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import KEYS, Record
from gateway.following import statuses
from gateway.following.line import Line, rows

_log = getLogger(__name__)

# Notifications are lost when a connection breaks, and nobody is told: so the database is asked as often as this anyway.
POLL_S = 1.0
# An ear that has heard nothing for so long is asked whether it still lives.
HEARTBEAT_S = 5.0
_RETRY_S = 1.0
_STATUS_POLL_S = 0.1
_TIDY_S = 60.0

_DOCUMENT = (
    "SELECT CASE WHEN encode(sha256(convert_to(body, 'UTF8')), 'hex') <> %s THEN body END FROM sluicegate.document"
)
_KEYS_STAMP = (
    "SELECT encode(sha256(convert_to(coalesce(string_agg(id || ' ' || revision || ' ' || body, ' '"
    " ORDER BY id COLLATE \"C\"), ''), 'UTF8')), 'hex') FROM sluicegate.record WHERE kind = %s"
)
_KEYS = "SELECT id, revision, body FROM sluicegate.record WHERE kind = %s"
_PUSH = (
    "INSERT INTO sluicegate.worker_status (host, boot, slot, document, age_s, pushed_at)"
    " SELECT %s, %s, s.slot, s.document, s.age_s, clock_timestamp()"
    " FROM unnest(%s::int[], %s::text[], %s::double precision[]) AS s (slot, document, age_s)"
    " ON CONFLICT (host, boot, slot) DO UPDATE"
    " SET document = excluded.document, age_s = excluded.age_s, pushed_at = excluded.pushed_at"
)
_FORGET = "DELETE FROM sluicegate.worker_status WHERE host = %s AND boot = %s AND slot <> ALL(%s::int[])"
_TIDY = "DELETE FROM sluicegate.worker_status WHERE host <> '' AND pushed_at < clock_timestamp() - interval '1 day'"


class Follower:
    """Works in `tasks` of one event loop, each for ever. Troubles with the database are told once and tried again; the
    host serves on with its snapshot meanwhile.

    line: for queries. ear: greets with LISTEN, and is for nothing else. host, boot: what control knows the workers by.
    copies_keys: whether the workers ask for API keys; they are in a table that hosts need no right to otherwise.
    The last-known-good file is written after the snapshot; its time of modification is when the database last said that
    this is what it holds.
    """

    def __init__(
        self,
        line: Line,
        ear: Line,
        snapshot: SqliteStore,
        *,
        last_known_good: Path,
        status_dir: Path,
        host: str,
        boot: str,
        copies_keys: bool,
    ) -> None:
        self._line = line
        self._ear = ear
        self._snapshot = snapshot
        self._last_known_good = last_known_good
        self._status_dir = status_dir
        self._host = host
        self._boot = boot
        self._copies_keys = copies_keys
        self._known = ""  # digest of the document that snapshot and file hold
        self._known_keys = ""  # what the API keys that the snapshot holds were told by
        self._hint = asyncio.Event()
        self._cannot_follow = False
        self._cannot_push = False
        self._is_leaving = False

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run."""
        return [self._follow(), self._listen(), self._push_statuses()]

    # -- flags ----------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Look at each hint, and each second."""
        while True:
            self._hint.clear()
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):  # wait_for of Python 3.11 may swallow a cancellation
                    await self._hint.wait()

    async def _look(self) -> None:
        try:
            found = await self._line.use(lambda connection: rows(connection, _DOCUMENT, (self._known,)))
            if found:  # an empty database is a lost one, or a new one: control fills it
                body = found[0][0]
                if body is not None:
                    document = read_document(body)
                    await asyncio.to_thread(self._keep, document)
                    self._known = hashlib.sha256(body.encode()).hexdigest()
                if self._copies_keys:
                    await self._look_at_keys()
                await asyncio.to_thread(self._confirm)
        except (StoreUnavailable, OSError) as error:
            if not self._cannot_follow:
                _log.error(
                    "the flags cannot be followed; serving goes on with those at hand", extra={"why": str(error)}
                )
            self._cannot_follow = True
        else:
            if self._cannot_follow:
                _log.info("the flags are followed again")
            self._cannot_follow = False

    def _keep(self, document: FlagDocument) -> None:
        try:
            before = self._snapshot.mirror(document)
            self._snapshot.reread()
        except StoreUnavailable as error:
            if not is_damage(error):
                raise
            _log.error("the snapshot is damaged; it is made anew", extra={"why": str(error)})
            self._snapshot.discard()
            self._known_keys = ""
            before = self._snapshot.mirror(document)
        if before is not None and before != document and document.revision <= before.revision:
            _log.error(
                "the database went back: it was restored, or a server took over that had not got all changes",
                extra={"from_revision": before.revision, "to_revision": document.revision},
            )
        write_last_known_good(self._last_known_good, document)
        _log.info("flags taken over", extra={"revision": document.revision})

    async def _look_at_keys(self) -> None:
        """Copy the API keys if they are others than at the last look."""
        ((stamp,),) = await self._line.use(lambda connection: rows(connection, _KEYS_STAMP, (KEYS,)))
        if stamp == self._known_keys:
            return
        found = await self._line.use(lambda connection: rows(connection, _KEYS, (KEYS,)))
        keys = [Record(KEYS, key_id, revision, orjson.loads(body)) for key_id, revision, body in found]
        await asyncio.to_thread(self._snapshot.mirror_records, KEYS, keys)
        self._known_keys = stamp

    def _confirm(self) -> None:
        try:
            os.utime(self._last_known_good)
        except FileNotFoundError:  # somebody cleared it away
            self._known = ""

    async def _listen(self) -> None:
        """A hint for each notification."""
        while True:
            try:
                # No connection, or a new one: what was notified before it listened was heard by nobody.
                await self._ear.use(lambda connection: rows(connection, "SELECT 1"))
                self._hint.set()
                while True:
                    await self._ear.use(self._hear, timeout_s=2 * HEARTBEAT_S)
            except StoreUnavailable:  # `_look` tells of it
                await asyncio.sleep(_RETRY_S)

    async def _hear(self, connection: AsyncConnection) -> None:
        heard = False
        async for _notification in connection.notifies(timeout=HEARTBEAT_S, stop_after=1):
            heard = True
        if heard:
            self._hint.set()
        else:
            await connection.execute("SELECT 1")

    # -- workers --------------------------------------------------------------------------------

    async def _push_statuses(self) -> None:
        """Push the status documents when one was written, came or went: each second at least, while workers live."""
        pushed: Mapping[str, int] = {}
        tidy_at = 0.0
        while not self._is_leaving:
            found = statuses.stamps(self._status_dir)
            try:
                if found != pushed:
                    await self._line.use(self._push)
                    pushed = found
                if time.monotonic() >= tidy_at:
                    await self._line.use(lambda connection: connection.execute(_TIDY))
                    tidy_at = time.monotonic() + _TIDY_S
                self._cannot_push = False
            except StoreUnavailable as error:
                if not self._cannot_push:
                    _log.error("control cannot be told of the workers here", extra={"why": str(error)})
                self._cannot_push = True
                pushed = {}
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(_STATUS_POLL_S)

    async def _push(self, connection: AsyncConnection) -> None:
        found = await asyncio.to_thread(statuses.read, self._status_dir)
        now_s = time.time()
        slots = [status.slot for status in found]
        ages_s = [max(0.0, now_s - status.written_at) for status in found]
        async with connection.transaction():
            await connection.execute(_FORGET, (self._host, self._boot, slots))
            await connection.execute(
                _PUSH, (self._host, self._boot, slots, [status.document for status in found], ages_s)
            )

    async def say_farewell(self) -> None:
        """Take the workers of this boot back: they have left in order."""
        self._is_leaving = True
        with contextlib.suppress(StoreUnavailable, psycopg.Error):
            await self._line.use(
                lambda connection: connection.execute(_FORGET, (self._host, self._boot, [])),
            )
