"""`POST /v1/feedback`: labels of predictions, by prediction id."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.codecs.codec import JSON_HEADERS
from gateway.errors import GatewayError, InvalidInput, MethodNotAllowed
from gateway.serving.bodies import read_body
from gateway.serving.codings import coding_of
from gateway.serving.inflating import Inflation
from gateway.serving.keygate import KeyGate
from gateway.serving.label_writer import LabelWriter, Taken
from gateway.serving.replies import error_headers, status_of

PATH = "/v1/feedback"


class FeedbackEndpoint:
    """A plain ASGI app. It only reads the body; everything else about labels happens in the writer's thread."""

    def __init__(self, writer: LabelWriter, *, max_body_bytes: int, gate: KeyGate | None = None) -> None:
        self._writer = writer
        self._max_body_bytes = max_body_bytes
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: GatewayError | None = None
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(scope["method"], "POST")
            if self._gate is not None:
                self._gate.check(scope)
            coding = coding_of(dict(scope["headers"]).get(b"content-encoding", b"").decode("latin-1"))
            body = await read_body(receive, self._max_body_bytes)
            if body is None:
                return
            if coding is not None:
                body = await self._inflated(body, coding)
            taken = await self._writer.offer(body)
            error, told = _told(taken)
        except GatewayError as problem:
            error, told = problem, {"error": _plain(problem)}
        content = orjson.dumps(told)
        headers = [*JSON_HEADERS, *error_headers(error), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _inflated(self, body: bytes, coding: str) -> bytes:
        """What a compressed body holds, a portion a turn of the loop. Raises InvalidInput, BodyTooLarge."""
        stream, is_whole = Inflation(body, coding), False
        while not is_whole:
            is_whole = stream.step()
            stream.check_size(self._max_body_bytes)
            await asyncio.sleep(0)  # others are answered between two portions
        return stream.whole()


def _told(taken: Taken) -> tuple[GatewayError | None, dict[str, Any]]:
    """What a client reads: 200 if all its labels are kept, 400 if some were wrong; the others are kept all the same."""
    counts: dict[str, Any] = {"accepted": taken.accepted, "rejected": taken.wrong}
    if not taken.wrong:
        return None, counts
    first = taken.rejected[0][1]
    errors = [{"item": item, **_plain(error)} for item, error in taken.rejected]
    return first, {"error": _plain(first), **counts, "errors": errors}


def _plain(error: GatewayError) -> dict[str, Any]:
    told: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, InvalidInput):
        told |= {"field": error.field, "came": error.came, "expected": error.expected}
    return told
