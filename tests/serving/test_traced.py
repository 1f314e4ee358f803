"""Traces: who gets one, and what it says of the way that a request went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.codecs.native import NativeCodec
from gateway.errors import InferenceFailed, TooManyInFlight
from gateway.metrics import ServingMetrics, process_registry
from gateway.serving.target import Target
from gateway.serving.trace import Step, Trace
from gateway.serving.traced import TracedPipeline
from gateway.serving.tracing import Tracer
from gateway.tracing_settings import TracingSettings
from tests.puppet import POISON
from tests.serving.faulty import CANARY_KEYS, STABLE_KEYS, FaultyRig
from tests.serving.rig import Rig, run
from tests.serving.steps import STEPS

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SPACED = b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data":  [1.0]}]}'
PARENT = f"00-{TRACE}-{SPAN}-01"


class Notebook(Tracer):
    """A tracer, started by nobody, that also remembers what it was offered."""

    def __init__(self, metrics: ServingMetrics, *, ratio: float = 0.0, most: int = 100_000) -> None:
        super().__init__(TracingSettings("http://127.0.0.1:9", ratio, most), metrics, about={})
        self.traces: list[Trace] = []

    def offer(self, trace: Trace, whole: Step) -> None:
        super().offer(trace, whole)
        self.traces.append(trace)


class TracedRig(FaultyRig):
    """A rig whose puppets take 50 ms, and whose traces are remembered."""

    def __init__(self, root: Path, **more: Any) -> None:
        self.notebook: Notebook

        def tracer(metrics: ServingMetrics) -> Tracer:
            self.notebook = Notebook(metrics)
            return self.notebook

        super().__init__(root, tracer=tracer, **more)
        for runtime in self.runtimes.values():
            runtime.on_enter = lambda: self.clock.advance(0.05)

    def trace(self) -> Trace:
        (found,) = self.notebook.traces
        return found


def told(trace: Trace) -> list[tuple[str, float, float]]:
    """Name, begin and end of each step, in seconds since the request began."""
    assert trace.whole is not None
    begun_s = trace.whole.begun_s
    return [(step.name, round(step.begun_s - begun_s, 6), round(step.ended_s - begun_s, 6)) for step in trace.steps]


def whole(trace: Trace) -> tuple[float, str]:
    assert trace.whole is not None
    return round(trace.whole.ended_s - trace.whole.begun_s, 6), trace.whole.failure


@pytest.mark.parametrize("codec", ["oip", "native"])
def test_a_trace_tells_what_was_measured(tmp_path: Path, codec: str) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        caller = rig.ask(1.0, codec=codec, key=STABLE_KEYS[0], traceparent=PARENT)
        await rig.turn()
        first = rig.pool.take()
        rig.ask(2.0, codec=codec, key=STABLE_KEYS[0], traceparent=PARENT)
        await rig.turn()
        first()
        await rig.settle()
        one, other = rig.notebook.traces
        assert told(one)[-2:] == [("queue", 0.0, 0.0), ("infer", 0.0, 0.05)]
        assert told(other)[-2:] == [("queue", 0.0, 0.05), ("infer", 0.05, 0.1)]
        assert (whole(one), whole(other)) == ((0.05, ""), (0.1, ""))
        assert f"{one.trace_id:032x}" == f"{other.trace_id:032x}" == TRACE
        assert one.span_id != other.span_id
        assert f"{one.parent_id:016x}" == SPAN
        assert caller.headers["traceresponse"] == f"00-{TRACE}-{one.span_id:016x}-01"
        assert one.whole is not None
        about, infer = one.whole.attributes, one.steps[-1].attributes
        assert about["http.response.status_code"] == 200
        assert about["sluicegate.prediction.id"] == caller.call.prediction_id
        assert about["feature_flag.key"] == "m.route"
        assert infer["sluicegate.batch.rows"] == 1
        assert infer["sluicegate.version"] == "1"
        assert caller.call.ids["trace_id"] == TRACE

    run(scenario)


def test_answers_from_the_cache_and_from_another_request_s_run_have_a_look_and_no_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        rig.ask(1.0, pinned="1")
        await rig.turn()
        rig.ask(1.0, codec="native", pinned="1", traceparent=PARENT)  # follows the first one
        await rig.turn()
        await rig.settle()
        rig.ask(1.0, pinned="1", traceparent=PARENT)  # the same body
        rig.ask(1.00, pinned="1", body=SPACED, traceparent=PARENT)  # the same inputs
        await rig.settle()
        shared, body, inputs = rig.notebook.traces
        looks = [trace.steps[-1] for trace in (shared, body, inputs)]
        assert [step.attributes["sluicegate.cache.result"] for step in looks] == ["shared", "hit", "hit"]
        assert [step.attributes["sluicegate.cache.key"] for step in looks] == ["inputs", "body", "inputs"]
        assert told(shared)[-1] == ("cache", 0.0, 0.05)
        assert all(step.name == "cache" for trace in rig.notebook.traces for step in trace.steps)

    run(scenario)


def test_a_run_that_fails_is_told_in_its_span_and_in_that_of_the_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        rig.stable.fault, rig.stable.only_poison = "raise", True
        rig.ask(POISON, pinned="1", traceparent=PARENT)
        await rig.settle()
        trace = rig.trace()
        assert trace.whole is not None
        assert trace.steps[-1].failure
        assert trace.whole.failure
        assert trace.whole.attributes["error.type"] == "inference_failed"
        assert trace.whole.attributes["http.response.status_code"] == 500

    run(scenario)


def test_what_the_client_did_wrong_is_told_and_no_error_of_ours(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        rig.ask(body=b"{", traceparent=PARENT)
        await rig.settle()
        trace = rig.trace()
        assert trace.whole is not None
        assert (trace.whole.failure, trace.whole.attributes["error.type"]) == ("", "invalid_input")
        assert trace.whole.attributes["http.response.status_code"] == 400

    run(scenario)


def test_a_candidate_s_run_and_the_one_in_its_place_are_both_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        rig.canary.fault = "raise"
        rig.ask(1.0, key=CANARY_KEYS[0], traceparent=PARENT)
        await rig.settle()
        trace = rig.trace()
        runs = [(s.attributes["sluicegate.version"], bool(s.failure)) for s in trace.steps if s.name == "infer"]
        assert runs == [("2", True), ("1", False)]
        assert whole(trace) == (0.1, "")
        assert trace.whole is not None
        assert trace.whole.attributes["sluicegate.version"] == "1"

    run(scenario)


def test_a_deadline_that_passes_in_the_queue_or_in_a_run_says_where(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        rig.ask(1.0, pinned="1", timeout_s=1.0, traceparent=PARENT)
        await rig.turn()
        rig.ask(2.0, pinned="1", timeout_s=1.0, traceparent=PARENT)
        await rig.turn()
        rig.advance(1.0)
        running, queued = rig.notebook.traces
        assert told(running)[-2:] == [("queue", 0.0, 0.0), ("infer", 0.0, 1.0)]
        assert running.steps[-1].failure
        assert told(queued)[-1] == ("queue", 0.0, 1.0)
        assert queued.steps[-1].failure
        await rig.settle()
        assert len(rig.notebook.traces) == 2
        rig.check_nothing_is_held()

    run(scenario)


def test_a_caller_that_leaves_ends_its_trace(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        caller = rig.ask(1.0, traceparent=PARENT)
        await rig.turn()
        rig.leave(caller)
        trace = rig.trace()
        assert trace.whole is not None
        assert trace.whole.attributes["error.type"] == "caller_left"
        assert "http.response.status_code" not in trace.whole.attributes
        await rig.settle()

    run(scenario)


def test_a_refusal_at_the_head_has_a_trace_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        pipeline = rig.pipeline
        assert isinstance(pipeline, TracedPipeline)
        target = Target(NativeCodec(), "m", None)
        route = pipeline.turned_away(target, {"traceparent": PARENT}, TooManyInFlight("full"), "r1")
        trace = rig.trace()
        assert dict(route.pairs)[b"traceresponse"].decode().startswith(f"00-{TRACE}-")
        assert whole(trace) == (0.0, "full")
        assert trace.steps == []

    run(scenario)


def test_a_log_line_about_a_request_names_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        live = rig.versions["1"]
        live.bound = {}  # a defect of ours
        caller = rig.ask(1.0, pinned="1", traceparent=PARENT)
        await rig.settle()
        assert isinstance(caller.error, InferenceFailed)
        ids = {"model": "m", "request_id": caller.call.request_id, "prediction_id": caller.call.prediction_id}
        ids |= {"trace_id": TRACE}
        together, alone = caplog.records
        assert vars(together)["requests"] == [ids]
        assert ids.items() <= vars(alone).items()

    run(scenario)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_every_request_that_is_drawn_gets_one_trace_whatever_becomes_of_it(
    tmp_path: Path, steps: list[tuple[str, Any]]
) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        for kind, detail in steps:
            if kind == "ask":
                more = {name: value for name, value in detail.items() if name != "values"}
                rig.ask(*detail["values"], **more, traceparent=PARENT)
            elif kind == "leave" and rig.callers:
                rig.leave(rig.callers[detail % len(rig.callers)])
            elif kind == "advance":
                rig.advance(detail)
            elif kind == "run" and rig.pool.is_busy:
                rig.pool.run_one()
            elif kind == "turn":
                await rig.turn()
        await rig.settle()
        rig.check_nothing_is_held()
        traces = rig.notebook.traces
        assert len(traces) == len(rig.callers)
        ids = [trace.whole.attributes["sluicegate.prediction.id"] for trace in traces if trace.whole is not None]
        assert sorted(map(str, ids)) == sorted(caller.call.prediction_id for caller in rig.callers)
        for trace in traces:
            assert trace.whole is not None
            for step in trace.steps:
                assert trace.whole.begun_s <= step.begun_s <= step.ended_s <= trace.whole.ended_s

    run(scenario)


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        (PARENT, TRACE),
        (f"00-{TRACE}-{SPAN}-03", TRACE),
        (f"01-{TRACE}-{SPAN}-01-more", TRACE),
        (f"00-{TRACE}-{SPAN}-00", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        ("", None),
    ],
)
def test_the_caller_decides_if_it_says_so_rightly(came: str, expected: str | None) -> None:
    found = Notebook(ServingMetrics(process_registry())).sample({"traceparent": came})
    assert (None if found is None else f"{found.trace_id:032x}") == expected


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (1.0, 1000), (0.3, 300)])
def test_else_chance_does(ratio: float, expected: int) -> None:
    tracer = Notebook(ServingMetrics(process_registry()), ratio=ratio)
    found = [trace for trace in (tracer.sample({}) for _ in range(1000)) if trace is not None]
    assert abs(len(found) - expected) <= (100 if 0 < ratio < 1 else 0)
    assert len({trace.trace_id for trace in found}) == len(found)
    assert all(trace.parent_id == 0 for trace in found)


def test_traces_that_find_no_room_are_dropped_and_counted() -> None:
    registry = process_registry()
    tracer = Notebook(ServingMetrics(registry), ratio=1.0, most=2)
    for _ in range(5):
        trace = tracer.sample({})
        assert trace is not None
        tracer.offer(trace, Step("POST", 0.0, 1.0, {}))
    assert tracer.waiting == 2
    assert registry.get_sample_value("sluicegate_traces_total", {"outcome": "queue_full"}) == 3


def test_a_request_that_is_not_drawn_is_answered_as_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = TracedRig(tmp_path)
        plain = Rig(tmp_path)
        caller, other = rig.ask(1.0, pinned="1"), plain.ask(1.0, pinned="1")
        await rig.settle()
        await plain.settle()
        assert caller.headers == other.headers
        assert rig.notebook.traces == []
        assert "trace_id" not in caller.call.ids

    run(scenario)
