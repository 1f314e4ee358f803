"""HTTP as clients really send it, through both doors, with TLS and without: the same bytes, and no door held open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.wires import BODY, DOORS, IRIS, PATH, REQUESTS, ROW, body, comparable, open_gateway, post, wire
from tests.live import LiveGateway, eventually
from tests.traffic import Client

SLOW = classifier("slow", "1", iterations=40_000)  # near a second a run
SERVER: dict[str, str | int | float] = {
    "request_timeout_s": 1.5,
    "write_timeout_s": 1.5,
    "keep_alive_s": 3,
    "max_header_bytes": 2000,
}


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveGateway]]:
    root = tmp_path_factory.mktemp("doors")
    for model in (IRIS, SLOW):
        write_package(root / "models", model)
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(open_gateway(root, name, SERVER)) for name in DOORS}


@pytest.fixture(params=DOORS)
def gateway(gateways: dict[str, LiveGateway], request: pytest.FixtureRequest) -> LiveGateway:
    return gateways[request.param]


# What the answers are, where that is no matter of other tests.
STATUS = {
    "encoded otherwise": 415,
    "no gzip at all": 400,
    **dict.fromkeys(("gzip", "two members", "deflate", "deflate in chunks", "deflate of many portions"), 200),
    "torn gzip": 400,
    "bytes behind deflate": 400,
    "a bomb": 413,
    "bad JSON in gzip": 400,
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_all_doors_answer_the_same_bytes(gateways: dict[str, LiveGateway], kind: str) -> None:
    """Also to what offers an upgrade to another protocol: the body must not be lost with the offer."""

    async def ask(gateway: LiveGateway) -> bytes:
        async with wire(gateway) as connection:
            await connection.send(REQUESTS[kind])
            interim = b""
            if kind == "expect":
                interim = await connection.reader.readuntil(b"\r\n\r\n")
            return interim + comparable(await connection.answer())

    answers = {name: asyncio.run(ask(gateways[name])) for name in DOORS}
    fast = answers["fast"]
    assert answers == dict.fromkeys(DOORS, fast)
    assert fast.startswith(b"HTTP/1.1 ")
    if kind.startswith("offers") or kind in STATUS:
        assert fast.startswith(b"HTTP/1.1 %d " % STATUS.get(kind, 200))
    packed = kind.startswith("large answer, ") and kind != "large answer, nothing known"
    assert (b"\r\ncontent-encoding: " in fast) == packed
    if packed:
        head, _, content = fast.partition(b"\r\n\r\n")
        coding = b"deflate" if b"deflate" in kind.encode() else b"gzip"
        assert b"content-encoding: " + coding in head
        assert b"vary: accept-encoding" in head
        found = json.loads(zlib.decompress(content, 15 if coding == b"deflate" else 31))["outputs"][1]
        assert found["shape"] == [500, 3]


def test_random_requests_get_the_same_bytes_and_numbers(gateways: dict[str, LiveGateway]) -> None:
    draw = np.random.default_rng(5)

    async def ask(gateway: LiveGateway, contents: list[bytes]) -> list[bytes]:
        async with Client(gateway.data_url, gateway.trust) as client:
            return [(await client.post(PATH, content)).body for content in contents]

    rows = [np.round(draw.normal(size=(draw.integers(1, 5), 4)), 3) for _ in range(60)]
    contents = [body(*table.tolist()) for table in rows]
    answers = {name: asyncio.run(ask(gateways[name], contents)) for name in DOORS}
    fast = answers["fast"]
    assert answers == dict.fromkeys(DOORS, fast)
    for table, answer in zip(rows, fast, strict=True):
        found = np.array(json.loads(answer)["outputs"][1]["data"]).reshape(-1, 3)
        np.testing.assert_allclose(found, IRIS.answer(table)["probabilities"], atol=1e-6)


def test_a_connection_answers_many_requests_in_order_even_if_they_come_at_once(gateway: LiveGateway) -> None:
    async def scenario() -> None:
        async with wire(gateway) as connection:
            rows = [[float(number), 0.0, 1.0, -1.0] for number in range(30)]
            questions = [post(body(row)) for row in rows]
            questions[7] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
            questions[13] = post(b"{")
            await connection.send(b"".join(questions))
            for number, row in enumerate(rows):
                answer = await connection.answer()
                if number == 7:
                    assert b'{"live":true}' in answer
                elif number == 13:
                    assert answer.startswith(b"HTTP/1.1 400")
                else:
                    found = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][1]["data"]
                    np.testing.assert_allclose(found, IRIS.answer([row])["probabilities"][0], atol=1e-6)

    asyncio.run(scenario())


def test_a_body_may_come_byte_by_byte(gateway: LiveGateway) -> None:
    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            for byte in post():
                await connection.send(bytes([byte]))
            return await connection.answer()

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 200")


def test_a_head_that_is_too_large_is_refused(gateway: LiveGateway) -> None:
    async def scenario(head: bytes) -> bytes:
        async with wire(gateway) as connection:
            await connection.send(head)
            return await connection.rest()

    whole = post(extra="x-much: " + "y" * 3000 + "\r\n")
    never_ending = b"POST /predict/iris HTTP/1.1\r\nhost: x\r\nx-much: " + b"y" * 10_000
    for head in (whole, never_ending):
        answer = asyncio.run(scenario(head))
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"at most 2000 bytes" in answer


def test_what_is_no_http_is_refused(gateway: LiveGateway) -> None:
    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            await connection.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            return await connection.rest()

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /predict/iris HTTP/1.1\r\nhos", b"HTTP/1.1 408 "),
        (post()[:-5], b"HTTP/1.1 408 "),
        (post() + b"", b"HTTP/1.1 200 "),
    ],
    ids=["silent", "half a head", "half a body", "idle after an answer"],
)
def test_a_connection_that_falls_silent_is_ended(gateway: LiveGateway, sent: bytes, answer: bytes) -> None:
    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            if sent:
                await connection.send(sent)
            return await connection.rest()

    assert asyncio.run(scenario()).startswith(answer)


def test_a_body_that_is_not_whole_before_the_deadline_is_refused(gateway: LiveGateway) -> None:
    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            await connection.send(post(extra="x-request-timeout-ms: 100\r\n")[:-5])
            return await connection.rest()

    answer = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"whole before the deadline" in answer
    assert answer.count(b"connection: close") == 1


def test_a_request_refused_by_its_head_gets_one_answer_even_if_its_body_never_ends(gateway: LiveGateway) -> None:
    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            await connection.send(post(extra="content-encoding: br\r\n")[:-5])
            return await connection.rest()

    answer = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_client_that_leaves_frees_its_place(gateway: LiveGateway) -> None:
    """So does one that shuts its sending side alone: it is not told from one that has left."""

    async def scenario() -> None:
        request = post(path="/v2/models/slow/infer")
        for part in (40, len(request) - 3, len(request)):
            async with wire(gateway) as connection:
                await connection.send(request[:part])
            async with wire(gateway) as connection:
                await connection.send(request[:part])
                connection.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
                assert await connection.rest() == b""

    asyncio.run(scenario())

    def free() -> bool:
        return "sluicegate_in_flight_requests 0.0" in gateway.control.get("/metrics").text

    assert eventually(free, "no request is in flight")


def test_a_client_that_does_not_read_does_not_fill_the_memory(gateway: LiveGateway) -> None:
    """It asks on and on without reading: the gateway stops reading too, and ends it after write_timeout_s."""

    async def scenario() -> int:
        content = body(*[ROW] * 2000)  # near 100 KB in the answer
        sent = 0
        async with wire(gateway) as connection:
            with contextlib.suppress(OSError):  # it is ended, over TLS with an error of its own, or the time is over
                async with asyncio.timeout(10):
                    while not connection.writer.is_closing():  # over TLS what is sent then is no error for a while
                        await connection.send(post(content))
                        sent += 1
            connection.writer.transport.abort()  # a close would wait for what nobody reads
            return sent

    sent = asyncio.run(scenario())
    assert sent < 2000
    assert gateway.data.post(PATH, content=BODY).status_code == 200


def test_a_deadline_is_kept(gateway: LiveGateway) -> None:
    reply = gateway.data.post("/v2/models/slow/infer", content=BODY, headers={"x-request-timeout-ms": "60"})
    assert reply.status_code == 504
    assert "deadline" in reply.json()["error"]


@pytest.mark.parametrize("name", DOORS)
def test_requests_in_flight_are_answered_before_the_gateway_stops(tmp_path: Path, name: str) -> None:
    write_package(tmp_path / "models", SLOW)
    with open_gateway(tmp_path, name, {}) as gateway:

        async def scenario() -> bytes:
            async with wire(gateway) as connection:
                await connection.send(post(path="/v2/models/slow/infer"))

                def busy() -> bool:
                    return "sluicegate_in_flight_requests 1.0" in gateway.control.get("/metrics").text

                await asyncio.to_thread(eventually, busy, "the request is in flight")
                await asyncio.to_thread(gateway.stop)
                return await connection.answer()

        answer = asyncio.run(scenario())
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
