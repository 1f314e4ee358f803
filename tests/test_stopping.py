"""How a gateway ends: by a signal or a second one, with its budget, its terminal, or its supervisor."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.builders import classifier
from tests.holding import held
from tests.live import LiveGateway, child_processes, eventually, is_running, name_of
from tests.supervised import alive_on_a_new_connection, all_pids, predict

pytestmark = pytest.mark.usefixtures("one_model")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_everything_with_exit_code_0(models: Path, state: Path, number: signal.Signals) -> None:
    with LiveGateway(models, state, workers=2) as gateway:
        pids, run_dir, address = all_pids(gateway), gateway.run_dir, gateway.ready["data"]
        gateway.stop(number=number)
        assert not [pid for pid in pids if is_running(pid)]
        assert not gateway.is_ready_file_there
        assert not run_dir.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address["host"], address["port"]), timeout=5)


class HalfSent:
    """A prediction whose head the worker has taken, and that waits for its body."""

    def __init__(self, gateway: LiveGateway) -> None:
        self._body = json.dumps({"rows": [dict.fromkeys(classifier().features, 1.0)]}).encode()
        address = ("127.0.0.1", int(gateway.data_url.rpartition(":")[2]))
        self._connection = socket.create_connection(address, timeout=30)
        head = f"POST /predict/iris HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(self._body)}"
        self._connection.sendall(head.encode() + b"\r\n\r\n")
        assert self._connection.recv(100).startswith(b"HTTP/1.1 100"), "the worker reads the body"

    def finish(self) -> bytes:
        """Send the body; returns the status line of the answer."""
        with self._connection:
            self._connection.sendall(self._body)
            return self._connection.recv(1000).split(b"\r\n")[0]


def test_a_request_in_flight_at_sigterm_is_answered(models: Path, state: Path) -> None:
    with LiveGateway(models, state) as gateway:
        request = HalfSent(gateway)
        gateway.signal(signal.SIGTERM)
        eventually(lambda: is_refused(gateway), "new connections are refused, and do not wait for nobody")
        assert request.finish() == b"HTTP/1.1 200 OK"
        gateway.wait_stopped()


def test_a_child_that_becomes_ready_after_sigterm_does_not_disturb_the_end(models: Path, state: Path) -> None:
    gateway = LiveGateway(models, state, wait=False)
    with gateway:

        def monitor() -> int | None:
            return next((pid for pid in child_processes(gateway) if name_of(pid) == "monitor"), None)

        pid = eventually(monitor, "the last child, the monitor, is started")
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: all(f"{name} is ready" in gateway.log for name in ("worker-0", "control")), "others ready")
        assert "monitor is ready" not in gateway.log
        worker = next(pid for pid in child_processes(gateway) if name_of(pid) == "worker-0")
        os.kill(worker, signal.SIGSTOP)  # it takes its time to leave
        gateway.signal(signal.SIGTERM)
        eventually(lambda: "stopping on SIGTERM" in gateway.log, "the signal is heard")
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: "monitor is ready" in gateway.log, "the monitor is late")
        os.kill(worker, signal.SIGCONT)
        gateway.wait_stopped()
        assert not gateway.is_ready_file_there


def is_refused(gateway: LiveGateway) -> bool:
    try:
        return not alive_on_a_new_connection(gateway, timeout_s=1)
    except httpx.ConnectError:
        return True


def test_a_worker_that_does_not_stop_is_killed_when_the_budget_ends(models: Path, state: Path) -> None:
    with LiveGateway(models, state, settings={"server": {"drain_timeout_s": 0}}) as gateway:
        told = "worker-0 did not stop in time and is killed"
        with held(gateway.child_pids("worker")[0]) as pid:
            gateway.signal(signal.SIGTERM)
            eventually(lambda: told in gateway.log and not is_running(pid), "it is killed")
        gateway.wait_stopped()


def test_a_second_signal_hurries(models: Path, state: Path) -> None:
    with LiveGateway(models, state, settings={"server": {"drain_timeout_s": 3600}}) as gateway:
        pid = gateway.signal_child("worker", 0, signal.SIGSTOP)
        gateway.signal(signal.SIGTERM)
        eventually(lambda: "stopping on SIGTERM" in gateway.log, "the first signal is heard")
        gateway.signal(signal.SIGTERM)
        gateway.wait_stopped(exit_code=128 + signal.SIGTERM)
        assert not is_running(pid)


def test_children_finish_when_the_supervisor_is_killed_and_the_next_one_waits_for_them(
    models: Path, state: Path
) -> None:
    with LiveGateway(models, state, workers=2) as gateway:
        request = HalfSent(gateway)
        pids, run_dir = all_pids(gateway), gateway.run_dir
        gateway.signal(signal.SIGKILL)
        gateway.wait_stopped(exit_code=-signal.SIGKILL)
        gateway.start(wait=False)
        eventually(lambda: "waiting for the children of a supervisor" in gateway.log, "the next one waits")
        assert request.finish() == b"HTTP/1.1 200 OK"
        gateway.wait_ready()
        assert not [pid for pid in pids if is_running(pid)]
        assert not run_dir.exists()
        assert predict(gateway).status_code == 200


def test_a_monitor_in_the_middle_of_something_long_leaves_at_once_when_the_supervisor_is_killed(
    models: Path, state: Path
) -> None:
    segment = state / "samples" / "model=iris" / "version=1" / "date=2026-01-01" / "hour=00" / "boot-1-0.jsonl"
    segment.parent.mkdir(parents=True)
    os.mkfifo(segment)
    with LiveGateway(models, state, role="monitor") as gateway:
        (monitor,) = all_pids(gateway)  # which waits for a writer of the segment
        gateway.signal(signal.SIGKILL)
        gateway.wait_stopped(exit_code=-signal.SIGKILL)
        eventually(lambda: not is_running(monitor), "it leaves", timeout_s=20.0)  # of the 30 s that the others have
        segment.unlink()
        gateway.start()


def test_a_terminal_that_is_closed_ends_the_gateway_in_order(models: Path, state: Path) -> None:
    ready_file = state.with_name("ready.json")
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(models), "--state", str(state)]
    command += ["--host", "127.0.0.1", "--port", "0", "--control-port", "0", "--ready-file", str(ready_file)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command)
    eventually(ready_file.exists, "it is ready", timeout_s=60)
    os.close(terminal)  # SIGHUP to whoever it was the terminal of
    try:
        eventually(lambda: not is_running(pid), "it ends")
    finally:
        os.kill(pid, signal.SIGKILL)  # nothing, to a zombie
        _pid, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not ready_file.exists()
