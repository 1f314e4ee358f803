"""The yardstick: the least that an ASGI app on uvicorn can do: read the body and answer a constant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
}
_BODY = {"type": "http.response.body", "body": b"{}"}


async def app(scope: Message, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body", False):
        pass
    await send(_START)
    await send(_BODY)
