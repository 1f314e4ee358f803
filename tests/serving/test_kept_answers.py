"""What is kept of answers and of those who asked: never cut, never old, never too much, and given at once."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.flags.compile import ModelOptions, compile_route
from gateway.flags.document import parse
from gateway.metrics import ServingMetrics, process_registry
from gateway.serving.batch_policy import MIN_RUNS
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.doorway import Doorway
from gateway.serving.packing import Packer
from gateway.serving.protocols import prediction_paths
from gateway.serving.router import Adopted
from gateway.tensors import Feature, Signature, Tensors, TensorSpec
from tests.puppet import PuppetRuntime
from tests.serving.rig import FLAG, Rig, run


def test_an_answer_that_is_kept_under_another_spelling_too_gets_no_younger_by_that(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)  # answers are kept for 300 s

        async def ask(codec: str) -> str:
            caller = rig.ask(1, codec=codec)
            await rig.settle()
            assert caller.outputs() == [2]
            return caller.headers["x-cache"]

        assert await ask("oip") == "miss"
        rig.clock.advance(290)
        assert [await ask("native"), await ask("native")] == ["hit", "hit"]
        rig.clock.advance(20)
        assert await ask("native") == "miss"

    run(scenario)


class Summer(PuppetRuntime):
    """A model without a dimension for rows: three numbers in, three values out."""

    def run(self, inputs: Tensors) -> Tensors:
        return {"y": np.cumsum(super().run(inputs)["y"])}


class Total(PuppetRuntime):
    """The same, but with one value out, of no dimension at all."""

    def run(self, inputs: Tensors) -> Tensors:
        return {"y": np.array(super().run(inputs)["y"].sum())}


@pytest.mark.parametrize(("puppet", "shape", "value"), [(Summer, (3,), [2.0, 6.0, 12.0]), (Total, (), 12.0)])
@pytest.mark.parametrize("cache", [True, False])
def test_the_answer_of_a_model_without_rows_is_not_cut(
    tmp_path: Path, cache: bool, puppet: type[PuppetRuntime], shape: tuple[int, ...], value: Any
) -> None:
    """Not for who asks first, nor for who waits with it, nor for who asks the same in other words later."""
    fixed = Signature(
        (TensorSpec("x", "FP64", (1, 3)),), (TensorSpec("y", "FP64", shape),),
        tuple(Feature(name, "x", column) for column, name in enumerate("abc")), batchable=False,
    )  # fmt: skip
    words = [b'{"rows":[{"a":1,"b":2,"c":3}]}', b'{"rows":[{"c":3,"b":2,"a":1}]}', b'{"rows": [{"b":2,"a":1,"c":3}]}']

    async def scenario() -> None:
        rig = Rig(tmp_path, fixed, puppet=puppet, cache=cache)
        callers = [rig.ask(0, codec="native", body=body) for body in words[:2]]
        await rig.settle()
        callers += [rig.ask(0, codec="native", body=body) for body in words]
        await rig.settle()
        for caller in callers:
            ((error, _, body),) = caller.answers
            assert error is None
            assert json.loads(body)["predictions"] == [{"y": value}]
        rig.check_nothing_is_held()

    run(scenario)


def test_an_answer_on_its_way_is_not_kept_once_its_cache_was_emptied(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        first = rig.ask(1)
        await rig.turn()
        rig.versions["1"].cache_epoch += 1  # as when the flag is switched off and on
        await rig.settle()
        again = rig.ask(1)
        await rig.settle()
        assert [first.headers["x-cache"], again.headers["x-cache"]] == ["miss", "miss"]
        rig.check_nothing_is_held()

    run(scenario)


def test_long_ids_are_not_kept_with_small_rows(tmp_path: Path) -> None:
    """Nothing that a client sends may make the cache hold more than it counts."""

    async def scenario() -> None:
        rig = Rig(tmp_path)
        tensor = {"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1.0]}
        body = json.dumps({"id": "i" * 100_000, "inputs": [tensor]}).encode()
        for _ in range(2):
            caller = rig.ask(1, body=body)
            await rig.settle()
            assert caller.headers["x-cache"] == "bypass"
        rig.check_nothing_is_held()

    run(scenario)


def test_samples_tell_of_the_run_that_they_were_part_of(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        rig.adopt(sampled=1.0)
        rig.sampler.start()
        rig.ask(7)
        await rig.turn()
        callers = [rig.ask(1), rig.ask(2, 3, codec="native"), rig.ask(4, pinned="1"), rig.ask(5, variant="twin")]
        await rig.turn()
        rig.clock.advance(0.5)
        await rig.settle()
        await asyncio.to_thread(rig.sampler.close, 10.0)
        found = {}
        for path in (tmp_path / "samples").rglob("*.jsonl"):
            for line in path.read_text().splitlines():
                found[json.loads(line)["prediction_id"]] = json.loads(line)
        assert len(found) == 5
        for caller in callers:
            sample = found[caller.call.prediction_id]
            assert sample["batch_rows"] == 5
            assert sample["latency_us"] == {"queue": 500_000, "run": 0}
            assert sample["variant"] == caller.headers["x-model-variant"]
            assert sample["rows"] == len(caller.values)

    run(scenario)


def test_a_kept_answer_is_given_however_busy_the_version_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.ask(1, 2, 3)
        await rig.settle()
        for _ in range(MIN_RUNS):
            rig.costs["1"].observe(1, 2.0)
        rig.ask(7)
        await rig.turn()
        kept = rig.ask(1, 2, 3, codec="native", timeout_s=5.0)
        await rig.turn()
        assert kept.headers["x-cache"] == "hit"

    run(scenario)


def test_long_paths_and_keys_that_never_repeat_do_not_fill_the_memory(tmp_path: Path) -> None:
    """What was found for the paths and keys that come often is remembered; for a long one that is not worth it."""
    flag = {**FLAG, "targeting": {"fractional": [["stable", 50], ["canary", 50]]}}

    async def scenario() -> None:
        rig = Rig(tmp_path)
        route = compile_route("m", parse({"flags": {"m.route": flag}}).flags["m.route"])
        rig.router.adopted["m"] = Adopted(route, ModelOptions(), 0.0)
        counts = Counts(ServingMetrics(process_registry()))
        doorway = Doorway(rig.admission, rig.pipeline, counts, prediction_paths(), Packer(0))
        tracemalloc.start()
        try:
            for number in range(4000):
                long = f"{number}-".ljust(4000, "k")
                found = doorway.target(b"/predict/" + long.encode())
                assert found is not None
                assert found.model == long
                rig.router.route(Call(found._replace(model="m"), {"x-targeting-key": long}, "r", "p", 0.0, 1.0))
            assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        finally:
            tracemalloc.stop()

    run(scenario)
