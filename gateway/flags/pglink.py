"""PostgreSQL reached so that nothing waits for ever: address, deadlines, tables, and one error for all its troubles."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import psycopg
from psycopg.conninfo import conninfo_to_dict

from gateway.errors import InvalidFlag, InvalidSetting, StoreUnavailable
from gateway.flags.document import FlagDocument, parse
from gateway.passwords import LEFT_OUT, redacted

Connection = psycopg.Connection[tuple[Any, ...]]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]

SCHEMA_VERSION = 1
CHANNEL = "sluicegate_flags"  # a notification carries the new revision, and is no more than a hint

# A connection attempt, and a statement with its answer. The server gives up a little earlier than we, so that a slow
# statement costs an error, and only a server that is silent costs the connection.
CONNECT_TIMEOUT_S = 3
ANSWER_TIMEOUT_S = 4.0
_STATEMENT_TIMEOUT_MS = 3000
_LOCK_TIMEOUT_MS = 2000

# What a URL may say otherwise.
_DEFAULTS: Mapping[str, str | int] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 4000,  # milliseconds
}
# search_path: no table or function of somebody else may stand in for one of PostgreSQL's own.
# idle_in_transaction_session_timeout: a control that is stopped in mid-write must not keep all others from writing.
_SESSION = f"""
SET statement_timeout = {_STATEMENT_TIMEOUT_MS};
SET lock_timeout = {_LOCK_TIMEOUT_MS};
SET idle_in_transaction_session_timeout = {_STATEMENT_TIMEOUT_MS};
SET search_path = pg_catalog;
SET default_transaction_isolation = 'read committed';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
"""

_SET_UP_LOCK = 0x736C7569_63656761  # any number that is ours
_SCHEMA = (
    "CREATE TABLE sluicegate.version"
    " (one boolean PRIMARY KEY DEFAULT true CHECK (one), schema integer NOT NULL, commits bigint NOT NULL)",
    "CREATE TABLE sluicegate.document"
    " (one boolean PRIMARY KEY DEFAULT true CHECK (one), revision bigint NOT NULL, body text NOT NULL)",
    "CREATE TABLE sluicegate.audit"
    " (seq bigint PRIMARY KEY, target text NOT NULL, body text NOT NULL, hash text NOT NULL)",
    "CREATE INDEX audit_by_target ON sluicegate.audit (target, seq)",
    "CREATE TABLE sluicegate.record"
    " (kind text NOT NULL, id text NOT NULL, revision bigint NOT NULL, body text NOT NULL, PRIMARY KEY (kind, id))",
    # Unlogged: rewritten each second, worth nothing after a crash, and so not worth a write-ahead log either.
    "CREATE UNLOGGED TABLE sluicegate.worker_status"
    " (host text NOT NULL, boot text NOT NULL, slot integer NOT NULL, document text NOT NULL,"
    " age_s double precision NOT NULL, pushed_at timestamptz NOT NULL, PRIMARY KEY (host, boot, slot))"
    " WITH (fillfactor = 50)",
    "CREATE FUNCTION sluicegate.keep_audit() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'audit rows are never changed or deleted'; END $$",
    "CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE ON sluicegate.audit"
    " FOR EACH ROW EXECUTE FUNCTION sluicegate.keep_audit()",
    "CREATE TRIGGER audit_remains BEFORE TRUNCATE ON sluicegate.audit"
    " FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.keep_audit()",
    "ALTER TABLE sluicegate.audit ENABLE ALWAYS TRIGGER audit_stays",
    "ALTER TABLE sluicegate.audit ENABLE ALWAYS TRIGGER audit_remains",
    "INSERT INTO sluicegate.version (schema, commits) VALUES (1, 0)",
)
# From a schema version to the statements that lead to the next one. Followers do not look at the version: a change of
# `document` or `worker_status` that they cannot live with has to rename the table.
_UPGRADES: Mapping[int, Sequence[str]] = {}

# By SQLSTATE, or its class: what the operator can do.
_ADVICE: Mapping[str, str] = {
    "57014": "it took too long to answer; see what the server is busy with",
    "55P03": "another control is writing and does not come to an end; try again",
    "42501": "grant the rights that docs/operate.md names to the user in flags.store",
    "3F000": "there are no tables of Sluicegate in it yet; start control with this store first",
    "42P01": "there are no tables of Sluicegate in it yet; start control with this store first",
    "25006": "this server takes no writes; name the primary in flags.store",
    "53": "the server is out of disk, memory or connections; see to it there",
}
_ADVICE_OTHERWISE = (
    "see that the server runs, that flags.store names it rightly, and that this host and user may connect"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is. shown: for people, without password. parameters: for psycopg's connect."""

    shown: str
    parameters: Mapping[str, Any] = field(repr=False)
    password: str = field(repr=False)

    def without_password(self, text: str) -> str:
        """*text* as it may be logged."""
        return text.replace(self.password, LEFT_OUT) if self.password else text


def read_address(url: str, *, application: str) -> Address:
    """Read a ``postgresql://`` URL. application: what the server's own views call us. Raises InvalidSetting."""
    try:
        given: dict[str, Any] = conninfo_to_dict(url)
        for port in str(given.get("port") or "5432").split(","):
            int(port)  # not so if a / ended the address inside of the password
    except (psycopg.Error, ValueError):  # its text may hold a part of the password
        raise InvalidSetting(
            f"setting 'flags.store': {redacted(url)!r} is no URL that PostgreSQL knows; "
            "characters such as / @ : # in user and password must be percent-encoded"
        ) from None
    # A follower writes too, and a standby could lie behind: only ever the primary.
    fixed = {"application_name": application, "target_session_attrs": "read-write", "client_encoding": "UTF8"}
    return Address(redacted(url), {**_DEFAULTS, **given, **fixed}, str(given.get("password") or ""))


def settle(connection: Connection) -> None:
    """Make a new connection ours: its limits, and tables that this gateway can use.

    Raises psycopg.Error, StoreUnavailable.
    """
    connection.execute(_SESSION)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SET_UP_LOCK,))
        if connection.execute("SHOW server_encoding").fetchone() != ("UTF8",):
            raise StoreUnavailable("it must hold any text; create the database with ENCODING 'UTF8'")
        _set_up(connection)


async def settle_follower(connection: AsyncConnection) -> None:
    """The same for a connection that only follows: it makes no tables. Raises psycopg.Error."""
    await connection.execute(_SESSION)


def _set_up(connection: Connection) -> None:
    statements: list[str] = []
    if connection.execute("SELECT to_regclass('sluicegate.version')").fetchone() == (None,):
        if connection.execute("SELECT to_regnamespace('sluicegate')").fetchone() == (None,):
            statements.append("CREATE SCHEMA sluicegate")  # else an administrator has made it for us
        statements += _SCHEMA
    else:
        row = connection.execute("SELECT schema FROM sluicegate.version").fetchone()
        found = row[0] if row is not None else 0
        if found not in (SCHEMA_VERSION, *_UPGRADES):
            raise StoreUnavailable(f"it has schema {found}, this gateway reads {SCHEMA_VERSION}; install the newer one")
        for version in range(found, SCHEMA_VERSION):
            statements += [*_UPGRADES[version], "UPDATE sluicegate.version SET schema = schema + 1"]
    for statement in statements:
        connection.execute(statement.encode())


# -- deadlines --------------------------------------------------------------------------------------


class Cut:
    """Ends a connection from outside: whoever waits for the server gets an error at once.

    psycopg has deadlines for connecting only, and a server that is frozen, or cut off behind something that still
    answers TCP, would be waited for as long as that lasts.
    """

    def __init__(self, connection: Connection | AsyncConnection) -> None:
        # A copy, so that the number cannot come to stand for another file meanwhile.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self.happened = False

    def __call__(self) -> None:
        self.happened = True
        with contextlib.suppress(OSError):  # it has ended by itself
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def limited(connection: Connection, timeout_s: float = ANSWER_TIMEOUT_S) -> Iterator[Cut]:
    """Cut *connection* if the block takes longer."""
    cut = Cut(connection)
    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield cut
    finally:
        timer.cancel()
        timer.join()  # it may be cutting just now
        cut.close()


# -- troubles ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def troubles(address: Address) -> Iterator[None]:
    """Whatever keeps the database from being read or written becomes StoreUnavailable, with what to do."""
    try:
        yield
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{address.shown} cannot be used: {error}", retry_after_s=error.retry_after_s) from error
    except psycopg.Error as error:
        state = error.sqlstate or ""
        advice = _ADVICE.get(state) or _ADVICE.get(state[:2]) or _ADVICE_OTHERWISE
        said = " ".join(address.without_password(str(error)).split()) or type(error).__name__
        raise StoreUnavailable(f"{address.shown} cannot be used: {said}; {advice}") from error
    except OSError as error:
        raise StoreUnavailable(f"{address.shown} cannot be used: {error}; {_ADVICE_OTHERWISE}") from error


def read_document(body: str) -> FlagDocument:
    """The document of a row. Raises StoreUnavailable if it is none."""
    try:
        return parse(orjson.loads(body))
    except (InvalidFlag, orjson.JSONDecodeError) as error:
        raise StoreUnavailable(f"its flag document is not what this gateway wrote: {error}") from error
