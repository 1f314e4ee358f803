"""Traces on their way: from a request through either door to a collector, and what happens while there is none."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import classifier, write_package
from tests.collector import Collector, Span
from tests.live import LiveGateway, SettingsTable, eventually

SERVER, INTERNAL, ERROR = 2, 1, 2  # of OTLP
FEATURE = classifier().features[0]
ROW = dict.fromkeys(classifier().features, 1.0)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module", params=["fast", "asgi"])
def gateway(
    request: pytest.FixtureRequest, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp(f"traced-{request.param}")
    write_package(root / "models", classifier())
    settings = {
        "server": {"door": request.param},
        "limits": {"max_body_bytes": 2000},
        "sampling": {"rate": 1.0},
        "tracing": {"endpoint": collector.url, "sample_ratio": 0.0},
    }
    environment = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    with LiveGateway(root / "models", root / "state", settings=settings, environment=environment) as live:
        yield live


def ids() -> tuple[str, str]:
    return secrets.token_hex(16), secrets.token_hex(8)


def ask(gateway: LiveGateway, number: float, trace_id: str, span_id: str, **headers: str) -> Any:
    headers |= {"traceparent": f"00-{trace_id}-{span_id}-01", "tracestate": "vendor=1", "user-agent": "tests"}
    return gateway.data.post("/predict/iris", json={"rows": [{**ROW, FEATURE: number}]}, headers=headers)


def spans(collector: Collector, trace_id: str) -> dict[str, Span]:
    """The spans of a trace, once all have come: they travel together. The request's own by the name POST."""
    eventually(lambda: [span for span in collector.of(trace_id) if span.kind == SERVER], "the trace has come")
    return {span.name.partition(" ")[0]: span for span in collector.of(trace_id)}


def sampled(gateway: LiveGateway, prediction_id: str) -> dict[str, Any]:
    """The row of a prediction in the sample log, once it is there."""

    def find() -> dict[str, Any] | None:
        for segment in (gateway.state / "samples").rglob("*.jsonl*"):
            for line in segment.read_text().splitlines():
                if prediction_id in line:
                    found: dict[str, Any] = json.loads(line)
                    return found
        return None

    return eventually(find, "the prediction is in the sample log")


def test_a_request_becomes_spans_below_its_caller_s(gateway: LiveGateway, collector: Collector) -> None:
    (trace_id, caller_id), number = ids(), secrets.randbelow(1000) / 7
    answer = ask(gateway, number, trace_id, caller_id, **{"x-request-id": "mine"})
    assert answer.status_code == 200
    found = spans(collector, trace_id)
    assert found.keys() == {"POST", "cache", "queue", "infer"}
    whole, cache, queue, infer = (found[name] for name in ("POST", "cache", "queue", "infer"))
    assert answer.headers["traceresponse"] == f"00-{trace_id}-{whole.span_id}-01"
    assert list(answer.headers).index("traceresponse") == list(answer.headers).index("x-cache") + 1
    assert (whole.kind, whole.parent_id, whole.name) == (SERVER, caller_id, "POST /predict/{model}")
    assert {(span.kind, span.parent_id) for span in (cache, queue, infer)} == {(INTERNAL, whole.span_id)}
    assert {span.state for span in found.values()} == {"vendor=1"}
    assert len({span.span_id for span in found.values()}) == 4
    assert whole.begun_ns <= cache.begun_ns <= cache.ended_ns <= queue.begun_ns
    assert queue.begun_ns <= queue.ended_ns == infer.begun_ns < infer.ended_ns <= whole.ended_ns
    assert whole.ended_ns - whole.begun_ns < 30e9
    about = whole.attributes
    assert {
        "http.request.method": "POST",
        "http.route": "/predict/{model}",
        "http.response.status_code": 200,
        "url.path": "/predict/iris",
        "url.scheme": "http",
        "user_agent.original": "tests",
        "sluicegate.model": "iris",
        "sluicegate.version": "1",
        "sluicegate.variant": "stable",
        "sluicegate.request.id": "mine",
        "sluicegate.prediction.id": answer.headers["x-prediction-id"],
        "sluicegate.cache.result": "miss",
        "feature_flag.key": "iris.route",
        "feature_flag.result.variant": "stable",
        "feature_flag.version": answer.headers["x-flag-revision"],
    }.items() <= about.items()
    assert (infer.attributes["sluicegate.batch.rows"], infer.attributes["sluicegate.version"]) == (1, "1")
    assert whole.resource["service.name"] == "sluicegate"
    assert whole.resource["deployment.environment.name"] == "test"
    assert collector.paths == {"/v1/traces"}
    assert sampled(gateway, answer.headers["x-prediction-id"])["trace_id"] == trace_id

    trace_id, caller_id = ids()  # once more the same
    assert ask(gateway, number, trace_id, caller_id).headers["x-cache"] == "hit"
    found = spans(collector, trace_id)
    assert found.keys() == {"POST", "cache"}
    assert found["cache"].attributes["sluicegate.cache.result"] == "hit"


def test_refusals_are_traced_too(gateway: LiveGateway, collector: Collector) -> None:
    trace_id, caller_id = ids()
    headers = {"traceparent": f"00-{trace_id}-{caller_id}-01"}
    asked = [
        ("/predict/nobody", b"{}", 404, "unknown_model"),
        ("/predict/iris", b"{", 400, "invalid_input"),
        ("/v2/models/iris/infer", b" " * 3000, 413, "body_too_large"),  # refused at its head
    ]
    for path, body, status, _ in asked:
        answer = gateway.data.post(path, content=body, headers=headers)
        assert answer.status_code == status
        assert answer.headers["traceresponse"].startswith(f"00-{trace_id}-")

    def whole() -> list[Span]:
        return [span for span in collector.of(trace_id) if span.kind == SERVER]

    eventually(lambda: len(whole()) == 3, "all have come")
    found = [(span.attributes["url.path"], span.attributes["http.response.status_code"]) for span in whole()]
    assert sorted(found) == sorted((path, status) for path, _, status, _ in asked)
    assert {span.attributes["error.type"] for span in whole()} == {code for _, _, _, code in asked}
    assert {(span.status, span.parent_id) for span in whole()} == {(0, caller_id)}  # a client's fault is no error


def test_a_span_names_the_route_and_method_of_every_protocol(gateway: LiveGateway, collector: Collector) -> None:
    trace_id, caller_id = ids()
    headers = {"traceparent": f"00-{trace_id}-{caller_id}-01"}
    row = list(ROW.values())
    asked = {
        "POST /invocations": ("/invocations", {"instances": [row]}),
        "POST /models/{model}/invocations": ("/models/iris/invocations", {"instances": [row]}),
        "PUT /predictions/{model}/{version}": ("/predictions/iris/1", row),
        "POST /v1/models/{model}/labels/{label}:predict": ("/v1/models/iris/labels/stable:predict", {"inputs": [row]}),
    }
    for name, (path, body) in asked.items():
        answer = gateway.data.request(name.partition(" ")[0], path, json=body, headers=headers)
        assert answer.status_code == 200

    def whole() -> list[Span]:
        return [span for span in collector.of(trace_id) if span.kind == SERVER]

    eventually(lambda: len(whole()) == len(asked), "all have come")
    told = {
        span.name: (span.attributes["http.request.method"], span.attributes["http.route"], span.attributes["url.path"])
        for span in whole()
    }
    assert told == {name: (*name.split(" "), path) for name, (path, _) in asked.items()}


def test_who_is_not_drawn_has_no_trace(gateway: LiveGateway, collector: Collector) -> None:
    trace_id, caller_id = ids()
    for headers in ({}, {"traceparent": f"00-{trace_id}-{caller_id}-00"}):
        answer = gateway.data.post("/predict/iris", json={"rows": [ROW]}, headers=headers)
        assert answer.status_code == 200
        assert "traceresponse" not in answer.headers
        assert "trace_id" not in sampled(gateway, answer.headers["x-prediction-id"])
    last, caller_id = ids()
    ask(gateway, 1.0, last, caller_id)
    spans(collector, last)  # what was asked before it would have come with it
    assert collector.of(trace_id) == []
    assert all(span.parent_id for span in collector.spans)


def counted(gateway: LiveGateway, outcome: str) -> float:
    wanted = f'sluicegate_traces_total{{outcome="{outcome}"}} '
    lines = [line for line in gateway.control.get("/metrics").text.splitlines() if line.startswith(wanted)]
    return sum(float(line.split()[-1]) for line in lines)


def test_a_collector_that_is_not_there_harms_nobody_and_is_told_of_once(models: Path, state: Path) -> None:
    write_package(models, classifier())
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    settings: SettingsTable = {
        "tracing": {"endpoint": f"http://127.0.0.1:{port}", "sample_ratio": 1.0, "max_queue_traces": 5},
        "cache": {"max_bytes": 0},
    }
    with LiveGateway(models, state, settings=settings) as gateway:

        def answered() -> float:
            assert gateway.data.post("/predict/iris", json={"rows": [ROW]}).status_code == 200
            return 0.0

        eventually(lambda: answered() or counted(gateway, "queue_full"), "traces find no room")
        eventually(lambda: answered() or counted(gateway, "not_taken"), "a portion is given up")
        log = [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]
        dropped = [line for line in log if line["message"] == "traces are being dropped"]
        assert len(dropped) == 1
        assert "refused" in dropped[0]["why"]
        assert not [line for line in log if line["logger"].startswith("opentelemetry")]
        with Collector(port) as collector:
            eventually(lambda: answered() or collector.spans, "the collector gets what comes now")
            eventually(lambda: "takes traces again" in gateway.log, "and that is told")
