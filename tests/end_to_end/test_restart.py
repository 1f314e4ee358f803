"""Rolling restarts under traffic: nobody is turned away, and what cannot become ready changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.builders import classifier, write_package
from tests.certificates import self_signed
from tests.live import LiveGateway, child_processes, eventually, name_of, write_settings
from tests.traffic import Client

IRIS = classifier()
BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()


def restart(gateway: LiveGateway) -> dict[str, Any]:
    """Run the verb; returns what became of the restart."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "restart", "--json", "--state", gateway.state],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["state"] == "done" else 1)
    return found


def health(gateway: LiveGateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.control.get("/admin/v1/status").json()["supervisor"]
    return found


def metric(gateway: LiveGateway, series: str) -> float:
    page = gateway.control.get("/metrics").text
    return float(next(line.split()[1] for line in page.splitlines() if line.startswith(series + " ")))


def settings_file(gateway: LiveGateway) -> Path:
    return gateway.state.with_name(f"{gateway.state.name}.all.toml")


async def ask(url: str, seen: Counter[str], done: asyncio.Event, per_connection: int) -> None:
    """Ask until *done*; on a new connection when told to close, or after so many requests. No error is forgiven."""
    while not done.is_set():
        async with Client(url) as client:
            for _ in range(per_connection):
                answer = await client.post("/v2/models/iris/infer", BODY)
                seen[str(answer.status)] += 1
                if answer.headers.get("connection") == "close":
                    seen["told to close"] += 1
                    break
                if done.is_set():
                    break


@pytest.mark.parametrize("door", ["fast", "asgi"])
def test_no_request_fails_while_all_workers_are_replaced(tmp_path: Path, door: str) -> None:
    write_package(tmp_path / "models", IRIS)
    with LiveGateway(
        tmp_path / "models", tmp_path / "state", workers=2, settings={"server": {"door": door}}
    ) as gateway:
        old = gateway.child_pids("worker")
        ready_counts: set[int] = set()

        def replace() -> None:
            process = subprocess.Popen([sys.executable, "-m", "gateway", "restart", "--state", gateway.state])
            while process.poll() is None:
                ready_counts.add(len(gateway.child_pids("worker")))
            assert process.returncode == 0

        async def load() -> Counter[str]:
            seen: Counter[str] = Counter()
            done = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(ask(gateway.data_url, seen, done, per_connection=1_000_000 if number % 2 else 3))
                await asyncio.to_thread(eventually, lambda: seen["200"] > 100, "everybody is being answered")
                await asyncio.to_thread(replace)
                at_end = seen["200"]
                await asyncio.to_thread(eventually, lambda: seen["200"] > at_end + 100, "and still is")
                done.set()
            return seen

        seen = asyncio.run(load())
        new = gateway.child_pids("worker")
        assert set(seen) == {"200", "told to close"}
        assert sum(seen.values()) > 1000
        assert ready_counts == {2}, "there were always two ready workers"
        assert old.keys() == new.keys()
        assert not set(old.values()) & set(new.values())
        assert metric(gateway, 'sluicegate_rolling_restarts_total{outcome="done"}') == 1
        assert metric(gateway, 'sluicegate_process_restarts_total{role="worker"}') == 0, "nobody died"


def test_a_restart_takes_over_settings_of_the_workers_and_names_those_that_it_cannot(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    with LiveGateway(tmp_path / "models", tmp_path / "state") as gateway:
        path = "/v2/models/iris/infer"
        assert gateway.data.post(path, content=BODY).status_code == 200
        write_settings(settings_file(gateway), {"limits": {"max_body_bytes": 10}, "monitor": {"poll_s": 2}})
        assert restart(gateway)["state"] == "done"
        assert gateway.data.post(path, content=BODY).status_code == 413
        assert "setting monitor.poll_s has changed: that needs a restart of the whole gateway" in gateway.log
        pids = gateway.child_pids("worker")
        write_settings(settings_file(gateway), {"limits": {"max_bodies": 10}})
        found = restart(gateway)
        assert found["state"] == "refused"
        assert "unknown setting 'limits.max_bodies'" in found["why"]
        assert gateway.child_pids("worker") == pids
        assert metric(gateway, 'sluicegate_rolling_restarts_total{outcome="refused"}') == 1


def test_a_worker_that_does_not_become_ready_stops_the_restart_and_the_old_ones_serve_on(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    path = "/v2/models/iris/infer"
    with LiveGateway(tmp_path / "models", tmp_path / "state", workers=2) as gateway:
        pids = gateway.child_pids("worker")
        # Packages that do not answer any more: the new workers could start, but would serve less than the old ones.
        package = next((tmp_path / "models").glob("iris/1/model.onnx"))
        kept = package.read_bytes()
        package.write_bytes(b"no model")
        found = restart(gateway)
        assert found["state"] == "stopped"
        assert "worker-0: iris/1 does not load any more" in found["why"]
        package.write_bytes(kept)
        # No time to become ready in.
        write_settings(settings_file(gateway), {"supervisor": {"restart_timeout_s": 3}})
        known = set(pids.values())
        eventually(lambda: workers(gateway) == known, "the new worker of before has left")
        with subprocess.Popen([sys.executable, "-m", "gateway", "restart", "--state", gateway.state]) as process:
            stopped = stop_a_successor(gateway, known)
            assert process.wait(60) == 1
        assert not Path(f"/proc/{stopped}").exists()
        assert "not ready within" in health(gateway)["restart"]["why"]
        assert gateway.child_pids("worker") == pids
        assert gateway.data.post(path, content=BODY).status_code == 200
        ready = gateway.data.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["detail"][0].startswith(
            "the restart was stopped: the new worker-0: it was not ready within"
        )
        assert metric(gateway, 'sluicegate_rolling_restarts_total{outcome="stopped"}') == 2
        write_settings(settings_file(gateway), {})
        assert restart(gateway)["state"] == "done"
        assert "detail" not in gateway.data.get("/readyz").json()


def test_a_refused_restart_ends_the_one_that_goes_on_and_sends_its_new_worker_away(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    with LiveGateway(tmp_path / "models", tmp_path / "state") as gateway:
        pids = gateway.child_pids("worker")
        gateway.signal(signal.SIGHUP)
        successor = stop_a_successor(gateway, set(pids.values()))
        write_settings(settings_file(gateway), {"limits": {"max_bodies": 10}})
        gateway.signal(signal.SIGHUP)
        eventually(lambda: health(gateway)["restart"]["state"] == "refused", "the second one is refused")
        os.kill(successor, signal.SIGCONT)
        eventually(lambda: "the old worker-0 has left: " in gateway.log, "the new worker has left")
        assert not Path(f"/proc/{successor}").exists()
        assert gateway.child_pids("worker") == pids
        assert gateway.data.post("/v2/models/iris/infer", content=BODY).status_code == 200
        write_settings(settings_file(gateway), {})
        assert restart(gateway)["state"] == "done"


def workers(gateway: LiveGateway) -> set[int]:
    """The pids of all of them, ready or not."""
    return {pid for pid in child_processes(gateway) if name_of(pid).startswith("worker-")}


def stop_a_successor(gateway: LiveGateway, known: set[int]) -> int:
    """Stop the worker that is started beside those in *known*; returns its pid."""

    def found() -> int | None:
        return next(iter(workers(gateway) - known), None)

    pid = eventually(found, "a new worker is started")
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_renewed_certificate_is_shown_after_a_restart(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    folder = tmp_path / "tls"
    folder.mkdir()
    first, second = self_signed(folder), self_signed(folder, "renewed")
    settings = {"server": first.settings, "control": first.settings}
    with LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as gateway:
        address, admin = (("127.0.0.1", int(url.rpartition(":")[2])) for url in (gateway.data_url, gateway.control_url))
        control = gateway.child_pids("control")
        before = ssl.get_server_certificate(address)
        first.certificate.write_bytes(second.certificate.read_bytes())
        assert "is not the key of the certificate" in restart(gateway)["why"], "told before any worker is started"
        eventually(lambda: "the admin port keeps its certificate" in gateway.log, "control says so, too")
        assert ssl.get_server_certificate(admin) == before
        first.key.write_bytes(second.key.read_bytes())
        assert restart(gateway)["state"] == "done"
        assert ssl.get_server_certificate(address) == second.certificate.read_text() != before
        eventually(lambda: ssl.get_server_certificate(admin) == second.certificate.read_text(), "both ports show it")
        assert gateway.child_pids("control") == control
