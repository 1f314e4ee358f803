"""The server of a worker: newcomers are taken together, and clients may leave before their answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.routing import Route

from gateway.serving.connections import Doors
from gateway.serving.doorway import Doorway
from gateway.serving.drain import DrainingServer
from gateway.serving.packing import Packer
from gateway.serving.server import PublicApp
from gateway.settings import ServerSettings
from tests.serving.rig import Rig

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


def test_newcomers_do_not_wait_for_a_turn_of_the_loop_each(tmp_path: Path) -> None:
    """uvloop's own server takes one a turn: with a hundred busy connections the last of them waited for a second."""
    turn, met = 0, list[int]()

    class Met(asyncio.Protocol):
        def __init__(self, **_: Any) -> None: ...

        def connection_made(self, transport: Any) -> None:
            met.append(turn)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        rig = Rig(tmp_path)
        doorway = Doorway(rig.admission, rig.pipeline, rig.counts, (), Packer(0))
        doors = Doors(doorway, ServerSettings(), fast=True, clock=time.monotonic)

        def next_turn() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(next_turn)

        config = uvicorn.Config(PublicApp(), http=Met, lifespan="off", log_config=None, backlog=100)
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
            for _ in range(20):
                stack.enter_context(socket.create_connection(listening.getsockname()))
            server = DrainingServer(config, doors, drain_timeout_s=1.0)
            loop.call_soon(next_turn)
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                group.create_task(server.serve(sockets=[listening]))
                while len(met) < 20:
                    await asyncio.sleep(0)
                server.stop()

    uvloop.run(scenario())
    assert len(set(met)) == 1
