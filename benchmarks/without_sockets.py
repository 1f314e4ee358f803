"""What a worker's own code costs per prediction, without sockets, kernel and event loop: steady where bench.py is not.

A worker is built in this process, its connections write to nowhere, and requests are handed to the protocol as uvloop
does it, one per connection in each turn. The least of many short stretches of processor time is told: what another
process does on the machine makes some of them longer, none shorter. Two revisions, or two ideas, are compared by
running this on both. `make bench` says what a client sees; this says where it comes from.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop
from speed import machine, models, servers
from speed.asks import one_row, whole

TURNS = 40  # of one stretch
REQUESTS = 20_000  # made beforehand, all different, and asked in turn
# By name: the settings, and whether there is a canary, and a targeting key with each request.
FEATURES: dict[str, tuple[Mapping[str, str], bool]] = {
    "on": (servers.CACHE_OFF, True),
    "off": ({**servers.CACHE_OFF, **servers.SAMPLING_OFF}, False),
    "cache": ({}, True),  # on, with a cache that finds nothing
}


class Nowhere(asyncio.Transport):
    """A connection whose answers are counted. Its client reads everything at once and never leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.last = b""

    def write(self, data: Any) -> None:
        self.answers += 1
        self.last = data

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def cost_us(
    root: Path, name: str, chosen: Mapping[str, str], requests: Sequence[bytes], connections: int, stretches: int
) -> list[float]:
    """Processor time of this thread per request, in microseconds, of each stretch, the shortest first."""
    from gateway import settings
    from gateway.serving.app import build
    from gateway.serving.collector import calm
    from gateway.serving.server import server_for

    paths = {"paths.models": str(root / f"{name}.models"), "paths.state": str(root / f"{name}.state")}
    effective = settings.load(None, chosen, paths)
    worker = build(effective, boot="without-sockets", report=lambda _word: None)
    following = asyncio.create_task(worker.watch.follow())
    await asyncio.wait_for(worker.watch.ready.wait(), servers.START_TIMEOUT_S)
    worker.sampler.start()
    server = server_for(effective.server, worker.app, worker.doors)
    server.config.load()
    ways = []
    for _ in range(connections):
        protocol: Any = server.config.http_protocol_class
        door = protocol(config=server.config, server_state=server.server_state, app_state={})
        way = Nowhere()
        door.connection_made(way)
        ways.append((door, way))
    calm()
    found, sent = [], 0
    for _ in range(stretches):
        begun_s = time.thread_time()
        for _ in range(TURNS):
            for door, _way in ways:
                door.data_received(requests[sent % len(requests)])
                sent += 1
            while sum([way.answers for _door, way in ways]) < sent:  # noqa: ASYNC110 - each turn of the loop counts
                await asyncio.sleep(0)
        found.append((time.thread_time() - begun_s) * 1e6 / TURNS / connections)
        worker.counts.flush()
        if not all(way.last.startswith(b"HTTP/1.1 200 ") for _door, way in ways):
            raise SystemExit(f"not every request was answered well: {min(way.last for _door, way in ways)!r}")
    following.cancel()
    await asyncio.to_thread(worker.sampler.close, 5.0)
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["iris", "forest"], default="iris")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--features", choices=list(FEATURES), nargs="+", default=["on"],
                        help="cache: on, with a cache in which no row is found (default: on)")  # fmt: skip
    parser.add_argument("--stretches", type=int, default=300, help=f"of {TURNS} turns each (default: 300)")
    options = parser.parse_args()
    told = machine.describe()
    print(f"{told['cpu']}, {told['cores']} cores, {told['day']}, revision {told['revision']}\n")
    print("| model | features | connections | least, us per request | a tenth below | half below |")
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory(prefix="without-sockets-") as folder:
        root = Path(folder)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(root)
        made = models.make(root, [options.model])
        for features in options.features:
            chosen, canary = FEATURES[features]
            with servers.gateway(root, features, made, chosen, canary=canary):
                pass  # it leaves the flags behind
            ask = one_row(servers.infer_path(options.model), made[options.model].rows[0], keyed=canary)
            for connections in options.connections:
                # Where answers are kept no request may come twice.
                count = options.stretches * TURNS * connections if features == "cache" else REQUESTS
                requests = whole(ask, "http://127.0.0.1:80", count, 0)
                costs = uvloop.run(cost_us(root, features, chosen, requests, connections, options.stretches))
                cells = " | ".join(f"{costs[len(costs) * tenths // 10]:.2f}" for tenths in (0, 1, 5))
                print(f"| {options.model} | {features} | {connections} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
