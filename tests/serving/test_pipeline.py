"""The walk of predictions without sockets: everybody is told once and rightly, and nothing is held afterwards."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    InferenceFailed,
    InvalidInput,
    OverShare,
    QueueFull,
    Shed,
)
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
from gateway.serving.shares import Shares
from gateway.tensors import Feature, Signature, Tensors, TensorSpec
from tests.puppet import POISON, PuppetRuntime
from tests.serving.rig import FLAG, NAMED, Caller, Rig, run

VALUES = st.sampled_from([1.0, 2.0, 3.0, POISON])
ASK = st.fixed_dictionaries(
    {
        "values": st.lists(VALUES, min_size=1, max_size=1) | st.lists(VALUES, min_size=1, max_size=7),
        "codec": st.sampled_from(["oip", "oip", "native", "tfs", "mlflow", "torchserve"]),
        "pinned": st.sampled_from([None, None, None, "1", "2"]),
        "variant": st.sampled_from([None, None, "twin", "canary", "nonsense"]),
        "timeout_s": st.sampled_from([1.0, 5.0, 5.0]),
        "body": st.sampled_from([None] * 9 + [b"{", b""]),
    }
)
STEPS = st.lists(
    st.one_of(
        ASK.map(lambda ask: ("ask", ask)),
        ASK.map(lambda ask: ("ask", ask)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.sampled_from([0.4, 1.0, 5.0])),
        st.tuples(st.sampled_from(["turn", "run", "cache off", "cache on"]), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=STEPS, cache=st.booleans(), max_batch_rows=st.integers(1, 6), max_queue_rows=st.sampled_from([7, 12, 1000])
)
def test_everybody_is_told_once_and_nothing_is_held_afterwards(
    tmp_path: Path, steps: list[tuple[str, Any]], cache: bool, max_batch_rows: int, max_queue_rows: int
) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=cache, max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows)
        for kind, detail in steps:
            if kind == "ask":
                rig.ask(*detail["values"], **{name: value for name, value in detail.items() if name != "values"})
            elif kind == "leave" and rig.callers:
                rig.leave(rig.callers[detail % len(rig.callers)])
            elif kind == "advance":
                rig.advance(detail)
            elif kind == "run" and rig.pool.is_busy:
                rig.pool.run_one()
            elif kind.startswith("cache"):
                rig.adopt(cached=kind == "cache on")
            elif kind == "turn":
                await rig.turn()
        await rig.settle()
        for caller in rig.callers:
            check_answer(caller)
        rig.check_nothing_is_held()
        # Nobody is left behind whom an equal call would wait for.
        for value in (1.0, 2.0, 3.0, POISON):
            for pinned in ("1", "2"):
                again = rig.ask(value, pinned=pinned)
                await rig.settle()
                check_answer(again)
                assert again.error is None or value == POISON or str(again.error) == "aborted"
        rig.check_nothing_is_held()

    run(scenario)


def check_answer(caller: Caller) -> None:
    call = caller.call
    if caller.left:
        assert not caller.answers
        return
    ((error, headers, _),) = caller.answers
    if error is None:
        assert caller.outputs() == [2 * value for value in caller.values]
        assert POISON not in caller.values
        wanted = call.headers.get("x-variant")
        variant = "pinned" if call.pinned else wanted if wanted in FLAG["variants"] else "stable"
        version = call.pinned or FLAG["variants"][variant]  # type: ignore[index]
        assert (headers["x-model-variant"], headers["x-model-version"]) == (variant, version)
    elif isinstance(error, InvalidInput):
        assert call.body in (b"{", b"")
    elif isinstance(error, InferenceFailed):
        assert POISON in caller.values or str(error) == "aborted"  # called off, long after its deadline
    else:
        assert isinstance(error, DeadlineExceeded | QueueFull | Shed | DeadlineUnreachable), error


def test_calls_of_all_kinds_share_one_run_and_each_gets_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        callers = [rig.ask(1), rig.ask(2, codec="native"), rig.ask(3, pinned="1"), rig.ask(4, variant="twin")]
        rig.adopt(cached=False)
        callers += [rig.ask(5), rig.ask(6, codec="native"), rig.ask(7, 8), rig.ask(9, pinned="1"), rig.ask(1)]
        callers += [rig.ask(10, codec="tfs"), rig.ask(11, 12, codec="mlflow"), rig.ask(13, codec="torchserve")]
        await rig.settle()
        assert rig.runtimes["1"].batches == [14]
        for caller in callers:
            check_answer(caller)
        assert [caller.headers["x-cache"] for caller in callers] == ["miss"] * 4 + ["bypass"] * 8
        rig.check_nothing_is_held()

    run(scenario)


@pytest.mark.parametrize("how", ["leaves", "expires"])
@pytest.mark.parametrize("who", ["leader", "followers", "all"])
@pytest.mark.parametrize("when", ["arrived", "queued", "running"])
def test_who_goes_takes_nobody_along(tmp_path: Path, who: str, how: str, when: str) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        if when == "queued":
            rig.ask(7)
            await rig.turn()
        short = dict.fromkeys(("leader", "all") if who == "leader" else ("followers", "all"), 1.0)
        leader = rig.ask(1, timeout_s=short.get(who, 5.0) if who != "followers" else 5.0)
        followers = [rig.ask(1, codec=codec, timeout_s=1.0 if who != "leader" else 5.0) for codec in ("oip", "native")]
        if when != "arrived":
            await rig.turn()
        going = {"leader": [leader], "followers": followers, "all": [leader, *followers]}[who]
        if how == "expires":
            rig.advance(2.0)
        else:
            for caller in going:
                rig.leave(caller)
        await rig.settle()
        for caller in (leader, *followers):
            check_answer(caller)
            if caller not in going:
                assert caller.error is None
            elif how == "expires":
                assert isinstance(caller.error, DeadlineExceeded)
        if when != "running":
            assert rig.runtimes["1"].batches == [1] * (when == "queued") + [1] * (who != "all")
        rig.check_nothing_is_held()

    run(scenario)


def test_a_run_that_fails_fails_all_who_wait_for_it_and_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        bad = [rig.ask(POISON), rig.ask(POISON), rig.ask(POISON, codec="native")]
        good = [rig.ask(1), rig.ask(2, codec="native")]
        await rig.settle()
        assert all(isinstance(caller.error, InferenceFailed) for caller in bad)
        assert [caller.outputs() for caller in good] == [[2], [4]]
        again = rig.ask(POISON)  # nothing of it is kept
        await rig.settle()
        assert isinstance(again.error, InferenceFailed)
        rig.check_nothing_is_held()

    run(scenario)


def test_a_leader_that_finds_no_room_is_refused_with_its_followers(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, max_queue_rows=2, max_batch_rows=2)
        rig.ask(7)
        await rig.turn()
        rig.ask(1, 2)
        leader, follower = rig.ask(3), rig.ask(3, codec="native")
        await rig.turn()
        assert isinstance(leader.error, QueueFull)
        assert isinstance(follower.error, QueueFull)
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)


def test_a_leader_whose_client_asks_for_too_much_is_refused_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig, shares = Rig(tmp_path, max_queue_rows=22, max_batch_rows=2), Shares()

        def ask(client: str, *values: float, codec: str = "oip") -> Caller:
            caller = rig.ask(*values, codec=codec)
            shares.join(caller.call, client, "m")
            return caller

        ask("greedy", 7)
        await rig.turn()
        ask("greedy", *range(10, 19))
        ask("large", *range(20, 28))
        leader, followers = ask("greedy", 3), [ask("modest", 3, codec="native"), ask("small", 3)]
        own = ask("greedy", 3)
        assert leader.call.share is not None
        leader.call.share.rows = 21  # what it has in flight besides
        await rig.settle()
        assert isinstance(leader.error, OverShare)
        assert isinstance(own.error, OverShare)
        assert own.headers["x-cache"] == "shared", "what its client is refused once is not decoded again"
        assert [caller.outputs() for caller in followers] == [[6], [6]]
        assert [caller.headers["x-cache"] for caller in followers] == ["bypass", "bypass"]
        rig.check_nothing_is_held()

    run(scenario)


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


def test_a_follower_makes_the_run_worth_doing_for_longer(tmp_path: Path) -> None:
    """The leader's deadline passes in the queue; the follower's has not."""

    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.ask(7)
        await rig.turn()
        leader, follower = rig.ask(1, timeout_s=1.0), rig.ask(1)
        await rig.turn()
        rig.advance(2.0)
        await rig.settle()
        assert isinstance(leader.error, DeadlineExceeded)
        assert follower.outputs() == [2]
        assert follower.headers["x-cache"] == "shared"
        rig.check_nothing_is_held()

    run(scenario)


def test_an_equal_call_takes_up_a_run_that_everybody_had_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        rig.ask(7)
        await rig.turn()
        leader = rig.ask(1)
        await rig.turn()
        rig.leave(leader)
        late = rig.ask(1)
        await rig.settle()
        assert late.outputs() == [2]
        assert rig.runtimes["1"].batches == [1, 1]
        rig.check_nothing_is_held()

    run(scenario)


def test_a_body_of_the_other_protocol_is_refused_also_beside_calls_that_are_right(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        bodies = {}
        for codec in ("oip", "native"):
            bodies[codec] = rig.ask(1, codec=codec).call.body  # now both envelopes are known
            await rig.settle()
        for first, second in (("oip", "native"), ("native", "oip")):
            right, wrong = rig.ask(1, codec=first), rig.ask(1, codec=second, body=bodies[first])
            await rig.settle()
            assert right.outputs() == [2]
            assert isinstance(wrong.error, InvalidInput)
        rig.check_nothing_is_held()

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


def test_who_cannot_be_answered_in_time_is_told_at_once_and_never_by_an_idle_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False)
        for _ in range(MIN_RUNS):
            rig.costs["1"].observe(1, 2.0)
        first = rig.ask(1, timeout_s=1.0)  # nobody is before it: it may try
        await rig.turn()
        assert not first.answers
        late, patient = rig.ask(2, timeout_s=3.0), rig.ask(3, timeout_s=10.0)
        other = rig.ask(4, timeout_s=1.0, pinned="2")
        large = rig.ask(*range(10, 30), timeout_s=30.0)  # how much that is shows when it is decoded
        assert isinstance(late.error, DeadlineUnreachable)
        await rig.turn()
        assert isinstance(large.error, DeadlineUnreachable)
        assert not patient.answers
        await rig.settle()
        for caller in (first, patient, other):
            assert caller.error is None
        rig.check_nothing_is_held()

    run(scenario)


def test_an_entry_that_runs_whole_is_judged_by_one_run_of_all_its_rows(tmp_path: Path) -> None:
    async def scenario() -> None:
        alone = replace(NAMED, batch_invariant=False)
        rig = Rig(tmp_path, alone, cache=False)
        for rows, run_s in [(1, 0.006), (1000, 0.009)] * MIN_RUNS:
            rig.costs["1"].observe(rows, run_s)
        rig.ask(1)
        await rig.turn()
        many = rig.ask(*range(1000), timeout_s=5.0)
        await rig.settle()
        assert many.error is None
        rig.check_nothing_is_held()

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


def test_the_wait_that_is_suggested_is_what_the_queue_takes(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False, max_batch_rows=1)
        for _ in range(MIN_RUNS):
            rig.costs["1"].observe(1, 2.0)
        for number in range(3):
            rig.ask(number, timeout_s=60.0)
            await rig.turn()
        rig.clock.advance(4.0)
        rig.pool.run_one()  # one row in four seconds
        await rig.turn()
        await rig.turn()
        queued = rig.versions["1"].batcher.queued_rows
        refused = rig.ask(9, timeout_s=1.0)
        assert isinstance(refused.error, DeadlineUnreachable)
        assert refused.error.retry_after_s == pytest.approx(4.0 * queued)
        await rig.settle()
        rig.check_nothing_is_held()

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
