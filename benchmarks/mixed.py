"""Traffic as a gateway sees it over a day, in short: all kinds of requests, right and wrong, and clients that leave."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from tests.builders import IRIS_FEATURES, classifier
from tests.live import LiveGateway
from tests.traffic import Answer, Client

IRIS = {version: classifier("iris", version) for version in ("1", "2")}
PATIENCE_S = 20.0
_HOT_ROWS = 50
_TOLERANCE = 1e-4
_LABEL_SHARE = 0.2
_WRONG: tuple[tuple[str, bytes, dict[str, str]], ...] = (
    ("/predict/iris", b"{", {}),
    ("/predict/iris", b'{"rows":[{"sepal_length":"long"}]}', {}),
    ("/predict/nobody", b'{"rows":[{}]}', {}),
    ("/predict/iris", b"x", {"content-encoding": "gzip"}),
    ("/v2/models/iris/infer", b'{"inputs":[{"name":"input","shape":[1,5],"datatype":"FP32","data":[1,2,3,4,5]}]}', {}),
    ("/v2/models/iris/versions/9/infer", b"{}", {}),
    ("/v2/models/iris/infer", b"xxxx", {"inference-header-content-length": "900"}),
    ("/v1/feedback", b'{"label":1}', {}),
    ("/nowhere", b"", {}),
)

Ask = tuple[str, bytes, Mapping[str, str], list[list[float]]]


@dataclass(slots=True)
class Tally:
    """What came of it. wrong: things that must not be, in words, with how often."""

    right: int = 0
    refused: int = 0  # as it must be
    labels: int = 0
    left: int = 0  # connections that were dropped in the middle
    edits: int = 0


class Mixed:
    """A context manager: asks from a thread of its own until it is left; read the tally and the troubles then.

    rate_per_s: of requests, over all clients. edit_s: pause between two changes of flags.
    """

    def __init__(
        self, live: LiveGateway, *, seed: int, rate_per_s: float, clients: int = 8, edit_s: float = 2.0
    ) -> None:
        self._live = live
        self._seed = seed
        self._pause_s = clients / rate_per_s
        self._clients = clients
        self._edit_s = edit_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="mixed")
        draw = random.Random(seed)
        self._hot = [_row(draw) for _ in range(_HOT_ROWS)]
        self.tally = Tally()
        self.troubles: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    async def _run(self) -> None:
        lives = [self._again(self._client, random.Random(f"{self._seed}:{place}")) for place in range(self._clients)]
        await asyncio.gather(*lives, self._again(self._passer_by, random.Random(self._seed)), self._edit())

    async def _again(self, life: Callable[[random.Random], Awaitable[None]], draw: random.Random) -> None:
        while not self._over.is_set():
            try:
                await life(draw)
            except TimeoutError:
                self.troubles[f"no answer within {PATIENCE_S:g} s"] += 1
            except (OSError, EOFError) as error:
                self.troubles[f"cut off: {type(error).__name__}"] += 1

    async def _client(self, draw: random.Random) -> None:
        """One connection, for some dozens of requests."""
        async with Client(self._live.data_url) as client:
            for _ in range(draw.randrange(10, 100)):
                await asyncio.sleep(draw.expovariate(1 / self._pause_s))
                if self._over.is_set() or not client.is_open:
                    return
                if draw.random() < 0.1:
                    await self._ask_wrongly(client, draw)
                else:
                    await self._ask(client, draw)

    async def _ask(self, client: Client, draw: random.Random) -> None:
        path, body, headers, rows = draw.choice((self._native, self._oip, self._binary))(draw)
        if draw.random() < 0.5:
            headers = {**headers, "x-targeting-key": f"user-{draw.randrange(1000)}"}
        answer = await _within(client.post(path, body, headers))
        if answer.status != 200:
            self.troubles[f"{answer.status} {answer.body[:80]!r}"] += 1
            return
        if not _is_right(answer, rows):
            self.troubles[f"a wrong answer to {path}"] += 1
        self.tally.right += 1
        if draw.random() < _LABEL_SHARE:
            label = {"prediction_id": answer.headers["x-prediction-id"], "label": draw.randrange(3), "row": 0}
            told = await _within(client.post("/v1/feedback", json.dumps(label).encode()))
            self.tally.labels += told.status == 200
            if told.status != 200:
                self.troubles[f"a label got {told.status}"] += 1

    async def _ask_wrongly(self, client: Client, draw: random.Random) -> None:
        path, body, headers = draw.choice(_WRONG)
        answer = await _within(client.post(path, body, headers))
        self.tally.refused += 400 <= answer.status < 500
        if not 400 <= answer.status < 500:
            self.troubles[f"{answer.status} to a wrong request of {path}"] += 1

    async def _passer_by(self, draw: random.Random) -> None:
        """Somebody who connects and leaves: at once, in a head, in a body, before the answer, or after nonsense."""
        await asyncio.sleep(draw.expovariate(1 / (self._pause_s * 2)))
        url = urlsplit(self._live.data_url)
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        whole = b'POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n{"rows":[{}]'
        sent = draw.choice((b"", whole[:20], whole[:-5], whole, b"\x16\x03\x01" * 9))
        writer.write(sent)
        if draw.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        self.tally.left += 1

    async def _edit(self) -> None:
        """Change flags and look at what an operator looks at, again and again."""
        draw, turn = random.Random(self._seed), 0
        while not self._over.is_set():
            await asyncio.sleep(self._edit_s)
            await asyncio.to_thread(self._change, draw, turn)
            turn += 1

    def _change(self, draw: random.Random, turn: int) -> None:
        share = draw.choice((0, 10, 50, 100))
        split = {"targeting": {"fractional": [["canary", share], ["stable", 100 - share]]}}
        changes: tuple[tuple[str, str, Any], ...] = (
            ("PATCH", "/admin/v1/flags/iris.route", split),
            ("PATCH", "/admin/v1/flags/iris.route", {"state": "DISABLED"}),
            ("PATCH", "/admin/v1/flags/iris.route", {"state": "ENABLED"}),
            ("POST", "/admin/v1/models/iris/cache:purge", {}),
            ("PUT", "/admin/v1/flags/iris.sampling",
             {"state": "ENABLED", "variants": {"some": draw.choice((0.5, 1.0))}, "defaultVariant": "some"}),
        )  # fmt: skip
        method, path, body = changes[turn % len(changes)]
        why = {"if-match": "*", "x-change-reason": "soak"}
        reply = self._live.control.request(method, path, json=body, headers=why)
        looks = ("/admin/v1/status", "/admin/v1/flags/iris.route/history?limit=20", "/metrics", "/admin/v1/models")
        look = self._live.control.get(looks[turn % len(looks)])
        for answer in (reply, look):
            if answer.status_code not in (200, 201):
                self.troubles[f"control: {answer.status_code} {answer.text[:120]}"] += 1
        self.tally.edits += 1

    # -- what is asked --------------------------------------------------------------------------------

    def _rows(self, draw: random.Random) -> list[list[float]]:
        """Mostly one that is asked often, or one that is new; sometimes many."""
        kind = draw.random()
        if kind < 0.4:
            return [self._hot[min(int(draw.paretovariate(1)) - 1, _HOT_ROWS - 1)]]
        return [_row(draw) for _ in range(1 if kind < 0.9 else 64)]

    def _native(self, draw: random.Random) -> Ask:
        rows = self._rows(draw)
        named = [dict(zip(IRIS_FEATURES, row, strict=True)) for row in rows]
        return "/predict/iris", json.dumps({"rows": named}).encode(), {}, rows

    def _oip(self, draw: random.Random) -> Ask:
        rows = self._rows(draw)
        tensor = {"name": "input", "shape": [len(rows), 4], "datatype": "FP32", "data": [*itertools.chain(*rows)]}
        return "/v2/models/iris/infer", json.dumps({"inputs": [tensor]}).encode(), {}, rows

    def _binary(self, draw: random.Random) -> Ask:
        rows = self._rows(draw)
        blob = struct.pack(f"<{4 * len(rows)}f", *itertools.chain(*rows))
        tensor = {"name": "input", "shape": [len(rows), 4], "datatype": "FP32",
                  "parameters": {"binary_data_size": len(blob)}}  # fmt: skip
        head = json.dumps({"inputs": [tensor]}).encode()
        return "/v2/models/iris/infer", head + blob, {"inference-header-content-length": str(len(head))}, rows


def _row(draw: random.Random) -> list[float]:
    return [round(draw.gauss(0, 1), 4) for _ in IRIS_FEATURES]


def _is_right(answer: Answer, rows: list[list[float]]) -> bool:
    told = answer.json()
    if "predictions" in told:
        found = [list(each["probabilities"].values()) for each in told["predictions"]]
    else:
        found = next(each["data"] for each in told["outputs"] if each["name"] == "probabilities")
    expected = IRIS[answer.headers["x-model-version"]].answer(rows)["probabilities"]
    return bool(np.allclose(np.reshape(found, (-1, 3)), expected, atol=_TOLERANCE))


async def _within(asking: Awaitable[Answer]) -> Answer:
    async with asyncio.timeout(PATIENCE_S):
        return await asking
