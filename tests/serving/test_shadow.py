"""Copies of answered requests: which are taken, when they run, what is counted; and that no client sees any of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import InferenceFailed
from gateway.samples.record import sample_hash, sampling_limit
from gateway.tensors import Signature, Tensors, TensorSpec
from tests.puppet import DOUBLER, POISON, FakeClock
from tests.serving.rig import Rig, run
from tests.serving.shadowed import Shifted, rig_of, shadow_of, sums, told


def test_answered_requests_are_run_by_the_shadow_and_compared(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path)
        callers = [rig.ask(float(number)) for number in range(20)] + [rig.ask(1.0, 2.0, 3.0, codec="native")]
        await rig.settle()
        assert rig.runtimes["2"].batches == []  # the answers are out, and no copy has run yet
        assert [caller.outputs() for caller in callers[:2]] == [[0.0], [2.0]]
        await rig.run_copies()
        found = sums(rig)
        assert (found.copies, found.rows, found.failed, found.dropped) == (21, 23, {}, {})
        assert found.outputs["y"].changes.quantile(0.5) == pytest.approx(0.5, rel=0.025)
        assert found.outputs["y"].changes.largest == 0.5
        assert found.outputs["y"].size_sum == 2 * sum(range(20)) + 12
        assert len(rig.runtimes["2"].batches) < 21, "they ran in batches"
        assert rig.counted("sluicegate_shadow_pairs_total", version="2") == 21.0
        assert 0 < rig.counted("sluicegate_shadow_run_duration_seconds_count", version="2") < 21
        # Nothing of it among what was answered.
        assert rig.counted("sluicegate_requests_total", version="1", variant="stable", outcome="ok") == 21.0
        assert rig.counted("sluicegate_run_duration_seconds_count", version="2") == 0.0
        assert {variant for _, variant, _ in rig.counts.totals} == {"1"}
        rig.check_nothing_is_held()

    run(scenario)


def test_a_share_is_drawn_by_the_prediction_id_as_samples_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path, rate=0.3)
        callers = [rig.ask(float(number)) for number in range(300)]
        await rig.settle()
        await rig.run_copies()
        drawn = [caller for caller in callers if sample_hash(caller.call.prediction_id) < sampling_limit(0.3)]
        assert 50 < len(drawn) < 140
        assert sums(rig).copies == len(drawn)
        assert sums(rig).outputs["y"].size_sum == 2 * sum(caller.values[0] for caller in drawn)

    run(scenario)


def test_what_brings_nothing_new_is_not_copied(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path, cache=True)
        first, follower = rig.ask(1.0), rig.ask(1.0)
        await rig.settle()
        hit = rig.ask(1.0)
        others = [rig.ask(2.0, pinned="1"), rig.ask(3.0, variant="canary"), rig.ask(POISON)]
        await rig.settle()
        caches = [caller.headers["x-cache"] for caller in (first, follower, hit)]
        assert caches == ["miss", "shared", "hit"]
        assert others[1].headers["x-model-version"] == "2"
        assert isinstance(others[2].error, InferenceFailed)
        ran = list(rig.runtimes["2"].batches)
        await rig.run_copies()
        assert rig.runtimes["2"].batches == [*ran, 1, 1, 1], "once to be compared, twice to be timed"
        assert sums(rig).copies == 1
        again = rig.ask(5.0, pinned="2")
        await rig.settle()
        assert again.headers["x-cache"] == "miss", "copies fill no cache"
        rig.check_nothing_is_held()

    run(scenario)


@pytest.mark.parametrize(("bound", "kept"), [({"max_queue_copies": 3}, 3), ({"max_queue_bytes": 5 * 72}, 5)])
def test_a_full_queue_drops_and_counts(tmp_path: Path, bound: dict[str, Any], kept: int) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path, shadow=bound)
        for number in range(8):  # 8 bytes in, and the 64 bytes that their run gave are held by each
            rig.ask(float(number))
        await rig.settle()
        await rig.run_copies()
        assert (sums(rig).copies, sums(rig).dropped) == (kept, {"queue_full": 8 - kept})
        rig.shadow.tick()
        assert rig.counted("sluicegate_shadow_dropped_total", reason="queue_full") == 8 - kept
        rig.ask(1.0)  # there is room again
        await rig.settle()
        await rig.run_copies()
        assert sums(rig).copies == kept + 1

    run(scenario)


@pytest.mark.parametrize("why", ["loop", "thread", "in flight"])
def test_a_busy_worker_runs_no_copies_and_drops_them_in_time(tmp_path: Path, why: str) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path, shadow={"max_in_flight": 2})
        rig.ask(1.0)
        await rig.settle()
        if why == "thread":
            rig.ask(2.0)
            rig.ask(3.0, pinned="2")
            await rig.turn()
            await rig.turn()
        elif why == "in flight":
            for number in range(3):
                rig.ask(float(number), codec="native")
        for _ in range(21):
            rig.clock.advance(0.099)
            rig.loop_s += 0.08 if why == "loop" else 0.0
            rig.shadow.tick()
            assert not rig.copies.is_busy
            assert (sums(rig).copies, sums(rig).dropped) == (0, {} if rig.clock() < 1002.0 else {"busy": 1})
        await rig.settle()
        rig.clock.advance(0.1)
        rig.ask(9.0)
        await rig.settle()
        await rig.run_copies()
        assert sums(rig).copies >= 1
        rig.check_nothing_is_held()

    run(scenario)


def test_a_shadow_that_fails_or_gives_no_number_harms_only_its_own_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path)
        shadow_of(rig).has_faults, shadow_of(rig).poison = True, 5.0
        callers = [rig.ask(float(number)) for number in range(10)]
        await rig.settle()
        assert all(caller.outputs() == [2 * caller.values[0]] for caller in callers)
        await rig.run_copies()
        assert (sums(rig).copies, sums(rig).failed) == (8, {"error": 1, "invalid": 1})
        rig.shadow.tick()
        for reason in ("error", "invalid"):
            assert rig.counted("sluicegate_shadow_failed_total", version="2", reason=reason) == 1.0
        rig.check_nothing_is_held()

    run(scenario)


def test_a_shadow_that_hangs_is_called_off_and_rests(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path, shadow={"run_timeout_s": 2.0})
        rig.ask(1.0)
        await rig.settle()
        rig.shadow.tick()
        assert rig.copies.is_busy
        rig.clock.advance(1.9)
        rig.shadow.tick()
        rig.clock.advance(0.2)
        rig.shadow.tick()
        await rig.run_copies()
        assert (sums(rig).copies, sums(rig).failed) == (0, {"timeout": 1})
        assert told(rig)["state"] == "resting after a run that took too long"
        rig.ask(2.0, pinned="2")
        rig.ask(3.0)
        await rig.settle()
        assert rig.callers[1].outputs() == [4.5], "who asks for that version itself gets its answer"
        assert sums(rig).dropped == {"resting": 1}
        rig.clock.advance(20.0)
        rig.ask(4.0)
        await rig.settle()
        await rig.run_copies()
        assert (sums(rig).copies, told(rig)["state"]) == (1, "on")
        rig.check_nothing_is_held()

    run(scenario)


def test_run_times_are_those_of_both_versions_for_the_same_batch(tmp_path: Path) -> None:
    class Slow(Shifted):
        """Takes 1 ms and 1 ms per row; told to shift, twice that."""

        def run(self, inputs: Tensors) -> Tensors:
            clocks[-1].advance((1 + len(inputs["x"])) * (0.002 if self.shift else 0.001))
            return super().run(inputs)

    async def scenario() -> None:
        rig = Rig(tmp_path, puppet=Slow, cache=False)
        clocks.append(rig.clock)
        shadow_of(rig).shift = 1.0
        rig.adopt(cached=False, shadowed=1.0)
        for number in range(33):
            rig.ask(float(number))
            await rig.settle()
            await rig.run_copies()
        found = sums(rig)
        assert (found.copies, found.timed) == (33, 3)
        assert found.base_s == pytest.approx(3 * 2 * 0.002)
        assert found.shadow_s / found.base_s == pytest.approx(2.0)
        rig.check_nothing_is_held()

    clocks: list[FakeClock] = []
    run(scenario)


def test_another_package_or_version_starts_anew_and_a_stop_keeps_the_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path)

        async def one() -> None:
            rig.ask(1.0)
            await rig.settle()
            await rig.run_copies()

        await one()
        rig.ask(1.0)
        await rig.settle()
        rig.adopt(cached=False, shadowed=0.0)
        await one()
        assert told(rig)["state"] == "off"
        assert (sums(rig).copies, sums(rig).dropped) == (1, {"stopped": 1})
        rig.adopt(cached=False, shadowed=1.0)
        await one()
        assert sums(rig).copies == 2
        for version in ("1", "2"):
            rig.versions[version].digest = f"another-{version}"
            await one()
            assert sums(rig).copies == 1
        rig.shadow.follow("m", "3", 1.0)
        await one()
        rig.shadow.tick()
        assert (told(rig)["version"], told(rig)["state"], told(rig)["comparisons"]) == ("3", "not warm", [])
        assert rig.counted("sluicegate_shadow_dropped_total", reason="not_warm") == 1.0
        rig.shadow.forget("m")
        await one()
        assert rig.shadow.describe() == []
        rig.check_nothing_is_held()

    run(scenario)


def test_a_version_that_takes_other_inputs_is_left_alone_and_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path)
        rig.versions["2"].signature = Signature((TensorSpec("z", "FP64", (-1, 1)),), DOUBLER.outputs)
        rig.ask(1.0)
        await rig.settle()
        await rig.run_copies()
        assert rig.runtimes["2"].batches == []
        assert sums(rig).dropped == {"inputs_differ": 1}
        assert told(rig)["state"] == "cannot run what it would be given: it takes z, and requests bring x"

    run(scenario)


def test_a_worker_that_ends_drops_what_waits_and_calls_off_what_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path)
        rig.ask(1.0)
        await rig.settle()
        rig.shadow.tick()
        rig.ask(2.0)
        await rig.settle()
        rig.shadow.close()
        assert sums(rig).dropped == {"stopped": 1}
        while rig.copies.is_busy:
            rig.copies.run_one()
        await rig.turn()
        await rig.turn()
        assert sums(rig).copies == 0
        rig.check_nothing_is_held()

    run(scenario)
