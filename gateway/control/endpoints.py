"""The doors to the flags: read, write, try and look back; each translates HTTP to the desk and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import ADMIN, OPERATOR, VIEWER, Token, TokenStore
from gateway.control.changes import Desk
from gateway.control.dryrun import tried
from gateway.control.merge import merge
from gateway.errors import InvalidInput, UnknownFlag
from gateway.flags.document import Json, dump, dump_flag
from gateway.flags.store import FlagStore, Note, note

MAX_ROWS = 10_000
STALE_HEADER = "x-flags-stale"  # seconds since the store could last be read; only while it cannot


def reply(document: Any, *, status: int = 200, revision: int | None = None, stale_s: float | None = None) -> Response:
    """A JSON reply. revision: becomes the ETag. stale_s: how old it is if the store cannot be read now."""
    headers = {"cache-control": "no-store"}
    if stale_s is not None:
        headers[STALE_HEADER] = f"{stale_s:.1f}"
    if revision is not None:
        headers["etag"] = f'"{revision}"'
    return Response(orjson.dumps(document), status, headers, "application/json")


@dataclass(frozen=True, slots=True)
class FlagEndpoints:
    """``/admin/v1/flags`` and what hangs below it."""

    desk: Desk
    store: FlagStore
    tokens: TokenStore

    def routes(self) -> list[Route]:
        flag = "/admin/v1/flags/{key}"
        return [
            Route("/admin/v1/flags", self.read_all, methods=["GET"]),
            Route("/admin/v1/flags", self.write_all, methods=["PUT", "PATCH"]),
            Route(flag, self.read, methods=["GET"]),
            Route(flag, self.write, methods=["PUT", "PATCH", "DELETE"]),
        ]

    async def read_all(self, request: Request) -> Response:
        """All flags as flagd JSON."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(self.desk.at_hand)
        return reply(dump(found.document), revision=found.document.revision, stale_s=found.stale_s)

    async def read(self, request: Request) -> Response:
        """One flag as flagd JSON."""
        await requests.sender(request, self.tokens, VIEWER)
        key = request.path_params["key"]
        found = await run_in_threadpool(self.desk.at_hand)
        flag = found.document.flags.get(key)
        if flag is None:
            raise UnknownFlag(f"no flag {key!r}")
        return reply(dump_flag(flag), revision=flag.revision, stale_s=found.stale_s)

    async def write(self, request: Request) -> Response:
        """Put, patch or delete one flag; 202 with the proposal if it needs approval first."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        key = request.path_params["key"]
        based_on = requests.precondition(request)
        dry_run = requests.switch(request, "dryRun")
        reason = "" if dry_run else requests.reason(request)
        body = {} if request.method == "DELETE" else await requests.json_object(request)
        edit = _EDITS[request.method](key, body)

        def checked(before: Json | None) -> Json | None:
            based_on.check(f"flag {key!r}", before is not None)
            return edit(before)

        outcome = await run_in_threadpool(
            self.desk.change_flag,
            key,
            checked,
            expected_revision=based_on.expected_revision,
            author=requests.author(request, token),
            verb=f"flag.{request.method.lower()}",
            reason=reason,
            dry_run=dry_run,
            break_glass=requests.break_glass(request),
        )
        if dry_run:
            return reply(await run_in_threadpool(tried, outcome, key))
        if outcome.after is None:
            return Response(status_code=204)
        created = outcome.before is None
        return reply(outcome.after, status=201 if created else 200, revision=outcome.document.flags[key].revision)

    async def write_all(self, request: Request) -> Response:
        """Put or patch the whole document as one revision."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        based_on = requests.precondition(request)
        dry_run = requests.switch(request, "dryRun")
        reason = "" if dry_run else requests.reason(request)
        body = await requests.json_object(request)
        patch = request.method == "PATCH"
        outcome = await run_in_threadpool(
            self.desk.change_document,
            (lambda before: merge(before, body)) if patch else (lambda _before: body),
            expected_revision=based_on.expected_revision,
            author=requests.author(request, token),
            verb=f"flags.{request.method.lower()}",
            reason=reason,
            dry_run=dry_run,
            break_glass=requests.break_glass(request),
        )
        if dry_run:
            return reply(await run_in_threadpool(tried, outcome, None))
        return reply(outcome.after, revision=outcome.document.revision)


@dataclass(frozen=True, slots=True)
class TokenEndpoints:
    """``/admin/v1/tokens``."""

    tokens: TokenStore
    store: FlagStore

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/tokens", self.list, methods=["GET"]),
            Route("/admin/v1/tokens", self.create, methods=["POST"]),
            Route("/admin/v1/tokens/{id}", self.revoke, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """All tokens, without their secrets."""
        await requests.sender(request, self.tokens, ADMIN)
        found = await run_in_threadpool(self.tokens.tokens)
        return reply({"tokens": [token.to_json() for token in found]})

    async def create(self, request: Request) -> Response:
        """A new token from ``{"name", "scope"}``; the reply is the only one that ever shows its secret."""
        sender = await requests.sender(request, self.tokens, ADMIN)
        body = await requests.json_object(request)
        for name in body.keys() - {"name", "scope"}:
            raise InvalidInput(name, "an unknown field", "only name and scope")

        def announce(token: Token) -> None:
            self._record(request, sender, "token.create", token)

        token, secret = await run_in_threadpool(
            self.tokens.create, body.get("name", ""), body.get("scope", ""), announce=announce
        )
        return reply({**token.to_json(), "token": secret}, status=201)

    async def revoke(self, request: Request) -> Response:
        """End a token, even while the flag store cannot take the audit row: it may be urgent."""
        sender = await requests.sender(request, self.tokens, ADMIN)
        token = await run_in_threadpool(self.tokens.revoke, request.path_params["id"])
        await run_in_threadpool(self._record, request, sender, "token.revoke", token)
        return Response(status_code=204)

    def _record(self, request: Request, sender: Token, verb: str, token: Token) -> None:
        note(
            self.store,
            Note(verb, f"token:{token.id}", after=token.to_json()),
            author=requests.author(request, sender),
            reason=requests.text_header(request, requests.REASON_HEADER)[: requests.MAX_REASON_CHARACTERS],
        )


def _put(_key: str, body: Json) -> Callable[[Json | None], Json | None]:
    return lambda _before: body


def _patch(key: str, body: Json) -> Callable[[Json | None], Json | None]:
    def merged(before: Json | None) -> Json:
        if before is None:
            raise UnknownFlag(f"no flag {key!r}; PUT creates one")
        return merge(before, body)

    return merged


def _delete(_key: str, _body: Json) -> Callable[[Json | None], Json | None]:
    return lambda _before: None


_EDITS = {"PUT": _put, "PATCH": _patch, "DELETE": _delete}
