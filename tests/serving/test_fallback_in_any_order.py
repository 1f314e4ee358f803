"""Whatever a candidate does and whoever comes and goes meanwhile: everybody is told once and rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import DeadlineExceeded, Refused
from tests.puppet import POISON
from tests.serving.faulty import CANARY_KEYS, FAULTS, SPLIT_FLAG, STABLE_KEYS, FaultyRig
from tests.serving.rig import Caller, run

ASK = st.fixed_dictionaries(
    {
        "values": st.lists(st.sampled_from([1.0, 2.0, 3.0, POISON]), min_size=1, max_size=4),
        "codec": st.sampled_from(["oip", "native"]),
        "key": st.sampled_from([*CANARY_KEYS[:4], *STABLE_KEYS[:2], None]),
        "variant": st.sampled_from([None] * 5 + ["canary", "twin"]),
        "pinned": st.sampled_from([None] * 5 + ["1", "2"]),
        "timeout_s": st.sampled_from([0.2, 1.0, 5.0, 5.0]),
    }
)
ROUTES: dict[str, dict[str, Any]] = {
    "split": SPLIT_FLAG,
    "killed": {**SPLIT_FLAG, "state": "DISABLED"},
    "promoted": {**SPLIT_FLAG, "defaultVariant": "canary", "targeting": None},
    "no fallback": {**SPLIT_FLAG, "metadata": {"fallback": False}},
}
STEPS = st.lists(
    st.one_of(
        ASK.map(lambda ask: ("ask", ask)),
        ASK.map(lambda ask: ("ask", ask)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.sampled_from([0.05, 0.4, 1.0, 11.0])),
        st.tuples(st.just("fault"), st.sampled_from(["", *FAULTS])),
        st.tuples(st.just("poison"), st.booleans()),
        st.tuples(st.just("adopt"), st.sampled_from(sorted(ROUTES))),
        st.tuples(st.sampled_from(["turn", "run", "run last"]), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, cache=st.booleans(), max_batch_rows=st.integers(1, 6), max_queue_rows=st.sampled_from([7, 1000]))
def test_everybody_is_told_once_and_rightly_whatever_the_candidate_does(
    tmp_path: Path, steps: list[tuple[str, Any]], cache: bool, max_batch_rows: int, max_queue_rows: int
) -> None:
    async def scenario() -> None:
        rig = FaultyRig(tmp_path, SPLIT_FLAG, cache=cache, max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows)
        for kind, detail in steps:
            if kind == "ask":
                rig.ask(*detail["values"], **{name: value for name, value in detail.items() if name != "values"})
            elif kind == "leave" and rig.callers:
                rig.leave(rig.callers[detail % len(rig.callers)])
            elif kind == "advance":
                rig.advance(detail)
            elif kind == "fault":
                rig.canary.fault = detail
            elif kind == "poison":
                rig.canary.only_poison = detail
            elif kind == "adopt":
                rig.adopt(ROUTES[detail], cached=cache)
            elif kind == "run" and rig.pool.is_busy:
                rig.pool.run_one()
            elif kind == "run last" and rig.pool.is_busy:
                rig.pool.take()()
            elif kind == "turn":
                await rig.turn()
        await rig.settle()
        for caller in rig.callers:
            check_any(caller)
        for variant in ("canary", "stable"):
            told = rig.told(variant)
            assert max(told["errors"], told["timeouts"], told["invalid"], told["fallbacks"]) <= told["eligible"]
        later = [rig.ask(*caller.values, pinned="2") for caller in list(rig.callers)]
        await rig.settle()
        assert all(caller.answers for caller in later)  # and waits for no run that will never end
        rig.check_nothing_is_held()

    run(scenario)


def check_any(caller: Caller) -> None:
    call = caller.call
    if caller.left:
        assert not caller.answers
        return
    ((error, headers, _),) = caller.answers
    fell_back = "x-model-fallback" in headers
    if fell_back:
        assert call.pinned is None
        assert call.headers.get("x-targeting-key") in (*CANARY_KEYS, None) or call.headers.get("x-variant") == "canary"
        assert headers["x-model-variant"] == "stable"
    assert call.decision is not None
    if call.decision.version == "2" and (call.route.default_version == "2" or not call.route.falls_back):
        return  # there is nobody to answer in its place
    if error is not None:
        # Only the candidate fails; who may fall back does so unless there is no time or no room for it.
        assert isinstance(error, DeadlineExceeded | Refused) or (call.pinned == "2" and not fell_back)
    elif fell_back or headers["x-model-version"] == "1" or call.pinned is None:
        assert caller.outputs() == [2 * value for value in caller.values]
