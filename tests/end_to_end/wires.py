"""Connections of raw bytes to a gateway, and the requests that are sent through them to all doors."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import certificates
from tests.builders import classifier
from tests.live import LiveGateway, SettingsTable

IRIS = classifier("iris", "1")
PATH = "/v2/models/iris/infer"
# Name -> the door that answers predictions, and whether it is behind TLS.
DOORS = {"fast": ("fast", False), "asgi": ("asgi", False), "fast, TLS": ("fast", True), "asgi, TLS": ("asgi", True)}


def open_gateway(root: Path, name: str, server: Mapping[str, str | int | float]) -> LiveGateway:
    """The gateway that DOORS calls *name*, with the packages in root/models. server: settings of that section."""
    door, is_tls = DOORS[name]
    pair = certificates.self_signed(root / "tls").settings if is_tls else {}
    settings: SettingsTable = {"server": {**server, "door": door, **pair}, "cache": {"max_bytes": 0}}
    return LiveGateway(root / "models", root / name, settings=settings)


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
