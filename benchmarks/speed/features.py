"""What single features cost, by processor time per request: everything on, an unused cache, a second worker."""

from __future__ import annotations

from typing import Any

from speed import servers
from speed.asks import one_row
from speed.rounds import Bench, Contender, as_part

ON, OFF, UNIQUE, TWO = "all on, cache off", "all off", "all on, unique rows with the cache on", "all on, two workers"
_PER_WORKER = 32


def measure(bench: Bench) -> dict[str, Any]:
    """Four gateways in turn. The two workers of one of them share the servers' core, with as many connections each."""
    models = bench.models("iris")
    path, row = servers.infer_path("iris"), models["iris"].rows[0]
    off = {**servers.CACHE_OFF, **servers.SAMPLING_OFF}
    with (
        servers.gateway(bench.root, "on", models, servers.CACHE_OFF) as on,
        servers.gateway(bench.root, "off", models, off, canary=False) as plain,
        servers.gateway(bench.root, "unique", models, {}) as unique,
        servers.gateway(bench.root, "two", models, servers.CACHE_OFF, workers=2) as two,
    ):
        contenders = [
            Contender(ON, on, one_row(path, row), _PER_WORKER),
            Contender(OFF, plain, one_row(path, row, keyed=False), _PER_WORKER),
            Contender(UNIQUE, unique, one_row(path, row), _PER_WORKER),
            Contender(TWO, two, one_row(path, row), 2 * _PER_WORKER),
        ]
        series = bench.interleave(contenders, what="features")
        for server, canary in ((on, True), (plain, False), (unique, True), (two, True)):
            try:
                servers.check_gateway(server, models["iris"], canary=canary)
            except servers.WrongAnswer as error:
                bench.fail("features, after the load", error)
    return as_part(series)
