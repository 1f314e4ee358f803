"""The doors to the API keys of the data plane: made, listed, rotated and ended."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import ADMIN, OPERATOR, VIEWER, TokenStore
from gateway.control.endpoints import reply
from gateway.control.keys import MAX_GRACE_S, KeyBook
from gateway.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class KeyEndpoints:
    """``/admin/v1/keys``. Whether the workers ask for keys at all is a setting, `server.api_keys`."""

    keys: KeyBook
    tokens: TokenStore

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/keys", self.read_all, methods=["GET"]),
            Route("/admin/v1/keys", self.create, methods=["POST"]),
            Route("/admin/v1/keys/{id}", self.revoke, methods=["DELETE"]),
            Route("/admin/v1/keys/{id}:rotate", self.rotate, methods=["POST"]),
        ]

    async def read_all(self, request: Request) -> Response:
        """All keys, without what could be used for anything."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(self.keys.all)
        return reply({"keys": [key.to_json() for key in found]})

    async def create(self, request: Request) -> Response:
        """A new key from ``{"name", "models", "rate_per_s", "burst", "expires_in_s", "priority"}``; shown once."""
        sender = await requests.sender(request, self.tokens, ADMIN)
        body = await requests.json_object(request)
        key, secret = await run_in_threadpool(
            self.keys.create, body, author=requests.author(request, sender), reason=_reason(request)
        )
        return reply({**key.to_json(), "key": secret}, status=201)

    async def rotate(self, request: Request) -> Response:
        """A new key for an old one, which ends after ``{"grace_s"}``; only this reply shows the new one."""
        sender = await requests.sender(request, self.tokens, ADMIN)
        body = await requests.json_object(request)
        for name in body.keys() - {"grace_s"}:
            raise InvalidInput(name, "an unknown field", "only grace_s")
        grace_s = body.get("grace_s")
        if isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidInput("grace_s", repr(grace_s)[:80], f"a number from 0 to {MAX_GRACE_S:g}")
        key, old, secret = await run_in_threadpool(
            self.keys.rotate,
            request.path_params["id"],
            grace_s,
            author=requests.author(request, sender),
            reason=_reason(request),
        )
        return reply({**key.to_json(), "key": secret, "replaces": old.to_json()}, status=201)

    async def revoke(self, request: Request) -> Response:
        """End a key. An operator may: it closes a door, and it may be urgent."""
        sender = await requests.sender(request, self.tokens, OPERATOR)
        await run_in_threadpool(
            self.keys.revoke,
            request.path_params["id"],
            author=requests.author(request, sender),
            reason=_reason(request),
        )
        return Response(status_code=204)


def _reason(request: Request) -> str:
    return requests.text_header(request, requests.REASON_HEADER)[: requests.MAX_REASON_CHARACTERS]
