"""A canary that answers in time, without errors, and wrongly: labels find it, and it is taken back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders import classifier, write_package
from tests.end_to_end.test_rollouts import TIMEOUT_S, start, status
from tests.live import LiveGateway, SettingsTable
from tests.traffic import Client

CLIENTS = 6
# Enough to be judged by, and not so much that the monitor, which gives way to all others, lags behind.
PAUSE_S = 0.05
# It is in no hurry to be promoted: its labels come later than its answers.
STEPS = [{"weight_percent": 30, "min_time_s": 60, "min_requests": 100}]
SETTINGS: SettingsTable = {
    "sampling": {"rate": 1.0},
    "monitor": {"poll_s": 0.1},
    "labels": {"wait_s": 3},
    "cache": {"max_bytes": 0},
}


class Labellers:
    """Clients that ask with a new key each time, and say what would have been right: what version 1 answers."""

    def __init__(self, gateway: LiveGateway) -> None:
        self._gateway = gateway
        self._truth = classifier("wrong", "1")
        self.is_stopped = False
        self.asked = self.failed = 0

    async def run(self) -> None:
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._ask_on(number))

    async def _ask_on(self, number: int) -> None:
        dice = np.random.default_rng(number)
        async with Client(self._gateway.data_url) as connection:
            while not self.is_stopped:
                row = [round(value, 3) for value in dice.normal(size=4).tolist()]
                named = {"rows": [dict(zip(self._truth.features, row, strict=True))]}
                key = {"x-targeting-key": f"{number}-{random.random()}"}
                answer = await connection.post("/predict/wrong", json.dumps(named).encode(), key)
                label = int(self._truth.answer([row])["label"][0])
                told = {"prediction_id": answer.headers["x-prediction-id"], "label": label}
                taken = await connection.post("/v1/feedback", json.dumps(told).encode())
                self.asked += 1
                self.failed += answer.status != 200 or taken.status != 200
                await asyncio.sleep(PAUSE_S)


async def until_over(gateway: LiveGateway, clients: Labellers, rollout_id: str) -> dict[str, Any]:
    load = asyncio.create_task(clients.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                found = await asyncio.to_thread(status, gateway, rollout_id)
                if found["phase"] in ("healthy", "rolled_back"):
                    return found
                assert not load.done(), load
                await asyncio.sleep(0.1)
    finally:
        clients.is_stopped = True
        with contextlib.suppress(TimeoutError):
            await load


# On a busy machine runs are slow by chance, and drift is seen as outputs are.
OTHERS = {"slow": {"action": "notify"}, "timeouts": {"action": "notify"}, "drift": {"action": "notify"}}


def test_a_canary_whose_answers_labels_call_wrong_is_taken_back(models: Path, state: Path) -> None:
    write_package(models, classifier("wrong", "1"))
    with LiveGateway(models, state, settings=SETTINGS) as gateway:
        write_package(models, classifier("wrong", "2"))
        clients = Labellers(gateway)
        # That its outputs differ is seen at once; here only what is wrong with them shall count.
        rollout_id = start(gateway, "wrong", steps=STEPS, judge={"outputs_action": "notify", "signals": OTHERS})
        found = asyncio.run(until_over(gateway, clients, rollout_id))
        judged = {each["signal"]: each for each in found["judge"]}
        print(f"{found['phase']}, {found['why']}; {clients.asked} asked; {judged['accuracy']['text']}")
        assert found["phase"] == "rolled_back"
        assert "wrong answers" in found["why"]
        assert judged["accuracy"]["tripped"]
        assert "stable 0 % (0 of" in judged["accuracy"]["text"]
        assert clients.failed == 0
        assert gateway.control.get("/admin/v1/flags/wrong.route").json()["variants"] == {"stable": "1"}
