"""HTTP as clients really send it, through both doors, with TLS and without: the same bytes, and no door held open."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests import certificates
from tests.builders import classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually
from tests.traffic import Client

IRIS = classifier("iris", "1")
SLOW = classifier("slow", "1", iterations=40_000)  # near a second a run
PATH = "/v2/models/iris/infer"
# Name -> the door that answers predictions, and whether it is behind TLS.
DOORS = {"fast": ("fast", False), "asgi": ("asgi", False), "fast, TLS": ("fast", True), "asgi, TLS": ("asgi", True)}
SERVER: dict[str, str | int | float] = {
    "request_timeout_s": 1.5,
    "write_timeout_s": 1.5,
    "keep_alive_s": 3,
    "max_header_bytes": 2000,
}


def open_gateway(root: Path, name: str, server: Mapping[str, str | int | float]) -> LiveGateway:
    """The gateway that DOORS calls *name*, with the packages in root/models. server: settings of that section."""
    door, is_tls = DOORS[name]
    pair = certificates.self_signed(root / "tls").settings if is_tls else {}
    settings: SettingsTable = {"server": {**server, "door": door, **pair}, "cache": {"max_bytes": 0}}
    return LiveGateway(root / "models", root / name, settings=settings)


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


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection of raw bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """All that comes until the gateway closes."""
        with contextlib.suppress(ConnectionResetError):
            return await self.reader.read(-1)
        return b""

    async def answer(self) -> bytes:
        """One whole response by its content-length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length
        return head + await self.reader.readexactly(int(length.group(1)))


@contextlib.asynccontextmanager
async def wire(gateway: LiveGateway) -> AsyncIterator[Wire]:
    port = int(gateway.data_url.rsplit(":", 1)[1])
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=gateway.trust)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()
            if gateway.trust is not None:  # the other end need not agree that this is the end
                writer.transport.abort()


def body(*rows: list[float]) -> bytes:
    data = [value for row in rows for value in row]
    tensor = {"name": "input", "shape": [len(rows), 4], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


ROW = [1.0, 2.0, 3.0, 4.0]
HEAD = b"HTTP/1.1\r\nhost: x\r\nx-request-id: r\r\n"
BODY = body(ROW)
MANY = body(*[ROW] * 500)  # its answer is above server.compress_min_bytes


def post(content: bytes = BODY, *, path: str = PATH, version: str = "1.1", extra: str = "") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\nx-request-id: r\r\ncontent-length: {len(content)}\r\n{extra}\r\n"
    return head.encode() + content


def chunked(content: bytes, size: int = 7) -> bytes:
    """A body in chunks of that size."""
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def comparable(data: bytes) -> bytes:
    """A response without what is drawn anew for each request: ids, and how long to wait before asking again."""
    data = re.sub(rb"(retry-after: )\d+", rb"\1N", data)
    return re.sub(rb"(prediction[-_]id(?:: |\":\"))[0-9a-f]{32}|(x-request-id: )[0-9a-f]{16}", rb"\1\2ID", data)


REQUESTS: dict[str, bytes] = {
    "one row": post(),
    "three rows": post(body(ROW, [0.5] * 4, [-1.0] * 4)),
    "native": post(b'{"columns":["sepal_length","sepal_width","petal_length","petal_width"],"rows":[[1,2,3,4]]}',
                   path="/predict/iris"),
    "pinned": post(path="/v2/models/iris/versions/1/infer"),
    "query": post(path=PATH + "?a=b"),
    "percent-encoded": post(path="/v2/models/ir%69s/infer"),
    "id": post(b'{"id":"7",' + BODY[1:]),
    "binary": post(
        b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}],'
        b'"parameters":{"binary_data_output":true}}' + struct.pack("<4f", *ROW),
        extra="inference-header-content-length: 137\r\n",
    ),
    "HTTP/1.0": post(version="1.0"),
    "connection: close": post(extra="connection: close\r\n"),
    "bad JSON": post(b"{"),
    "wrong type": post(BODY.replace(b"1.0", b'"1"')),
    "unknown model": post(path="/v2/models/nope/infer"),
    "unknown version": post(path="/v2/models/iris/versions/9/infer"),
    "bad deadline": post(extra="x-request-timeout-ms: never\r\n"),
    "encoded otherwise": post(extra="content-encoding: br\r\n"),
    "no gzip at all": post(extra="content-encoding: gzip\r\n"),
    "gzip": post(gzip.compress(BODY), extra="content-encoding: gzip\r\n"),
    "two members": post(gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), extra="content-encoding: x-gzip\r\n"),
    "deflate": post(zlib.compress(BODY), extra="content-encoding: deflate\r\n"),
    "deflate in chunks": b"POST /v2/models/iris/infer " + HEAD + b"content-encoding: deflate\r\n"
    + b"transfer-encoding: chunked\r\n\r\n" + chunked(zlib.compress(BODY)),
    "deflate of many portions": post(zlib.compress(body(*[ROW] * 8000)), extra="content-encoding: deflate\r\n"),
    "torn gzip": post(gzip.compress(BODY)[:-9], extra="content-encoding: gzip\r\n"),
    "bytes behind deflate": post(zlib.compress(BODY) + b"x", extra="content-encoding: deflate\r\n"),
    "a bomb": post(zlib.compress(b" " * (2**24 + 1)), extra="content-encoding: deflate\r\n"),
    "bad JSON in gzip": post(gzip.compress(b"{"), extra="content-encoding: gzip\r\n"),
    "large answer": post(MANY),
    "large answer, gzip": post(MANY, extra="accept-encoding: gzip, deflate, br\r\n"),
    "large answer, deflate": post(MANY, extra="accept-encoding: deflate;q=0.5, gzip;q=0\r\n"),
    "large answer, nothing known": post(MANY, extra="accept-encoding: br, identity\r\n"),
    "large answer, gzip, the last one": post(MANY, extra="accept-encoding: gzip\r\nconnection: close\r\n"),
    "small answer": post(extra="accept-encoding: gzip\r\n"),
    "empty body": post(b""),
    "no length": b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\nx-request-id: r\r\n\r\n",
    "GET": b"GET /v2/models/iris/infer HTTP/1.1\r\nhost: x\r\nx-request-id: r\r\n\r\n",
    "expect": post(extra="expect: 100-continue\r\n"),
    "too large by its length": b"POST /predict/iris " + HEAD + b"content-length: 99999999\r\n\r\n",
    "chunked": b"POST /v2/models/iris/infer " + HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(BODY),
    "offers h2c": post(extra="connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"),
    "offers a websocket": post(extra="connection: upgrade\r\nupgrade: websocket\r\n"),
    "offers h2c to a GET": b"GET /livez " + HEAD + b"connection: Upgrade\r\nupgrade: h2c\r\n\r\n",
    "encoding: Identity": post(extra="content-encoding: Identity\r\n"),
    "metadata": b"GET /v2/models/iris HTTP/1.1\r\nhost: x\r\n\r\n",
    "unknown path": post(path="/nowhere"),
}  # fmt: skip


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
