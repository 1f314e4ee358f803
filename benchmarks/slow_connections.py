"""10,000 connections of slow clients, and what they do to normal traffic: python benchmarks/slow_connections.py.

Rounds with them and without them in turns, in an order drawn anew. One worker on one core, the clients on another,
where the normal ones go first.
Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the model of tests/

from overload import Outcome, load
from slow_clients import KINDS
from speed import asks, machine, servers
from speed.models import Model
from speed.poisson import percentile, schedule

from tests.builders import IRIS_FEATURES, classifier, write_package

RATE_PER_S = 300.0
CONNECTIONS = 32  # of normal traffic
SETTLE_S = 5.0
BESIDE = 2000  # of max_connections, beyond the slow ones
_OPEN_TIMEOUT_S = 120.0
_COLUMNS = (
    *("round", "slow connections", "answered/s", "p50 ms", "p99 ms", "sent late p99 ms", "failed", "ended/s"),
    "worker PSS MiB",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One round. held: connections that the gateway counts; ended_per_s: by the gateway."""

    held: float
    outcome: Outcome
    ended_per_s: float
    pss_bytes: int

    def ms(self, share: float) -> float:
        return percentile(sorted(self.outcome.served), share) * 1000

    def row(self, name: str) -> str:
        cells = (
            *(name, f"{self.held:,.0f}", f"{self.outcome.goodput_per_s:.0f}", f"{self.ms(0.5):.2f}"),
            *(f"{self.ms(0.99):.2f}", f"{percentile(sorted(self.outcome.sent_late), 0.99) * 1000:.2f}"),
            *(str(self.outcome.failed), f"{self.ended_per_s:.0f}"),
            f"{self.pss_bytes / 2**20:.1f}",
        )
        return f"| {' | '.join(cells)} |"


@contextlib.contextmanager
def slow_clients(url: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """The slow clients in a process of their own, all of them open; 0: none."""
    at = urlsplit(url)
    command = [
        sys.executable,
        str(Path(__file__).with_name("slow_clients.py")),
        str(at.hostname),
        str(at.port),
        str(count),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError("the slow clients ended before they were open")
            yield process
        finally:
            process.stdin.close()


class Bench:
    """A gateway of one worker, and the figures that are taken of it."""

    def __init__(self, gateway: servers.Server, state: Path, seconds: float) -> None:
        self.url = gateway.url
        self._gateway = gateway
        self._seconds = seconds
        token = (state / "admin.token").read_text().strip()
        self._control = httpx.Client(
            base_url=gateway.told["control"]["url"], headers={"authorization": f"Bearer {token}"}, timeout=60
        )
        ask = asks.one_row(servers.infer_path("iris"), [0.5] * len(IRIS_FEATURES))
        self._requests = asks.whole(ask, gateway.url, 4096, 1)

    def metric(self, name: str) -> float:
        found = re.findall(rf"^{re.escape(name)} (\S+)$", self._control.get("/metrics").text, re.MULTILINE)
        return float(found[0]) if found else 0.0

    def measure(self, slow: int, seed: int) -> Measured:
        """Normal traffic beside so many slow connections."""
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(slow_clients(self.url, slow)) if slow else None
            time.sleep(SETTLE_S)  # so that the begin is over and what is measured is the holding
            held = self.metric("sluicegate_open_connections")
            due_s = schedule(RATE_PER_S, self._seconds, seed)
            outcome = load(self.url, self._requests, due_s, self._seconds, CONNECTIONS, rests=True)
            held = (held + self.metric("sluicegate_open_connections")) / 2
            pss = machine.memory([self._gateway.worker]).pss_bytes
            ended = 0 if process is None else sum(_told_at_the_end(process)["ended"].values())
        return Measured(held, outcome, ended / (self._seconds + SETTLE_S), pss)

    def wait_closed(self) -> None:
        """Until the gateway has seen that the slow clients have left."""
        until_s = time.monotonic() + _OPEN_TIMEOUT_S
        while self.metric("sluicegate_open_connections") > CONNECTIONS:
            if time.monotonic() > until_s:
                raise RuntimeError("connections of clients that have left stay open")
            time.sleep(0.1)  # a count in a status file is looked at, nobody tells of it

    def newcomers(self, count: int) -> int:
        """How many of so many new connections get their answer."""
        answered = 0
        for _ in range(count):
            with contextlib.suppress(httpx.HTTPError):
                answered += httpx.get(f"{self.url}/livez", timeout=10).status_code == 200
        return answered


def _told_at_the_end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the slow clients say when they are told to leave."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


@contextlib.contextmanager
def bench(root: Path, seconds: float, max_connections: int) -> Iterator[Bench]:
    package = root / "models" / "iris" / "1"
    if not package.exists():
        write_package(root / "models", classifier("iris", "1"))
    model = Model("iris", package.parent, [], Path(), {})
    settings = {**servers.CACHE_OFF, "SLUICEGATE_SERVER__MAX_CONNECTIONS": str(max_connections)}
    name = f"limit-{max_connections}"
    with servers.serve(root, name, {"iris": model}, settings) as (process, server):
        assert server.ready is not None
        machine.wait_for(server.ready.exists, process, servers.START_TIMEOUT_S)
        yield Bench(server, root / f"{name}.state", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000, help="of slow clients (default: 10,000)")
    parser.add_argument("--rounds", type=int, default=5, help="with them, and as many without (default: 5)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round (default: 20)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {machine.LOAD_CORE})
    told = machine.describe()
    where = f"{told['cpu']}, {told['cores']} cores, {told['day']}, revision {told['revision']}"
    print(f"{where}; {RATE_PER_S:g} requests/s beside slow clients, a quarter each: {', '.join(KINDS)}.\n")
    with tempfile.TemporaryDirectory(prefix="slow-") as folder:
        _rounds(Path(folder), options.connections, options.rounds, options.seconds)
        _limit(Path(folder), options.connections)


def _rounds(root: Path, connections: int, rounds: int, seconds: float) -> None:
    draw = random.Random(1)
    found: dict[int, list[Measured]] = {0: [], connections: []}
    with bench(root, seconds, connections + BESIDE) as one:
        one.measure(0, 0)
        print("| " + " | ".join(_COLUMNS) + " |\n|" + " --- |" * len(_COLUMNS), flush=True)
        for number in range(1, rounds + 1):
            for slow in draw.sample(list(found), 2):
                one.wait_closed()
                measured = one.measure(slow, number)
                found[slow].append(measured)
                print(measured.row(str(number)), flush=True)
    ratios = [slow.ms(0.99) / alone.ms(0.99) for alone, slow in zip(found[0], found[connections], strict=True)]
    held = statistics.median(each.held for each in found[connections])
    more = statistics.median(each.pss_bytes for each in found[connections]) - found[0][0].pss_bytes
    print(f"\np99 with them to p99 without, per round: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to "
          f"{max(ratios):.2f}. Memory of the worker per held connection: {more / held / 1024:.1f} KiB.")  # fmt: skip


def _limit(root: Path, connections: int) -> None:
    """As many slow clients as there may be connections: who is new is told to come later."""
    with bench(root, 0.0, connections) as one, contextlib.ExitStack() as stack:
        stack.enter_context(slow_clients(one.url, connections))
        time.sleep(SETTLE_S)  # as above
        answered = one.newcomers(100)
        print(f"\nWith max_connections = {connections} and as many slow clients, {answered} of 100 new connections got "
              "an answer; the others got 503 with Retry-After.")  # fmt: skip


if __name__ == "__main__":
    main()
