"""More than a worker can hold, through both doors: it says so at once, forgets nothing, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
import socket
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.wires import BODY, HEAD, PATH, ROW, body, open_gateway, post, wire
from tests.live import LiveGateway, SettingsTable, eventually

IRIS = classifier("iris", "1")
SLOW = classifier("slow", "1", iterations=60_000)  # some seconds a run
DOORS = ("fast", "asgi")
MAX_BYTES = 100_000
PATIENT = "x-request-timeout-ms: 50000\r\n"
MAX_CONNECTIONS = 8
SERVER: dict[str, str | int | float] = {
    "request_timeout_s": 60,
    "write_timeout_s": 1.0,
    "max_in_flight_bytes": MAX_BYTES,
    "max_connections": MAX_CONNECTIONS,
}


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveGateway]]:
    root = tmp_path_factory.mktemp("overload")
    write_package(root / "models", IRIS)
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(open_gateway(root, name, SERVER)) for name in (*DOORS, "fast, TLS")}


@pytest.fixture(params=DOORS)
def gateway(gateways: dict[str, LiveGateway], request: pytest.FixtureRequest) -> LiveGateway:
    return gateways[request.param]


def metric(gateway: LiveGateway, name: str) -> float:
    """The value of one line of the page; 0 if it is not there."""
    found = re.findall(rf"^{re.escape(name)} (\S+)$", gateway.control.get("/metrics").text, re.MULTILINE)
    return float(found[0]) if found else 0.0


def ask(gateway: LiveGateway, content: bytes) -> httpx.Response:
    """One request on a connection of its own: one that is kept would count."""
    return httpx.post(gateway.data_url + PATH, content=content, verify=gateway.trust or True)


def wait_in_flight(gateway: LiveGateway, count: int) -> None:
    eventually(lambda: metric(gateway, "sluicegate_in_flight_requests") == count, f"{count} wait")


def padded(size: int) -> bytes:
    """A good body of so many bytes."""
    return b'{"id":"' + b"y" * (size - len(BODY) - 8) + b'",' + BODY[1:]


def wait_held(gateway: LiveGateway, size: int) -> None:
    eventually(lambda: metric(gateway, "sluicegate_in_flight_bytes") == size, f"{size} bytes are held")


def test_what_would_hold_too_much_is_refused_before_its_body_comes(gateway: LiveGateway) -> None:
    code = 'sluicegate_refused_total{code="too_many_bytes_in_flight"}'
    before = metric(gateway, code)
    large = post(padded(60_000), extra=PATIENT)
    chunked = b"POST " + PATH.encode() + b" " + HEAD + PATIENT.encode() + b"transfer-encoding: chunked\r\n\r\n"

    async def scenario() -> list[bytes]:
        async with wire(gateway) as first, wire(gateway) as second, wire(gateway) as third:
            await first.send(large[:-10])
            await asyncio.to_thread(wait_held, gateway, 60_000)
            await second.send(large[: large.index(b"\r\n\r\n") + 4])
            refused = [await second.answer()]
            await third.send(chunked + b"7530\r\n" + b" " * 30_000 + b"\r\n")
            await asyncio.to_thread(wait_held, gateway, 90_000)
            await third.send(b"7530\r\n" + b" " * 30_000 + b"\r\n")
            refused.append(await third.answer())
            await asyncio.to_thread(wait_held, gateway, 60_000)
            await first.send(large[-10:])
            return [*refused, await first.answer()]

    *refused, answered = asyncio.run(scenario())
    for answer in refused:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in answer
        assert b"hold 60000 bytes" in answer or b"hold 90000 bytes" in answer
    assert answered.startswith(b"HTTP/1.1 200 ")
    eventually(lambda: metric(gateway, code) == before + 2, "both are counted")
    assert ask(gateway, padded(MAX_BYTES + 1)).status_code == 413


@pytest.mark.parametrize("ending", ["an answer", "an error", "a client that leaves", "a deadline"])
def test_every_ending_gives_back_what_was_held(gateway: LiveGateway, ending: str) -> None:
    large = post(padded(60_000), extra="x-request-timeout-ms: 700\r\n" if ending == "a deadline" else PATIENT)

    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            await connection.send(large[:-10])
            await asyncio.to_thread(wait_held, gateway, 60_000)
            if ending == "a client that leaves":
                return b""
            if ending != "a deadline":
                await connection.send(b"}" * 10 if ending == "an error" else large[-10:])
            return await connection.answer()

    status = {"an answer": b"200", "an error": b"400", "a client that leaves": b"", "a deadline": b"408"}[ending]
    assert asyncio.run(scenario())[9:12] == status
    wait_held(gateway, 0)
    assert ask(gateway, padded(60_000)).status_code == 200


@pytest.mark.parametrize("name", [*DOORS, "fast, TLS"])
@pytest.mark.parametrize("asks", [True, False], ids=["asks", "says nothing"])
def test_a_connection_beyond_the_limit_is_told_so_and_ended(
    gateways: dict[str, LiveGateway], name: str, asks: bool
) -> None:
    gateway = gateways[name]
    code = 'sluicegate_refused_total{code="too_many_connections"}'
    before = metric(gateway, code)

    async def scenario() -> tuple[bytes, bytes]:
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(wire(gateway))
            for _ in range(MAX_CONNECTIONS - 1):
                await stack.enter_async_context(wire(gateway))
            await asyncio.to_thread(wait_open, gateway, MAX_CONNECTIONS)
            beyond = await stack.enter_async_context(wire(gateway))
            if asks:
                await beyond.send(post())
            refused = await beyond.rest()
            assert gateway.control.get("/livez").status_code == 200
            await first.send(post())
            return refused, await first.answer()

    eventually(lambda: metric(gateway, "sluicegate_open_connections") == 0, "all are closed")
    refused, answered = asyncio.run(scenario())
    head, _, told = refused.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert re.search(rb"\r\nretry-after: [12]\r\n", head)
    assert head.endswith(b"content-length: %d\r\nconnection: close" % len(told))
    assert b"8 connections" in json.loads(told)["error"].encode()
    assert answered.startswith(b"HTTP/1.1 200 ")
    eventually(lambda: metric(gateway, code) == before + 1, "it is counted")
    eventually(lambda: metric(gateway, "sluicegate_open_connections") == 0, "their places are free")
    assert ask(gateway, BODY).status_code == 200


def test_handshakes_count_as_connections_and_beyond_them_nobody_is_listened_to(
    gateways: dict[str, LiveGateway],
) -> None:
    gateway = gateways["fast, TLS"]
    code = 'sluicegate_refused_total{code="too_many_connections"}'
    for _turn in range(2):  # what they took is free again
        before = metric(gateway, code)
        with contextlib.ExitStack() as stack:
            for _ in range(MAX_CONNECTIONS + 256):  # some more than the limit, so that they can be told of it
                silent = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(gateway)), timeout=20))
            beyond = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(gateway)), timeout=20))
            with contextlib.suppress(ConnectionResetError):
                assert beyond.recv(100) == b""
            silent.setblocking(False)
            with pytest.raises(BlockingIOError):  # it may still speak
                silent.recv(100)
        eventually(lambda: ask(gateway, BODY).status_code == 200, "places are free again")
        eventually(partial(_is_above, gateway, code, before), "it is counted")


def _is_above(gateway: LiveGateway, name: str, value: float) -> bool:
    return metric(gateway, name) > value


def port_of(gateway: LiveGateway) -> int:
    return int(gateway.data_url.rsplit(":", 1)[1])


@pytest.mark.parametrize("door", DOORS)
def test_a_request_that_was_on_its_way_does_not_cost_the_client_the_answer(
    gateways: dict[str, LiveGateway], door: str
) -> None:
    """A connection that is closed before what came was read is reset, and many clients then read nothing more."""
    gateway = gateways[door]
    port = port_of(gateway)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_open(gateway, MAX_CONNECTIONS)
        gateway.signal_child("worker", number=signal.SIGSTOP)
        try:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            client.sendall(post())
        finally:
            gateway.signal_child("worker", number=signal.SIGCONT)
        read = b""
        while block := client.recv(4096):  # a reset would raise
            read += block
    assert read.startswith(b"HTTP/1.1 503 ")
    wait_open(gateway, 0)


def wait_open(gateway: LiveGateway, count: int) -> None:
    eventually(lambda: metric(gateway, "sluicegate_open_connections") == count, f"{count} connections are open")


def test_a_client_that_never_reads_is_cut_off_and_keeps_little_waiting(gateway: LiveGateway) -> None:
    """By the time for writing, which is far shorter here than that for a request."""
    many = post(body(*[ROW] * 1200))  # some 40 KB in the answer
    answered = 'sluicegate_requests_total{model="iris",outcome="ok",variant="stable",version="1"}'
    before = metric(gateway, answered)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port_of(gateway)))
        wait_open(gateway, 1)
        client.settimeout(0.3)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(300):
                client.sendall(many)
        wait_open(gateway, 0)
    assert metric(gateway, answered) - before < 150


def test_requests_whose_answers_nobody_reads_do_not_pile_up(gateway: LiveGateway) -> None:
    """None of them is a prediction, which have a bound of their own."""
    many = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 2000
    sent = 0
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port_of(gateway)))
        client.settimeout(20)
        with contextlib.suppress(ConnectionError):
            while sent < 50_000_000:
                client.sendall(many)
                sent += len(many)
    assert sent < 50_000_000, "it was never cut off"
    wait_open(gateway, 0)


@pytest.fixture(scope="module", params=DOORS)
def busy_gateway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LiveGateway]:
    """A queue of ten rows behind a model that takes its time."""
    root = tmp_path_factory.mktemp("busy")
    write_package(root / "models", SLOW)
    settings: SettingsTable = {
        "server": {"door": request.param},
        "cache": {"max_bytes": 0},
        "limits": {"client_header": "X-Client"},
        "batching": {"max_queue_rows": 10, "adaptive": "on"},
    }
    with LiveGateway(root / "models", root / "state", settings=settings) as gateway:
        yield gateway


def test_a_queue_that_fills_turns_the_lower_priorities_away_first(busy_gateway: LiveGateway) -> None:
    gateway = busy_gateway
    clients = itertools.count()

    def asks(priority: str = "", rows: int = 1) -> bytes:
        extra = PATIENT + f"x-client: {next(clients)}\r\n" + (f"x-request-priority: {priority}\r\n" if priority else "")
        return post(body(*[ROW] * rows), path="/v2/models/slow/infer", extra=extra)

    async def scenario() -> tuple[list[bytes], list[bytes]]:
        async with contextlib.AsyncExitStack() as stack:
            waiting = []
            refused = []
            for priority, rows, others in (("", 1, []), ("", 5, ["sheddable"]), ("normal", 4, ["", "normal"]),
                                           ("critical", 1, ["critical", "urgent"])):  # fmt: skip
                waiting.append(await stack.enter_async_context(wire(gateway)))
                await waiting[-1].send(asks(priority, rows))
                await asyncio.to_thread(wait_in_flight, gateway, len(waiting))
                for other in others:
                    connection = await stack.enter_async_context(wire(gateway))
                    await connection.send(asks(other))
                    refused.append(await connection.answer())
            return refused, [await connection.answer() for connection in waiting]

    refused, answered = asyncio.run(scenario())
    assert [answer[9:12] for answer in refused] == [b"503", b"503", b"503", b"503", b"400"]
    assert [re.findall(rb"up to (\d+)|(\d+) may be", answer) for answer in refused[:4]] == [
        [(b"5", b"")], [(b"9", b"")], [(b"9", b"")], [(b"", b"10")]
    ]  # fmt: skip
    assert all(b"\r\nretry-after: " in answer for answer in refused[:4])
    assert b"header x-request-priority: expected critical, normal or sheddable, got 'urgent'" in refused[4]
    assert [answer[9:12] for answer in answered] == [b"200"] * 4
    shed = 'sluicegate_requests_total{model="slow",outcome="shed",variant="stable",version="1"}'
    eventually(lambda: metric(gateway, shed) == 3, "what was shed is counted")
    assert metric(gateway, 'sluicegate_queue_limit_rows{model="slow",version="1"}') == 10


def test_what_a_client_was_answered_does_not_count_as_what_it_has_in_flight(busy_gateway: LiveGateway) -> None:
    gateway = busy_gateway

    def asks(client: str, rows: int = 1) -> bytes:
        return post(body(*[ROW] * rows), path="/v2/models/slow/infer", extra=PATIENT + f"x-client: {client}\r\n")

    async def scenario() -> list[bytes]:
        async with contextlib.AsyncExitStack() as stack:
            regular = await stack.enter_async_context(wire(gateway))
            await regular.send(asks("regular", 10))
            answers = [await regular.answer()]
            waiting = []
            for request in (asks("first"), asks("second", 8)):
                waiting.append(await stack.enter_async_context(wire(gateway)))
                await waiting[-1].send(request)
                await asyncio.to_thread(wait_in_flight, gateway, len(waiting))
            await regular.send(asks("regular"))  # there is room for one more, of who has nothing in flight
            return [*answers, *[await connection.answer() for connection in (*waiting, regular)]]

    assert [answer[9:12] for answer in asyncio.run(scenario())] == [b"200"] * 4


def test_a_client_that_has_most_of_a_full_queue_is_turned_away_and_another_one_is_not(
    busy_gateway: LiveGateway,
) -> None:
    gateway = busy_gateway

    def asks(client: str, rows: int = 1, extra: str = "") -> bytes:
        extra += PATIENT + f"x-client: {client}\r\n"
        return post(body(*[ROW] * rows), path="/v2/models/slow/infer", extra=extra)

    async def scenario() -> tuple[bytes, list[bytes]]:
        async with contextlib.AsyncExitStack() as stack:
            waiting = []
            for number, request in enumerate((asks("flood", 10), asks("flood", 7))):
                waiting.append(await stack.enter_async_context(wire(gateway)))
                await waiting[-1].send(request)
                await asyncio.to_thread(wait_in_flight, gateway, number + 1)
            connection = await stack.enter_async_context(wire(gateway))
            await connection.send(asks("flood"))
            refused = await connection.answer()
            for request in (asks("another"), asks("flood", extra="x-request-priority: critical\r\n")):
                waiting.append(await stack.enter_async_context(wire(gateway)))
                await waiting[-1].send(request)
            return refused, [await connection.answer() for connection in waiting]

    refused, answered = asyncio.run(scenario())
    assert refused[9:12] == b"503"
    assert b"\r\nretry-after: " in refused
    assert (
        b"7 rows are queued, one may join up to 9, and this client has 17 rows in flight: more than 8 times" in refused
    )
    assert [answer[9:12] for answer in answered] == [b"200"] * 4
    over_share = 'sluicegate_requests_total{model="slow",outcome="over_share",variant="stable",version="1"}'
    eventually(lambda: metric(gateway, over_share) == 1, "who had too much is counted")
