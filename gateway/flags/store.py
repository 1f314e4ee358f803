"""Where the flag document is kept: an SQLite file that commits each revision together with its audit rows."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from gateway.errors import AuditBroken, RevisionConflict, UnknownFlag
from gateway.flags.audit import (
    GENESIS,
    AuditRow,
    Author,
    Head,
    check_ending,
    digest,
    from_json,
    next_row,
    targets_of,
    verify,
)
from gateway.flags.database import connect, is_set_up, transaction, troubles
from gateway.flags.document import Flag, FlagDocument, change, dump, parse

_SCHEMA_VERSION = 1
_SCHEMA = (
    "CREATE TABLE document (only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE audit (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL,"
    " target TEXT GENERATED ALWAYS AS (json_extract(body, '$.target')) VIRTUAL)",
    "CREATE INDEX audit_by_target ON audit (target, seq)",
    "CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END",
    "CREATE TRIGGER audit_remains BEFORE DELETE ON audit"
    " BEGIN SELECT RAISE(ABORT, 'audit rows are never deleted'); END",
)
_OLDEST_FIRST = "SELECT body, hash FROM audit WHERE seq > ? AND (? IS NULL OR target = ?) ORDER BY seq LIMIT ?"
_NEWEST_FIRST = "SELECT body, hash FROM audit WHERE seq > ? AND (? IS NULL OR target = ?) ORDER BY seq DESC LIMIT ?"
_VERIFY_CHUNK_ROWS = 1000

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

    def put(
        self, key: str, flag: Flag | None, *, expected_revision: int | None, author: Author, verb: str, reason: str
    ) -> FlagDocument:
        """Write one flag (None: delete it) and its audit row in one transaction; return the document thereafter.

        expected_revision: the flag's revision that the change is based on, 0 if the flag must not exist yet, None for
        any. A flag that would not differ is not written. The flag must have been validated. Raises RevisionConflict,
        and UnknownFlag if there is nothing to delete.
        """

        def edit(before: FlagDocument) -> FlagDocument:
            found = before.flags.get(key)
            if flag is None and found is None:
                raise UnknownFlag(f"no flag {key!r}")
            check_revision(f"flag {key!r}", found.revision if found is not None else 0, expected_revision)
            return change(before, drop=[key]) if flag is None else change(before, put=[flag])

        return self._transact(edit, author, verb, reason)

    def replace(
        self, document: FlagDocument, *, expected_revision: int | None, author: Author, verb: str, reason: str
    ) -> FlagDocument:
        """Write a whole document, with an audit row per flag that it changes, in one transaction.

        expected_revision: the document's. The revisions inside *document* are not read. Raises RevisionConflict.
        """

        def edit(before: FlagDocument) -> FlagDocument:
            check_revision("the flag document", before.revision, expected_revision)
            return change(
                before,
                put=document.flags.values(),
                drop=before.flags.keys() - document.flags.keys(),
                metadata=document.metadata,
                evaluators=document.evaluators,
            )

        return self._transact(edit, author, verb, reason)

    def restore(self, document: FlagDocument, *, author: Author, reason: str) -> FlagDocument:
        """Write *document* into an empty store, under a revision above its own. Raises RevisionConflict."""

        def edit(before: FlagDocument) -> FlagDocument:
            check_revision("the flag document", before.revision, 0)
            return change(
                FlagDocument(document.revision),
                put=document.flags.values(),
                metadata=document.metadata,
                evaluators=document.evaluators,
            )

        return self._transact(edit, author, "flags.restore", reason)

    def record(self, *, author: Author, verb: str, target: str, after: object, reason: str) -> AuditRow:
        """Write an audit row for something that is no flag, as a new token."""
        with self._guarded():
            connection = self._open()
            with transaction(connection):
                document = self._document(connection) or FlagDocument()
                head = _head(connection)
                row = next_row(
                    head,
                    author,
                    now_s=self._clock(),
                    verb=verb,
                    target=target,
                    revision=document.revision,
                    before=None,
                    after=after,
                    reason=reason,
                )
                _append(connection, row)
            return row

    def _transact(
        self, edit: Callable[[FlagDocument], FlagDocument], author: Author, verb: str, reason: str
    ) -> FlagDocument:
        with self._guarded():
            connection = self._open()
            with transaction(connection):
                before = self._document(connection) or FlagDocument()
                after = edit(before)
                if after is before:
                    return before
                head, now_s = _head(connection), self._clock()
                for target, old, new in _differences(before, after):
                    row = next_row(
                        head,
                        author,
                        now_s=now_s,
                        verb=verb,
                        target=target,
                        revision=after.revision,
                        before=old,
                        after=new,
                        reason=reason,
                    )
                    _append(connection, row)
                    head = Head(row.seq, row.hash)
                connection.execute(
                    "INSERT INTO document VALUES (1, ?, ?)"
                    " ON CONFLICT (only) DO UPDATE SET revision = excluded.revision, body = excluded.body",
                    (after.revision, json.dumps(dump(after))),
                )
            self._loaded = None
            return after

    # -- the trail ------------------------------------------------------------------------------

    def history(
        self, key: str | None = None, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> list[AuditRow]:
        """Audit rows with a seq above *after*, of one target or of all."""
        with self._guarded():
            if self._mark() == _MISSING:
                return []
            found = self._open().execute(_NEWEST_FIRST if newest_first else _OLDEST_FIRST, (after, key, key, limit))
            return [_row(body, sealed) for body, sealed in found]

    def verify(self) -> Head:
        """Check the whole trail, and that it ends in the document that is now in force. Raises AuditBroken."""
        head = GENESIS
        rows: list[AuditRow] = []
        while True:
            while more := self.history(after=head.seq, limit=_VERIFY_CHUNK_ROWS):
                head = verify(more, head)
                rows += more
            document = self.load() or FlagDocument()
            if not self.history(after=head.seq, limit=1):  # else a change came between the two
                check_ending(rows, document)
                return head

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
            connection = connect(self._path, _SCHEMA, version=_SCHEMA_VERSION, read_only=self._read_only)
            found = os.stat(self._path)
            self._connection, self._file = connection, (found.st_dev, found.st_ino)
            self._connections += 1
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._file = None, (0, 0)

    def _document(self, connection: sqlite3.Connection) -> FlagDocument | None:
        if self._read_only and not is_set_up(connection, _SCHEMA_VERSION):
            return None  # the writer has made the file, but not its tables
        found = connection.execute("SELECT body FROM document").fetchone()
        return None if found is None else parse(orjson.loads(found[0]))


def _head(connection: sqlite3.Connection) -> Head:
    found = connection.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    return GENESIS if found is None else Head(*found)


def _append(connection: sqlite3.Connection, row: AuditRow) -> None:
    connection.execute("INSERT INTO audit (seq, body, hash) VALUES (?, ?, ?)", (row.seq, row.canonical(), row.hash))


def _row(body: str, sealed: str) -> AuditRow:
    if digest(body) != sealed:  # before reading it: a changed body need not even be JSON
        raise AuditBroken(f"an audit row was changed: {body[:80]!r} does not give its hash")
    return from_json({**json.loads(body), "hash": sealed})


def _differences(before: FlagDocument, after: FlagDocument) -> list[tuple[str, object, object]]:
    old, new = targets_of(before), targets_of(after)
    return [
        (target, old.get(target), new.get(target))
        for target in sorted(old.keys() | new.keys())
        if old.get(target) != new.get(target)
    ]


def check_revision(what: str, current: int, expected: int | None) -> None:
    """The compare of compare-and-set: revision 0 is "does not exist", expecting None is "any".

    Raises RevisionConflict.
    """
    if expected is None or current == expected:
        return
    based = f"the change is based on revision {expected}"
    if expected == 0:
        message = f"{what} exists already, at revision {current}"
    elif current == 0:
        message = f"{what} does not exist; {based}"
    else:
        message = f"{what} is at revision {current} now; {based}"
    raise RevisionConflict(message, current_revision=current)


# -- the last known good document ---------------------------------------------------------------


def write_last_known_good(path: Path, document: FlagDocument) -> None:
    """Write *document* as flagd JSON; a reader sees the old file or the new one. Raises StoreUnavailable."""
    with troubles(path):
        replace_file(path, orjson.dumps(dump(document), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_last_known_good(path: Path) -> FlagDocument | None:
    """The document as last written; None if there is no such file. Raises StoreUnavailable."""
    with troubles(path):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        return parse(orjson.loads(raw))


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Put a file in place so that a crash at any moment leaves the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
