"""What releases promise, measured on real gateways: decisions, propagation, stickiness, edits, flips, kills, outages.

Prints a table in Markdown, which docs/operate.md quotes with its day and machine. Faulty canaries are measured by
tests/end_to_end/test_rollouts.py, hosts on one database by tests/end_to_end/test_postgres.py, the audit by
tests/control, rolling restarts by restarts.py and replicas.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
from released import (
    WORKERS,
    Gateway,
    are_all_back,
    is_answering,
    is_control_back,
    pids,
    settled,
    share_of,
    until,
    until_revision,
    variants,
)
from speed import asks, machine, servers, wrk
from speed.models import CANARY, STABLE, Model, make

from gateway.flags.compile import compile_route
from gateway.flags.document import parse_flag

Row = tuple[str, str, str]  # promise, figure that was asked for, what was measured


def decision(_gateway: Gateway) -> Row:
    """A routing decision by itself, in this process."""
    rule = {
        "if": [
            {"in": [{"var": "headers.x-model-variant"}, ["stable", "canary"]]},
            {"var": "headers.x-model-variant"},
            {"fractional": [["canary", 500], ["stable", 9500]]},
        ]
    }
    plain = {"state": "ENABLED", "variants": {"stable": "1", "canary": "2"}, "defaultVariant": "stable"}
    route = compile_route("iris", parse_flag("iris.route", {**plain, "targeting": rule}))
    keys = [f"user-{number}" for number in range(20_000)]
    taken_us = []
    for key in keys:
        began_ns = time.perf_counter_ns()
        route.decide(key, key, {}, "oip")
        taken_us.append((time.perf_counter_ns() - began_ns) / 1000)
    found = f"{statistics.median(taken_us):.2f} us median, {_quantile(taken_us, 0.99):.2f} us p99 (clock included)"
    return "routing decision, header rule before a split", "1 us median, 3 us p99", found


def propagation(gateway: Gateway) -> Row:
    """From the acknowledgement of a change to the first answer by it, on the slowest of 12 connections."""
    clients = gateway.clients(12)
    slowest_ms = []
    with ThreadPoolExecutor(len(clients)) as pool:
        for turn in range(40):
            revision = gateway.share(10 + turn % 2)
            began_s = time.monotonic()
            until = [pool.submit(until_revision, gateway, client, revision) for client in clients]
            slowest_ms.append(max(each.result() - began_s for each in until) * 1000)
    found = f"{statistics.median(slowest_ms):.0f} ms median, {max(slowest_ms):.0f} ms slowest of {len(slowest_ms)}"
    return "a change of weight reaches all workers of a host", "50 ms", found


def kill_switch(gateway: Gateway) -> Row:
    """The same for the kill switch."""
    clients = gateway.clients(12)
    slowest_ms = []
    with ThreadPoolExecutor(len(clients)) as pool:
        for _ in range(20):
            revision = gateway.patch({"state": "DISABLED"})
            began_s = time.monotonic()
            until = [pool.submit(until_revision, gateway, client, revision) for client in clients]
            slowest_ms.append(max(each.result() - began_s for each in until) * 1000)
            gateway.patch({"state": "ENABLED"})
    found = f"{statistics.median(slowest_ms):.0f} ms median, {max(slowest_ms):.0f} ms slowest of {len(slowest_ms)}"
    return "the kill switch reaches all workers of a host", "50 ms", found


def stickiness(gateway: Gateway) -> Row:
    """The variants of 2,000 keys, asked twice over all workers, again after all workers were killed, and at 10 %."""
    settled(gateway, gateway.share(5))
    first = variants(gateway)
    again = variants(gateway)
    for child in list(gateway.server.told["children"]):
        if child["role"] == "worker":
            os.kill(child["pid"], signal.SIGKILL)
    until(lambda: is_answering(gateway), "workers are back")
    after = variants(gateway)
    settled(gateway, gateway.share(10))
    wider = variants(gateway)
    other = sum(first[key] != again[key] or first[key] != after[key] for key in first)
    left = sum(first[key] == "canary" and wider[key] == "stable" for key in first)
    moved = sum(first[key] != wider[key] for key in first) / len(first)
    found = (
        f"{other} of {len(first)} keys changed variant; 5 % to 10 % moved {moved:.1%}, {left} of them back to stable"
    )
    return "a key keeps its variant over workers and restarts; a ramp moves the fewest keys", "0; 5 %", found


def edits(gateway: Gateway) -> Row:
    """Eight editors at once, each with the ETag that it read."""
    address = f"/admin/v1/flags/{gateway.model.name}.sampling"
    plain = {"state": "ENABLED", "variants": {"set": 0.5}, "defaultVariant": "set", "metadata": {"count": 0}}
    headers = {name: value for name, value in gateway.control.headers.items() if name != "if-match"}
    created = httpx.put(gateway.control.base_url.join(address), json=plain, headers={**headers, "if-none-match": "*"})
    assert created.status_code == 201, created.text
    stale = [0] * 8

    def edit(number: int) -> None:
        with httpx.Client(base_url=gateway.control.base_url, headers=gateway.control.headers) as editor:
            for _ in range(25):
                while True:
                    found = editor.get(address)
                    flag = found.json()
                    flag["metadata"]["count"] += 1
                    reply = editor.put(address, json=flag, headers={"if-match": found.headers["etag"]})
                    if reply.status_code == 200:
                        break
                    assert reply.status_code == 412, reply.text
                    stale[number] += 1

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = int(gateway.control.get(address).json()["metadata"]["count"])
    found = f"{8 * 25 - count} of {8 * 25} acknowledged edits lost; {sum(stale)} stale ones refused with 412"
    return "edits at the same time", "0 lost, stale ones 412", found


def flip(gateway: Gateway) -> Row:
    """Blue/green there and back under load, each second; p99 beside the same load without flips."""
    script = gateway.root / "flip.lua"
    ask = asks.one_row(gateway.path, gateway.model.rows[0])
    gateway.patch({"targeting": None})
    calm, flipping, flips = [], [], 0
    for turn in range(4):
        script.write_text(asks.script(ask, gateway.server.url, turn * 1_000_000))
        calm.append(wrk.run(script, gateway.server.url, connections=32, seconds=5))
        stop = threading.Event()
        count = [0]

        def flip_for_ever(stop: threading.Event = stop, count: list[int] = count) -> None:
            while not stop.wait(0.5):
                count[0] += 1
                gateway.patch({"defaultVariant": ("canary", "stable")[count[0] % 2]})

        thread = threading.Thread(target=flip_for_ever)
        thread.start()
        try:
            flipping.append(wrk.run(script, gateway.server.url, connections=32, seconds=5))
        finally:
            stop.set()
            thread.join()
        flips += count[0]
    gateway.patch({"defaultVariant": "stable"})
    requests = sum(load.requests for load in flipping)
    p99 = [load.p99_ms for load in calm], [load.p99_ms for load in flipping]
    change = statistics.median(p99[1]) / statistics.median(p99[0]) - 1
    spread = f"{min(p99[0]):.1f} to {max(p99[0]):.1f} ms without, {min(p99[1]):.1f} to {max(p99[1]):.1f} ms with flips"
    found = f"{flips} flips, 0 of {requests:,} failed; p99 {change:+.0%} ({spread})"
    return "blue/green flip under load (a failed request ends this program)", "0 failed, p99 + 1 %", found


def control_killed(gateway: Gateway) -> Row:
    """kill -9 of control right after an acknowledged change, ten times, each of them as the first one."""
    lost, back_s = 0, []
    until(partial(_is_warm, gateway), "workers that were killed have the canary")
    for turn in range(10):
        share = 11 + turn
        gateway.share(share)
        pid = gateway.pid("control")
        os.kill(pid, signal.SIGKILL)
        began_s = time.monotonic()
        until(partial(is_control_back, gateway, pid), "control is back")
        back_s.append(time.monotonic() - began_s)
        lost += share_of(gateway) != share
    intact = gateway.control.get("/admin/v1/audit:verify").json()["intact"]
    told = "verifies" if intact else "is broken"
    found = f"{lost} of 10 acknowledged changes lost, back after {statistics.median(back_s):.1f} s; the audit {told}"
    return "kill -9 of control", "0 lost, back in 2 s", found


def worker_killed(gateway: Gateway) -> Row:
    """kill -9 of a worker: from its death until its replacement has adopted the flags."""
    back_s = []
    for _ in range(5):
        pid = gateway.pid("worker")
        os.kill(pid, signal.SIGKILL)
        began_s = time.monotonic()
        until(partial(are_all_back, gateway, pid), "a worker is back")
        back_s.append(time.monotonic() - began_s)
    return "kill -9 of a worker", "ready again in 2 s + load", f"{statistics.median(back_s):.1f} s, loading included"


def store_outage(gateway: Gateway) -> Row:
    """The flag store replaced by garbage under load, then a worker killed: it must start from the last known good."""
    store = gateway.state / "flags.sqlite"
    kept = store.read_bytes()
    subprocess.run([sys.executable, "-c", _CHECKPOINT, str(store)], check=True)
    kept = store.read_bytes()
    script = gateway.root / "outage.lua"
    script.write_text(asks.script(asks.one_row(gateway.path, gateway.model.rows[0]), gateway.server.url, 0))
    store.with_suffix(".broken").write_bytes(b"no database, " * 1000)
    store.with_suffix(".broken").replace(store)
    load = wrk.run(script, gateway.server.url, connections=16, seconds=5)
    refused = gateway.control.patch(f"/admin/v1/flags/{gateway.key}", json={"state": "DISABLED"}).status_code
    pid = gateway.pid("worker")
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in pids(gateway) and len(pids(gateway)) == WORKERS, "a worker starts without the store")
    with contextlib.closing(httpx.Client(base_url=gateway.server.url)) as client:
        answered = sum(gateway.ask(client).status_code == 200 for _ in range(100))
    for leftover in ("-wal", "-shm"):
        store.with_name(store.name + leftover).unlink(missing_ok=True)
    store.with_suffix(".kept").write_bytes(kept)
    store.with_suffix(".kept").replace(store)
    until(lambda: share_of(gateway) is not None, "the store is back")
    found = f"0 of {load.requests:,} failed meanwhile, writes got {refused}; a new worker answered {answered} of 100"
    return "flag store out of order", "serves on, starts from the last known good", found


_CHECKPOINT = """import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as store: store.execute("PRAGMA wal_checkpoint(TRUNCATE)")"""


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


# -- the table ------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Gateway], Row]] = {
    part.__name__: part
    for part in (
        *(decision, propagation, kill_switch, stickiness, edits, flip),
        *(worker_killed, control_killed, store_outage),
    )
}


@contextlib.contextmanager
def _running(root: Path, model: Model) -> Iterator[Gateway]:
    """A gateway with a canary declared on it."""
    # Each kill is taken as the first one: no pause that grows with deaths in a row.
    settings = {**servers.CACHE_OFF, "SLUICEGATE_SUPERVISOR__BACKOFF_MAX_S": "0.1"}
    with servers.gateway(root, "promises", {model.name: model}, settings, canary=False, workers=WORKERS) as server:
        gateway = Gateway(server, root, model)
        gateway.patch({"variants": {"canary": CANARY}})
        until(partial(_is_warm, gateway), "the canary is warm")
        gateway.share(10)
        yield gateway


def _is_warm(gateway: Gateway) -> bool:
    status = gateway.control.get("/admin/v1/status").json()
    states = [
        worker["models"][gateway.model.name]["versions"].get(CANARY, {}).get("state") for worker in status["workers"]
    ]
    return states == ["warm"] * WORKERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)}; all if none is named")
    names = parser.parse_args().parts or list(PARTS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="promises-") as folder:
        root = Path(folder)
        model = make(root, ["iris"])["iris"]
        assert model.wanted.keys() == {STABLE, CANARY}
        with _running(root, model) as gateway:
            for name in names:
                print(f"{name} ...", file=sys.stderr, flush=True)
                rows.append(PARTS[name](gateway))
    told = machine.describe()
    print(f"Measured on {told['cpu']}, {told['cores']} cores, {told['day']}, revision {told['revision']}.\n")
    print("| promise | asked for | measured |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(json.dumps(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
