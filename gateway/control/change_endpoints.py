"""The doors to the proposed changes: see them, approve, reject, apply and acknowledge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.approvals import Change, is_author
from gateway.control.auth import APPROVER, OPERATOR, VIEWER, TokenStore, require
from gateway.control.endpoints import reply
from gateway.control.review import Review
from gateway.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ChangeEndpoints:
    """``/admin/v1/changes``."""

    review: Review
    tokens: TokenStore

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/changes", self.list, methods=["GET"]),
            Route("/admin/v1/changes/{id}:{verb}", self.decide, methods=["POST"]),
            Route("/admin/v1/changes/{id}", self.read, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """Changes, newest first; of one state with ``?state=``."""
        await requests.sender(request, self.tokens, VIEWER)
        state = request.query_params.get("state")
        found = await run_in_threadpool(self.review.all)
        return reply({"changes": [each.to_json() for each in found if state in (None, each.state)]})

    async def read(self, request: Request) -> Response:
        """One change, with its diff."""
        await requests.sender(request, self.tokens, VIEWER)
        found = await run_in_threadpool(self.review.find, request.path_params["id"])
        return reply(found.to_json(), revision=found.revision)

    async def decide(self, request: Request) -> Response:
        """A decision; ``?digest=`` says which diff its sender has seen."""
        token = await requests.sender(request, self.tokens, OPERATOR)
        verb, change_id = request.path_params["verb"], request.path_params["id"]
        by = requests.author(request, token)
        decision: Callable[[], Change]
        if verb == "apply":
            decision = lambda: self.review.apply(change_id, by)  # noqa: E731 - three such, side by side
        elif verb == "approve":
            require(token, APPROVER)
            digest = request.query_params.get("digest")
            said = requests.text_header(request, requests.REASON_HEADER)[: requests.MAX_REASON_CHARACTERS]
            decision = lambda: self.review.approve(change_id, by, reason=said, digest=digest)  # noqa: E731
        elif verb == "reject":
            reason = requests.reason(request)
            if not is_author(await run_in_threadpool(self.review.find, change_id), by):
                require(token, APPROVER)
            decision = lambda: self.review.reject(change_id, by, reason=reason)  # noqa: E731
        elif verb == "acknowledge":
            require(token, APPROVER)
            reason = requests.reason(request)
            decision = lambda: self.review.acknowledge(change_id, by, reason=reason)  # noqa: E731
        else:
            raise InvalidInput("path", repr(verb)[:80], "one of approve, reject, apply, acknowledge")
        decided = await run_in_threadpool(decision)
        return reply(decided.to_json(), revision=decided.revision)
