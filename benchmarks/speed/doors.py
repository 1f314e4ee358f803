"""Predictions beside an empty app: requests per second and processor time at 32 connections, latency at one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from speed import machine, servers
from speed.asks import one_row
from speed.rounds import Bench, Contender, Samples, as_part

EMPTY, IRIS, HOT, FOREST = "empty app", "iris", "iris, hot row cached", "forest"
CONNECTIONS = (1, 24, 32, 128)
FULL, ALONE = 32, 1
_SWEEP_ROUNDS = 3


def measure(bench: Bench) -> dict[str, Any]:
    """Series by ``name@connections``; memory after the load by name."""
    models = bench.models("iris", "forest")
    iris = {"iris": models["iris"]}
    with (
        servers.bare(bench.root) as bare,
        servers.gateway(bench.root, "uncached", models, servers.CACHE_OFF) as uncached,
        servers.gateway(bench.root, "cached", iris, {}) as cached,
    ):
        row, path = models["iris"].rows[0], servers.infer_path("iris")
        many = one_row(path, row)
        hot = one_row(path, row, unique=False)
        forest = one_row(servers.infer_path("forest"), models["forest"].rows[0])
        kinds = {EMPTY: (bare, many), IRIS: (uncached, many), HOT: (cached, hot), FOREST: (uncached, forest)}
        series: dict[str, Samples] = {}
        for connections in (FULL, ALONE, *(count for count in CONNECTIONS if count not in (FULL, ALONE))):
            names = (EMPTY, IRIS, HOT) if connections == ALONE else tuple(kinds)
            contenders = [Contender(f"{name}@{connections}", *kinds[name], connections) for name in names]
            rounds = bench.rounds if connections in (FULL, ALONE) else min(_SWEEP_ROUNDS, bench.rounds)
            what = f"doors, connections: {connections}"
            series |= bench.interleave(contenders, what=what, rounds=rounds, warm=connections != FULL)
        for server, model in ((uncached, "iris"), (uncached, "forest"), (cached, "iris")):
            try:
                servers.check_gateway(server, models[model], canary=True)
            except servers.WrongAnswer as error:
                bench.fail("doors, after the load", error)
        gateway, empty = (asdict(machine.memory(server.processes())) for server in (uncached, bare))
    return as_part(series, memory={"gateway, all processes": gateway, EMPTY: empty})
