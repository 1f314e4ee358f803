"""A connection that has ended is freed at once: the garbage collector of a worker hardly ever looks at what is old."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Set
from pathlib import Path

import pytest
import uvloop

from gateway.serving.app import build
from gateway.serving.fastdoor import FastDoor
from gateway.serving.server import server_for
from gateway.settings import PathSettings, ServerSettings, Settings

PREDICTION = b"POST /predict/nobody HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
SENT = {
    "nothing": b"",
    "half a head": PREDICTION[:20],
    "half a body": PREDICTION[:-1],
    "a prediction": PREDICTION,
    "a prediction, parsed": PREDICTION.replace(b"host", b"accept: a\r\nexpect: 100-continue\r\nhost"),
    "a question": b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",
    "no HTTP": b"\0\0\r\n\r\n",
}


@pytest.mark.parametrize("door", ["fast", "asgi"])
def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector(tmp_path: Path, door: str) -> None:
    settings = Settings(server=ServerSettings(door=door), paths=PathSettings(models=tmp_path, state=tmp_path / "state"))

    async def scenario() -> dict[str, int]:
        worker = build(settings, boot="b", report=lambda _text: None)
        server = server_for(settings.server, worker.app, worker.doors)
        left = {}
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            gc.collect()
            gc.disable()
            try:
                for kind, sent in SENT.items():
                    left[kind] = await _left(worker.doors.open, listener.getsockname(), sent)
            finally:
                gc.enable()
            server.stop()
            await serving
        worker.registry.close()
        return left

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == dict.fromkeys(SENT, 0)


def test_a_connection_beyond_the_limit_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    settings = Settings(
        server=ServerSettings(max_connections=1), paths=PathSettings(models=tmp_path, state=tmp_path / "state")
    )

    async def scenario() -> int:
        worker = build(settings, boot="b", report=lambda _text: None)
        server = server_for(settings.server, worker.app, worker.doors)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            gc.collect()
            gc.disable()
            try:
                _, first = await asyncio.open_connection(*listener.getsockname())
                for _ in range(5):
                    reader, writer = await asyncio.open_connection(*listener.getsockname())
                    assert (await reader.read(-1)).startswith(b"HTTP/1.1 503 ")
                    writer.close()
                first.close()
                async with asyncio.timeout(20):
                    while worker.doors.open:
                        await asyncio.sleep(0.001)
                left = sum(isinstance(each, FastDoor) for each in gc.get_objects())
            finally:
                gc.enable()
            server.stop()
            await serving
        worker.registry.close()
        return left

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == 0


async def _left(opened: Set[object], address: tuple[str, int], sent: bytes) -> int:
    """How many of five connections are still in memory after they were closed."""
    clients = [await asyncio.open_connection(*address) for _ in range(5)]
    async with asyncio.timeout(20):
        while len(opened) < len(clients):
            await asyncio.sleep(0.001)
    connections = [weakref.ref(each) for each in opened]
    for _, writer in clients:
        writer.write(sent)
    await asyncio.sleep(0.05)  # whatever they asked is answered by then; if not, they leave before it is
    for _, writer in clients:
        writer.close()
    for _ in range(500):
        if not opened and not any(each() for each in connections):
            break
        await asyncio.sleep(0.002)
    return sum(each() is not None for each in connections)
