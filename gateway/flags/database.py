"""SQLite files opened so that what was committed is never lost, and one error for all that can go wrong with them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import orjson

from gateway.errors import InvalidFlag, StoreUnavailable

# A writer may wait for another one; a reader sits on an event loop and would rather look again 20 ms later.
_WRITER_BUSY_S = 5.0
_READER_BUSY_S = 0.02


# From a schema version to the statements that lead to the next one.
Upgrades = Mapping[int, Sequence[str]]


def connect(
    path: Path, schema: Sequence[str], *, version: int, upgrades: Upgrades | None = None, read_only: bool = False
) -> sqlite3.Connection:
    """Open the file, in WAL mode with a full sync per commit; make or upgrade its tables unless *read_only*.

    The connection is in autocommit mode and may be used from any thread, one at a time. Raises sqlite3.Error, OSError,
    and StoreUnavailable if the file is of another schema *version*.
    """
    if not read_only and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path, schema, version)
    return _connected(path, schema, version, upgrades or {}, read_only=read_only)


def _make(path: Path, schema: Sequence[str], version: int) -> None:
    """Put a file with empty tables in place, whole: one that is made there is locked against readers meanwhile."""
    unnamed = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    unnamed.unlink(missing_ok=True)  # of a process that was killed here
    _connected(unnamed, schema, version, {}, read_only=False).close()
    try:
        os.link(unnamed, path)
    except OSError:
        pass  # another one was quicker, or there are no links here: then it is made in place
    finally:
        unnamed.unlink()


def _connected(
    path: Path, schema: Sequence[str], version: int, upgrades: Upgrades, *, read_only: bool
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        timeout=_READER_BUSY_S if read_only else _WRITER_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            with transaction(connection):
                _set_up(connection, schema, version, upgrades)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, schema: Sequence[str], version: int, upgrades: Upgrades) -> None:
    found = is_set_up(connection, version, upgrades)
    if found == version:
        return
    for statement in schema if not found else [each for at in range(found, version) for each in upgrades[at]]:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {version}")


def is_set_up(connection: sqlite3.Connection, version: int, upgrades: Upgrades | None = None) -> int:
    """The schema version of the tables; 0 if there are none yet.

    Raises StoreUnavailable if it is neither *version* nor one that *upgrades* lead on from.
    """
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found not in (0, version, *(upgrades or {})):
        raise StoreUnavailable(f"the file has schema {found}, this gateway reads {version}")
    return found


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: committed at the end, rolled back on any error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_damage(error: StoreUnavailable) -> bool:
    """Whether the trouble is what stands in the file, and not that it cannot be reached, locked or written now."""
    cause = error.__cause__
    return isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.OperationalError)


@contextlib.contextmanager
def troubles(path: Path) -> Iterator[None]:
    """Whatever keeps *path* from being read or written becomes StoreUnavailable."""
    try:
        yield
    except (sqlite3.Error, OSError, InvalidFlag, orjson.JSONDecodeError) as error:
        raise StoreUnavailable(f"{path} cannot be used: {error}") from error
