"""A batcher on a bench, with a puppet for a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from gateway.codecs.codec import Request
from gateway.errors import (
    GatewayError,
)
from gateway.serving.batch_policy import BestSize, RunCost
from gateway.serving.batcher import Batcher
from gateway.serving.entry import Entry, Run
from gateway.serving.runpool import RunPool
from gateway.settings import BatchSettings
from gateway.tensors import Signature, Tensors
from tests.puppet import DOUBLER, FakeClock, PuppetRuntime

FAR_S = 1e9


class Bench:
    """A batcher with a puppet for a model, and what came out of it."""

    def __init__(
        self,
        pool: RunPool,
        signature: Signature = DOUBLER,
        runtime: PuppetRuntime | None = None,
        cost: RunCost | None = None,
        best: BestSize | None = None,
        **limits: int | str,
    ) -> None:
        self._signature = signature
        self.runtime = runtime if runtime is not None else PuppetRuntime(signature)
        self.clock = FakeClock()
        self._gathered: list[Entry] = []
        self.runs: list[Run] = []
        self.answers: dict[Entry, list[Tensors | GatewayError]] = {}
        self.batcher = Batcher(
            self.runtime,
            signature,
            cost if cost is not None else RunCost(),
            BatchSettings(**limits),  # type: ignore[arg-type]  # as the settings have them
            pool,
            best=best,
            on_run=self.runs.append,
            clock=self.clock,
        )

    def submit(self, *values: float, deadline_s: float = FAR_S, flat: bool = False) -> Entry:
        rows = np.array(values, np.float64).reshape(-1, 1)
        if flat:
            request = Request(len(values), flat=rows.tobytes(), spec=self._signature.inputs[0])
        else:
            request = Request(len(values), {"x": rows})
        return self.queue(request, deadline_s)

    def queue(self, request: Request, deadline_s: float = FAR_S) -> Entry:
        entry = Entry(request, deadline_s, self)
        self.answers[entry] = []
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self.submit_gathered)
        self._gathered.append(entry)
        return entry

    def submit_gathered(self) -> None:
        """Submit what has been queued in this turn of the loop, as the pipeline does."""
        gathered, self._gathered = self._gathered, []
        self.batcher.submit(gathered)

    def finish(self, entry: Entry, result: Tensors | GatewayError, run: Run | None) -> None:
        self.answers[entry].append(result)

    def finish_batch(self, entries: list[Entry], outputs: Tensors, run: Run) -> None:
        start = 0
        for entry in entries:
            stop = start + entry.rows
            self.answers[entry].append({name: values[start:stop] for name, values in outputs.items()})
            start = stop

    async def all_answered(self) -> None:
        async with asyncio.timeout(20):
            while not all(self.answers.values()):
                await asyncio.sleep(0)

    async def running(self) -> None:
        """Until the puppet is inside a run."""
        async with asyncio.timeout(20):
            while not self.runtime.entered.acquire(blocking=False):
                await asyncio.sleep(0)

    def values(self, entry: Entry) -> list[float]:
        (answer,) = self.answers[entry]
        assert isinstance(answer, dict), answer
        return answer["y"].ravel().tolist()

    def error(self, entry: Entry) -> GatewayError:
        (answer,) = self.answers[entry]
        assert isinstance(answer, GatewayError), answer
        return answer


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def queue_behind_a_run(bench: Bench, *entries: tuple[float, ...], deadlines_s: Sequence[float] = ()) -> None:
    """Queue entries while a run is held, then let all run."""
    bench.runtime.hold()
    bench.submit(0)
    await bench.running()
    for place, values in enumerate(entries):
        bench.submit(*values, deadline_s=deadlines_s[place] if deadlines_s else FAR_S)
        bench.submit_gathered()
    bench.runtime.release()
    await bench.all_answered()
