"""Clients that are there and not there, and more of them than a worker has descriptors for."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import time
from urllib.parse import urlsplit

from faults import stage
from faults.load import CLIENTS
from faults.processes import scene
from faults.trial import BACK_WITHIN_S, Fault, Trial
from tests.live import LiveGateway, SettingsTable, eventually

# Silent connections are ended after so long, whatever they have begun.
TIMEOUT_S = 2
HALF_OPEN = 100
SETTINGS: SettingsTable = {
    "server": {"keep_alive_s": TIMEOUT_S, "request_timeout_s": TIMEOUT_S, "write_timeout_s": TIMEOUT_S}
}
# What a worker may still open when its descriptors are rationed, and who then comes.
SPARE_DESCRIPTORS = 12
FLOOD = 150
_TCP_REPAIR = 19  # Linux's, which Python has no name for: such a socket is closed without a word to the other end


def _begin(live: LiveGateway, draw: random.Random) -> socket.socket:
    """A connection that has said nothing, or half of a request, or all of one."""
    parts = urlsplit(live.data_url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=10.0)
    body = stage.ask_iris(draw).body
    request = b"POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    connection.sendall(request[: draw.choice((0, 20, len(request) - len(body), len(request) - 1, len(request)))])
    return connection


def _vanish(connection: socket.socket) -> None:
    """End it as a machine that loses its power does; without the right to that, it stays and is silent."""
    with contextlib.suppress(PermissionError):
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        connection.close()


def _open_connections(live: LiveGateway) -> int:
    workers = live.control.get("/admin/v1/status").json()["workers"]
    return sum(worker["open_connections"] for worker in workers)


def half_open(trial: Trial) -> None:
    """Connections in all states whose clients are silent or have vanished: they are ended, and nobody else notices."""
    with scene(trial, SETTINGS) as on:
        for _turn in trial.turns():
            with contextlib.ExitStack() as stack:
                began_s = time.monotonic()
                for number in range(HALF_OPEN):
                    connection = stack.enter_context(_begin(on.live, trial.draw))
                    if number % 2:
                        _vanish(connection)
                eventually(lambda: _open_connections(on.live) > CLIENTS + HALF_OPEN // 4, "they are counted")
                eventually(lambda: _open_connections(on.live) <= CLIENTS, "they are ended")
                trial.recovered_s.append(time.monotonic() - began_s)
            on.load.wait_answered(10)
    # Looked at twice a second, and told each second.
    trial.must_be_back(TIMEOUT_S + 0.5 + 1.0 + BACK_WITHIN_S)


def descriptors(trial: Trial) -> None:
    """Workers run out of descriptors: who is connected is answered, and all is well when the others have left."""
    with scene(trial, {}) as on:
        pids = on.live.child_pids("worker")
        for _turn in trial.turns():
            before = {pid: _ration(pid) for pid in pids.values()}
            try:
                with contextlib.ExitStack() as stack:
                    for _ in range(FLOOD):
                        with contextlib.suppress(OSError):  # turned away
                            stack.enter_context(_begin(on.live, trial.draw))
                    on.load.wait_answered(40)
                    on.editor.wait_acknowledged()
            finally:
                began_s = time.monotonic()
                for pid, limits in before.items():
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            eventually(lambda: _answers_strangers(on.live), "new connections are answered")
            eventually(lambda: _all_live(on.live), "all workers tell how they are")
            trial.recovered_s.append(time.monotonic() - began_s)
        trial.must(on.live.child_pids("worker") == pids, "a worker was replaced")


def _ration(pid: int) -> tuple[int, int]:
    """Leave a process few descriptors beyond those that it has; returns the limits as they were."""
    used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1 + SPARE_DESCRIPTORS, hard))
    return soft, hard


def _answers_strangers(live: LiveGateway) -> bool:
    """Whether as many new connections as reach all workers are answered."""
    for number in range(8):
        with socket.create_connection((urlsplit(live.data_url).hostname, urlsplit(live.data_url).port), 2.0) as one:
            one.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            if not one.recv(100).startswith(b"HTTP/1.1 200"):
                raise AssertionError(f"connection {number} got no answer")
    return True


def _all_live(live: LiveGateway) -> bool:
    workers = live.control.get("/admin/v1/status").json()["workers"]
    return len(workers) == 2 and all(worker["live"] and worker["age_s"] < 1.5 for worker in workers)


FAULTS = (
    Fault("half-open connections", 10, half_open),
    Fault("descriptors of the workers exhausted", 10, descriptors),
)
