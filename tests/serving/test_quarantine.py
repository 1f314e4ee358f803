"""Inside a worker: what runs is marked, what is quarantined is let go of, and its share goes to the default variant."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway import marks
from gateway.codecs.codec import Request
from gateway.codecs.native import NativeCodec
from gateway.errors import InferenceFailed, ModelNotReady, UnknownVersion
from gateway.flags.compile import FELL_BACK, ModelOptions, compile_route
from gateway.flags.document import parse
from gateway.marks import IN_THREAD, ON_LOOP, Marks
from gateway.metrics import ServingMetrics, process_registry
from gateway.models.source import DirectorySource, Package
from gateway.serving.batch_policy import MIN_RUNS, RunCost
from gateway.serving.batcher import Batcher
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.entry import Entry, Run
from gateway.serving.guards import Guards
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.router import Adopted, Router
from gateway.serving.runpool import RunPool
from gateway.serving.target import Target
from gateway.settings import BatchSettings
from gateway.tensors import Tensors
from tests.builders import classifier, write_package
from tests.puppet import DOUBLER, POISON, PuppetRuntime

TIMEOUT_S = 20.0
WHY = "two deaths"


@pytest.fixture
def fd() -> Iterator[int]:
    found = marks.create("test")
    yield found
    os.close(found)


# -- marks ----------------------------------------------------------------------------------------------------


class ReadWhileItRuns(PuppetRuntime):
    """Remembers what the supervisor would read if the worker died now."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.seen: list[int] = []

    def run(self, inputs: Tensors) -> Tensors:
        self.seen += [one.doing for one in marks.read(self._fd)] or [marks.IDLE]
        return super().run(inputs)


class Answered:
    """Who waits for entries."""

    def __init__(self) -> None:
        self.results: list[object] = []

    def finish(self, _entry: Entry, result: object, _run: Run | None) -> None:
        self.results.append(result)

    def finish_batch(self, entries: list[Entry], outputs: Tensors, _run: Run) -> None:
        self.results += [outputs] * len(entries)


@pytest.mark.parametrize(("budget_s", "where"), [(1.0, ON_LOOP), (0.0, IN_THREAD)])
@pytest.mark.parametrize("value", [1.0, POISON])
def test_a_run_is_marked_while_it_goes_on_even_if_it_fails(
    pool: RunPool, fd: int, budget_s: float, where: int, value: float
) -> None:
    mark = Marks(fd).take()
    mark.name("m", "1", "digest")
    runtime, cost, answered = ReadWhileItRuns(fd), RunCost(), Answered()
    for _ in range(MIN_RUNS):
        cost.observe(1, 0.0001)

    async def scenario() -> None:
        settings = BatchSettings(inline_budget_s=budget_s)
        batcher = Batcher(runtime, DOUBLER, cost, settings, pool, mark=mark, on_run=lambda _run: None)
        assert marks.read(fd) == ()
        batcher.submit([Entry(Request(1, {"x": np.array([[value]])}), float("inf"), answered)])
        async with asyncio.timeout(TIMEOUT_S):
            while not answered.results:
                await asyncio.sleep(0)

    asyncio.run(scenario())
    assert runtime.seen == [where]
    assert isinstance(answered.results[0], InferenceFailed) == (value == POISON)
    assert marks.read(fd) == ()


class SeenAtLoad(DirectorySource):
    """Remembers what is marked when a package is asked for: other loads, if any go on."""

    def __init__(self, root: Path, fd: int) -> None:
        super().__init__(root)
        self._fd = fd
        self.seen: dict[str, set[str]] = {}

    def open(self, model: str, version: str) -> Package:
        self.seen[model] = {one.model for one in marks.read(self._fd)}
        return super().open(model, version)


# -- the registry ---------------------------------------------------------------------------------------------


class Held:
    """A registry over a directory, with the changes and the drops that it tells of."""

    def __init__(self, root: Path, pool: RunPool, fd: int | None = None, *suspects: tuple[str, str]) -> None:
        self.changed = asyncio.Event()
        self.dropped: list[str] = []
        metrics = ServingMetrics(process_registry())
        self.counts = Counts(metrics)
        self.source = DirectorySource(root) if fd is None else SeenAtLoad(root, fd)
        self.registry = Registry(
            self.source, [NativeCodec()], BatchSettings(), pool, self.counts, metrics,
            on_change=self.changed.set, on_drop=lambda live: self.dropped.append(live.version),
            marks=Marks(fd), suspects=frozenset(suspects),
        )  # fmt: skip

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not check():
                await self.changed.wait()
                self.changed.clear()

    async def warm(self, *versions: str, model: str = "iris") -> list[LiveVersion]:
        await self.until(lambda: all(self.registry.find(model, version) for version in versions))
        return [self.registry.warm[(model, version)] for version in versions]


@asynccontextmanager
async def held(root: Path, pool: RunPool, fd: int | None = None, *suspects: tuple[str, str]) -> AsyncIterator[Held]:
    found = Held(root, pool, fd, *suspects)
    try:
        yield found
    finally:
        found.registry.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def two_versions(root: Path) -> Path:
    for version in ("1", "2"):
        write_package(root, classifier("iris", version))
    return root


BOTH = {("iris", "1"), ("iris", "2")}


def test_a_quarantined_version_finishes_its_calls_and_is_loaded_again_after_a_lift(models: Path, pool: RunPool) -> None:
    async def scenario() -> None:
        async with held(two_versions(models), pool) as it:
            registry = it.registry
            registry.reconcile(BOTH)
            one, two = await it.warm("1", "2")
            two.holders += 1
            assert registry.keep_out({("iris", "2", two.digest): WHY}) == [two]
            assert (registry.find("iris", "1"), registry.find("iris", "2")) == (one, None)
            told = registry.describe("iris")["2"]
            assert told == {"state": "quarantined", "reason": WHY, "digest": two.digest}
            assert it.dropped == []
            registry.release(two)
            assert it.dropped == ["2"]
            registry.keep_out({})
            (again,) = await it.warm("2")
            assert again is not two
            assert registry.state("iris", "2") == "warm"

    run(scenario)


def test_what_is_listed_is_not_loaded_until_its_package_is_another(models: Path, pool: RunPool) -> None:
    digest = DirectorySource(two_versions(models)).open("iris", "2").digest
    write_package(models.parent / "new", classifier("iris", "2", classes=("a", "b", "c")))

    async def scenario() -> None:
        async with held(models, pool) as it:
            it.registry.keep_out({("iris", "2", digest): WHY})
            it.registry.reconcile(BOTH)
            await it.warm("1")
            await it.until(lambda: it.registry.state("iris", "2") == "quarantined")
            for name in ("model.onnx", "manifest.json"):
                (models.parent / "new" / "iris" / "2" / name).replace(models / "iris" / "2" / name)
            (two,) = await it.warm("2")
            assert two.digest != digest

    run(scenario)


def test_a_version_that_is_listed_while_it_loads_is_let_go_of(models: Path, pool: RunPool) -> None:
    digest = DirectorySource(two_versions(models)).open("iris", "2").digest

    async def scenario() -> None:
        async with held(models, pool) as it:
            it.registry.reconcile(BOTH)
            it.registry.keep_out({("iris", "2", digest): WHY})
            await it.until(lambda: it.registry.state("iris", "2") == "quarantined")
            assert it.registry.find("iris", "2") is None

    run(scenario)


def test_suspects_are_loaded_last_and_one_by_one(models: Path, pool: RunPool, fd: int) -> None:
    names = ("iris", "wine", "house", "car")
    for model in names:
        write_package(models, classifier(model, "1", iterations=200))
    suspects = [("iris", "1"), ("car", "1")]

    async def scenario() -> None:
        async with held(models, pool, fd, *suspects) as it:
            it.registry.reconcile({(model, "1") for model in names})
            for model in names:
                await it.warm("1", model=model)
            assert isinstance(it.source, SeenAtLoad)
            assert it.source.seen["iris"] == it.source.seen["car"] == set()

    run(scenario)


def test_the_versions_that_routes_give_by_default_are_marked_so(models: Path, pool: RunPool, fd: int) -> None:
    two_versions(models)

    async def scenario() -> None:
        async with held(models, pool, fd) as it:
            it.registry.reconcile(BOTH, {("iris", "1")})
            await it.warm("1", "2")
            for place in (1, 2):  # as if both ran now
                os.pwrite(fd, bytes([ON_LOOP]), place)
            for defaults in ({("iris", "1")}, {("iris", "2")}):
                it.registry.reconcile(BOTH, defaults)
                found = {("iris", one.version): one.is_default for one in marks.read(fd)}
                assert found == {key: key in defaults for key in BOTH}

    run(scenario)


# -- the router -----------------------------------------------------------------------------------------------

FLAG = {
    "state": "ENABLED",
    "variants": {"stable": "1", "canary": "2"},
    "defaultVariant": "stable",
    "targeting": {"if": [{"==": [{"var": "headers.x-variant"}, "canary"]}, "canary", "stable"]},
}


def call(variant: str = "canary", pinned: str | None = None) -> Call:
    return Call(Target(NativeCodec(), "iris", pinned), {"x-variant": variant}, "r", "p", 0.0, 1.0)


def test_the_share_of_a_quarantined_version_goes_to_the_default_variant(models: Path, pool: RunPool) -> None:
    async def scenario() -> None:
        async with held(two_versions(models), pool) as it:
            guards = Guards(it.registry, it.counts, pool, on_change=lambda: None, on_candidate=lambda _live: None)
            router = Router(it.registry, guards)
            route = compile_route("iris", parse({"flags": {"iris.route": FLAG}}).flags["iris.route"])
            router.adopted["iris"] = Adopted(route, ModelOptions(), 0.0)
            it.registry.reconcile(BOTH)
            one, two = await it.warm("1", "2")
            it.registry.keep_out({("iris", "2", two.digest): WHY})
            diverted, own = call(), call("stable")
            assert router.route(diverted) is router.route(own) is one
            assert diverted.decision is not None
            assert diverted.decision[:2] == ("stable", "1")
            assert diverted.decision.reason == FELL_BACK
            assert own.decision is not None
            assert own.decision.reason != FELL_BACK
            with pytest.raises(UnknownVersion):
                router.route(call(pinned="2"))
            (models / "iris" / "2" / "model.onnx").write_bytes(b"mended, but badly")
            await it.until(lambda: it.registry.state("iris", "2") == "failed")
            assert router.route(call()) is one
            it.registry.keep_out({("iris", "2", two.digest): WHY, ("iris", "1", one.digest): WHY})
            router.adopted["iris"].lives.clear()  # as the watch does
            with pytest.raises(ModelNotReady, match="'1' of model 'iris' is quarantined here"):
                router.route(call("stable"))
            with pytest.raises(ModelNotReady, match="'2' of model 'iris' is not warm here"):
                router.route(call())

    run(scenario)
