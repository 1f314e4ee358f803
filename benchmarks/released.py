"""A running gateway of two workers with a canary, as the promises of releases are measured on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from speed import asks, machine, servers
from speed.models import Model

WORKERS = 2
_WAIT_S = 30.0


class Gateway:
    """A running gateway of two workers, and its two ports."""

    def __init__(self, server: servers.Server, root: Path, model: Model) -> None:
        self.server = server
        self.root = root
        self.model = model
        self.state = root / f"{server.name}.state"
        self.path = servers.infer_path(model.name)
        self.body = asks.body([model.rows[0]], asks.OIP)
        token = (self.state / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}", "if-match": "*", "x-change-reason": "benchmark"}
        self.control = httpx.Client(base_url=server.told["control"]["url"], headers=headers, timeout=10.0)

    @property
    def key(self) -> str:
        return f"{self.model.name}.route"

    def patch(self, patch: dict[str, Any]) -> int:
        """Change the route; returns its revision."""
        reply = self.control.patch(f"/admin/v1/flags/{self.key}", json=patch)
        if reply.status_code != 200:
            raise servers.WrongAnswer(f"{patch}: {reply.text[:300]}")
        return int(reply.json()["metadata"]["revision"])

    def share(self, percent: int) -> int:
        """Give the canary a share of the keys."""
        return self.patch({"targeting": {"fractional": [["canary", percent], ["stable", 100 - percent]]}})

    def clients(self, count: int) -> list[httpx.Client]:
        """Connections of their own; the kernel spreads them over the workers."""
        found = [httpx.Client(base_url=self.server.url, timeout=10.0) for _ in range(count)]
        for client in found:
            self.ask(client)
        return found

    def ask(self, client: httpx.Client, key: str = "user") -> httpx.Response:
        headers = {"content-type": "application/json", "x-targeting-key": key}
        return client.post(self.path, content=self.body, headers=headers)

    def pid(self, role: str) -> int:
        found: list[int] = []

        def is_there() -> bool:  # one that was killed is not told of until its successor is ready
            found.extend(int(child["pid"]) for child in self.server.told["children"] if child["role"] == role)
            return bool(found)

        until(is_there, f"a {role} is ready")
        return found[0]


def until_revision(gateway: Gateway, client: httpx.Client, revision: int) -> float:
    """Ask until an answer was decided by *revision*; returns when that was."""
    deadline_s = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline_s:
        if gateway.ask(client).headers["x-flag-revision"] == str(revision):
            return time.monotonic()
    raise machine.NotReady(f"revision {revision} did not come")


def variants(gateway: Gateway) -> dict[str, str]:
    """The variant of each of 2,000 keys; the connections turn, so that all workers are asked."""
    clients = gateway.clients(8)
    found = {}
    for number in range(2000):
        reply = gateway.ask(clients[number % 8], f"user-{number}")
        found[f"user-{number}"] = reply.headers["x-model-variant"]
    for client in clients:
        client.close()
    return found


def is_answering(gateway: Gateway) -> bool:
    try:
        for client in gateway.clients(8):
            client.close()
    except httpx.TransportError:
        return False
    return len(adopted_workers(gateway)) == WORKERS


def pids(gateway: Gateway) -> list[int]:
    try:
        return [child["pid"] for child in gateway.server.told["children"] if child["role"] == "worker"]
    except ValueError:
        return []


def adopted_workers(gateway: Gateway) -> list[int]:
    """Pids of live workers that have adopted the newest route."""
    try:
        revision = gateway.control.get(f"/admin/v1/flags/{gateway.key}").json()["metadata"]["revision"]
        status = gateway.control.get("/admin/v1/status").json()
    except (httpx.TransportError, KeyError, ValueError):
        return []
    living = pids(gateway)
    return [
        worker["pid"]
        for worker in status["workers"]
        if worker["pid"] in living and worker["models"][gateway.model.name]["adopted_revision"] == revision
    ]


def is_control_back(gateway: Gateway, pid: int) -> bool:
    return gateway.pid("control") != pid and share_of(gateway) is not None


def are_all_back(gateway: Gateway, without: int) -> bool:
    found = adopted_workers(gateway)
    return len(found) == WORKERS and without not in found


def settled(gateway: Gateway, revision: int) -> None:
    """Until twelve new connections, so over all workers, are answered by *revision*."""
    for client in gateway.clients(12):
        until_revision(gateway, client, revision)


def share_of(gateway: Gateway) -> int | None:
    """The canary's weight, as control says it; None if it says nothing."""
    try:
        reply = gateway.control.get(f"/admin/v1/flags/{gateway.key}")
        return int(reply.json()["targeting"]["fractional"][0][1])
    except (httpx.TransportError, KeyError, TypeError, ValueError):
        return None


def until(check: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not check():
        if time.monotonic() > deadline_s:
            raise machine.NotReady(f"not within {_WAIT_S:g} s: {what}")
        time.sleep(0.005)  # polled: short beside the times that are measured
