"""The flags in a PostgreSQL database: the store of a gateway on many hosts."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import orjson
import psycopg

from gateway.errors import AuditBroken, StoreUnavailable
from gateway.flags.audit import GENESIS, AuditRow, Author, Head, digest, from_json
from gateway.flags.document import FlagDocument, dump
from gateway.flags.pglink import (
    ANSWER_TIMEOUT_S,
    CHANNEL,
    Connection,
    Cut,
    limited,
    read_address,
    read_document,
    settle,
    troubles,
)
from gateway.flags.store import KEYS, Edit, HostStatus, Note, Record, RecordWrite, audit_rows

Found = TypeVar("Found")

# How long a trouble is taken for granted before the server is tried again, and how long a call waits for its turn.
_REST_S = 1.0
_TURN_TIMEOUT_S = 10.0
_HURRY_TIMEOUT_S = 1.0
_TRIES = 3
# Workers that were not heard of for so long are not told of any more.
_STATUS_KEPT_S = 60.0

# The first statement of every write: one row that all writers update is the lock between them, and the clock of the
# database is the one clock of all of them.
_ENTER = (
    "UPDATE sluicegate.version SET commits = commits + 1"
    " RETURNING extract(epoch FROM clock_timestamp())::double precision"
)
_PUT_DOCUMENT = (
    "INSERT INTO sluicegate.document (revision, body) VALUES (%s, %s)"
    " ON CONFLICT (one) DO UPDATE SET revision = excluded.revision, body = excluded.body"
)
_PUT_RECORD = (
    "INSERT INTO sluicegate.record VALUES (%s, %s, %s, %s)"
    " ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision, body = excluded.body"
)
_ROWS = (
    "SELECT seq, body, hash, target FROM sluicegate.audit"
    " WHERE seq > %s AND (%s::text IS NULL OR target = %s) ORDER BY seq"
)
_STATUSES = (
    "SELECT host, document, age_s + greatest(0, extract(epoch FROM clock_timestamp() - pushed_at))::double precision"
    " FROM sluicegate.worker_status"
    " WHERE host = '' OR pushed_at > clock_timestamp() - make_interval(secs => %s)"
    " ORDER BY host, boot, slot"
)
# A crash of the server empties this table, which no list of workers can tell: so a row of our own says since when it is
# filled.
_MARK = "INSERT INTO sluicegate.worker_status VALUES ('', '', 0, '{}', 0, clock_timestamp()) ON CONFLICT DO NOTHING"


class PostgresStore:
    """See FlagStore. Nothing is opened before the first use; tables are made by the first store that is used.

    Methods may be called from any thread, one at a time (a lock sees to it), and block for seconds at most. While the
    server is known to be away, they raise at once, and one call a second tries again.
    """

    def __init__(self, url: str) -> None:
        """Raises InvalidSetting for a URL that cannot be read."""
        self._address = read_address(url, application="sluicegate control")
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._loaded_commits: int | None = None
        self._running: Cut | None = None  # ends the call that is waiting for the server
        self._answer_timeout_s = ANSWER_TIMEOUT_S
        self._rest_s = _REST_S
        self._trouble: StoreUnavailable | None = None  # of the last try, until one succeeds
        self._retry_at = 0.0

    @property
    def shown(self) -> str:
        """The address of the database, for people: without its password."""
        return self._address.shown

    # -- following ------------------------------------------------------------------------------

    def changed(self) -> bool:
        """Whether somebody else committed since the last `load`; True before it."""

        def work(connection: Connection) -> bool:
            return bool(_one(connection, "SELECT commits FROM sluicegate.version")[0] != self._loaded_commits)

        return self._loaded_commits is None or self._run(work)

    def load(self) -> FlagDocument | None:
        """The current document; None if none was ever written."""

        def work(connection: Connection) -> FlagDocument | None:
            commits, body = _one(
                connection,
                "SELECT v.commits, d.body FROM sluicegate.version v LEFT JOIN sluicegate.document d ON true",
            )
            document = None if body is None else read_document(body)
            self._loaded_commits = commits
            return document

        return self._run(work)

    def now_s(self) -> float:
        """The clock of the database: unix seconds."""
        return float(self._run(lambda c: _one(c, "SELECT extract(epoch FROM clock_timestamp())::double precision")[0]))

    def hurry(self) -> None:
        """Calls get a second from now on, and once the server was found to be away, nobody tries again."""
        self._answer_timeout_s, self._rest_s = _HURRY_TIMEOUT_S, math.inf
        running = self._running
        if running is not None:
            timer = threading.Timer(_HURRY_TIMEOUT_S, running)
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        with self._lock:
            self._drop()

    # -- writing --------------------------------------------------------------------------------

    def commit(
        self,
        edit: Edit | None = None,
        *,
        author: Author,
        verb: str,
        reason: str,
        records: Sequence[RecordWrite] = (),
        notes: Sequence[Note] = (),
    ) -> FlagDocument:
        """One transaction; see FlagStore. Audit rows carry the time of the database."""

        def write(connection: Connection) -> FlagDocument:
            (now_s,) = _one(connection, _ENTER)
            found = connection.execute("SELECT body FROM sluicegate.document").fetchone()
            before = FlagDocument() if found is None else read_document(found[0])
            after = before if edit is None else edit(before)
            rows = audit_rows(
                before, after, notes, _head(connection), author=author, verb=verb, reason=reason, now_s=now_s
            )
            for record in records:
                _write_record(connection, record, after)
            for row in rows:
                connection.execute(
                    "INSERT INTO sluicegate.audit VALUES (%s, %s, %s, %s)",
                    (row.seq, row.target, row.canonical(), row.hash),
                )
            if after is not before:
                connection.execute(_PUT_DOCUMENT, (after.revision, json.dumps(dump(after))))
            if after is not before or any(record.kind == KEYS for record in records):
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(after.revision)))
            return after

        after = self._run(lambda connection: _committed(connection, write))
        self._loaded_commits = None
        return after

    # -- records --------------------------------------------------------------------------------

    def records(self, kind: str) -> list[Record]:
        """All records of a kind, by id."""
        query = 'SELECT id, revision, body FROM sluicegate.record WHERE kind = %s ORDER BY id COLLATE "C"'
        found = self._run(lambda connection: connection.execute(query, (kind,)).fetchall())
        return [Record(kind, record_id, revision, orjson.loads(body)) for record_id, revision, body in found]

    def record(self, kind: str, record_id: str) -> Record | None:
        """One record; None if there is none."""
        query = "SELECT revision, body FROM sluicegate.record WHERE kind = %s AND id = %s"
        row = self._run(lambda connection: connection.execute(query, (kind, record_id)).fetchone())
        return None if row is None else Record(kind, record_id, row[0], orjson.loads(row[1]))

    # -- the trail ------------------------------------------------------------------------------

    def history(
        self, target: str | None = None, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> list[AuditRow]:
        """Audit rows with a seq above *after*, of one target or of all. Raises AuditBroken for a changed row."""
        query = f"{_ROWS}{' DESC' if newest_first else ''} LIMIT %s"
        given = (after, target, target, limit)
        found = self._run(lambda connection: connection.execute(query.encode(), given).fetchall())
        return [_row(*row) for row in found]

    # -- workers --------------------------------------------------------------------------------

    def statuses(self) -> tuple[list[HostStatus], float]:
        """What the followers of all hosts have pushed of their workers, by host, boot and slot.

        And for how many seconds they have been pushing: after a crash of the server, they begin anew.
        """

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            found = connection.execute(_STATUSES, (_STATUS_KEPT_S,)).fetchall()
            if found and found[0][0] == "":
                return found
            connection.execute(_MARK)
            return [("", "{}", 0.0), *found]

        (_host, _document, since_s), *found = self._run(work)
        return [HostStatus(host, orjson.loads(document), age_s) for host, document, age_s in found], since_s

    # -- the connection -------------------------------------------------------------------------

    def _run(self, work: Callable[[Connection], Found]) -> Found:
        """Do *work*, which may be done again from its start as long as nothing of it was committed."""
        with self._turn(), troubles(self._address):
            for tries_left in reversed(range(_TRIES)):
                connection, is_new = self._open()
                try:
                    with limited(connection, self._answer_timeout_s) as cut:
                        self._running = cut
                        return work(connection)
                except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                    if not tries_left:
                        raise
                except psycopg.Error:
                    # A connection that was idle may have ended long ago: that is no trouble yet.
                    if is_new or not connection.closed or cut.happened:
                        raise
                finally:
                    self._running = None
                    if connection.closed:
                        self._drop()
            raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One call at a time; and while the server is away, one try a second, which nobody else waits for."""
        known = self._trouble
        if known is not None and time.monotonic() < self._retry_at:
            raise StoreUnavailable(str(known))
        if not self._lock.acquire(timeout=_TURN_TIMEOUT_S if known is None else 0):
            raise known or StoreUnavailable("the flag store is busy with other requests; try again")
        try:
            met = self._trouble
            if met is not known and met is not None:  # while this call waited; it need not find out for itself
                raise StoreUnavailable(str(met))
            try:
                yield
                self._trouble = None
            except StoreUnavailable as error:
                if self._connection is None:
                    self._trouble, self._retry_at = error, time.monotonic() + self._rest_s
                raise
        finally:
            self._lock.release()

    def _open(self) -> tuple[Connection, bool]:
        """The connection, and whether it was made just now."""
        if self._connection is not None:
            return self._connection, False
        connection = psycopg.connect(**self._address.parameters, autocommit=True, prepare_threshold=None)
        try:
            with limited(connection):
                settle(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection, True

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._loaded_commits = None, None


def _committed(connection: Connection, write: Callable[[Connection], Found]) -> Found:
    """What *write* returns, once the server has said that it is on disk."""
    is_sent = False
    try:
        with connection.transaction():
            written = write(connection)
            is_sent = True
    except psycopg.Error as error:
        if is_sent and connection.closed:
            raise StoreUnavailable(
                "the connection ended while the change was being committed: it may be written or not; "
                "read the flags before you try again"
            ) from error
        raise
    return written


def _one(connection: Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    if row is None:
        raise StoreUnavailable("its table sluicegate.version is empty; restore the database from a backup")
    return row


def _head(connection: Connection) -> Head:
    found = connection.execute("SELECT seq, hash FROM sluicegate.audit ORDER BY seq DESC LIMIT 1").fetchone()
    return GENESIS if found is None else Head(*found)


def _row(seq: int, body: str, sealed: str, target: str) -> AuditRow:
    if (expected := digest(body)) != sealed:  # before reading it: a changed body need not even be JSON
        raise AuditBroken(f"row {seq} was changed: its fields give the hash {expected}, it has {sealed}")
    row = from_json({**json.loads(body), "hash": sealed})
    if row.target != target:
        raise AuditBroken(f"row {seq} is filed under {target!r}, and is about {row.target!r}")
    return row


def _write_record(connection: Connection, wanted: RecordWrite, after: FlagDocument) -> None:
    found = connection.execute(
        "SELECT revision FROM sluicegate.record WHERE kind = %s AND id = %s", (wanted.kind, wanted.id)
    ).fetchone()
    revision = 0 if found is None else found[0]
    wanted.check(revision)
    body = wanted.content(after)
    if body is None:
        connection.execute("DELETE FROM sluicegate.record WHERE kind = %s AND id = %s", (wanted.kind, wanted.id))
    else:
        text = orjson.dumps(body).decode()
        connection.execute(_PUT_RECORD, (wanted.kind, wanted.id, revision + 1, text))
