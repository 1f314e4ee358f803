"""The ASGI app as uvicorn has it: clients may leave before their answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvloop
from starlette.routing import Route

from gateway.serving.server import PublicApp

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}


async def closed_transport() -> asyncio.Transport:
    """A connection that has just been cut off; its protocol does not know yet."""
    ours, theirs = socket.socketpair()
    theirs.close()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport.abort()
    await asyncio.sleep(0)
    return transport


async def nothing(*_: Any) -> Any:
    return {"type": "http.disconnect"}


class Writing:
    """An endpoint that answers, as uvicorn would do it, on a given connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\n\r\n")


class Failing:
    """An endpoint with an error of its own."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("wrong")


def test_writing_to_who_is_gone_is_no_failure_of_the_app() -> None:
    async def scenario() -> None:
        endpoint = Writing(await closed_transport())
        with pytest.raises(RuntimeError):
            await endpoint(SCOPE, nothing, nothing)
        await PublicApp(routes=[Route("/", endpoint)])(dict(SCOPE), nothing, nothing)

    uvloop.run(scenario())


def test_what_the_app_itself_does_wrong_is_told() -> None:
    with pytest.raises(RuntimeError, match="wrong"):
        asyncio.run(PublicApp(routes=[Route("/", Failing())])(dict(SCOPE), nothing, nothing))
