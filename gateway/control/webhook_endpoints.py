"""The doors to the webhooks: made, listed, tried and ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.control import requests
from gateway.control.auth import ADMIN, VIEWER, TokenStore
from gateway.control.deliver import DELIVERED
from gateway.control.endpoints import reply
from gateway.control.notify import Notifier
from gateway.control.outbox import newest_seq
from gateway.control.reach import Reach, Unreachable
from gateway.control.webhooks import CURSOR, Webhook, WebhookList, checked_url
from gateway.errors import InvalidInput
from gateway.flags.store import FlagStore


@dataclass(frozen=True, slots=True)
class WebhookEndpoints:
    """``/admin/v1/webhooks``."""

    webhooks: WebhookList
    notifier: Notifier
    reach: Reach
    store: FlagStore
    tokens: TokenStore

    def routes(self) -> list[Route]:
        return [
            Route("/admin/v1/webhooks", self.read_all, methods=["GET"]),
            Route("/admin/v1/webhooks", self.create, methods=["POST"]),
            Route("/admin/v1/webhooks/{id}", self.remove, methods=["DELETE"]),
            Route("/admin/v1/webhooks/{id}:test", self.test, methods=["POST"]),
        ]

    async def read_all(self, request: Request) -> Response:
        """All webhooks and how far each was told; never a secret, and only admins see whole URLs."""
        token = await requests.sender(request, self.tokens, VIEWER)
        webhooks, cursors, head = await run_in_threadpool(self._read)
        return reply(
            {
                "webhooks": [
                    {
                        **webhook.to_json(whole_url=token.allows(ADMIN)),
                        "progress": self.notifier.describe(webhook, cursors.get(webhook.target), head),
                    }
                    for webhook in webhooks
                ]
            }
        )

    async def create(self, request: Request) -> Response:
        """A new webhook from ``{"url", "events", "description"}``; no other reply ever shows its secret."""
        sender = await requests.sender(request, self.tokens, ADMIN)
        body = await requests.json_object(request)
        checked_url(body.get("url"))
        try:
            await self.reach.check(body["url"])
        except Unreachable as error:
            raise InvalidInput("url", "one that leads elsewhere", f"a receiver that may be reached; {error}") from error
        webhook, secret = await run_in_threadpool(
            self.webhooks.add, body, author=requests.author(request, sender), reason=_reason(request)
        )
        self.notifier.refresh()
        return reply({**webhook.to_json(whole_url=True), "secret": secret}, status=201)

    async def remove(self, request: Request) -> Response:
        """End a webhook; what it was not told yet, it never is."""
        sender = await requests.sender(request, self.tokens, ADMIN)
        await run_in_threadpool(
            self.webhooks.remove,
            request.path_params["id"],
            author=requests.author(request, sender),
            reason=_reason(request),
        )
        self.notifier.refresh()
        return Response(status_code=204)

    async def test(self, request: Request) -> Response:
        """Send a test event now and say what became of it."""
        sender = await requests.sender(request, self.tokens, ADMIN)
        webhook = await run_in_threadpool(self.webhooks.find, request.path_params["id"])
        attempt = await self.notifier.test(webhook, requests.author(request, sender))
        return reply(
            {
                "delivered": attempt.outcome == DELIVERED,
                "outcome": attempt.outcome,
                "status": attempt.status,
                "why": attempt.why,
            }
        )

    def _read(self) -> tuple[list[Webhook], dict[str, Any], int]:
        cursors = {record.id: record.body for record in self.store.records(CURSOR)}
        return self.webhooks.all(), cursors, newest_seq(self.store)


def _reason(request: Request) -> str:
    return requests.text_header(request, requests.REASON_HEADER)[: requests.MAX_REASON_CHARACTERS]
