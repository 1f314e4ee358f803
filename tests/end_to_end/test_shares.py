"""What workers share, the port and the processors: who has how many connections, and how many threads run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from pathlib import Path

import pytest

from tests.live import LiveGateway, SettingsTable, eventually

pytestmark = pytest.mark.usefixtures("one_model")
CONNECTIONS = 64


def gauge(gateway: LiveGateway, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", gateway.control.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found.group(1))


def connections(gateway: LiveGateway) -> dict[int, int]:
    """Slot -> open connections, by the status documents of the live workers."""
    workers = gateway.control.get("/admin/v1/status").json()["workers"]
    return {worker["slot"]: worker["open_connections"] for worker in workers if worker["live"]}


def answered(gateway: LiveGateway, stack: contextlib.ExitStack) -> None:
    """Open a connection that stays until *stack* ends; it has had an answer, so a worker has taken it."""
    address = ("127.0.0.1", int(gateway.ready["data"]["port"]))
    connection = stack.enter_context(socket.create_connection(address, timeout=30))
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("door", ["fast", "asgi"])
def test_connections_are_spread_over_the_workers_and_told(models: Path, state: Path, door: str) -> None:
    with LiveGateway(models, state, workers=2, options=("--door", door)) as gateway:
        with contextlib.ExitStack() as stack:
            for _ in range(CONNECTIONS):
                answered(gateway, stack)

            def shares() -> list[int] | None:
                found = connections(gateway)
                return list(found.values()) if sum(found.values()) == CONNECTIONS else None

            told = eventually(shares, "the status documents tell of all connections")
            assert len(told) == 2
            assert min(told) >= 8, "one in 10^10 times the kernel's hash would be so unfair"
            eventually(
                lambda: gauge(gateway, "sluicegate_open_connections") == CONNECTIONS, "the metrics tell of them too"
            )
        eventually(lambda: connections(gateway) == {0: 0, 1: 0}, "closed connections are told of no more")
        eventually(lambda: gauge(gateway, "sluicegate_open_connections") == 0, "nor in the metrics")


def threads_of_a_worker(
    models: Path, state: Path, *, intra_op_threads: int = 1, environment: dict[str, str] | None = None
) -> int:
    """How many threads the one worker of a gateway has when it has come to rest."""
    settings: SettingsTable = {"batching": {"intra_op_threads": intra_op_threads}}
    with LiveGateway(models, state, settings=settings, environment=environment) as gateway:
        assert gauge(gateway, "sluicegate_run_threads") == intra_op_threads
        (status,) = (gateway.run_dir / "status").glob("worker-0-*.json")
        ready = status.read_bytes()
        # It is written at ready and then once a second: the thread that loaded the model has ended by then.
        eventually(
            lambda: json.loads(status.read_bytes())["written_at"] > json.loads(ready)["written_at"] + 0.5, "rest"
        )
        return len(list(Path(f"/proc/{gateway.child_pids('worker')[0]}/task").iterdir()))


def test_a_worker_has_the_threads_that_its_settings_say(models: Path, state: Path) -> None:
    """Libraries that start a thread per processor would crowd out the other workers."""
    few = threads_of_a_worker(models, state)
    # Give or take one: asyncio keeps one or two threads for files, as it happens.
    four = threads_of_a_worker(models, state.with_name("four"), intra_op_threads=4)
    assert abs(four - few - 3) <= 1
    # OpenBLAS takes what it is told by the user, but not more than there are processors.
    asked = threads_of_a_worker(models, state.with_name("asked"), environment={"OPENBLAS_NUM_THREADS": "2"})
    assert abs(asked - few - min(2, len(os.sched_getaffinity(0))) + 1) <= 1


def test_more_threads_than_processors_are_warned_of_with_what_to_lower(models: Path, state: Path) -> None:
    crowded: SettingsTable = {"batching": {"intra_op_threads": 256}}
    with LiveGateway(models, state, settings=crowded, role="all") as gateway:
        assert '"level": "warning"' in gateway.log
        assert "more threads may run models at once than there are processors" in gateway.log
        processors = int(gauge(gateway, "sluicegate_processors"))
        assert f"lower batching.intra_op_threads to {processors}" in gateway.log
    with LiveGateway(models, state.with_name("calm")) as gateway:
        assert "more threads may run" not in gateway.log
