"""A version that kills workers: after two deaths it is out, all others are served, and a person can let it back in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import quarantine
from gateway.quarantine import Quarantined
from tests.builders import classifier, write_bare, write_package
from tests.crashing import DEADLY_SUM, only_where_it_traps, write_crashing, write_runaway
from tests.end_to_end.flags import change, declare, must_change, split, wait_adopted, wait_warm, workers_status
from tests.live import LiveGateway, eventually, is_running
from tests.traffic import Client

QUICK_RESTARTS = {"supervisor": {"backoff_min_s": 0.05, "backoff_max_s": 0.2}}


def body(first: float = 1.0) -> bytes:
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [first, 2.0, 3.0, 4.0]}
    return json.dumps({"inputs": [tensor]}).encode()


def ask(gateway: LiveGateway, key: str = "", first: float = 1.0, model: str = "iris") -> httpx.Response:
    headers = {"x-request-timeout-ms": "30000"} | ({"x-targeting-key": key} if key else {})
    return gateway.data.post(f"/v2/models/{model}/infer", content=body(first), headers=headers)


def quarantined(gateway: LiveGateway) -> list[tuple[str, str]]:
    found = gateway.control.get("/admin/v1/quarantine")
    assert found.status_code == 200, found.text
    return [(entry["model"], entry["version"]) for entry in found.json()["versions"]]


def states(gateway: LiveGateway, version: str, model: str = "iris") -> list[str]:
    """The state of a version in each worker that has written its status."""
    found = [status["models"][model]["versions"] for status in workers_status(gateway)]
    return [versions.get(version, {}).get("state", "gone") for versions in found]


def wait_state(gateway: LiveGateway, version: str, state: str, workers: int = 1) -> None:
    eventually(
        lambda: states(gateway, version) == [state] * workers, f"{version} is {state} in all workers", timeout_s=60
    )


def deaths(gateway: LiveGateway) -> int:
    return gateway.log.count(" died: ")


def kill_during_a_run(gateway: LiveGateway, path: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask for a run that takes long, send a signal to the only worker meanwhile, and wait for its replacement."""

    async def scenario() -> None:
        pid = gateway.child_pids("worker")[0]
        async with asyncio.timeout(60), Client(gateway.data_url) as client:
            content = body(float(pid))  # no answer of an earlier run fits
            await client.send(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode())
            await client.send(content)
            await asyncio.to_thread(eventually, lambda: is_busy(gateway), "the model runs")
            os.kill(pid, number)
        await asyncio.to_thread(gateway.wait_replaced, "worker", 0, pid)

    asyncio.run(scenario())


def is_busy(gateway: LiveGateway) -> bool:
    """Whether the workers have one request in them, as they said a tenth of a second ago: its run has begun since."""
    page = gateway.control.get("/metrics").text
    return "\nsluicegate_in_flight_requests 1.0\n" in page


# -- a canary that crashes ------------------------------------------------------------------------------------


async def client(url: str, number: int, seen: Counter[str], stop: asyncio.Event) -> None:
    """Ask with keys of one's own, some of them with a row that kills the canary; a broken connection is opened anew."""
    turn = 0
    while not stop.is_set():
        try:
            async with Client(url) as connection:
                while not stop.is_set():
                    turn += 1
                    deadly = turn % 10 == 0
                    content = body(10 * DEADLY_SUM if deadly else float(turn))
                    headers = {"x-targeting-key": f"{number}-{turn}"}
                    answer = await connection.post("/v2/models/iris/infer", content, headers)
                    fallback = answer.headers.get("x-model-fallback", "-")
                    seen[f"{answer.status} {answer.headers.get('x-model-version')} {fallback}"] += 1
        except (OSError, EOFError):
            seen["broken"] += 1


@only_where_it_traps
def test_a_canary_that_crashes_workers_under_load_is_out_after_two_deaths(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1"))
    with LiveGateway(models, state, workers=2, settings=QUICK_RESTARTS) as gateway:
        write_crashing(models, classifier("iris", "2"))
        declare(gateway, "iris", "canary", "2")
        seen: Counter[str] = Counter()

        def out() -> None:
            must_change(gateway, "iris.route", {"targeting": split(50)})
            eventually(lambda: quarantined(gateway) == [("iris", "2")], "the canary is quarantined", timeout_s=60)
            wait_state(gateway, "2", "quarantined", workers=2)
            seen.clear()
            died = deaths(gateway)
            eventually(lambda: seen.total() > 2000, "traffic goes on", timeout_s=60)
            assert deaths(gateway) == died, "the crash loop has ended"

        async def load() -> None:
            stop = asyncio.Event()
            async with asyncio.timeout(120), asyncio.TaskGroup() as group:
                for number in range(10):
                    group.create_task(client(gateway.data_url, number, seen, stop))
                try:
                    await asyncio.to_thread(out)
                finally:
                    stop.set()

        asyncio.run(load())
        seen.pop("broken", None)  # connections of a worker's last moments may have been counted late
        assert set(seen) == {"200 1 -", "200 1 stable"}
        share = seen["200 1 stable"] / seen.total()
        assert 0.35 < share < 0.65, "what the split gives the canary is answered by the default variant"
        assert "killed by SIGFPE" in gateway.log
        assert "iris/2 is quarantined" in gateway.log
        told = gateway.control.get("/admin/v1/status").json()
        assert [(entry["model"], entry["version"]) for entry in told["quarantine"]] == [("iris", "2")]
        assert "last one killed by SIGFPE" in told["quarantine"][0]["reason"]
        for worker in told["workers"]:
            assert "within 60 s" in worker["models"]["iris"]["versions"]["2"]["reason"]
        page = gateway.control.get("/metrics").text
        assert "\nsluicegate_quarantined_versions 1.0\n" in page


@only_where_it_traps
def test_a_quarantine_outlives_the_gateway_and_ends_by_a_lift_or_another_package(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1"))
    with LiveGateway(models, state, settings=QUICK_RESTARTS) as gateway:
        canary = write_crashing(models, classifier("iris", "2"), at_load=True)
        must_change(gateway, "iris.route", {"variants": {"canary": "2"}})
        wait_state(gateway, "2", "quarantined")
        refused = change(gateway, "iris.route", {"targeting": split(10)})
        assert refused.status_code == 409
        assert "put another package in its place, or lift it" in refused.json()["detail"]
    with LiveGateway(models, state, settings=QUICK_RESTARTS) as gateway:
        wait_state(gateway, "2", "quarantined")
        assert deaths(gateway) == 2, "no worker died of it since"
        # lifted, it is loaded again, and kills two more
        lift = gateway.control.delete("/admin/v1/quarantine/iris/2", headers={"x-change-reason": "another look"})
        assert [entry["version"] for entry in lift.json()["lifted"]] == ["2"]
        eventually(lambda: deaths(gateway) == 4, "it is loaded again")
        wait_state(gateway, "2", "quarantined")
        # another package under the same name is another thing
        whole = write_bare(models.parent / "elsewhere", classifier("iris", "2"))
        (whole / "model.onnx").replace(canary / "model.onnx")
        wait_state(gateway, "2", "warm")
        wait_adopted(gateway, "iris", must_change(gateway, "iris.route", {"targeting": split(100)}))
        assert ask(gateway, "a key").headers["x-model-version"] == "2"
        assert deaths(gateway) == 4


def test_a_version_in_a_run_when_its_workers_are_killed_is_out_and_a_lift_lets_it_back(
    models: Path, state: Path
) -> None:
    write_package(models, classifier("iris", "1"))
    with LiveGateway(models, state, settings=QUICK_RESTARTS) as gateway:
        write_package(models, classifier("iris", "2", iterations=25_000))
        declare(gateway, "iris", "canary", "2")
        revision = must_change(gateway, "iris.route", {"targeting": split(100)})
        wait_adopted(gateway, "iris", revision)
        for number in (signal.SIGKILL, signal.SIGSEGV):
            wait_warm(gateway, "iris", "2")
            kill_during_a_run(gateway, "/v2/models/iris/versions/2/infer", number)
        assert quarantined(gateway) == [("iris", "2")]
        diverted = ask(gateway, "a key")
        assert diverted.status_code == 200
        names = [name for name in diverted.headers if name.startswith("x-")]
        assert names[-2:] == ["x-cache", "x-model-fallback"]
        assert diverted.headers["x-model-version"] == "1"
        assert diverted.headers["x-model-variant"] == "stable"
        assert diverted.headers["x-model-fallback"] == "stable"
        assert "x-model-fallback" not in ask(gateway, first=2.0, model="iris/versions/1").headers
        assert gateway.data.post("/v2/models/iris/versions/2/infer", content=body()).status_code == 404
        lift = gateway.control.delete("/admin/v1/quarantine/iris/2", headers={"x-change-reason": "it was me"})
        assert lift.status_code == 200
        wait_warm(gateway, "iris", "2")
        answer = ask(gateway, "a", first=3.0)
        assert answer.headers["x-model-version"] == "2"
        assert "x-model-fallback" not in answer.headers
        (row,) = (row for row in audit(gateway) if row["verb"] == "quarantine.lift")
        assert (row["target"], row["reason"]) == ("quarantine:iris", "it was me")
        assert row["after"]["lifted"]["version"] == "2"


def test_a_running_worker_lets_go_of_what_comes_on_the_list(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1", iterations=10_000))
    with LiveGateway(models, state) as gateway:
        write_package(models, classifier("iris", "2"))
        declare(gateway, "iris", "canary", "2")
        wait_adopted(gateway, "iris", must_change(gateway, "iris.route", {"targeting": split(100)}))
        assert ask(gateway, "a key").headers["x-model-version"] == "2"
        digest = workers_status(gateway)[0]["models"]["iris"]["versions"]["2"]["digest"]
        listed = Quarantined("iris", "2", digest, "as if another worker had died", "2026-01-01T00:00:00.000Z")
        quarantine.add(state / "quarantine.json", [listed])
        wait_state(gateway, "2", "quarantined")
        for door in ("a key", "another"):  # what was asked before, and what was not
            answer = ask(gateway, door)
            assert (answer.headers["x-model-version"], answer.headers["x-model-fallback"]) == ("1", "stable")
        # no change of the route waits for it
        wait_adopted(gateway, "iris", must_change(gateway, "iris.route", {"targeting": split(50)}))
        assert deaths(gateway) == 0
        gateway.kill("worker")  # its replacement takes no request before the default version is loaded
        assert ask(gateway, "a key", first=4.0).status_code == 200


@only_where_it_traps
def test_a_shadow_that_crashes_workers_is_out_too(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1"))
    with LiveGateway(models, state, settings=QUICK_RESTARTS) as gateway:
        write_crashing(models, classifier("iris", "2"))
        declare(gateway, "iris", "shadow", "2")
        flag = {"state": "ENABLED", "variants": {"all": 1.0}, "defaultVariant": "all"}
        based_on = {"if-none-match": "*", "x-change-reason": "test"}
        assert gateway.control.put("/admin/v1/flags/iris.shadow", json=flag, headers=based_on).status_code == 201
        for turn in (1, 2):
            wait_warm(gateway, "iris", "2")
            pid = gateway.child_pids("worker")[0]
            dies = partial(is_dead_after_a_deadly_row, gateway, pid, turn, itertools.count())
            eventually(dies, "the shadow kills the worker", timeout_s=60)  # a busy worker drops copies
            gateway.wait_replaced("worker", 0, pid)
        assert quarantined(gateway) == [("iris", "2")]
        assert ask(gateway, first=20 * DEADLY_SUM).status_code == 200


def is_dead_after_a_deadly_row(gateway: LiveGateway, pid: int, turn: int, tries: Iterator[int]) -> bool:
    """Ask a row that was never asked before: the shadow gets no copy of one that the cache has answered."""
    with contextlib.suppress(httpx.TransportError):
        ask(gateway, first=(10 + turn + next(tries) / 1000) * DEADLY_SUM)
    return not is_running(pid)


def audit(gateway: LiveGateway) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = gateway.control.get("/admin/v1/audit").json()["rows"]
    return rows


def is_served(gateway: LiveGateway, model: str) -> bool:
    return ask(gateway, model=model).status_code == 200


# -- the innocent -----------------------------------------------------------------------------------------------


def test_a_default_version_is_never_out_however_many_workers_die_while_it_runs(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1", iterations=25_000))
    with LiveGateway(models, state, settings=QUICK_RESTARTS) as gateway:
        for _ in range(2):
            kill_during_a_run(gateway, "/v2/models/iris/infer")
        assert quarantined(gateway) == []
        assert gateway.log.count("it is kept, since its route gives it by default") == 1
        assert ask(gateway, first=5.0).status_code == 200


def test_a_worker_that_dies_idle_makes_nobody_suspect(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1"))
    with LiveGateway(models, state, settings=QUICK_RESTARTS) as gateway:
        declare(gateway, "iris", "canary", "1")
        for _ in range(3):
            assert ask(gateway).status_code == 200
            gateway.kill("worker")
        assert quarantined(gateway) == []
        assert "in flight at" not in gateway.log


@only_where_it_traps
def test_a_new_model_that_crashes_at_its_first_load_does_not_take_the_others_down(models: Path, state: Path) -> None:
    for model in ("iris", "wine"):
        write_package(models, classifier(model, "1"))
    with LiveGateway(models, state, workers=2, settings=QUICK_RESTARTS) as gateway:
        write_crashing(models, classifier("fatal", "1"), at_load=True)  # control gives it a route at once
        eventually(lambda: quarantined(gateway) == [("fatal", "1")], "the new model is out")
        for model in ("iris", "wine"):
            eventually(partial(is_served, gateway, model), f"{model} is served")
        refused = ask(gateway, model="fatal")
        assert (refused.status_code, "is quarantined here" in refused.text) == (503, True)
    with LiveGateway(models, state, workers=2, settings=QUICK_RESTARTS) as gateway:
        died = deaths(gateway)
        assert [ask(gateway, model=model).status_code for model in ("iris", "wine", "fatal")] == [200, 200, 503]
        assert deaths(gateway) == died


def test_a_hang_on_the_event_loop_counts_as_a_death_and_one_beside_it_does_not(models: Path, state: Path) -> None:
    write_package(models, classifier("iris", "1"))
    settings = {"supervisor": {**QUICK_RESTARTS["supervisor"], "heartbeat_timeout_s": 2}}
    with LiveGateway(models, state, settings=settings) as gateway:
        write_package(models, classifier("iris", "2", iterations=25_000))
        declare(gateway, "iris", "slow", "2")
        write_runaway(models, classifier("iris", "3", iterations=1))
        declare(gateway, "iris", "runaway", "3")
        for _ in range(2):  # stopped by hand, it says nothing; the run in its thread is not why
            wait_warm(gateway, "iris", "2")
            kill_during_a_run(gateway, "/v2/models/iris/versions/2/infer", signal.SIGSTOP)
        assert gateway.log.count("is silent and is killed") == 2
        assert quarantined(gateway) == []
        for _ in range(2):
            wait_warm(gateway, "iris", "3")
            pid = gateway.child_pids("worker")[0]
            with pytest.raises(httpx.RemoteProtocolError):
                gateway.data.post("/v2/models/iris/versions/3/infer", content=body(1e9))
            gateway.wait_replaced("worker", 0, pid)
        assert gateway.log.count("is silent and is killed") == 4
        assert quarantined(gateway) == [("iris", "3")]
        wait_warm(gateway, "iris", "2")
