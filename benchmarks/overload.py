"""What becomes of a gateway that is asked for one to five times what it can do: python benchmarks/overload.py.

Open loop: requests fall due at random times, whatever has become of those before them. One worker on one core, the
load on another; a network of 64-1024-1024-10 as the model, 64 rows in a request, so that each costs more than 0.5 ms
of a processor. One request in twenty is critical, and told of by itself. Then the same question to a model that is
cheaper than a refusal, one row of iris, which no generator here can ask five times as fast as it answers: ever more
connections that each ask again once they are answered. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from speed import asks, machine, models, servers, wrk
from speed.poisson import percentile, schedule

MODEL, CHEAP = "mlp", "iris"
ROWS = 64
CRITICAL_ONE_IN = 20
CONNECTIONS = 512
PEAK_CONNECTIONS = 16
PEAK_S = 5.0
UNLOADED = 0.2  # of the peak
LOADS = (1.0, 2.0, 3.0, 4.0, 5.0)
RECOVERED = 0.5
CROWDS = (16, 64, 256, 1024, 4096, 9000)  # connections; a worker takes 10,000
_PATIENCE_S = 10.0
_REST_S = 0.05
_COLUMNS = (
    *("load", "offered/s", "answered/s", "of peak", "p50 ms", "p99 ms", "refused", "refusal p50 ms"),
    *("refusal p99 ms", "failed", "late", "critical answered", "critical p99 ms"),
)
_CROWD_COLUMNS = (
    *("connections", "answered/s", "of the most so far", "p50 ms", "p99 ms", "refused/s", "unanswered", "RSS MB"),
)
_REQUESTS = 260  # a multiple of CRITICAL_ONE_IN


@dataclass(slots=True)
class Wire:
    """One keep-alive connection, and what it waits for."""

    socket: socket.socket
    is_critical: bool = False  # what it waits for
    due_s: float = 0.0
    sent_s: float = 0.0
    received: bytes = b""

    def answer(self) -> int:
        """Read what has come: the status once the answer is whole, 0 before. Raises ConnectionError."""
        block = self.socket.recv(256 * 1024)
        if not block:
            raise ConnectionError("the gateway closed a connection")
        self.received += block
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0]):
            return 0
        self.received = b""
        return int(head[9:12])


@dataclass(slots=True)
class Outcome:
    """Times in seconds. served: from due to answer; refused: from sent to answer; refused_at: since the start.

    sent_late: from due to sent, for which the server cannot be blamed unless no connection was free.
    """

    seconds: float
    served: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    sent_late: list[float] = field(default_factory=list)
    failed: int = 0
    late: int = 0  # found no free connection when they were due
    critical: int = 0
    critical_served: list[float] = field(default_factory=list)  # these count in served, too

    @property
    def goodput_per_s(self) -> float:
        return len(self.served) / self.seconds


def load(
    url: str,
    requests: Sequence[bytes],
    due_s: Sequence[float] | None,
    seconds: float,
    connections: int,
    *,
    rests: bool = False,
) -> Outcome:
    """Send what is due over connections that are free; due_s None: each connection asks again once it is answered.

    rests: leaves its core to others while nothing is to be done, instead of looking without a pause.
    """
    at = urlsplit(url)
    wires = [Wire(socket.create_connection((str(at.hostname), at.port or 80))) for _ in range(connections)]
    poll = select.epoll()
    for wire in wires:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(wire.socket, select.EPOLLIN)
    by_fd = {wire.socket.fileno(): wire for wire in wires}
    free, outcome, clock = collections.deque(wires), Outcome(seconds), time.perf_counter
    sent, last_late, began_s = 0, -1, clock()
    while True:
        now_s = clock() - began_s
        if now_s > seconds and (len(free) == connections or now_s > seconds + _PATIENCE_S):
            break
        while now_s < seconds and (due_s is None or (sent < len(due_s) and due_s[sent] <= now_s)):
            if not free:
                outcome.late += due_s is not None and sent != last_late
                last_late = sent
                break
            wire = free.popleft()
            wire.sent_s = clock() - began_s
            wire.due_s = wire.sent_s if due_s is None else due_s[sent]
            outcome.sent_late.append(wire.sent_s - wire.due_s)
            wire.is_critical = sent % CRITICAL_ONE_IN == 0
            outcome.critical += wire.is_critical
            wire.socket.sendall(requests[sent % len(requests)])
            sent += 1
        if rests:
            until_s = due_s[sent] if due_s is not None and sent < len(due_s) and free else now_s + _REST_S
            # Of the poll itself: its own time-out counts in whole milliseconds.
            select.select([poll], [], [], max(0.0, min(_REST_S, until_s - (clock() - began_s))))
        for fd, _ in poll.poll(0, 64):
            wire = by_fd[fd]
            status = wire.answer()
            if not status:
                continue
            now_s = clock() - began_s
            free.append(wire)
            if status == 200:
                outcome.served.append(now_s - wire.due_s)
                if wire.is_critical:
                    outcome.critical_served.append(now_s - wire.due_s)
            elif status == 503:
                outcome.refused.append(now_s - wire.sent_s)
                outcome.refused_at.append(now_s)
            else:
                outcome.failed += 1
    outcome.failed += connections - len(free)
    for wire in wires:
        wire.socket.close()
    return outcome


def _ms(values: list[float], share: float) -> str:
    return f"{percentile(sorted(values), share) * 1000:.2f}" if values else "-"


def _row(name: str, offered_per_s: float, outcome: Outcome, peak_per_s: float) -> str:
    cells = (
        *(name, f"{offered_per_s:.0f}", f"{outcome.goodput_per_s:.0f}", f"{outcome.goodput_per_s / peak_per_s:.0%}"),
        *(_ms(outcome.served, 0.5), _ms(outcome.served, 0.99), str(len(outcome.refused))),
        *(_ms(outcome.refused, 0.5), _ms(outcome.refused, 0.99), str(outcome.failed), str(outcome.late)),
        *(f"{len(outcome.critical_served)} of {outcome.critical}", _ms(outcome.critical_served, 0.99)),
    )
    return f"| {' | '.join(cells)} |"


def _crowd(root: Path, gateway: servers.Server, ask: asks.Ask, seconds: float) -> None:
    """Ever more clients of a cheap model, and what they get."""
    print("\n| " + " | ".join(_CROWD_COLUMNS) + " |\n|" + " --- |" * len(_CROWD_COLUMNS))
    script = root / "crowd.lua"
    script.write_text(asks.script(ask, gateway.url, 0))
    rates: list[float] = []
    for connections in CROWDS:
        seen = wrk.run(script, gateway.url, connections=connections, seconds=round(seconds), may_refuse=True)
        rates.append((seen.requests - seen.refused) / seen.requests * seen.requests_per_s)
        refused = seen.requests_per_s - rates[-1]
        rss_mb = machine.memory([gateway.worker]).rss_bytes / 1e6
        cells = (
            *(f"{rates[-1]:,.0f}", f"{rates[-1] / max(rates):.0%}", f"{seen.p50_ms:.2f}", f"{seen.p99_ms:.2f}"),
            *(f"{refused:,.0f}", str(seen.unanswered), f"{rss_mb:.0f}"),
        )
        print(f"| {connections} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--only", choices=(MODEL, CHEAP), help="the one model instead of both")
    parser.add_argument(
        "--adaptive", choices=("on", "off"), help=f"default: on for {MODEL}, off for {CHEAP}, as it comes"
    )
    parser.add_argument("--target-wait", type=float, metavar="S", help="batching.target_wait_s instead of its default")
    options = parser.parse_args()
    os.sched_setaffinity(0, {machine.LOAD_CORE})
    seconds = options.seconds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [options.only] if options.only else [MODEL, CHEAP]
        for name in names:
            adaptive = options.adaptive or ("on" if name == MODEL else "off")
            settings = {**servers.CACHE_OFF, "SLUICEGATE_BATCHING__ADAPTIVE": adaptive}
            if options.target_wait is not None:
                settings["SLUICEGATE_BATCHING__TARGET_WAIT_S"] = str(options.target_wait)
            made = models.make(root, [name])
            with servers.gateway(root, f"overload-{name}", made, settings, canary=False) as gateway:
                if name == MODEL:
                    _overload(gateway, made[MODEL], seconds)
                else:
                    _crowd(root, gateway, asks.one_row(servers.infer_path(CHEAP), made[CHEAP].rows[0]), seconds)


def _overload(gateway: servers.Server, model: models.Model, seconds: float) -> None:
    """One to five times the peak of a model that is dear enough."""
    ask = asks.many_rows(servers.infer_path(MODEL), model.rows, ROWS, binary=True)
    critical = dataclasses.replace(ask, headers=(*ask.headers, ("x-request-priority", "critical")))
    requests = asks.whole(ask, gateway.url, _REQUESTS, 1)
    all_critical = asks.whole(critical, gateway.url, _REQUESTS, 1)
    requests[::CRITICAL_ONE_IN] = all_critical[::CRITICAL_ONE_IN]

    def offer(rate_per_s: float, seed: int) -> Outcome:
        return load(gateway.url, requests, schedule(rate_per_s, seconds, seed), seconds, CONNECTIONS)

    # The peak is that of critical requests, of which none is refused: who asks again at once after a refusal keeps the
    # worker busy with refusing, and what is then answered is no peak.
    load(gateway.url, all_critical, None, PEAK_S, PEAK_CONNECTIONS)
    pids = machine.tree(gateway.pid)
    before_s = machine.cpu_s(pids)
    peak = load(gateway.url, all_critical, None, PEAK_S, PEAK_CONNECTIONS)
    cost_ms = 1000 * (machine.cpu_s(pids) - before_s) / len(peak.served)
    peak_per_s = peak.goodput_per_s
    print(f"peak {peak_per_s:.0f} requests/s, {cost_ms:.2f} ms of processor each\n", flush=True)
    print("| " + " | ".join(_COLUMNS) + " |\n|" + " --- |" * len(_COLUMNS))
    print(_row("unloaded", UNLOADED * peak_per_s, offer(UNLOADED * peak_per_s, 1), peak_per_s), flush=True)
    for factor in LOADS:
        print(_row(f"{factor:g} x", factor * peak_per_s, offer(factor * peak_per_s, 2), peak_per_s), flush=True)
    after = offer(RECOVERED * peak_per_s, 3)
    print(_row("then", RECOVERED * peak_per_s, after, peak_per_s))
    print(f"\nlast refusal after the overload: {max(after.refused_at, default=0.0):.2f} s")


if __name__ == "__main__":
    main()
