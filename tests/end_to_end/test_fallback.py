"""Real models that fail as candidates, under load through both doors: the default version answers all their clients."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.flags.compile import Route, compile_route
from gateway.flags.document import parse
from tests.builders import Linear, classifier, write_package
from tests.end_to_end.flags import must_change, split, wait_adopted, wait_warm, workers_status
from tests.faults import BAD_ABOVE, write_faulty
from tests.live import LiveGateway, SettingsTable, eventually
from tests.traffic import Answer, Client

WORKERS = 2
CLIENTS = 16
REQUESTS = 400
MAX_BAD_CALLS = 5
STABLE = {model: classifier(model, "1") for model in ("nan", "raise", "rows", "hang", "mixed")}
# Its runs take some 10 ms, so it needs the run thread that the candidate holds for seconds.
STABLE["slow"] = classifier("slow", "1", iterations=500)
SLOW_CANARY = classifier("slow", "2", iterations=250_000)


def packages(root: Path) -> None:
    for stable in STABLE.values():
        write_package(root, stable)


@pytest.fixture(scope="module", params=["fast", "asgi"])
def gateway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp(f"fallback-{request.param}")
    packages(root / "models")
    settings: SettingsTable = {"cache": {"max_bytes": 0}, "sampling": {"rate": 1.0}}
    with LiveGateway(
        root / "models", root / "state", workers=WORKERS, settings=settings, options=("--door", request.param)
    ) as live:
        for model, fault in (("nan", "nan"), ("raise", "raise"), ("rows", "rows"), ("hang", "hang"), ("mixed", "nan")):
            write_faulty(root / "models", classifier(model, "2"), fault)  # type: ignore[arg-type]  # they are faults
        write_package(root / "models", SLOW_CANARY)
        for model in STABLE:
            must_change(live, f"{model}.route", {"variants": {"canary": "2"}})
        for model in STABLE:
            wait_warm(live, model, "2")
        yield live


def canary_route(gateway: LiveGateway, model: str, percent: int = 50) -> Route:
    """Give a share to the canary in all workers; returns the route that they follow."""
    revision = must_change(gateway, f"{model}.route", {"targeting": split(percent)})
    wait_adopted(gateway, model, revision)
    plain = gateway.control.get(f"/admin/v1/flags/{model}.route").json()
    return compile_route(model, parse({"flags": {f"{model}.route": plain}}).flags[f"{model}.route"])


class Load:
    """Clients that each ask one prediction after another, each with a key of its own, and what they got."""

    def __init__(
        self, model: str, *, bad_share: float = 1.0, timeout_ms: int = 20_000, requests: int = REQUESTS
    ) -> None:
        self.model = model
        self.keys = [f"{model}-{number}" for number in range(requests)]
        self.bad_share = bad_share
        self.timeout_ms = timeout_ms
        self.answers: dict[str, tuple[Answer, list[float], bool]] = {}

    async def _client(self, url: str, keys: list[str], number: int) -> None:
        dice = random.Random(number)
        async with Client(url) as connection:
            for key in keys:
                row = [round(dice.uniform(-3, 3), 3) for _ in range(4)]
                is_bad = dice.random() < self.bad_share
                if is_bad:
                    row[0] = BAD_ABOVE + 1
                headers = {"x-targeting-key": key, "x-request-timeout-ms": str(self.timeout_ms)}
                tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row}
                path = f"/v2/models/{self.model}/infer"
                answer = await connection.post(path, json.dumps({"inputs": [tensor]}).encode(), headers)
                self.answers[key] = answer, row, is_bad

    def run(self, url: str) -> None:
        async def clients() -> None:
            async with asyncio.timeout(100), asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(self._client(url, self.keys[number::CLIENTS], number))

        asyncio.run(clients())
        assert len(self.answers) == len(self.keys)


def check_answer(linear: Linear, answer: Answer, row: list[float]) -> None:
    assert answer.status == 200, (answer.headers, answer.body)
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    wanted = linear.answer([row])
    np.testing.assert_allclose(outputs["probabilities"], wanted["probabilities"][0], atol=3e-6)
    assert outputs["label"] == wanted["label"].tolist()
    assert answer.headers["x-model-version"] == linear.version


def check_fell_back(model: str, answer: Answer, row: list[float]) -> None:
    check_answer(STABLE[model], answer, row)
    names = list(answer.headers)
    assert names.index("x-model-fallback") == names.index("x-cache") + 1
    assert answer.headers["x-model-fallback"] == answer.headers["x-model-variant"] == "stable"


def signals(gateway: LiveGateway, model: str, revision: int) -> dict[str, dict[str, Any]]:
    """By variant, the counts of all workers added up."""
    told: dict[str, dict[str, Any]] = {}
    for worker in gateway.control.get("/admin/v1/status").json()["workers"]:
        for arm in worker["signals"]:
            if (arm["model"], arm["revision"]) == (model, revision):
                total = told.setdefault(arm["variant"], {"runs": 0, "outputs": set()})
                for name in ("eligible", "errors", "timeouts", "invalid", "fallbacks", "keys"):
                    total[name] = total.get(name, 0) + arm[name]
                total["runs"] += sum(arm["run_s"].values())
                total["outputs"] |= arm["outputs"].keys()
    return told


def breakers(gateway: LiveGateway, model: str) -> list[dict[str, Any]]:
    """Of each worker, the one of the canary."""
    found = [b for status in workers_status(gateway) for b in status["breakers"] if b["model"] == model]
    assert len(found) == WORKERS
    return found


def metric(gateway: LiveGateway, name: str, **labels: str) -> float:
    """The sum of all lines of a metric that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = gateway.control.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f"{name}{{") and all(text in line for text in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


@pytest.mark.parametrize(("model", "reason"), [("nan", "invalid"), ("raise", "error"), ("rows", "invalid")])
def test_a_candidate_that_always_fails_costs_no_client_an_error(gateway: LiveGateway, model: str, reason: str) -> None:
    route = canary_route(gateway, model)
    load = Load(model)
    load.run(gateway.data_url)
    canary = {key for key in load.keys if route.decide(key, "p", {}, "oip").variant == "canary"}
    for key, (answer, row, _) in load.answers.items():
        if key in canary:
            check_fell_back(model, answer, row)
        else:
            check_answer(STABLE[model], answer, row)
            assert "x-model-fallback" not in answer.headers

    def all_open() -> bool:  # each worker tells of itself once a second
        return all((breaker["state"], breaker["opened"]) == ("open", 1) for breaker in breakers(gateway, model))

    eventually(all_open, "the breakers are open, once")
    for breaker in breakers(gateway, model):
        assert breaker["variant"] == "canary"
        assert breaker["version"] == "2"
        assert breaker["reason"]
    assert metric(gateway, "sluicegate_breaker_state", model=model, variant="canary") == 2
    assert gateway.log.count('"the breaker of a version is now open"') >= WORKERS

    def all_told() -> dict[str, dict[str, Any]] | None:
        told = signals(gateway, model, route.revision)
        return told if sum(arm["eligible"] for arm in told.values()) == len(load.keys) else None

    told = eventually(all_told, "the signals tell of all requests")
    assert told["canary"]["eligible"] == told["canary"]["fallbacks"] == told["canary"]["keys"] == len(canary)
    failed = told["canary"]["errors" if reason == "error" else "invalid"]
    assert 0 < failed == told["canary"]["errors"] + told["canary"]["invalid"]
    stable = told["stable"]
    assert stable["eligible"] == stable["keys"] == stable["runs"] == len(load.keys) - len(canary)
    assert (stable["errors"], stable["timeouts"], stable["invalid"], stable["fallbacks"]) == (0, 0, 0, 0)
    assert stable["outputs"] == {"label", "probabilities"}
    fallbacks = metric(gateway, "sluicegate_fallbacks_total", model=model, version="2", variant="canary")
    assert fallbacks == len(canary)
    assert metric(gateway, "sluicegate_fallbacks_total", model=model, reason=reason) > 0
    # A run that failed may have been several calls of the model, never more than what is left of the five.
    assert metric(gateway, "sluicegate_run_duration_seconds_count", model=model, version="2") <= MAX_BAD_CALLS * WORKERS
    assert metric(gateway, "sluicegate_requests_total", model=model, outcome="ok") == len(load.keys)

    def sampled() -> dict[str, Any] | None:
        rows = [
            json.loads(line)
            for path in (gateway.state / "samples" / f"model={model}").rglob("*.jsonl*")
            for line in path.read_text().splitlines()
        ]
        return {row["prediction_id"]: row for row in rows} if len(rows) == len(load.keys) else None

    samples = eventually(sampled, "all are in the sample log")
    for key, (answer, _, _) in load.answers.items():
        sample = samples[answer.headers["x-prediction-id"]]
        assert sample["version"] == "1"
        assert sample["variant"] == "stable"
        assert sample["reason"] == ("FALLBACK" if key in canary else "SPLIT")


def test_rows_that_go_wrong_hurt_only_their_own_requests(gateway: LiveGateway) -> None:
    route = canary_route(gateway, "mixed")
    load = Load("mixed", bad_share=0.1)
    load.run(gateway.data_url)
    canary = {key for key in load.keys if route.decide(key, "p", {}, "oip").variant == "canary"}
    bad = 0
    for key, (answer, row, is_bad) in load.answers.items():
        if key in canary and is_bad:
            check_fell_back("mixed", answer, row)
            bad += 1
        else:
            check_answer(classifier("mixed", "2") if key in canary else STABLE["mixed"], answer, row)
    assert bad
    assert {breaker["state"] for breaker in breakers(gateway, "mixed")} == {"closed"}

    def all_told() -> bool:
        told = signals(gateway, "mixed", route.revision)["canary"]
        return (told["eligible"], told["invalid"], told["fallbacks"]) == (len(canary), bad, bad)

    eventually(all_told, "the signals tell how many went wrong")


def test_a_slow_candidate_leaves_the_default_version_a_thread_and_the_time_to_answer(gateway: LiveGateway) -> None:
    route = canary_route(gateway, "slow")
    load = Load("slow", timeout_ms=4000, requests=160)
    load.run(gateway.data_url)
    fell_back = 0
    for key, (answer, row, _) in load.answers.items():
        if route.decide(key, "p", {}, "oip").variant == "canary":
            check_fell_back("slow", answer, row)
            fell_back += 1
        else:
            check_answer(STABLE["slow"], answer, row)

    def all_told() -> bool:
        told = signals(gateway, "slow", route.revision)["canary"]
        return bool(told["eligible"] == told["fallbacks"] == fell_back and told["timeouts"])

    eventually(all_told, "the signals tell of the timeouts")
    assert metric(gateway, "sluicegate_fallbacks_total", model="slow", reason="timeout") > 0


def test_a_candidate_that_hangs_on_the_event_loop_is_called_off(gateway: LiveGateway) -> None:
    pids = gateway.child_pids("worker")
    route = canary_route(gateway, "hang")
    load = Load("hang", bad_share=0.5, requests=160)
    load.run(gateway.data_url)
    for key, (answer, row, is_bad) in load.answers.items():
        if route.decide(key, "p", {}, "oip").variant != "canary":
            check_answer(STABLE["hang"], answer, row)
        elif is_bad or "x-model-fallback" in answer.headers:
            check_fell_back("hang", answer, row)
        else:
            check_answer(classifier("hang", "2"), answer, row)
    for breaker in breakers(gateway, "hang"):
        assert breaker["state"] == "open"
        assert "held the event loop" in breaker["reason"]
    assert gateway.child_pids("worker") == pids


def test_a_route_may_forbid_the_fallback(gateway: LiveGateway) -> None:
    refused = gateway.control.get("/admin/v1/flags/raise.route")
    patch = {"metadata": {"fallback": "no"}}
    headers = {
        "if-match": refused.headers["etag"],
        "x-change-reason": "a test",
        "content-type": "application/merge-patch+json",
    }
    reply = gateway.control.patch("/admin/v1/flags/raise.route", content=json.dumps(patch), headers=headers)
    assert reply.status_code == 422
    assert "metadata.fallback" in reply.text
    must_change(gateway, "raise.route", {"metadata": {"fallback": False}})
    route = canary_route(gateway, "raise", 51)
    load = Load("raise", requests=40)
    load.run(gateway.data_url)
    for key, (answer, _, _) in load.answers.items():
        assert answer.status == (500 if route.decide(key, "p", {}, "oip").variant == "canary" else 200)
        assert "x-model-fallback" not in answer.headers
