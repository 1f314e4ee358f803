"""Rollouts of real models under load: a healthy one goes to the end, faulty ones are taken back by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import Linear, classifier, write_package
from tests.crashing import DEADLY_SUM, only_where_it_traps, write_crashing
from tests.end_to_end.flags import workers_status
from tests.faults import BAD_ABOVE, write_erring, write_faulty
from tests.live import LiveGateway, SettingsTable, eventually
from tests.traffic import Answer, Client

WORKERS = 2
CLIENTS = 12
TIMEOUT_S = 100.0
STEPS = [
    {"weight_percent": 20, "min_time_s": 1, "min_requests": 100},
    {"weight_percent": 50, "min_time_s": 1, "min_requests": 100},
]
SETTINGS: SettingsTable = {
    "cache": {"max_bytes": 0},
    "supervisor": {"backoff_min_s": 0.05, "backoff_max_s": 0.2},
}
REASON = {"x-change-reason": "test"}
# Of all rows, those whose first feature is above BAD_ABOVE.
BAD_SHARE = 0.02

Fault = Callable[[Path, Linear], object]


@dataclass(slots=True)
class Seen:
    """What the clients of one model got."""

    answers: int = 0
    failed: list[Answer] = field(default_factory=list)
    wrong: list[tuple[Answer, list[float]]] = field(default_factory=list)
    fallbacks: int = 0
    broken: int = 0  # connections


class Clients:
    """Clients that ask one model again and again, each time with a new key, until they are told to stop.

    erring: rows above this are those that stable fails on too. deadly_share: of rows that kill a crashing version.
    reconnects: a connection that breaks is opened anew.
    """

    def __init__(
        self,
        gateway: LiveGateway,
        model: str,
        *,
        bad_share: float = BAD_SHARE,
        erring: float = np.inf,
        deadly_share: float = 0.0,
        reconnects: bool = False,
    ) -> None:
        self._gateway = gateway
        self._model = model
        self._versions = {version: classifier(model, version) for version in ("1", "2")}
        self._bad_share = bad_share
        self._erring = erring
        self._deadly_share = deadly_share
        self._reconnects = reconnects
        self._stopped = False
        self.seen = Seen()

    async def run(self) -> None:
        async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._ask_on(number))

    def stop(self) -> None:
        self._stopped = True

    async def _ask_on(self, number: int) -> None:
        dice = random.Random(number)
        while not self._stopped:
            try:
                await self._ask_on_one_connection(number, dice)
            except (OSError, EOFError):
                if not self._reconnects:
                    raise
                self.seen.broken += 1
                await asyncio.sleep(0.01)

    async def _ask_on_one_connection(self, number: int, dice: random.Random) -> None:
        async with Client(self._gateway.data_url) as connection:
            while not self._stopped:
                row = [round(dice.uniform(-3, 3), 3) for _ in range(4)]
                if dice.random() < self._bad_share:
                    row[0] = BAD_ABOVE + 1 + dice.random()
                if dice.random() < self._deadly_share:
                    row = [10.0 * DEADLY_SUM, 0.0, 0.0, 0.0]
                tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row}
                answer = await connection.post(
                    f"/v2/models/{self._model}/infer",
                    json.dumps({"inputs": [tensor]}).encode(),
                    {"x-targeting-key": f"{number}-{dice.random()}"},
                )
                self._look(answer, row)

    def _look(self, answer: Answer, row: list[float]) -> None:
        self.seen.answers += 1
        if row[0] > self._erring:
            return
        if answer.status != 200:
            self.seen.failed.append(answer)
            return
        self.seen.fallbacks += "x-model-fallback" in answer.headers
        wanted = self._versions[answer.headers["x-model-version"]].answer([row])["probabilities"][0]
        found = next(output["data"] for output in answer.json()["outputs"] if output["name"] == "probabilities")
        if not np.allclose(found, wanted, atol=3e-6):
            self.seen.wrong.append((answer, row))


def start(gateway: LiveGateway, model: str, **plan: Any) -> str:
    body = {"strategy": "canary", "version": "2", "steps": STEPS, **plan}
    reply = gateway.control.post(f"/admin/v1/models/{model}/rollouts", json=body, headers=REASON)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def status(gateway: LiveGateway, rollout_id: str) -> dict[str, Any]:
    reply = gateway.control.get(f"/admin/v1/rollouts/{rollout_id}")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def verbs(gateway: LiveGateway, rollout_id: str) -> list[tuple[str, str]]:
    """Verb and time of what the audit says of a rollout."""
    rows = gateway.control.get("/admin/v1/audit", params={"limit": 5000}).json()["rows"]
    return [(row["verb"], row["ts"]) for row in rows if row["target"] == f"rollout:{rollout_id}"]


async def until_over(gateway: LiveGateway, clients: Clients, rollout_id: str) -> dict[str, Any]:
    """Load the gateway until the rollout has ended; returns how."""
    load = asyncio.create_task(clients.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                found = await asyncio.to_thread(status, gateway, rollout_id)
                if found["phase"] in ("healthy", "rolled_back"):
                    return found
                assert not load.done(), load
                await asyncio.sleep(0.05)
    finally:
        clients.stop()
        with contextlib.suppress(TimeoutError):
            await load


def report(name: str, found: dict[str, Any], clients: Clients) -> None:
    seen, judge = clients.seen, {each["signal"]: each for each in found["judge"]}
    tripped = [signal for signal, each in judge.items() if each["tripped"]]
    print(
        f"{name}: {found['phase']}, {found['why']}; {seen.answers} answers, {len(seen.failed)} failed, "
        f"{len(seen.wrong)} wrong, {seen.fallbacks} fallbacks; tripped {tripped}"
    )
    if "errors" in judge:
        print(f"  {judge['errors']['text']}")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("rollouts")
    models = root / "models"
    for model in ("healthy", "nan", "raise", "rows", "memory", "hang", "crash"):
        write_package(models, classifier(model, "1"))
    write_package(models, classifier("slow", "1", iterations=10))
    for model in ("x5", "x20"):
        write_erring(models, classifier(model, "1"), above=BAD_ABOVE + 1.9)
    with LiveGateway(models, root / "state", workers=WORKERS, settings=SETTINGS) as live:
        write_package(models, classifier("healthy", "2"))
        for model in ("nan", "raise", "rows", "memory", "hang"):
            write_faulty(models, classifier(model, "2"), model)  # type: ignore[arg-type]  # they are faults
        write_crashing(models, classifier("crash", "2"))
        write_package(models, classifier("slow", "2", iterations=3000))
        write_erring(models, classifier("x5", "2"), above=BAD_ABOVE + 1.5)
        write_erring(models, classifier("x20", "2"), above=BAD_ABOVE)
        yield live


def test_a_healthy_canary_goes_to_the_end_and_back_with_one_verb(gateway: LiveGateway) -> None:
    clients = Clients(gateway, "healthy")
    rollout_id = start(gateway, "healthy")
    found = asyncio.run(until_over(gateway, clients, rollout_id))
    report("healthy", found, clients)
    assert found["phase"] == "healthy"
    assert (clients.seen.failed, clients.seen.wrong, clients.seen.fallbacks) == ([], [], 0)
    route = gateway.control.get("/admin/v1/flags/healthy.route").json()
    assert route["variants"] == {"stable": "2", "previous": "1"}
    assert "targeting" not in route
    back = gateway.control.post(f"/admin/v1/rollouts/{rollout_id}:rollback", headers=REASON)
    assert back.status_code == 200, back.text
    eventually(lambda: status(gateway, rollout_id)["phase"] == "rolled_back", "rolled back")
    assert gateway.control.get("/admin/v1/flags/healthy.route").json()["variants"] == {"stable": "1"}
    told = gateway.control.get(f"/admin/v1/rollouts/{rollout_id}/report").json()
    assert told["exposure"]["canary"] > 200
    print("\n".join(told["text"]))


@pytest.mark.parametrize("model", ["nan", "raise", "rows", "memory", "hang"])
def test_a_canary_that_fails_is_taken_back_and_no_client_sees_it(gateway: LiveGateway, model: str) -> None:
    clients = Clients(gateway, model, bad_share=1.0 if model == "raise" else 0.3)
    rollout_id = start(gateway, model, on_breaker="notify")
    found = asyncio.run(until_over(gateway, clients, rollout_id))
    report(model, found, clients)
    assert found["phase"] == "rolled_back"
    assert (clients.seen.failed, clients.seen.wrong) == ([], [])
    assert clients.seen.fallbacks
    assert gateway.control.get(f"/admin/v1/flags/{model}.route").json()["variants"] == {"stable": "1"}


@only_where_it_traps
def test_a_canary_that_crashes_the_process_is_quarantined_and_taken_back(gateway: LiveGateway) -> None:
    rollout_id = start(gateway, "crash", on_breaker="notify")
    died = gateway.log.count(" died: ")
    clients = Clients(gateway, "crash", deadly_share=0.05, reconnects=True)
    found = asyncio.run(until_over(gateway, clients, rollout_id))
    report("crash", found, clients)
    assert found["phase"] == "rolled_back"
    assert "quarantined" in found["why"]
    print(f"crash: {gateway.log.count(' died: ') - died} deaths, {clients.seen.broken} broken connections")
    assert (clients.seen.failed, clients.seen.wrong) == ([], [])
    assert gateway.control.get("/admin/v1/flags/crash.route").json()["variants"] == {"stable": "1"}


def test_a_slow_canary_is_taken_back(gateway: LiveGateway) -> None:
    clients = Clients(gateway, "slow")
    found = asyncio.run(until_over(gateway, clients, start(gateway, "slow")))
    report("slow", found, clients)
    assert found["phase"] == "rolled_back"
    assert (clients.seen.failed, clients.seen.wrong) == ([], [])


@pytest.mark.parametrize(("model", "bad_share"), [("x20", 0.1), ("x5", 0.05)])
def test_a_canary_with_more_errors_than_stable_is_taken_back(
    gateway: LiveGateway, model: str, bad_share: float
) -> None:
    clients = Clients(gateway, model, bad_share=bad_share, erring=BAD_ABOVE + 1.9)
    found = asyncio.run(until_over(gateway, clients, start(gateway, model, on_breaker="notify")))
    report(model, found, clients)
    assert found["phase"] == "rolled_back"
    assert "errors" in found["why"] or "fallbacks" in found["why"]
    assert (clients.seen.failed, clients.seen.wrong) == ([], [])


def test_a_dead_canary_is_paused_within_a_second_of_its_breaker(gateway: LiveGateway) -> None:
    rollout_id = start(gateway, "raise", on_breaker="pause", judge={"signals": {"errors": None, "fallbacks": None}})
    clients = Clients(gateway, "raise", bad_share=1.0)

    async def until_paused() -> dict[str, Any]:
        load = asyncio.create_task(clients.run())
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                found = await asyncio.to_thread(status, gateway, rollout_id)
                if found["phase"] != "declared" and found["phase"] != "progressing":
                    clients.stop()
                    await load
                    return found
                await asyncio.sleep(0.02)

    found = asyncio.run(until_paused())
    report("dead", found, clients)
    assert (found["phase"], found["reason"]) == ("paused", "breaker")
    assert clients.seen.failed == []
    calls = [
        sum(arm["errors"] + arm["invalid"] for arm in worker["signals"] if arm["variant"] == "canary")
        for worker in workers_status(gateway)
    ]
    print(f"dead: bad calls per worker {calls}; {verbs(gateway, rollout_id)}")
    gateway.control.post(f"/admin/v1/rollouts/{rollout_id}:abort", headers=REASON)
    eventually(lambda: status(gateway, rollout_id)["phase"] == "rolled_back", "rolled back")
