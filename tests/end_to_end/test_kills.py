"""kill -9 of every kind of child under load: the others go on, it comes back, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

from tests.builders import classifier, write_package
from tests.end_to_end.flags import declare, must_change, wait_adopted
from tests.live import LiveGateway, eventually
from tests.traffic import Client

BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()


def two_versions(root: Path) -> Path:
    for version in ("1", "2"):
        write_package(root, classifier("iris", version))
    return root


async def client(url: str, seen: Counter[str], until_s: float) -> None:
    """Ask until the time is up; a connection that breaks is opened anew, and counted."""
    while time.monotonic() < until_s:
        try:
            async with Client(url) as connection:
                while time.monotonic() < until_s:
                    answer = await connection.post("/v2/models/iris/infer", BODY)
                    seen[str(answer.status)] += 1
        except (OSError, EOFError):
            seen["broken"] += 1


def test_a_killed_worker_breaks_its_own_connections_only_and_is_replaced(tmp_path: Path) -> None:
    with LiveGateway(two_versions(tmp_path / "models"), tmp_path / "state", workers=2) as gateway:
        declare(gateway, "iris", "canary", "1")
        seen: Counter[str] = Counter()
        clients = 40

        def kill_and_change() -> int:
            eventually(lambda: seen["200"] > 10 * clients, "all clients are being answered")
            old_pid = gateway.signal_child("worker", 0)
            # acknowledged while a worker is dead: it must hold for its replacement too
            revision = must_change(gateway, "iris.route", {"state": "DISABLED"})
            gateway.wait_replaced("worker", 0, old_pid)
            return revision

        async def load() -> int:
            until_s = time.monotonic() + 4
            async with asyncio.timeout(60):
                change = asyncio.create_task(asyncio.to_thread(kill_and_change))
                await asyncio.gather(*(client(gateway.data_url, seen, until_s) for _ in range(clients)))
                return await change

        revision = asyncio.run(load())
        wait_adopted(gateway, "iris", revision)
        print(dict(seen))
        assert set(seen) <= {"200", "broken"}
        assert 0 < seen["broken"] < clients  # at least one connection was with the dead worker, and not all
        assert seen["200"] > 100
        restarts = gateway.control.get("/metrics").text
        assert 'sluicegate_process_restarts_total{role="worker"} 1.0' in restarts


def test_serving_goes_on_while_control_and_monitor_are_dead(tmp_path: Path) -> None:
    with LiveGateway(two_versions(tmp_path / "models"), tmp_path / "state") as gateway:
        revision = must_change(gateway, "iris.route", {"variants": {"canary": "1"}})
        seen: Counter[str] = Counter()

        def kill_both() -> None:
            gateway.kill("control")
            gateway.kill("monitor")

        async def load() -> None:
            async with asyncio.timeout(60):
                killing = asyncio.create_task(asyncio.to_thread(kill_both))
                until_s = time.monotonic() + 3
                await asyncio.gather(*(client(gateway.data_url, seen, until_s) for _ in range(10)))
                await killing

        asyncio.run(load())
        assert set(seen) == {"200"}

        def back() -> bool:
            return gateway.control.get("/admin/v1/flags/iris.route").headers["etag"] == f'"{revision}"'

        assert eventually(back, "control answers with what was acknowledged before it died")


def test_a_start_without_a_readable_store_serves_the_last_known_good(tmp_path: Path) -> None:
    models = two_versions(tmp_path / "models")
    with LiveGateway(models, tmp_path / "state") as gateway:
        declare(gateway, "iris", "canary", "1")
        must_change(gateway, "iris.route", {"defaultVariant": "canary"})
    (tmp_path / "state" / "flags.sqlite").write_bytes(b"this is no database" * 100)
    for leftover in ("flags.sqlite-wal", "flags.sqlite-shm"):
        (tmp_path / "state" / leftover).unlink(missing_ok=True)
    with LiveGateway(models, tmp_path / "state", role="serving") as gateway:
        reply = gateway.data.post("/v2/models/iris/infer", content=BODY)
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-model-version"] == "1"
