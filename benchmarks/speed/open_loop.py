"""Latency at half of what a server can do, when requests come as they please: a Poisson process, open loop."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from speed import asks, machine, servers
from speed.asks import Ask, one_row
from speed.poisson import Outcome
from speed.rounds import Bench, Contender, as_part, values
from speed.servers import Server

IRIS, EMPTY = "iris", "empty app"
SHARE_OF_PEAK = 0.5
CONNECTIONS = 128
SECONDS = 3
_REQUESTS = 4000
_PEAK_ROUNDS = 3
_GRACE_S = 30.0


def measure(bench: Bench) -> dict[str, Any]:
    """Open loop on the gateway and on the empty app, each at half of its own peak. peak_per_s: by series."""
    models = bench.models("iris")
    ask = one_row(servers.infer_path("iris"), models["iris"].rows[0])
    with (
        servers.bare(bench.root) as bare,
        servers.gateway(bench.root, "open", models, servers.CACHE_OFF) as gateway,
    ):
        kinds = {EMPTY: bare, IRIS: gateway}
        contenders = [Contender(name, server, ask) for name, server in kinds.items()]
        found = bench.interleave(contenders, rounds=_PEAK_ROUNDS, what="open loop, peaks")
        peaks = {name: statistics.median(values(samples, "requests_per_s")) for name, samples in found.items()}
        loads = [
            Contender(name, measure=partial(_generate, bench.root, server, ask, SHARE_OF_PEAK * peaks[name]))
            for name, server in kinds.items()
        ]
        series = bench.interleave(loads, what="open loop")
        try:
            servers.check_gateway(gateway, models["iris"], canary=True)
        except servers.WrongAnswer as error:
            bench.fail("open loop, after the load", error)
    return as_part(series, peak_per_s=peaks)


def _generate(root: Path, server: Server, ask: Ask, rate_per_s: float) -> dict[str, float]:
    """One run of the generator, in a process of its own on the load's core. behind: 1 if it could not keep up."""
    path = root / "requests.json"
    seed = random.randrange(asks.DISTINCT)
    path.write_text(json.dumps([each.decode("latin-1") for each in asks.whole(ask, server.url, _REQUESTS, seed)]))
    at = urlsplit(server.url)
    command = ["taskset", "-c", str(machine.LOAD_CORE), sys.executable, "-m", "speed.poisson", str(at.hostname),
               str(at.port), str(path), "--rate", str(rate_per_s), "--seconds", str(SECONDS), "--connections",
               str(CONNECTIONS), "--seed", str(seed)]  # fmt: skip
    pids = server.processes()
    before_s = machine.cpu_s(pids)
    told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + _GRACE_S,
                          cwd=Path(__file__).parents[1])  # fmt: skip
    if told.returncode != 0:
        raise RuntimeError(f"the generator failed: {told.stderr.strip()[-300:]}")
    outcome = Outcome(**json.loads(told.stdout))
    cpu_us = (machine.cpu_s(pids) - before_s) / outcome.requests * 1e6
    return {**json.loads(told.stdout), "behind": float(outcome.fell_behind), "cpu_us": cpu_us}
