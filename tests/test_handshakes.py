"""Handshakes of TLS with a listener in this process: finished when it closes, taken up when descriptors are back."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import tls
from gateway.admin_port import ControlSettings
from gateway.handshakes import TlsListener
from gateway.port import Port
from tests import certificates

Scenario = Callable[[TlsListener, "Port[Any]", socket.socket, ssl.SSLContext], Awaitable[None]]


class _Greeter(asyncio.Protocol):
    """A connection that says one word."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"hello")


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scenario], None]:
    """Runs a scenario with a listener on either event loop: that of control, and that of the workers."""
    pair = certificates.self_signed(tmp_path / "tls")
    trust = ssl.create_default_context(cafile=str(pair.certificate))

    async def begin(scenario: Scenario) -> None:
        port: Port[Any] = Port(
            ControlSettings(), owner="test", refusal=lambda *_: b"", on_refused=lambda: None, clock=lambda: 0.0
        )
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
            context = tls.server_context(str(pair.certificate), str(pair.key))
            client.setblocking(False)
            listener = TlsListener(listening, context, port, _Greeter, backlog=10, timeout_s=60)
            await asyncio.get_running_loop().sock_connect(client, listening.getsockname())
            async with asyncio.timeout(30):
                await scenario(listener, port, client, trust)
            listener.close()

    def start(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(begin(scenario))

    return start


async def _until(check: Callable[[], bool]) -> None:
    while not check():
        await asyncio.sleep(0.005)


async def _greeting(client: socket.socket, trust: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(sock=client, ssl=trust, server_hostname="127.0.0.1")
    word = await reader.readexactly(5)
    writer.transport.abort()
    return word


def test_a_handshake_that_has_begun_is_finished_when_nobody_new_is_taken(run: Callable[[Scenario], None]) -> None:
    async def scenario(listener: TlsListener, port: Port[Any], client: socket.socket, trust: ssl.SSLContext) -> None:
        await _until(lambda: port.handshakes == 1)
        listener.close(patience_s=20)
        assert await _greeting(client, trust) == b"hello"
        await _until(lambda: port.handshakes == 0)

    run(scenario)


def test_one_that_does_not_end_is_let_go(run: Callable[[Scenario], None]) -> None:
    async def scenario(listener: TlsListener, port: Port[Any], client: socket.socket, trust: ssl.SSLContext) -> None:
        await _until(lambda: port.handshakes == 1)
        listener.close()
        await _until(lambda: port.handshakes == 0)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""

    run(scenario)


def test_without_descriptors_connections_wait_until_there_are_some(
    run: Callable[[Scenario], None], caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario(listener: TlsListener, port: Port[Any], client: socket.socket, trust: ssl.SSLContext) -> None:
        with socket.socket() as second:
            second.setblocking(False)
            lowest_free = os.dup(second.fileno())
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                await asyncio.get_running_loop().sock_connect(second, client.getpeername())
                await _until(lambda: "no connection can be taken for now" in caplog.text)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await _greeting(second, trust) == b"hello"

    run(scenario)
