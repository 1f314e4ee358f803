"""Connections taken from a listening socket: as many as are allowed in one turn, and all in the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Callable
from itertools import groupby

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.listener import Listener

MakeLoop = Callable[[], asyncio.AbstractEventLoop]
LOOPS: dict[str, MakeLoop] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def make_loop(request: pytest.FixtureRequest) -> MakeLoop:
    return LOOPS[request.param]


async def taken_by_turn(clients: int, at_once: int) -> list[int]:
    """How many of the connections that waited before were taken in each turn of the loop that took some."""
    loop, turn, turns = asyncio.get_running_loop(), 0, list[int]()

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(next_turn)

    def take(connection: socket.socket) -> None:
        turns.append(turn)
        connection.close()

    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=clients + 1))
        for _ in range(clients):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        listener = Listener(listening, take, backlog=clients + 1, at_once=at_once)
        loop.call_soon(next_turn)
        async with asyncio.timeout(30):
            while len(turns) < clients:
                await asyncio.sleep(0)
        listener.close()
    return [len(list(group)) for _, group in groupby(turns)]


@given(clients=st.integers(1, 60), at_once=st.integers(1, 40), kind=st.sampled_from(sorted(LOOPS)))
@settings(max_examples=25, deadline=None)
def test_each_turn_takes_all_that_wait_but_no_more_than_so_many(clients: int, at_once: int, kind: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        found = runner.run(taken_by_turn(clients, at_once))
    full, rest = divmod(clients, at_once)
    assert found == [at_once] * full + [rest] * bool(rest)


def test_nobody_is_taken_once_it_is_closed_and_the_socket_stays_open(make_loop: MakeLoop) -> None:
    async def scenario() -> None:
        taken: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as listening:
            Listener(listening, taken.append, backlog=10, at_once=2).close()
            with socket.create_connection(listening.getsockname()):
                for _ in range(5):
                    await asyncio.sleep(0.001)
                assert not taken
                listening.accept()[0].close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(scenario())


def test_what_is_taken_does_not_block_and_is_sent_without_delay(make_loop: MakeLoop) -> None:
    async def scenario() -> None:
        taken: asyncio.Queue[socket.socket] = asyncio.Queue()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listener = Listener(listening, taken.put_nowait, backlog=10, at_once=2)
            with socket.create_connection(listening.getsockname()):
                async with asyncio.timeout(30):
                    connection = await taken.get()
                with connection:
                    assert connection.getblocking() is False
                    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            listener.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(scenario())


def test_without_descriptors_connections_wait_and_the_loop_is_not_busy(
    make_loop: MakeLoop, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario() -> None:
        taken: asyncio.Queue[socket.socket] = asyncio.Queue()
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
            client.setblocking(False)
            listener = Listener(listening, taken.put_nowait, backlog=10, at_once=2)
            lowest_free = os.dup(client.fileno())
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                await asyncio.get_running_loop().sock_connect(client, listening.getsockname())
                async with asyncio.timeout(30):
                    while "no connection can be taken for now" not in caplog.text:
                        await asyncio.sleep(0)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert caplog.text.count("no connection can be taken for now") == 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with asyncio.timeout(30):
                (await taken.get()).close()
            listener.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(scenario())
