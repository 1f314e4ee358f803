"""Clients that ask what is right while others attack, and know what they must get."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from fuzzing.answers import Wrong
from tests.builders import IRIS_FEATURES, classifier
from tests.live import LiveGateway
from tests.traffic import Answer, Client

IRIS = classifier("iris", "1")
PATIENCE_S = 10.0
_TOLERANCE = 1e-4


class Innocents:
    """One connection to each port, opened anew when it was idle for too long. Used on one event loop."""

    def __init__(self, live: LiveGateway, key: str | None, draw: random.Random) -> None:
        self._live = live
        self._headers = {} if key is None else {"x-api-key": key}
        self._draw = draw
        self._data: Client | None = None
        self._control: Client | None = None
        self._route: Any = None

    async def open(self) -> None:
        """See how the flags are that must stay as they are."""
        self._route = json.loads(await self._route_now())

    async def close(self) -> None:
        for client in (self._data, self._control):
            if client is not None:
                await client.__aexit__(None, None, None)

    async def ask(self) -> None:
        """Two predictions, the readiness of the data port and a flag. Raises Wrong."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(self._ask_data(), self._ask_control())
        except TimeoutError:
            raise Wrong(f"an innocent was not answered within {PATIENCE_S:g} s") from None
        except (OSError, EOFError) as error:
            raise Wrong(f"an innocent was cut off: {error!r}") from None

    async def _ask_data(self) -> None:
        row = [round(self._draw.gauss(0, 3), 4) for _ in IRIS_FEATURES]
        expected = IRIS.answer([row])["probabilities"][0]
        client = await self._client("data")
        native = {"rows": [dict(zip(IRIS_FEATURES, row, strict=True))]}
        told = _right(await client.post("/predict/iris", json.dumps(native).encode(), self._headers))
        _compare(list(told["predictions"][0]["probabilities"].values()), expected)
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
        head = json.dumps({"inputs": [tensor]}).encode()
        length = {"inference-header-content-length": str(len(head)), **self._headers}
        told = _right(await client.post("/v2/models/iris/infer", head + struct.pack("<4f", *row), length))
        (output,) = (each["data"] for each in told["outputs"] if each["name"] == "probabilities")
        _compare(output, expected)
        ready = await client.get("/readyz")
        if ready.status != 200:
            raise Wrong(f"/readyz answered {ready.status}: {ready.body[:200]!r}")

    async def _ask_control(self) -> None:
        if json.loads(await self._route_now()) != self._route:
            raise Wrong("a flag that nobody was to touch is another")

    async def _route_now(self) -> bytes:
        client = await self._client("control")
        token = self._live.admin_token
        await client.send(
            f"GET /admin/v1/flags/iris.route HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n".encode()
        )
        answer = await client.receive()
        _right(answer)
        return answer.body

    async def _client(self, port: str) -> Client:
        client = self._data if port == "data" else self._control
        if client is None or not client.is_open:
            if client is not None:
                await client.__aexit__(None, None, None)
            client = Client(self._live.data_url if port == "data" else self._live.control_url)
            await client.__aenter__()
        if port == "data":
            self._data = client
        else:
            self._control = client
        return client


def _right(answer: Answer) -> Any:
    if answer.status != 200:
        raise Wrong(f"an innocent got {answer.status}: {answer.body[:200]!r}")
    return answer.json()


def _compare(found: Sequence[float], expected: Any) -> None:
    if not np.allclose(found, expected, atol=_TOLERANCE):
        raise Wrong(f"an innocent got {found} instead of {expected}")
