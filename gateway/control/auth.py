"""Who may do what: bearer tokens of rising scope, of which only hashes are kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import logging
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import ChangeRefused, Forbidden, InvalidInput, Unauthenticated, UnknownToken
from gateway.flags.database import connect, transaction, troubles
from gateway.flags.lastgood import replace_file

_log = logging.getLogger(__name__)

METRICS, VIEWER, OPERATOR, APPROVER, ADMIN = "metrics", "viewer", "operator", "approver", "admin"
SCOPES = (METRICS, VIEWER, OPERATOR, APPROVER, ADMIN)  # each may do what those before it may
FIRST_NAME = "admin"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_PREFIX = "slg"
_SCHEMA_VERSION = 1
_SCHEMA = (
    "CREATE TABLE token (id TEXT PRIMARY KEY, name TEXT NOT NULL, scope TEXT NOT NULL, hash TEXT NOT NULL,"
    " created_s REAL NOT NULL, revoked_s REAL)",
)
# Compared with when no token has the id that came, so that an unknown id takes the time of a wrong secret.
_NOBODY = "0" * 64


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret. created_s, revoked_s: unix seconds, revoked_s None while it is valid."""

    id: str
    name: str
    scope: str
    created_s: float
    revoked_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def allows(self, scope: str) -> bool:
        """Whether this token reaches as far as *scope*."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class TokenStore:
    """The tokens in one file. Methods block on the disk and may be called from any thread. All raise StoreUnavailable.

    A secret reads ``slg_<id>_<random>``; the file keeps its SHA-256. Random secrets of 256 bits need no slower hash.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def create(self, name: str, scope: str, *, announce: Callable[[Token], object]) -> tuple[Token, str]:
        """A new token and its secret, which is never shown again. Raises InvalidInput.

        announce: called before the token can be used; if it raises, there is no token.
        """
        token, secret, hashed = self._draft(name, scope)
        announce(token)
        with self._opened() as connection:
            _insert(connection, token, hashed)
        return token, secret

    def create_first(self, path: Path) -> bool:
        """On the very first start: write an admin token's secret to *path*, readable by its owner only.

        Returns whether it did. The file comes before the row: a crash between the two is the very first start again.
        """
        with self._opened() as connection:
            (found,) = connection.execute("SELECT count(*) FROM token").fetchone()
            if found:
                return False
            token, secret, hashed = self._draft(FIRST_NAME, ADMIN)
            path.unlink(missing_ok=True)
            replace_file(path, secret.encode() + b"\n", mode=0o600)
            _insert(connection, token, hashed)
        _log.info("an admin token was written", extra={"path": str(path)})
        return True

    def tokens(self) -> list[Token]:
        """All tokens, revoked ones too, oldest first."""
        with self._opened() as connection:
            found = connection.execute("SELECT id, name, scope, created_s, revoked_s FROM token ORDER BY created_s, id")
            return [Token(*row) for row in found]

    def revoke(self, token_id: str) -> Token:
        """End a token for good. Raises UnknownToken, and ChangeRefused for the last admin token."""
        with self._opened() as connection, transaction(connection):
            row = connection.execute(
                "SELECT id, name, scope, created_s, revoked_s FROM token WHERE id = ?", (token_id,)
            ).fetchone()
            if row is None:
                raise UnknownToken(f"no token {token_id!r}")
            token = Token(*row)
            if token.revoked_s is not None:
                return token
            (admins,) = connection.execute(
                "SELECT count(*) FROM token WHERE scope = ? AND revoked_s IS NULL", (ADMIN,)
            ).fetchone()
            if token.scope == ADMIN and admins == 1:
                raise ChangeRefused("this is the last admin token: create another one before you revoke it")
            revoked_s = self._clock()
            connection.execute("UPDATE token SET revoked_s = ? WHERE id = ?", (revoked_s, token_id))
            return dataclasses.replace(token, revoked_s=revoked_s)

    def authenticate(self, secret: str) -> Token:
        """The token that *secret* belongs to. Raises Unauthenticated."""
        prefix, _, rest = secret.partition("_")
        token_id = rest.partition("_")[0] if prefix == _PREFIX else ""
        with self._opened() as connection:
            row = connection.execute(
                "SELECT hash, id, name, scope, created_s, revoked_s FROM token WHERE id = ?", (token_id,)
            ).fetchone()
        matches = hmac.compare_digest(_hash(secret), row[0] if row is not None else _NOBODY)
        if row is None or not matches:
            raise Unauthenticated("the bearer token is not known")
        token = Token(*row[1:])
        if token.revoked_s is not None:
            raise Unauthenticated("the bearer token was revoked")
        return token

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _draft(self, name: str, scope: str) -> tuple[Token, str, str]:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput("name", repr(name)[:80], f"text matching {_NAME.pattern}")
        if scope not in SCOPES:
            raise InvalidInput("scope", repr(scope)[:80], f"one of {', '.join(SCOPES)}")
        token = Token(secrets.token_hex(4), name, scope, self._clock())
        secret = f"{_PREFIX}_{token.id}_{secrets.token_urlsafe(32)}"
        return token, secret, _hash(secret)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._lock, troubles(self._path):
            if self._connection is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
                self._connection = connect(self._path, _SCHEMA, version=_SCHEMA_VERSION)
            yield self._connection


def bearer(header: str | None) -> str:
    """The secret in an Authorization header. Raises Unauthenticated."""
    kind, _, secret = (header or "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise Unauthenticated("send a token as 'Authorization: Bearer TOKEN'")
    return secret.strip()


def require(token: Token, scope: str) -> None:
    """Raises Forbidden if *token* does not reach as far as *scope*."""
    if not token.allows(scope):
        raise Forbidden(
            f"this needs the scope {scope}; the token {token.name!r} has {token.scope}. An admin can make another one: "
            f"`sluicegate token create NAME --scope {scope}`"
        )


def _insert(connection: sqlite3.Connection, token: Token, hashed: str) -> None:
    connection.execute(
        "INSERT INTO token (id, name, scope, hash, created_s) VALUES (?, ?, ?, ?, ?)",
        (token.id, token.name, token.scope, hashed, token.created_s),
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
