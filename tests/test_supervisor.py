"""The supervisor, by what happens to real processes: killed, hung, crash-looping, started twice and in parts."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.flags import must_change
from tests.holding import held
from tests.live import ChildRole, LiveGateway, eventually, is_running
from tests.supervised import alive_on_a_new_connection, all_pids, log_records, metric, predict

pytestmark = pytest.mark.usefixtures("one_model")
ROLES: tuple[ChildRole, ...] = ("worker", "control", "monitor")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway with two workers that the tests may hurt, but not stop."""
    root = tmp_path_factory.mktemp("supervised")
    write_package(root / "models", classifier())
    with LiveGateway(root / "models", root / "state", workers=2) as live:
        yield live


@pytest.mark.parametrize("role", ROLES)
def test_a_killed_child_comes_back_and_serving_goes_on(gateway: LiveGateway, role: ChildRole) -> None:
    before = metric(gateway, "sluicegate_process_restarts_total", f'role="{role}"')
    others = set(all_pids(gateway)) - {gateway.child_pids(role)[0]}
    old_pid = gateway.signal_child(role)
    while gateway.child_pids(role).get(0) in (None, old_pid):
        assert alive_on_a_new_connection(gateway, timeout_s=20)
    assert others < set(all_pids(gateway)), "nobody else was disturbed"
    eventually(
        lambda: metric(gateway, "sluicegate_process_restarts_total", f'role="{role}"') == before + 1,
        "the restart is counted",
    )
    assert f"{'worker-0' if role == 'worker' else role} died: killed by SIGKILL" in gateway.log


def test_counts_of_a_killed_worker_stay_on_the_page(gateway: LiveGateway) -> None:
    for _ in range(20):
        assert predict(gateway).status_code == 200
    eventually(lambda: metric(gateway, "sluicegate_requests_total") >= 20, "the predictions are counted")
    before = metric(gateway, "sluicegate_requests_total")
    dead = list(gateway.child_pids("worker").values())
    for slot in (0, 1):
        gateway.kill("worker", slot)
    assert metric(gateway, "sluicegate_requests_total") == before
    files = [path.name for path in (gateway.run_dir / "metrics").iterdir()]
    assert not [name for name in files for pid in dead if f"_{pid}." in name], "files of the dead would pile up"


def test_the_status_document_of_a_dead_worker_is_removed_and_its_successor_writes_one(gateway: LiveGateway) -> None:
    old_pid = gateway.signal_child("worker", 1, signal.SIGSTOP)
    os.kill(old_pid, signal.SIGKILL)
    new_pid = gateway.wait_replaced("worker", 1, old_pid)
    status = gateway.run_dir / "status"
    eventually((status / f"worker-1-{new_pid}.json").exists, "the successor writes its status")
    assert not (status / f"worker-1-{old_pid}.json").exists()


def test_a_worker_told_to_stop_by_hand_is_replaced(gateway: LiveGateway) -> None:
    old_pid = gateway.signal_child("worker", 0, signal.SIGTERM)
    assert gateway.wait_replaced("worker", 0, old_pid) != old_pid


def test_a_connection_made_while_the_only_worker_is_dead_is_answered_by_its_successor(
    models: Path, state: Path
) -> None:
    with LiveGateway(models, state, role="all", settings={"supervisor": {"backoff_min_s": 0.5}}) as gateway:
        old_pid = gateway.signal_child("worker")
        eventually(lambda: not is_running(old_pid), "the worker is dead")
        assert alive_on_a_new_connection(gateway, timeout_s=30)
        assert gateway.wait_replaced("worker", 0, old_pid) != old_pid


def test_the_last_living_worker_keeps_its_socket_however_often_it_dies(models: Path, state: Path) -> None:
    settings = {"supervisor": {"backoff_min_s": 0.7}}
    with LiveGateway(models, state, settings=settings) as gateway:
        gateway.kill("worker", 0)
        old_pid = gateway.signal_child("worker", 0)
        address = ("127.0.0.1", int(gateway.data_url.rpartition(":")[2]))
        eventually(lambda: not is_running(old_pid), "it is dead for the second time")
        early = socket.create_connection(address, timeout=30)
        eventually(lambda: gateway.log.count("deaths_in_a_row") == 2, "the second death is noted")
        with early, socket.create_connection(address, timeout=30) as late:
            for connection in (early, late):
                connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200"), "its successor answers"


def test_a_child_that_was_stopped_is_killed_and_replaced_at_once(models: Path, state: Path) -> None:
    """Long before the time is over that a silent one has, which is a minute."""
    with LiveGateway(models, state, role="all") as gateway:
        stopped = {role: gateway.signal_child(role, 0, signal.SIGSTOP) for role in ROLES}
        for role, old_pid in stopped.items():
            gateway.wait_replaced(role, 0, old_pid)
            assert not is_running(old_pid)
        assert gateway.log.count("has been stopped by a signal") == len(ROLES)


def test_a_child_that_hangs_is_killed_and_replaced(models: Path, state: Path) -> None:
    settings = {"supervisor": {"heartbeat_timeout_s": 3}}
    with LiveGateway(models, state, settings=settings) as gateway:
        with held(gateway.child_pids("worker")[0]) as old_pid:
            eventually(lambda: "is silent and is killed" in gateway.log and not is_running(old_pid), "it is killed")
        gateway.wait_replaced("worker", 0, old_pid)
        assert "has been stopped" not in gateway.log


def test_a_worker_that_is_silent_while_it_loads_is_not_killed(models: Path, state: Path) -> None:
    settings = {"supervisor": {"heartbeat_timeout_s": 3}}
    with LiveGateway(models, state, settings=settings) as gateway:
        pid = gateway.child_pids("worker")[0]
        write_package(models, classifier("iris", "2", iterations=20_000))  # its first runs take seconds
        must_change(gateway, "iris.route", {"variants": {"canary": "2"}})

        def state_of(version: str) -> str:
            (worker,) = gateway.control.get("/admin/v1/status").json()["workers"]
            found: str = worker["models"]["iris"]["versions"].get(version, {}).get("state", "")
            return found

        eventually(lambda: state_of("2") == "loading", "it loads")
        with held(pid):  # as by a load that holds the interpreter
            eventually(lambda: "worker-0 is silent while it loads iris/2: it gets more time" in gateway.log, "excused")
        eventually(lambda: state_of("2") == "warm", "it has loaded", timeout_s=60)
        assert gateway.child_pids("worker") == {0: pid}


def test_a_crash_loop_backs_off_and_leaves_its_connections_to_the_other_worker(models: Path, state: Path) -> None:
    settings = {"supervisor": {"backoff_min_s": 1.5}}
    with LiveGateway(models, state, workers=2, settings=settings) as gateway:
        gateway.kill("worker", 0)
        old_pid = gateway.signal_child("worker", 0)
        eventually(lambda: gateway.log.count("deaths_in_a_row") == 2, "the second death is noted")
        for _ in range(40):
            assert alive_on_a_new_connection(gateway, timeout_s=2), "its share of the connections went nowhere"
        ready = httpx.get(f"{gateway.data_url}/readyz", timeout=20)
        assert (ready.status_code, ready.json()["detail"]) == (200, ["worker-0 died 2 times in a row"])
        assert metric(gateway, "sluicegate_process_deaths_in_a_row", 'child="worker-0"') == 2
        new_pid = gateway.wait_replaced("worker", 0, old_pid)
        deaths = [record for record in log_records(gateway) if "deaths_in_a_row" in record]
        assert [record["deaths_in_a_row"] for record in deaths] == [1, 2]
        assert "started again in 1.5 s" in deaths[0]["message"]
        assert "started again in 3.0 s" in deaths[1]["message"]
        eventually(lambda: connections_of(new_pid, gateway), "the replacement gets connections again")


def connections_of(pid: int, gateway: LiveGateway) -> bool:
    """Whether a new connection to the data port is taken by the process *pid*."""
    with socket.create_connection(("127.0.0.1", int(gateway.data_url.rpartition(":")[2])), timeout=5) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(100)
        ours = f":{connection.getsockname()[1]:04X} "
        inodes = {
            line.split()[9]
            for line in Path("/proc/net/tcp").read_text().splitlines()
            if line.split()[2].endswith(ours.strip())
        }
        targets = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        return any(f"socket:[{inode}]" in targets for inode in inodes)


def test_a_child_that_cannot_start_is_told_of_in_the_log_and_holds_up_nobody(models: Path, state: Path) -> None:
    state.mkdir()
    (state / "monitor").write_text("not a directory")
    with LiveGateway(models, state, settings={"supervisor": {"backoff_max_s": 0.2}}, wait=False) as gateway:
        eventually(
            lambda: gateway.log.count("monitor died: exit code 1") >= 3, "the monitor is started again and again"
        )
        eventually(lambda: "worker-0 is ready" in gateway.log, "the worker serves all the same")
        assert not gateway.is_ready_file_there
        assert f"{state}/monitor" in gateway.log, "the log says what is wrong"


def test_a_second_gateway_on_the_same_state_is_refused_and_the_first_goes_on(gateway: LiveGateway) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gateway", "serve", "--models", gateway.models, "--state", gateway.state),
            *("--port", "0", "--control-port", "0"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"another sluicegate (process {gateway.pid}) runs serving on the state directory" in done.stderr
    assert alive_on_a_new_connection(gateway, timeout_s=20)


def test_the_parts_run_alone_on_one_state_directory(models: Path, state: Path) -> None:
    with (
        LiveGateway(models, state, role="control") as control,
        LiveGateway(models, state, role="monitor") as monitor,
        LiveGateway(models, state, role="serving") as serving,
    ):
        assert [child["role"] for child in control.ready["children"]] == ["control"]
        assert [child["role"] for child in monitor.ready["children"]] == ["monitor"]
        assert [child["role"] for child in serving.ready["children"]] == ["worker"]
        assert (control.ready["data"], serving.ready["control"]) == (None, None)
        assert predict(serving).status_code == 200
        (worker,) = control.control.get("/admin/v1/status").json()["workers"]
        assert (worker["pid"], worker["live"]) == (all_pids(serving)[0], True)
        must_change(control, "iris.route", {"state": "DISABLED"})
        eventually(lambda: predict(serving).headers["x-model-variant"] == "stable", "the change has reached it")


def test_a_terminal_is_told_where_everything_is(models: Path, state: Path) -> None:
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gateway", "serve", "--models", str(models), "--state", str(state)),
            *("--host", "127.0.0.1", "--port", "0", "--control-port", "0"),
        ],
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    deadline = time.monotonic() + 60
    while b"admin token  in" not in shown and time.monotonic() < deadline:
        shown += os.read(screen, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # raised when the other end is closed
        while rest := os.read(screen, 4096):
            shown += rest
    os.close(screen)
    assert process.wait(60) == 0
    text = shown.decode()
    assert re.search(r"predictions  http://127\.0\.0\.1:\d+\r\n", text), text
    assert re.search(r"admin        http://127\.0\.0\.1:\d+\r\n", text)
    assert f"admin token  in {state}/admin.token\r\n" in text
    assert (state / "admin.token").read_text().strip() not in text
