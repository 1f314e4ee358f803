"""A light, steady load from a thread of its own, which remembers what each request came to."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.live import eventually
from tests.traffic import Answer, Client

RATE_PER_S = 50.0
CLIENTS = 8
# No answer by then: the request has failed.
PATIENCE_S = 20.0
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Ask:
    """One prediction. path: where to. rows: that it asks for."""

    path: str
    body: bytes
    rows: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that failed. at_s: monotonic. how: a status with the error's code, "cut" or "no answer"."""

    at_s: float
    how: str


class Load:
    """A context manager: clients on keep-alive connections ask until it is left. Nothing is sent twice.

    ask: the next prediction, drawn from what it is given; called in the thread of the load. label_share: of the answers
    that are labelled right after, by POST /v1/feedback. A connection that was ended while it was idle is opened anew,
    which is no failure. Read what is counted when the load is over, or for a look in between.
    """

    def __init__(
        self,
        url: str,
        ask: Callable[[random.Random], Ask],
        *,
        seed: int,
        rate_per_s: float = RATE_PER_S,
        clients: int = CLIENTS,
        label_share: float = 0.0,
    ) -> None:
        self.url = url  # of new connections; it changes when the gateway is started anew
        self._ask = ask
        self._seed = seed
        self._pause_s = clients / rate_per_s
        self._clients = clients
        self._label_share = label_share
        self._is_over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self.requests = 0
        self.answered: dict[str, int] = {}  # prediction id -> rows
        self.labelled: set[str] = set()  # prediction ids whose label was acknowledged
        self.versions: Counter[str] = Counter()
        self.fallbacks = 0
        self.failures: list[Failure] = []
        self.longest_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self._thread.join()

    def wait_answered(self, more: int, *, timeout_s: float = 60.0) -> None:
        """Wait until so many more predictions were answered."""
        enough = len(self.answered) + more
        eventually(lambda: len(self.answered) >= enough, f"{more} predictions are answered", timeout_s=timeout_s)

    def kinds(self) -> str:
        """The failures by kind, for a message."""
        found = Counter(failure.how for failure in self.failures)
        return ", ".join(f"{count} x {how}" for how, count in found.most_common()) or "none"

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(random.Random(f"{self._seed}:{n}")) for n in range(self._clients)))

    async def _client(self, draw: random.Random) -> None:
        due_s = time.monotonic() + draw.random() * self._pause_s
        while not self._is_over:
            try:
                async with AsyncExitStack() as stack:
                    connection = await self._connect(stack)
                    while not self._is_over:
                        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                        due_s = max(due_s, time.monotonic() - self._pause_s) + draw.expovariate(1 / self._pause_s)
                        if self._is_over or not connection.is_open:
                            break
                        await self._predict(connection, draw)
            except (OSError, EOFError):  # TimeoutError is an OSError
                await asyncio.sleep(_PAUSE_S)

    async def _connect(self, stack: AsyncExitStack) -> Client:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await stack.enter_async_context(Client(self.url))
        except OSError:
            self.requests += 1  # whoever cannot connect has something to ask
            self.failures.append(Failure(time.monotonic(), "refused"))
            await asyncio.sleep(self._pause_s)
            raise

    async def _predict(self, connection: Client, draw: random.Random) -> None:
        ask = self._ask(draw)
        answer = await self._send(connection, ask.path, ask.body, ask.headers)
        if answer is None:
            return
        identity = answer.headers["x-prediction-id"]
        self.answered[identity] = ask.rows
        self.versions[answer.headers["x-model-version"]] += 1
        self.fallbacks += "x-model-fallback" in answer.headers
        if draw.random() < self._label_share:
            label = json.dumps({"prediction_id": identity, "label": draw.randrange(3), "row": 0}).encode()
            if await self._send(connection, "/v1/feedback", label, {}) is not None:
                self.labelled.add(identity)

    async def _send(self, connection: Client, path: str, body: bytes, headers: dict[str, str]) -> Answer | None:
        """The answer; None, and a failure, if it is no 200. Raises what the connection raises, which is one too."""
        self.requests += 1
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await connection.post(path, body, headers)
        except TimeoutError:
            self.failures.append(Failure(time.monotonic(), "no answer"))
            raise
        except (OSError, EOFError):
            self.failures.append(Failure(time.monotonic(), "cut"))
            raise
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        if answer.status == 200:
            return answer
        self.failures.append(Failure(time.monotonic(), f"{answer.status} {_code(answer)}"))
        return None


def _code(answer: Answer) -> str:
    """What an error says of itself, shortened."""
    try:
        told: Any = answer.json()["error"]
        return str(told["code"] if isinstance(told, dict) else told)[:60]
    except (ValueError, KeyError, TypeError):
        return answer.body[:60].decode(errors="replace")
