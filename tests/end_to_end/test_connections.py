"""Connections in all their states: what clients send, however it is cut, both doors answer alike and in order."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.builders import classifier, write_package
from tests.end_to_end.wires import BODY, HEAD, PATH, REQUESTS, Wire, comparable, open_gateway, post, wire
from tests.live import LiveGateway, eventually

IRIS = classifier("iris", "1")
LATE = classifier("late", "1", iterations=400)  # some milliseconds a run: always in the pool
SLOW = classifier("slow", "1", iterations=40_000)  # near a second a run
SLOWER = classifier("slower", "1", iterations=200_000)  # longer than a request may take to come
MAX_HEADER_BYTES = 2000
DOORS = ("fast", "asgi")


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveGateway]]:
    root = tmp_path_factory.mktemp("connections")
    for model in (IRIS, LATE, SLOW, SLOWER):
        write_package(root / "models", model)
    server = {"request_timeout_s": 1.5, "max_header_bytes": MAX_HEADER_BYTES}
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(open_gateway(root, name, server)) for name in DOORS}


@pytest.fixture(params=DOORS)
def gateway(gateways: dict[str, LiveGateway], request: pytest.FixtureRequest) -> LiveGateway:
    return gateways[request.param]


def is_idle(gateway: LiveGateway) -> bool:
    return "sluicegate_in_flight_requests 0.0" in gateway.control.get("/metrics").text


async def send_in_pieces(connection: Wire, data: bytes, cuts: list[int]) -> None:
    """Send *data* as so many segments, with a pause at each cut that mostly keeps them apart."""
    start = 0
    for stop in [*sorted(cuts), len(data)]:
        await connection.send(data[start:stop])
        await asyncio.sleep(0.001)
        start = stop


async def next_answer(connection: Wire) -> bytes:
    """One whole response, with the interim one before it, if any."""
    head = await connection.reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        return head + await next_answer(connection)
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    return head + await connection.reader.readexactly(int(length.group(1)))


# Kinds after which the gateway closes, or waits for more of the request.
LAST = ("HTTP/1.0", "connection: close", "too large by its length", "large answer, gzip, the last one")
MORE: dict[str, bytes] = {
    "in the pool": post(path="/v2/models/late/infer"),
    "in the pool, too": post(path="/v2/models/late/infer").replace(b"x-request-id", b"X-Request-Id"),
    "late deadline": post(path="/v2/models/late/infer", extra="x-request-timeout-ms: 5000\r\n"),
    "ready": b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET with a body": b"GET " + PATH.encode() + b" " + HEAD + b"content-length: 5\r\n\r\n12345",
    "PUT": b"PUT " + PATH.encode() + b" " + HEAD + b"content-length: 2\r\n\r\n{}",
    "lines before it": b"\r\n\r\n" + post(),
    "chunked with a trailer": b"POST " + PATH.encode() + b" " + HEAD + b"transfer-encoding: chunked\r\n\r\n"
    + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nx-trailer: 1\r\n\r\n",
    "absolute": post(path="http://x" + PATH),
    "fragment": post(path=PATH + "#there"),
    "fragment of a model": post(path="/predict/iris#there"),
    "slash in a name": post(path="/v2/models/ir%2fis/infer"),
    "slash in a name, native": post(path="/predict/ir%2Fis"),
    "bytes that are no text": post(path="/predict/%ff"),
    "trailing slash": post(path="/predict/iris/"),
    "connection: keep-alive": post(extra="Connection: Keep-Alive\r\n"),
    "expect, in the pool": post(path="/v2/models/late/infer", extra="expect: 100-continue\r\n"),
    "expect, refused": post(extra="expect: 100-continue\r\ncontent-encoding: br\r\n"),
    "long body": post(b'{"id":"' + b"y" * 60_000 + b'",' + BODY[1:]),
    "body too deep": post(b"[" * 5000),
}  # fmt: skip
KINDS = {**{kind: data for kind, data in REQUESTS.items() if kind not in LAST}, **MORE}
ENDS: dict[str, bytes] = {
    **{kind: REQUESTS[kind] for kind in LAST},
    "HTTP/1.0, expect": post(version="1.0", extra="expect: 100-continue\r\n"),
    "no HTTP": b"\x16\x03\x01 this is no HTTP\r\n\r\n",
    "lower case": post().replace(b"POST", b"post"),
    "two lengths": post(extra="content-length: 3\r\n"),
    "length and chunks": post(extra="transfer-encoding: chunked\r\n"),
    "sign": post().replace(b"content-length: ", b"content-length: +"),
    "space before the colon": post(extra="x : 1\r\n"),
    "folded": post(extra="x-folded: a\r\n b\r\n"),
    "NUL": post(extra="x: \x00\r\n"),
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    "PRI": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "close beside an offer": post(extra="connection: close, Upgrade\r\nupgrade: h2c\r\n"),
    "offer by HTTP/1.0": post(version="1.0", extra="connection: Upgrade\r\nupgrade: h2c\r\n"),
    "huge head": post(extra="x: " + "y" * (2 * MAX_HEADER_BYTES) + "\r\n"),
}  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """Kinds of requests in their order, and where the bytes of all of them together are cut."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=7))
    size = sum(len(KINDS[kind]) for kind in kinds)
    return kinds, draw(st.lists(st.integers(1, size), max_size=8))


def numbered(kinds: list[str]) -> bytes:
    """The requests, each with an id of its own."""
    return b"".join(
        re.sub(rb"(?i)(x-request-id: )r\r\n", rb"\g<1>r%d\r\n" % place, KINDS[kind]) for place, kind in enumerate(kinds)
    )


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(conversation=(["large answer, gzip", "one row", "gzip", "large answer, deflate", "metadata"], []), end=None)
@given(conversation=conversations(), end=st.none() | st.sampled_from(sorted(ENDS)))
def test_both_doors_answer_any_conversation_alike(
    gateways: dict[str, LiveGateway], conversation: tuple[list[str], list[int]], end: str | None
) -> None:
    kinds, cuts = conversation

    async def talk(gateway: LiveGateway) -> list[bytes]:
        async with wire(gateway) as connection:
            await send_in_pieces(connection, numbered(kinds), cuts)
            answers = [comparable(await next_answer(connection)) for _ in kinds]
            if end is not None:
                await connection.send(ENDS[end])
                answers.append(comparable(await next_answer(connection)))
            return answers

    fast, asgi = (asyncio.run(talk(gateways[name])) for name in DOORS)
    assert fast == asgi
    for place, (kind, answer) in enumerate(zip(kinds, fast, strict=False)):
        told = re.search(rb"x-request-id: r(\d+)\r\n", answer)
        assert told is None or int(told.group(1)) == place, kind
    if end is None or end in LAST:
        assert fast[-1].startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_a_connection_ends_it_alike_at_both_doors(gateways: dict[str, LiveGateway], end: str) -> None:
    """After a request that was read here, and after one that the ASGI app answered."""

    async def talk(gateway: LiveGateway, before: bytes) -> list[bytes]:
        async with wire(gateway) as connection:
            answers = []
            for data in (before, ENDS[end]) if before else (ENDS[end],):
                await connection.send(data)
                answers.append(comparable(await next_answer(connection)))
            if end != "too large by its length":  # there the gateway waits for the body
                assert await connection.rest() == b""
            return answers

    for before in (b"", post(), KINDS["ready"]):
        fast, asgi = (asyncio.run(talk(gateways[name], before)) for name in DOORS)
        assert fast == asgi
        if end in ("CONNECT", "PRI", "no HTTP", "two lengths", "length and chunks", "sign"):
            assert re.match(rb"HTTP/1\.1 (400|501) ", fast[-1])


def test_a_head_in_two_segments_after_a_body_in_many_is_no_large_head(gateway: LiveGateway) -> None:
    async def scenario() -> list[bytes]:
        long = post(b'{"id":"' + b"y" * 5 * MAX_HEADER_BYTES + b'",' + BODY[1:])
        async with wire(gateway) as connection:
            answers = []
            for cuts in ([500, 3000, 6000], [30, 3000, 6000]):  # the head is read here; by the parser
                await send_in_pieces(connection, long, cuts)
                answers.append(await connection.answer())
                await send_in_pieces(connection, post(), [40])
                answers.append(await connection.answer())
            return answers

    assert [answer[:12] for answer in asyncio.run(scenario())] == [b"HTTP/1.1 200"] * 4


def test_empty_lines_between_requests_do_not_add_up_to_a_large_head(gateway: LiveGateway) -> None:
    """Some clients end a body with one."""

    async def scenario() -> None:
        async with wire(gateway) as connection:
            lines = b"\r\n" * (MAX_HEADER_BYTES // 6)
            for _ in range(20):
                await send_in_pieces(connection, lines + post(), [len(lines)])
                assert (await connection.answer()).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


@pytest.mark.parametrize("cut", [20, len(post()) - len(BODY), len(post()) - 10, len(post())])
def test_a_request_that_comes_in_pieces_behind_another_is_answered_after_it(gateway: LiveGateway, cut: int) -> None:
    """Its rest comes only once the first one has its answer: nobody may wait for the other for ever."""

    async def scenario() -> list[bytes]:
        async with wire(gateway) as connection:
            await connection.send(post(path="/v2/models/slow/infer"))
            await asyncio.to_thread(eventually, lambda: not is_idle(gateway), "the first one is on its way")
            await connection.send(post()[:cut])
            first = await connection.answer()
            await connection.send(post()[cut:])
            return [first, await connection.answer()]

    first, second = asyncio.run(scenario())
    assert b'"model_name":"slow"' in first
    assert b'"model_name":"iris"' in second


def test_the_time_that_answers_before_it_take_is_not_a_requests_own(gateway: LiveGateway) -> None:
    """The third comes in pieces, and we do not read on while the first one runs."""

    async def scenario() -> list[bytes]:
        async with wire(gateway) as connection:
            await connection.send(post(path="/v2/models/slower/infer", extra="x-request-timeout-ms: 60000\r\n"))
            await asyncio.to_thread(eventually, lambda: not is_idle(gateway), "the first one is on its way")
            await connection.send(post() + post()[:-10])
            await asyncio.sleep(0.01)
            await connection.send(post()[-10:])
            return [await connection.answer() for _ in range(3)]

    assert [answer[:12] for answer in asyncio.run(scenario())] == [b"HTTP/1.1 200"] * 3


def test_a_head_that_never_ends_is_refused_also_behind_another_request(gateway: LiveGateway) -> None:
    """What waits behind a slow answer must not fill the memory meanwhile."""

    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            await connection.send(post(path="/v2/models/slow/infer"))
            await asyncio.to_thread(eventually, lambda: not is_idle(gateway), "the first one is on its way")
            half = b"y" * (MAX_HEADER_BYTES // 2)
            await send_in_pieces(connection, b"POST /predict/iris HTTP/1.1\r\nx: " + half + half, [len(half)])
            return await connection.rest()

    assert b"HTTP/1.1 431 " in asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["in the pool", "chunked", "expect", "GET"])
def test_a_client_that_leaves_at_any_byte_frees_its_place(gateway: LiveGateway, kind: str) -> None:
    data = KINDS[kind]

    async def scenario() -> None:
        for part in range(1, len(data) + 1, 7):
            async with wire(gateway) as connection:
                await connection.send(data[:part])
        for part in (10, len(data) // 2, len(data)):  # behind another one
            async with wire(gateway) as connection:
                await connection.send(KINDS["in the pool"] + data[:part])

    asyncio.run(scenario())
    eventually(lambda: is_idle(gateway), "no request is in flight")
    assert gateway.data.post(PATH, content=BODY).status_code == 200


def test_a_client_that_shuts_its_sending_side_still_gets_its_answer(gateway: LiveGateway) -> None:
    async def scenario() -> bytes:
        async with wire(gateway) as connection:
            await connection.send(KINDS["in the pool"])
            answer = await connection.answer()
            connection.writer.write_eof()
            return answer + await connection.rest()

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 200")


def test_no_client_has_shaken_the_code_of_its_connection(gateways: dict[str, LiveGateway]) -> None:
    """Runs after the others of this file."""
    for gateway in gateways.values():
        assert not [line for line in gateway.log.splitlines() if "Fatal error" in line or "RecursionError" in line]


@pytest.mark.parametrize("door", DOORS)
def test_a_stop_lets_every_connection_end_as_it_stands(tmp_path: Path, door: str) -> None:
    """Idle ones and half heads are closed; what has begun is answered, also what waits behind it, and then closed."""
    write_package(tmp_path / "models", SLOW)
    slow = post(path="/v2/models/slow/infer", extra="x-request-timeout-ms: 60000\r\n")
    with open_gateway(tmp_path, door, {}) as gateway:

        def in_flight() -> float:
            page = gateway.control.get("/metrics").text
            (found,) = re.findall(r"^sluicegate_in_flight_requests (\S+)$", page, re.MULTILINE)
            return float(found)

        async def scenario() -> dict[str, bytes]:
            async with contextlib.AsyncExitStack() as stack:
                idle, half_head, half_body, two = [await stack.enter_async_context(wire(gateway)) for _ in range(4)]
                await half_head.send(slow[:40])
                await half_body.send(slow[:-10])
                await two.send(slow + slow)
                await asyncio.to_thread(eventually, lambda: in_flight() >= 2, "two are in flight")
                gateway.signal(signal.SIGTERM)
                ended = {"idle": await idle.rest(), "half a head": await half_head.rest()}
                await half_body.send(slow[-10:])
                ended |= {"half a body": await half_body.rest(), "two": await two.rest()}
                await asyncio.to_thread(gateway.wait_stopped)
                return ended

        ended = asyncio.run(scenario())
    assert (ended["idle"], ended["half a head"]) == (b"", b"")
    assert [ended[name].count(b"HTTP/1.1 200") for name in ("half a body", "two")] == [1, 2]
    assert [ended[name].count(b"connection: close") for name in ("half a body", "two")] == [1, 1]
