"""The flags in an SQLite file: the store of a gateway on one machine, and the file that every worker follows."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson

from gateway.errors import AuditBroken
from gateway.flags.audit import GENESIS, AuditRow, Author, Head, digest, from_json
from gateway.flags.database import connect, is_set_up, transaction, troubles
from gateway.flags.document import FlagDocument, dump, parse
from gateway.flags.store import Edit, Note, Record, RecordWrite, audit_rows

_SCHEMA_VERSION = 2
_RECORDS = (
    "CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL,"
    " PRIMARY KEY (kind, id)) WITHOUT ROWID"
)
_SCHEMA = (
    "CREATE TABLE document (only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE audit (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL,"
    " target TEXT GENERATED ALWAYS AS (json_extract(body, '$.target')) VIRTUAL)",
    "CREATE INDEX audit_by_target ON audit (target, seq)",
    "CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END",
    "CREATE TRIGGER audit_remains BEFORE DELETE ON audit"
    " BEGIN SELECT RAISE(ABORT, 'audit rows are never deleted'); END",
    _RECORDS,
)
_UPGRADES = {1: (_RECORDS,)}  # from a schema version to the next
_OLDEST_FIRST = "SELECT seq, body, hash FROM audit WHERE seq > ? AND (? IS NULL OR target = ?) ORDER BY seq LIMIT ?"
_NEWEST_FIRST = (
    "SELECT seq, body, hash FROM audit WHERE seq > ? AND (? IS NULL OR target = ?) ORDER BY seq DESC LIMIT ?"
)

_MISSING = (0, 0, 0, 0)
_Mark = tuple[int, int, int, int]  # device, inode, number of the connection, data_version


class SqliteStore:
    """The flags in one file, in WAL mode: one process writes, any number follow.

    Nothing is opened before the first use. Methods may be called from any thread, one at a time (a lock sees to it),
    and block for the time of a disk write at most; `changed` takes some microseconds. All raise StoreUnavailable if
    the file cannot be read or written, or is not what this gateway wrote.

    read_only: never creates or writes the file; a file that does not exist yet is an empty store.
    """

    def __init__(self, path: Path, *, read_only: bool = False, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._read_only = read_only
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] = (0, 0)  # device and inode that the connection has open
        self._connections = 0
        self._loaded: _Mark | None = None
        self._kept: tuple[str, FlagDocument] | None = None  # as a follower last read it

    # -- following ------------------------------------------------------------------------------

    def changed(self) -> bool:
        """Whether another connection committed, or the file was replaced, since the last `load`; True before it."""
        with self._guarded():
            return self._loaded is None or self._mark() != self._loaded

    def load(self) -> FlagDocument | None:
        """The current document; None if none was ever written."""
        with self._guarded():
            mark = self._mark()  # before reading: a commit in between shows as a change once more
            document = None if mark == _MISSING else self._document(self._open())
            self._loaded = mark
            return document

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            self._drop_connection()

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
        """One transaction; see FlagStore."""
        with self._guarded():
            connection = self._open()
            with transaction(connection):
                before = self._document(connection) or FlagDocument()
                after = before if edit is None else edit(before)
                rows = audit_rows(
                    before,
                    after,
                    notes,
                    _head(connection),
                    author=author,
                    verb=verb,
                    reason=reason,
                    now_s=self._clock(),
                )
                for record in records:
                    _write_record(connection, record, after)
                for row in rows:
                    _append(connection, row)
                if after is not before:
                    _put_document(connection, after)
            self._loaded = None
            return after

    def mirror(self, document: FlagDocument) -> FlagDocument | None:
        """Hold a copy of another store: *document* as it is, under its own revision and without audit rows.

        Returns what was held before, which is *document* itself if nothing had to be written.
        """
        with self._guarded():
            connection = self._open()
            with transaction(connection):
                before = self._document(connection)
                if before != document:
                    _put_document(connection, document)
                    self._loaded = None
            return before

    def mirror_records(self, kind: str, records: Sequence[Record]) -> None:
        """Hold a copy of all records of a kind, as another store has them."""
        with self._guarded():
            connection = self._open()
            with transaction(connection):
                connection.execute("DELETE FROM record WHERE kind = ?", (kind,))
                for record in records:
                    body = orjson.dumps(record.body).decode()
                    connection.execute(
                        "INSERT INTO record VALUES (?, ?, ?, ?)", (kind, record.id, record.revision, body)
                    )

    def reread(self) -> None:
        """Look at the file as one who opens it only now: what our own connection has in memory says nothing of it.

        Raises StoreUnavailable, for which `is_damage` holds if the file is torn.
        """
        with self._lock, troubles(self._path):
            connection = connect(self._path, _SCHEMA, version=_SCHEMA_VERSION, upgrades=_UPGRADES, read_only=True)
            with contextlib.closing(connection):
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)

    def discard(self) -> None:
        """Remove the file: only for a copy, which can be made again. Those who have it open see that it is gone."""
        with self._lock, troubles(self._path):
            self._drop_connection()
            for ending in ("-wal", "-shm", ""):
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)

    def hurry(self) -> None:
        """A file answers at once."""

    def now_s(self) -> float:
        """The clock of this machine: unix seconds."""
        return self._clock()

    # -- records --------------------------------------------------------------------------------

    def records(self, kind: str) -> list[Record]:
        """All records of a kind, by id."""
        with self._guarded():
            if self._mark() == _MISSING:
                return []
            found = self._open().execute("SELECT id, revision, body FROM record WHERE kind = ? ORDER BY id", (kind,))
            return [Record(kind, record_id, revision, orjson.loads(body)) for record_id, revision, body in found]

    def record(self, kind: str, record_id: str) -> Record | None:
        """One record; None if there is none."""
        with self._guarded():
            if self._mark() == _MISSING:
                return None
            found = self._open().execute(
                "SELECT revision, body FROM record WHERE kind = ? AND id = ?", (kind, record_id)
            )
            row = found.fetchone()
            return None if row is None else Record(kind, record_id, row[0], orjson.loads(row[1]))

    # -- the trail ------------------------------------------------------------------------------

    def history(
        self, key: str | None = None, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> list[AuditRow]:
        """Audit rows with a seq above *after*, of one target or of all."""
        with self._guarded():
            if self._mark() == _MISSING:
                return []
            found = self._open().execute(_NEWEST_FIRST if newest_first else _OLDEST_FIRST, (after, key, key, limit))
            return [_row(seq, body, sealed) for seq, body, sealed in found]

    # -- the connection -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock, troubles(self._path):
            try:
                yield
            except sqlite3.DatabaseError:
                self._drop_connection()  # the next use starts afresh
                raise

    def _mark(self) -> _Mark:
        """What stays the same as long as nobody else committed."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self._drop_connection()
            if self._read_only:
                return _MISSING
            self._open()
            found = os.stat(self._path)
        file = (found.st_dev, found.st_ino)
        if file != self._file:  # restored from a copy, say: the old connection would never see a change again
            self._drop_connection()
        (version,) = self._open().execute("PRAGMA data_version").fetchone()
        return (*file, self._connections, version)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = connect(
                self._path, _SCHEMA, version=_SCHEMA_VERSION, upgrades=_UPGRADES, read_only=self._read_only
            )
            found = os.stat(self._path)
            self._connection, self._file = connection, (found.st_dev, found.st_ino)
            self._connections += 1
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._file, self._kept = None, (0, 0), None

    def _document(self, connection: sqlite3.Connection) -> FlagDocument | None:
        if self._read_only and not is_set_up(connection, _SCHEMA_VERSION, _UPGRADES):
            return None  # the writer has made the file, but not its tables
        found = connection.execute("SELECT body FROM document").fetchone()
        if found is None:
            return None
        # Records and audit rows are written far more often than flags: a follower need not parse those again. By its
        # text and not by its revision: a database that was restored counts on from an older one.
        if self._read_only and self._kept is not None and self._kept[0] == found[0]:
            return self._kept[1]
        document = parse(orjson.loads(found[0]))
        self._kept = (found[0], document)
        return document


def _put_document(connection: sqlite3.Connection, document: FlagDocument) -> None:
    connection.execute(
        "INSERT INTO document VALUES (1, ?, ?)"
        " ON CONFLICT (only) DO UPDATE SET revision = excluded.revision, body = excluded.body",
        (document.revision, json.dumps(dump(document))),
    )


def _head(connection: sqlite3.Connection) -> Head:
    found = connection.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    return GENESIS if found is None else Head(*found)


def _append(connection: sqlite3.Connection, row: AuditRow) -> None:
    connection.execute("INSERT INTO audit (seq, body, hash) VALUES (?, ?, ?)", (row.seq, row.canonical(), row.hash))


def _row(seq: int, body: str, sealed: str) -> AuditRow:
    if (expected := digest(body)) != sealed:  # before reading it: a changed body need not even be JSON
        raise AuditBroken(f"row {seq} was changed: its fields give the hash {expected}, it has {sealed}")
    return from_json({**json.loads(body), "hash": sealed})


def _write_record(connection: sqlite3.Connection, wanted: RecordWrite, after: FlagDocument) -> None:
    found = connection.execute(
        "SELECT revision FROM record WHERE kind = ? AND id = ?", (wanted.kind, wanted.id)
    ).fetchone()
    revision = 0 if found is None else found[0]
    wanted.check(revision)
    body = wanted.content(after)
    if body is None:
        connection.execute("DELETE FROM record WHERE kind = ? AND id = ?", (wanted.kind, wanted.id))
    else:
        connection.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision, body = excluded.body",
            (wanted.kind, wanted.id, revision + 1, orjson.dumps(body).decode()),
        )
