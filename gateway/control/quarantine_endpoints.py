"""The doors to the quarantine list: what no worker may load, and lifting it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import quarantine
from gateway.control import requests
from gateway.control.auth import OPERATOR, VIEWER, TokenStore
from gateway.control.endpoints import reply
from gateway.errors import UnknownVersion
from gateway.flags.audit import Author
from gateway.flags.store import FlagStore, Note, note
from gateway.quarantine import Quarantined


@dataclass(frozen=True, slots=True)
class QuarantineEndpoints:
    """``/admin/v1/quarantine``."""

    path: Path
    store: FlagStore
    tokens: TokenStore

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/quarantine", self.listed, methods=["GET"]),
            Route("/admin/v1/quarantine/{model}/{version}", self.lift, methods=["DELETE"]),
        ]

    async def listed(self, request: Request) -> Response:
        """All that is quarantined, and why."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(quarantine.read, self.path)
        return reply({"versions": [entry.to_json() for entry in found]})

    async def lift(self, request: Request) -> Response:
        """Let the workers load a version again. The audit row comes first: what it does not tell does not happen."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        reason = requests.reason(request)
        author = requests.author(request, token)
        model, version = request.path_params["model"], request.path_params["version"]
        lifted = await run_in_threadpool(self._lift, model, version, author, reason)
        if not lifted:
            raise UnknownVersion(f"version {version!r} of {model!r} is not quarantined")
        return reply({"lifted": [entry.to_json() for entry in lifted]})

    def _lift(self, model: str, version: str, author: Author, reason: str) -> list[Quarantined]:
        def announce(lifted: list[Quarantined]) -> None:
            for entry in lifted:
                told = Note("quarantine.lift", f"quarantine:{model}", after={"lifted": entry.to_json()})
                note(self.store, told, author=author, reason=reason)

        return quarantine.lift(self.path, model, version, announce=announce)
