"""A pipeline with its parts, two versions of one model with a puppet behind each, and clock and threads by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.codecs.codec import Codec, Headers
from gateway.errors import GatewayError
from gateway.flags.compile import ModelOptions, compile_route
from gateway.flags.document import parse
from gateway.metrics import ServingMetrics, process_registry
from gateway.models.source import DirectorySource
from gateway.samples.record import sampling_limit
from gateway.serving.admission import Admission
from gateway.serving.answers import Answers
from gateway.serving.batch_policy import BestSize, RunCost
from gateway.serving.batcher import Batcher
from gateway.serving.cache import PredictionCache
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.guards import Guards
from gateway.serving.loading import Loaded
from gateway.serving.pipeline import Pipeline
from gateway.serving.protocols import codecs_of, prediction_paths
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.replies import Block
from gateway.serving.router import Adopted, Router
from gateway.serving.runpool import RunPool
from gateway.serving.sampler import Sampler
from gateway.serving.sampling_rules import RuleBudget
from gateway.serving.shadow import Shadow
from gateway.serving.target import Target
from gateway.serving.traced import TracedPipeline
from gateway.serving.tracing import Tracer
from gateway.settings import BatchSettings, CacheSettings, LimitSettings, SamplingSettings, ShadowSettings
from gateway.tensors import Feature, Signature
from tests.puppet import DOUBLER, FakeClock, PuppetRuntime

CODECS: tuple[Codec, ...] = codecs_of(prediction_paths())
NAMED = replace(DOUBLER, features=(Feature("x", "x", 0),))
FLAG = {
    "state": "ENABLED",
    "variants": {"stable": "1", "twin": "1", "canary": "2"},
    "defaultVariant": "stable",
    "metadata": {"fallback": False},
    "targeting": {"if": [{"!=": [{"var": "headers.x-variant"}, None]}, {"var": "headers.x-variant"}, None]},
}

_OPEN: list[Rig] = []  # since the last scenario: each may have a thread, and a property test makes hundreds


class HandPool(Executor):
    """Runs what is submitted when it is told to, in the thread that tells it."""

    def __init__(self) -> None:
        self._runs: list[Callable[[], object]] = []

    def submit(self, run: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        self._runs.append(lambda: run(*arguments, **named))
        return Future()

    @property
    def is_busy(self) -> bool:
        return bool(self._runs)

    def run_one(self) -> None:
        self._runs.pop(0)()

    def take(self) -> Callable[[], object]:
        """The latest run, to be done when the caller likes."""
        return self._runs.pop()


def meant(codec: str, values: tuple[float, ...]) -> Any:
    """The document by which a protocol asks for rows of one value."""
    rows = [[value] for value in values]
    documents: dict[str, Any] = {
        "native": {"rows": [{"x": value} for value in values]},
        "oip": {"inputs": [{"name": "x", "shape": [len(values), 1], "datatype": "FP64", "data": list(values)}]},
        "tfs": {"instances": rows},
        "mlflow": {"dataframe_split": {"columns": ["x"], "data": rows}},
        "torchserve": rows,
    }
    return documents[codec]


class Caller:
    """One prediction as its door sees it."""

    def __init__(self, call: Call, values: list[float]) -> None:
        self.call = call
        self.values = values
        self.left = False
        self.answers: list[tuple[GatewayError | None, dict[str, str], bytes]] = []

    @property
    def error(self) -> GatewayError | None:
        ((error, _, _),) = self.answers
        return error

    @property
    def headers(self) -> dict[str, str]:
        ((_, headers, _),) = self.answers
        return headers

    def outputs(self) -> list[float]:
        """What the body of the answer says for y, row by row."""
        ((error, _, body),) = self.answers
        assert error is None
        document = json.loads(body)
        protocol = self.call.codec.name
        if protocol == "oip":
            return [float(value) for value in document["outputs"][0]["data"]]
        rows = document if protocol == "torchserve" else document["predictions"]
        return [float(row["y"] if protocol == "native" else row[0] if protocol == "tfs" else row) for row in rows]


class Rig:
    """A pipeline with two versions of one model, a puppet behind each, a clock and a pool that move by hand."""

    def __init__(
        self,
        root: Path,
        signature: Signature = NAMED,
        *,
        puppet: type[PuppetRuntime] = PuppetRuntime,
        cache: bool = True,
        shadow: dict[str, Any] | None = None,
        most_bytes: int = 2**28,
        tracer: Callable[[ServingMetrics], Tracer] | None = None,
        **limits: float | str,
    ) -> None:
        self.clock = FakeClock()
        self.pool = HandPool()
        threads = RunPool(2, clock=self.clock, executor=self.pool)  # one for each version
        self._counted = process_registry()
        metrics = ServingMetrics(self._counted)
        counts = self.counts = Counts(metrics)
        self.admission = Admission(LimitSettings(), max_in_flight_bytes=most_bytes, clock=self.clock)
        # No run is short enough for the loop unless a test says so.
        batching = BatchSettings(**{"inline_budget_s": 0.0, **limits})  # type: ignore[arg-type]
        registry = Registry(
            DirectorySource(root), CODECS, batching, threads, counts, metrics,
            on_change=lambda: None, on_drop=lambda _live: None,
        )  # fmt: skip
        self.versions: dict[str, LiveVersion] = {}
        self.runtimes: dict[str, PuppetRuntime] = {}
        self.costs: dict[str, RunCost] = {}
        for version in ("1", "2"):
            runtime = self.runtimes[version] = puppet(signature)
            cost = self.costs[version] = RunCost()
            loaded = Loaded(runtime, signature, f"digest-{version}", cost, BestSize())
            batcher = Batcher(
                runtime, signature, cost, batching, threads, on_run=counts.ran("m", version),
                clock=self.clock, cost_clock=self.clock,
            )  # fmt: skip
            self.versions[version] = registry.warm[("m", version)] = LiveVersion("m", version, loaded, batcher, CODECS)
        self.kept = PredictionCache(CacheSettings(max_bytes=2**20 if cache else 0), clock=self.clock)
        self.changes = 0
        self.guards = Guards(
            registry, counts, threads, on_change=self._changed, on_candidate=self._forget, clock=self.clock
        )
        self.router = Router(registry, self.guards)
        self.copies = HandPool()
        self.loop_s = 0.0  # how long the event loop has been on a processor
        self.shadow = Shadow(
            registry, threads, ShadowSettings(**(shadow or {})), batching, metrics,
            in_flight=lambda: self.admission.in_flight, clock=self.clock, loop_clock=lambda: self.loop_s,
            cost_clock=self.clock, wall_clock=self.clock, executor=self.copies,
        )  # fmt: skip
        self.adopt()
        self.sampler = Sampler(
            SamplingSettings(), root / "samples", boot="b", metrics=metrics, redaction_key=root / "redaction.key"
        )
        budget = RuleBudget(SamplingSettings().max_by_rules_per_s, metrics, clock=self.clock)
        answers = Answers(registry, self.kept, self.sampler, self.shadow, counts, budget, ttl_s=300.0, clock=self.clock)
        parts = (self.admission, self.router, self.kept, answers, self.guards)
        self.pipeline = Pipeline(*parts, clock=self.clock)
        if tracer is not None:
            self.pipeline = TracedPipeline(*parts, tracer(metrics), clock=self.clock)
        self.callers: list[Caller] = []
        _OPEN.append(self)

    def _changed(self) -> None:
        self.changes += 1

    def _forget(self, live: LiveVersion) -> None:
        live.cache_epoch += 1
        self.kept.purge(live.digest)

    def adopt(
        self,
        flag: dict[str, Any] = FLAG,
        *,
        cached: bool = True,
        sampled: float = 0.0,
        shadowed: float = 0.0,
        durable: bool = False,
    ) -> None:
        """Put a route flag in force, as the watch does."""
        route = compile_route("m", parse({"flags": {"m.route": flag}}).flags["m.route"])
        arms = self.guards.watch(route)
        self.router.adopted["m"] = Adopted(
            route, ModelOptions(cache_enabled=cached, is_durable=durable), sampling_limit(sampled), arms=arms,
            is_watched=bool(arms.split or arms.ruled),
        )  # fmt: skip
        self.router.known.add("m")
        self.shadow.follow("m", "2", shadowed)

    def ask(
        self,
        *values: float,
        codec: str = "oip",
        pinned: str | None = None,
        variant: str | None = None,
        key: str | None = None,
        timeout_s: float = 5.0,
        priority: str | None = None,
        body: bytes | None = None,
        traceparent: str | None = None,
    ) -> Caller:
        """One request with its whole body, as a door hands it over."""
        body = json.dumps(meant(codec, values)).encode() if body is None else body
        headers = {"x-request-timeout-ms": str(timeout_s * 1000)} | ({"x-variant": variant} if variant else {})
        headers |= {"x-targeting-key": key} if key else {}
        headers |= {"x-request-priority": priority} if priority else {}
        headers |= {"traceparent": traceparent} if traceparent else {}
        (found,) = [one for one in CODECS if one.name == codec]
        call = self.admission.open(Target(found, "m", pinned), headers, len(body))
        call.body = body
        caller = Caller(call, list(values))
        self.callers.append(caller)

        def on_reply(_: Call, error: GatewayError | None, route: Block, content: Headers, body: bytes) -> None:
            caller.answers.append((error, {name.decode(): value.decode() for name, value in route.pairs}, body))
            self.admission.close(call)

        self.pipeline.begin(call, on_reply)
        return caller

    def leave(self, caller: Caller) -> None:
        """The client goes away, if it still waits."""
        if not caller.answers and not caller.left:
            caller.left = True
            self.pipeline.abandon(caller.call)
            self.admission.close(caller.call)

    def advance(self, seconds: float) -> None:
        """Time passes, and the door tells those whose deadline has passed."""
        self.clock.advance(seconds)
        self.pipeline.divert_late()
        for caller in self.callers:
            if not caller.answers and not caller.left and caller.call.deadline_s <= self.clock():
                self.pipeline.expire(caller.call)

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let all runs happen."""
        await self._run_all(self.pool)

    async def _run_all(self, pool: HandPool) -> None:
        idle_turns = 0
        while idle_turns < 3:
            before, is_busy = self._waiting(), pool.is_busy
            if is_busy:
                pool.run_one()
            await self.turn()
            # Once runs are known to be short they are made on the loop, where no pool shows them.
            idle_turns = 0 if is_busy or self._waiting() != before else idle_turns + 1

    def _waiting(self) -> int:
        """Requests that are not decoded yet, and rows that wait for a run."""
        return sum(len(live.arrivals) + live.batcher.queued_rows for live in self.versions.values())

    def counted(self, name: str, **labels: str) -> float:
        """What the metrics say of model m."""
        self.counts.flush()
        return self._counted.get_sample_value(name, {"model": "m", **labels}) or 0.0

    async def run_copies(self) -> None:
        """Let all copies run for which there is room now."""
        self.shadow.tick()
        while self.copies.is_busy:
            await self._run_all(self.copies)
            self.shadow.tick()

    def close(self) -> None:
        """End the thread that looks after candidates."""
        self.guards.close()

    def check_nothing_is_held(self) -> None:
        for caller in self.callers:  # as the ASGI door does at the end: nothing, if it has its answer
            self.pipeline.abandon(caller.call)
        assert (self.admission.in_flight, self.admission.in_flight_bytes) == (0, 0)
        assert {version: live.holders for version, live in self.versions.items()} == {"1": 0, "2": 0}
        assert [live.batcher.queued_rows for live in self.versions.values()] == [0, 0]
        assert not any(live.arrivals for live in self.versions.values())


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on an event loop of its own, and close the rigs that it made."""
    try:
        asyncio.run(scenario())
    finally:
        while _OPEN:
            _OPEN.pop().close()
