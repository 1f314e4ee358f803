"""Copies in any order: each is compared with its own answer, ends once, and touches no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.codecs.codec import Request
from gateway.errors import DeadlineExceeded
from gateway.samples.pairs import PairSums
from gateway.serving.copies import Comparison, Copy, compare_all
from gateway.serving.entry import Entry
from tests.puppet import POISON
from tests.serving.rig import run
from tests.serving.shadowed import NAN, rig_of, shadow_of


@given(st.data())
def test_rows_are_compared_with_their_own_answers_in_any_order(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Copies of rows from several runs, mixed: each moved by a number of its own."""

    async def scenario() -> None:
        rig = rig_of(tmp_path_factory.mktemp("mixed"))
        comparison = Comparison(rig.versions["1"], rig.versions["2"], 0.0)
        width = data.draw(st.sampled_from([1, 2]))
        answers = [np.arange(rows * width, dtype=float).reshape(rows, width) * 100 for rows in (1, 3, 4)]
        picks = st.tuples(st.integers(0, 2), st.integers(0, 3))
        drawn = data.draw(st.lists(picks, min_size=1, max_size=8, unique=True))
        picked = [(run, row) for run, row in drawn if row < len(answers[run])]
        runs = [{"y": answer} for answer in answers]
        entry = Entry(Request(1, {"x": np.zeros((1, 1))}), 0.0, rig.pipeline)
        copies = [Copy(entry, runs[run], row, comparison, 0.0) for run, row in picked]
        if not copies:
            return
        moves = [2.0**place for place in range(len(copies))]
        outputs = np.stack([answers[run][row] for run, row in picked]) + np.array(moves).reshape(-1, 1)
        total = PairSums()
        for found, part in compare_all([(copies, {"y": outputs})]):
            assert found is comparison
            total.merge(part)
        changes = total.outputs["y"].changes
        assert (total.copies, changes.count, changes.largest) == (len(copies), len(copies), moves[-1])
        assert sorted(changes.bins.values()) == [1] * len(copies), "2 to the power of each place, and nothing else"
        assert changes.quantile(1e-9) == pytest.approx(1.0, rel=0.025)

    run(scenario)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.lists(st.sampled_from([1.0, 2.0, 5.0, NAN, POISON]), min_size=1, max_size=5)),
        st.tuples(st.sampled_from(["turn", "run", "copy", "tick", "off", "on"]), st.none()),
        st.tuples(st.just("advance"), st.sampled_from([0.4, 1.0, 5.0, 60.0])),
    ),
    max_size=40,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, cache=st.booleans(), copies=st.sampled_from([2, 1000]), batch=st.integers(1, 6))
def test_every_copy_ends_once_and_no_answer_is_touched(
    tmp_path: Path, steps: list[tuple[str, Any]], cache: bool, copies: int, batch: int
) -> None:
    async def scenario() -> None:
        rig = rig_of(tmp_path, cache=cache, shadow={"max_queue_copies": copies}, max_batch_rows=batch)
        shadow_of(rig).has_faults, shadow_of(rig).poison = True, 5.0
        for step, argument in steps:
            if step == "ask":
                rig.ask(*argument, codec="native" if len(argument) == 2 else "oip")
            elif step == "turn":
                await rig.turn()
            elif step == "run" and rig.pool.is_busy:
                rig.pool.run_one()
            elif step == "copy" and rig.copies.is_busy:
                rig.copies.run_one()
            elif step == "tick":
                rig.shadow.tick()
            elif step in ("off", "on"):
                rig.adopt(cached=cache, shadowed=1.0 if step == "on" else 0.0)
            elif step == "advance":
                rig.clock.advance(argument)
        await rig.settle()
        await rig.run_copies()
        await rig.run_copies()
        rig.adopt(cached=cache, shadowed=0.0)  # what still waits ends now
        rig.check_nothing_is_held()
        for caller in rig.callers:
            if caller.error is None:
                assert caller.outputs() == [2 * value for value in caller.values]
            else:
                assert POISON in caller.values or isinstance(caller.error, DeadlineExceeded)
        ended = sum(
            comparison["copies"] + sum(comparison["failed"].values()) + sum(comparison["dropped"].values())
            for shadowed in rig.shadow.describe()
            for comparison in shadowed["comparisons"]
        )
        answered = [caller for caller in rig.callers if caller.error is None]
        new = [caller for caller in answered if caller.headers["x-cache"] in ("miss", "bypass")]
        assert ended <= len(new)
        if not any(step == "off" for step, _ in steps):
            assert ended == len(new)

    run(scenario)
