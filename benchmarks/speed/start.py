"""How soon a gateway answers after its start, how soon a worker does, and what memory the worker takes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import httpx

from speed import machine, servers
from speed.asks import one_row
from speed.models import Model
from speed.rounds import Bench, Samples, as_part, load
from speed.servers import Server

SERVE, WORKER, LOADED = "sluicegate serve", "worker", "worker after a second of load"
_STARTS = 10
_EVERY_S = 0.005


def measure(bench: Bench) -> dict[str, Any]:
    """Gateways with iris alone, a canary over two versions, everything on, started again and again on one state."""
    models = bench.models("iris")
    series: dict[str, Samples] = {SERVE: [], WORKER: [], LOADED: []}
    with servers.gateway(bench.root, "start", models, {}):
        pass  # the first start makes the flags; all later ones find them
    starts = min(_STARTS, bench.rounds)
    for turn in range(starts):
        samples: dict[str, dict[str, float]] = {}
        try:
            began_s = machine.now_s()
            with servers.serve(bench.root, "start", models, {}) as (process, server):
                samples = _once(bench, process, server, began_s, models["iris"])
        except Exception as error:  # one start that fails is told, the others are measured on
            bench.fail("start", error)
        for name, of_name in series.items():
            of_name.append(samples.get(name))
        bench.tell(f"start: {turn + 1} of {starts}")
    return as_part(series)


def _once(
    bench: Bench, process: subprocess.Popen[bytes], server: Server, began_s: float, model: Model
) -> dict[str, dict[str, float]]:
    assert server.ready is not None
    with httpx.Client(base_url=server.url, headers={"content-type": "application/json"}) as client:
        _wait_for(lambda: servers.is_answering(client, model), process)
        serve_s = machine.now_s() - began_s
        _wait_for(server.ready.exists, process)
        old = server.worker
        fresh, whole, cpu_s = (
            machine.memory([old]),
            machine.memory(server.processes()),
            machine.cpu_s(server.processes()),
        )
        seen = load(bench.root, server, one_row(servers.infer_path(model.name), model.rows[0]), 32, 1)
        loaded = machine.memory([old])
        killed_s = machine.now_s()
        os.kill(old, signal.SIGKILL)
        _wait_for(lambda: machine.is_gone(old), process)
        _wait_for(lambda: servers.is_answering(client, model), process)
        answered_s = machine.now_s()
    _wait_for(lambda: _is_replaced(server, old), process)
    worker_s = answered_s - machine.started_at_s(server.worker)
    return {
        SERVE: {"start_s": serve_s, "cpu_s": cpu_s, "rss_bytes": whole.rss_bytes, "pss_bytes": whole.pss_bytes},
        WORKER: {
            "start_s": worker_s,
            "back_s": answered_s - killed_s,
            "rss_bytes": fresh.rss_bytes,
            "pss_bytes": fresh.pss_bytes,
        },
        LOADED: {"rss_bytes": loaded.rss_bytes, "pss_bytes": loaded.pss_bytes, "requests": seen["requests"]},
    }


def _wait_for(check: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    machine.wait_for(check, process, servers.START_TIMEOUT_S, _EVERY_S)


def _is_replaced(server: Server, old: int) -> bool:
    return any(child["role"] == "worker" and child["pid"] != old for child in server.told["children"])
