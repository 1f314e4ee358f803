"""A canary that only the drift monitor sees through is paused by it; a change of the traffic blames no canary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.cli import main
from tests.builders import Linear, classifier, write_package
from tests.end_to_end.test_rollouts import TIMEOUT_S, start, status
from tests.live import LiveGateway, SettingsTable
from tests.traffic import Client

CLIENTS = 3
PAUSE_S = 0.01  # of each client: the monitor shall not have to read a backlog
# A step that does not end by itself.
STEPS = [{"weight_percent": 50, "min_time_s": 600, "min_requests": 100}]
SETTINGS: SettingsTable = {
    "sampling": {"rate": 1.0},
    "monitor": {"poll_s": 0.05, "window_rows": 150},
    "cache": {"max_bytes": 0},
}


class Skewed(Linear):
    """What it answers is not what its package's reference, made in training, says that it would."""

    def proto(self) -> Any:
        bias = self.bias + np.array([0, 2, 0], np.float32)
        return replace(Linear(*(getattr(self, name) for name in Linear.__slots__)), bias=bias).proto()


def like_version_1(model: str, kind: type[Linear] = Linear) -> Linear:
    made = replace(classifier(model, "1"), version="2")
    return kind(*(getattr(made, name) for name in Linear.__slots__))


class Clients:
    """They ask with a new key each time. shift: of one feature, against what the references have."""

    def __init__(self, gateway: LiveGateway, model: str, shift: float = 0.0) -> None:
        self._gateway = gateway
        self._model = model
        self._shift = shift
        self.is_stopped = False
        self.failed = 0

    async def run(self) -> None:
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._ask_on(number))

    async def _ask_on(self, number: int) -> None:
        dice = np.random.default_rng(number)
        async with Client(self._gateway.data_url) as connection:
            while not self.is_stopped:
                row = dice.normal(size=4)
                row[1] += self._shift
                tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row.round(3).tolist()}
                answer = await connection.post(
                    f"/v2/models/{self._model}/infer",
                    json.dumps({"inputs": [tensor]}).encode(),
                    {"x-targeting-key": f"{number}-{random.random()}"},
                )
                self.failed += answer.status != 200
                await asyncio.sleep(PAUSE_S)


def under_load(clients: Clients, look: Callable[[], Any]) -> Any:
    """Ask until *look* gives something true."""

    async def scenario() -> Any:
        load = asyncio.create_task(clients.run())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not (found := await asyncio.to_thread(look)):
                    assert not load.done(), load
                    await asyncio.sleep(0.1)
            return found
        finally:
            clients.is_stopped = True
            with contextlib.suppress(TimeoutError):
                await load

    found = asyncio.run(scenario())
    assert clients.failed == 0
    return found


def versions(gateway: LiveGateway, model: str) -> dict[str, dict[str, Any]]:
    """Version -> what the drift document says of it."""
    reply = gateway.control.get(f"/admin/v1/models/{model}/drift")
    return {each["version"]: each for each in reply.json()["versions"]} if reply.status_code == 200 else {}


def drift_of(found: dict[str, Any]) -> dict[str, Any]:
    (drift,) = (each for each in found["judge"] if each["signal"] == "drift")
    return dict(drift)


def test_a_canary_whose_answers_are_distributed_otherwise_is_paused(
    models: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_package(models, classifier("skewed", "1"), reference_rows=2000)
    with LiveGateway(models, state, settings=SETTINGS) as gateway:
        write_package(models, like_version_1("skewed", Skewed), reference_rows=2000)
        # The judge's own look at the outputs would see it too; here the monitor's shall be what counts.
        rollout_id = start(gateway, "skewed", steps=STEPS, judge={"outputs_action": "notify"})

        def paused() -> dict[str, Any] | None:
            found = status(gateway, rollout_id)
            return found if found["phase"] not in ("declared", "progressing") else None

        found = under_load(Clients(gateway, "skewed"), paused)
        print(found["why"])
        assert (found["phase"], found["reason"]) == ("paused", "guardrail")
        assert found["why"].startswith("drift: ")
        assert "than in version 1 at the same time: effect 0." in found["why"]
        assert "in 2 of 2 windows" in found["why"]
        drift = drift_of(found)
        assert (drift["tripped"], drift["action"]) == (True, "pause")
        names = {column["name"] for column in drift["columns"]}
        assert "probabilities.1" in names
        assert all(column["role"] == "output" and column["prediction_ids"] for column in drift["columns"])
        others = [each for each in found["judge"] if each["tripped"] and each["action"] == "rollback"]
        assert others == []  # by anything else, it is healthy

        cli = ["--url", gateway.control_url, "--token-file", str(state / "admin.token")]
        assert main(["rollout", "status", rollout_id, *cli]) == 0
        assert "pause!    drift: " in capsys.readouterr().out
        rows = gateway.control.get("/admin/v1/audit", params={"limit": 100}).json()["rows"]
        (row,) = (row for row in rows if row["verb"] == "rollout.pause")
        assert "drift" in {each["signal"] for each in row["after"]["found"]}


def test_a_change_of_the_traffic_that_moves_both_versions_alike_blames_no_canary(models: Path, state: Path) -> None:
    write_package(models, classifier("moved", "1"), reference_rows=2000)
    with LiveGateway(models, state, settings=SETTINGS) as gateway:
        write_package(models, like_version_1("moved"), reference_rows=2000)
        rollout_id = start(gateway, "moved", steps=STEPS)

        def both_alarm() -> dict[str, Any] | None:
            found = versions(gateway, "moved")
            if found.keys() != {"1", "2"} or not all(each["alarms"] for each in found.values()):
                return None
            beside = found["2"]["beside"]
            return found if beside is not None and len(beside["quiet"]) == len(beside["columns"]) else None

        found = under_load(Clients(gateway, "moved", shift=1.0), both_alarm)
        for version in found.values():
            assert "sepal_width" in {alarm["name"] for alarm in version["alarms"]}
        assert found["2"]["beside"]["alarms"] == []
        told = status(gateway, rollout_id)
        print(drift_of(told)["text"])
        assert told["phase"] == "progressing"
        assert not drift_of(told)["tripped"]
        assert "of version 1 at the same time" in drift_of(told)["text"]
