"""Rolling restarts under load, and a table of what became of every request.

Measures how much the gateway answers while it is asked without pause, then asks it for a share of that, evenly in time,
while its workers are replaced again and again. Prints a table in Markdown, which docs/operate.md quotes with its day
and machine. Exit code 1: a request failed, or a restart.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the gateways of tests/

from tests.builders import classifier, write_package
from tests.live import LiveGateway
from tests.traffic import Client

_PATH = "/v2/models/iris/infer"
_BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
_PEAK_S = 3.0


@dataclass(slots=True)
class Seen:
    """What the clients have seen. statuses: also names of errors of connections."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    last_s: float = 0.0  # when the last answer came
    closed: int = 0  # connections that an answer said were over

    @property
    def failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses["200"]

    def late_ms(self, share: float) -> float:
        return 1000 * sorted(self.latencies_s)[int(share * (len(self.latencies_s) - 1))]


async def client(url: str, due_s: Iterator[float], seen: Seen) -> None:
    """Send one request at each of the times that come from *due_s*, on one connection for as long as that lasts."""
    connection: Client | None = None
    for at_s in due_s:
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        begun_s = time.monotonic()
        try:
            if connection is None:
                connection = await Client(url).__aenter__()
            answer = await connection.post(_PATH, _BODY)
        except (OSError, EOFError) as error:
            seen.statuses[type(error).__name__] += 1
            connection = None
            continue
        seen.statuses[str(answer.status)] += 1
        seen.last_s = time.monotonic()
        seen.latencies_s.append(seen.last_s - begun_s)
        if answer.headers.get("connection") == "close":
            seen.closed += 1
            await connection.__aexit__(None, None, None)
            connection = None
    if connection is not None:
        await connection.__aexit__(None, None, None)


async def peak_per_s(url: str, clients: int) -> float:
    """How many requests per second are answered if everybody asks again at once."""
    seen = Seen()
    until_s = time.monotonic() + _PEAK_S
    at_once = itertools.takewhile(lambda _now: time.monotonic() < until_s, itertools.repeat(0.0))
    await asyncio.gather(*(client(url, at_once, seen) for _ in range(clients)))
    return seen.statuses["200"] / _PEAK_S


async def load(
    url: str, requests: int, rate_per_s: float, clients: int, event: Callable[[], bool]
) -> tuple[Seen, Counter[bool]]:
    """Ask *requests* times while *event* is called in a thread again and again; the last call is waited for.

    Returns what became of the requests, and how often the event came to something good.
    """
    seen, events = Seen(), Counter[bool]()
    begin_s = time.monotonic()
    due_s = iter([begin_s + number / rate_per_s for number in range(requests)])
    asking = asyncio.gather(*(client(url, due_s, seen) for _ in range(clients)))
    while not asking.done():
        events[await asyncio.to_thread(event)] += 1
    await asking
    return seen, events


def restart(gateway: LiveGateway) -> bool:
    """Replace the workers, as an operator would. Returns whether that was well."""
    command = [sys.executable, "-m", "gateway", "restart", "--state", str(gateway.state)]
    return subprocess.run(command, capture_output=True).returncode == 0


def measured(requests: int, share: float, workers: int, clients: int, folder: Path) -> tuple[str, bool]:
    """The table, and whether all went well."""
    write_package(folder / "models", classifier())
    with LiveGateway(folder / "models", folder / "state", workers=workers) as gateway:
        peak = asyncio.run(peak_per_s(gateway.data_url, clients))
        begun_s = time.monotonic()
        seen, restarts = asyncio.run(load(gateway.data_url, requests, share * peak, clients, partial(restart, gateway)))
        took_s = seen.last_s - begun_s
    asked = sum(seen.statuses.values())
    head = "| workers | requests | per second | of the peak | failed | restarts | connections closed | p50 | p99 |"
    row = f"| {workers} | {asked:,} | {asked / took_s:,.0f} | {asked / took_s / peak:.0%} | {seen.failed} "
    row += f"| {restarts[True]} | {seen.closed} | {seen.late_ms(0.5):.1f} ms | {seen.late_ms(0.99):.1f} ms |"
    text = "\n".join([head, "|---" * 9 + "|", row])
    if seen.failed:
        text += f"\n{dict(seen.statuses)}"
    return text, not seen.failed and restarts.keys() == {True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--requests", type=int, default=100_000, help="how many (default: 100000)")
    add("--share", type=float, default=0.7, help="of the peak that is asked for (default: 0.7)")
    add("--workers", type=int, default=2, help="worker processes (default: 2)")
    add("--clients", type=int, default=32, help="connections at once (default: 32)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restarts-", ignore_cleanup_errors=True) as folder:
        text, is_well = measured(options.requests, options.share, options.workers, options.clients, Path(folder))
    print(text)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
