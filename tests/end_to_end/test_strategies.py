"""Blue/green, shadow and experiment on a real gateway under load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.test_rollouts import REASON, SETTINGS, WORKERS, Clients, start, status
from tests.live import LiveGateway, eventually

Found = TypeVar("Found")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("strategies")
    models = root / "models"
    for model in ("colours", "copied", "split"):
        write_package(models, classifier(model, "1"))
    with LiveGateway(models, root / "state", workers=WORKERS, settings=SETTINGS) as live:
        for model in ("colours", "copied", "split"):
            write_package(models, classifier(model, "2"))
        yield live


def under_load(clients: Clients, do: Callable[[], Found]) -> Found:
    """Do something while clients ask; all of them are answered."""

    async def scenario() -> Found:
        load = asyncio.create_task(clients.run())
        try:
            return await asyncio.to_thread(do)
        finally:
            clients.stop()
            await load

    found = asyncio.run(scenario())
    assert (clients.seen.failed, clients.seen.wrong, clients.seen.fallbacks) == ([], [], 0)
    return found


def steer(gateway: LiveGateway, rollout_id: str, verb: str) -> dict[str, Any]:
    reply = gateway.control.post(f"/admin/v1/rollouts/{rollout_id}:{verb}", headers=REASON)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def wait_for(gateway: LiveGateway, rollout_id: str, phase: str, reason: str = "") -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        found = status(gateway, rollout_id)
        return found if (found["phase"], found["reason"]) == (phase, reason) else None

    return eventually(there, f"{rollout_id} is {phase} {reason}", timeout_s=60)


def version_for(gateway: LiveGateway, model: str, **headers: str) -> str:
    body = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    reply = gateway.data.post(f"/v2/models/{model}/infer", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    return str(reply.headers["x-model-version"])


def test_blue_green_is_previewed_by_header_and_flips_under_load_there_and_back(gateway: LiveGateway) -> None:
    clients = Clients(gateway, "colours")
    preview = {"x-model-variant": "green"}

    def flip() -> str:
        rollout_id = start(gateway, "colours", strategy="bluegreen", steps=[])
        wait_for(gateway, rollout_id, "paused", "gate")
        assert version_for(gateway, "colours") == "1"
        assert version_for(gateway, "colours", **preview) == "2"
        before = clients.seen.answers
        steer(gateway, rollout_id, "promote")
        wait_for(gateway, rollout_id, "healthy")
        assert version_for(gateway, "colours") == "2"
        steer(gateway, rollout_id, "rollback")
        wait_for(gateway, rollout_id, "rolled_back")
        assert version_for(gateway, "colours") == "1"
        eventually(lambda: clients.seen.answers > before + 1000, "traffic goes on")
        return rollout_id

    rollout_id = under_load(clients, flip)
    print(f"{rollout_id}: {clients.seen.answers} answers over two flips, none failed, each right for its version")


def test_a_shadow_ends_with_a_report_and_leaves_nothing_behind(gateway: LiveGateway) -> None:
    before = gateway.control.get("/admin/v1/flags/copied.route").json()["variants"]
    clients = Clients(gateway, "copied")

    def shadow() -> dict[str, Any]:
        plan = {"strategy": "shadow", "steps": [], "shadow_rate": 1.0, "min_pairs": 200}
        rollout_id = start(gateway, "copied", **plan)
        return wait_for(gateway, rollout_id, "healthy")

    found = under_load(clients, shadow)
    assert "rows compared in pairs" in found["why"]
    assert gateway.control.get("/admin/v1/flags/copied.route").json()["variants"] == before
    assert gateway.control.get("/admin/v1/flags/copied.shadow").status_code == 404
    report = gateway.control.get(f"/admin/v1/rollouts/{found['id']}/report").json()
    assert report["pairs"]["rows"] >= 200
    print("\n".join(report["text"]))


def test_a_shadow_that_answers_differently_is_taken_back(gateway: LiveGateway) -> None:
    clients = Clients(gateway, "copied")

    def shadow() -> dict[str, Any]:
        plan = {"strategy": "shadow", "steps": [], "shadow_rate": 1.0, "min_pairs": 10**6, "max_flip_rate": 0.001}
        rollout_id = start(gateway, "copied", **plan)
        return wait_for(gateway, rollout_id, "rolled_back")

    found = under_load(clients, shadow)
    assert "get another label" in found["why"], found["why"]
    print(found["why"])


def test_an_experiment_keeps_its_split_and_waits_for_a_decision(gateway: LiveGateway) -> None:
    clients = Clients(gateway, "split")

    def experiment() -> dict[str, Any]:
        step = {"weight_percent": 50, "min_time_s": 1, "min_requests": 300}
        rollout_id = start(gateway, "split", strategy="experiment", steps=[step])
        return wait_for(gateway, rollout_id, "paused", "complete")

    found = under_load(clients, experiment)
    report = gateway.control.get(f"/admin/v1/rollouts/{found['id']}/report").json()
    assert not report["srm"]["mismatch"]
    assert report["exposure"]["canary"] >= 300
    print("\n".join(report["text"]))
    steer(gateway, found["id"], "promote")
    wait_for(gateway, found["id"], "healthy")
    assert version_for(gateway, "split") == "2"
