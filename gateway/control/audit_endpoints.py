"""The doors to the audit trail: rows, checkpoints, and whether it is what was written; who reads is written down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import VIEWER, TokenStore
from gateway.control.checkpoints import Checkpoint, public_keys_in, read_checkpoints, to_pem
from gateway.control.endpoints import MAX_ROWS, reply
from gateway.control.reads import ReadLog
from gateway.control.trail import check_store
from gateway.errors import AuditBroken, StoreUnavailable, UnknownFlag
from gateway.flags.audit import AuditRow
from gateway.flags.store import FlagStore

HISTORY_ROWS = 50
AUDIT_ROWS = 1000
CHECKPOINTS = 100


@dataclass(frozen=True, slots=True)
class AuditEndpoints:
    """``/admin/v1/audit`` and the histories of flags. state: the directory of the public keys."""

    store: FlagStore
    tokens: TokenStore
    reads: ReadLog
    state: Path
    checkpoint_file: Path
    _verifying: asyncio.Lock = field(default_factory=asyncio.Lock)  # one at a time: it reads the whole trail

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/flags/{key}/history", self.history, methods=["GET"]),
            Route("/admin/v1/audit", self.rows, methods=["GET"]),
            Route("/admin/v1/audit/checkpoints", self.checkpoints, methods=["GET"]),
            Route("/admin/v1/audit:verify", self.verify, methods=["GET"]),
        ]

    async def history(self, request: Request) -> Response:
        """The audit rows of one flag, newest first."""
        token = await requests.sender(request, self.tokens, VIEWER)
        key = request.path_params["key"]
        limit = requests.whole_number(request, "limit", HISTORY_ROWS, low=1, high=MAX_ROWS)
        rows = await run_in_threadpool(self.store.history, key, limit=limit, newest_first=True)
        if not rows:
            raise UnknownFlag(f"no flag {key!r}, and there never was one")
        await run_in_threadpool(self.reads.note, "history", requests.author(request, token), rows, flag=key)
        return _rows(rows)

    async def rows(self, request: Request) -> Response:
        """Audit rows after a seq, oldest first."""
        token = await requests.sender(request, self.tokens, VIEWER)
        after = requests.whole_number(request, "after", 0, low=0, high=10**17)
        limit = requests.whole_number(request, "limit", AUDIT_ROWS, low=1, high=MAX_ROWS)
        rows = await run_in_threadpool(self.store.history, after=after, limit=limit)
        await run_in_threadpool(self.reads.note, "rows", requests.author(request, token), rows)
        return _rows(rows)

    async def checkpoints(self, request: Request) -> Response:
        """The newest signed checkpoints, oldest of them first, and the public keys that they are signed with."""
        token = await requests.sender(request, self.tokens, VIEWER)
        limit = requests.whole_number(request, "limit", CHECKPOINTS, low=1, high=MAX_ROWS)
        await run_in_threadpool(self.reads.note, "checkpoints", requests.author(request, token), [])
        return reply(await run_in_threadpool(self._checkpoints, limit))

    async def verify(self, request: Request) -> Response:
        """Whether the trail is what was written: by its chain, its checkpoints and the flags in force."""
        token = await requests.sender(request, self.tokens, VIEWER)
        await run_in_threadpool(self.reads.note, "verify", requests.author(request, token), [])
        async with self._verifying:
            return reply(await run_in_threadpool(self._verify))

    def _checkpoints(self, limit: int) -> dict[str, Any]:
        found = self._read_file()
        try:
            keys = {each: to_pem(key).decode() for each, key in public_keys_in(self.state).items()}
        except OSError as error:
            raise StoreUnavailable(f"the public keys of the audit cannot be read: {error}") from error
        return {"checkpoints": [each.to_json() for each in found[-limit:]], "in_all": len(found), "public_keys": keys}

    def _verify(self) -> dict[str, Any]:
        try:
            checkpoints = self._read_file()  # before the rows: a checkpoint of a row that comes now would not be found
            verified, document = check_store(self.store, checkpoints, public_keys_in(self.state))
        except AuditBroken as error:
            return {"intact": False, "found": str(error)}
        except OSError as error:
            raise StoreUnavailable(f"the public keys of the audit cannot be read: {error}") from error
        return {"intact": True, **verified.to_json(), "flags_revision": document.revision}

    def _read_file(self) -> list[Checkpoint]:
        try:
            return read_checkpoints(self.checkpoint_file)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreUnavailable(f"{self.checkpoint_file} cannot be read: {error}") from error


def _rows(rows: list[AuditRow]) -> Response:
    return reply({"rows": [row.to_json() for row in rows]})
