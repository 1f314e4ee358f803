"""Answers that wait for the log, on a real gateway: kill -9 loses none that was given, a full disk refuses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.samples.segments import SegmentReader
from tests.builders import classifier, write_package
from tests.disks import small_disk
from tests.end_to_end.test_log_bounds import SAMPLING
from tests.live import LiveGateway, SettingsTable, eventually
from tests.traffic import Client

DURABLE = {"state": "ENABLED", "variants": {"all": {"rate": 1, "durable": True}}, "defaultVariant": "all"}
BODY: dict[str, Any] = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
CLIENTS = 16


def make_durable(gateway: LiveGateway) -> None:
    headers = {"if-none-match": "*", "x-change-reason": "audit"}
    reply = gateway.control.put("/admin/v1/flags/iris.sampling", json=DURABLE, headers=headers)
    assert reply.status_code == 201, reply.text
    revision = int(reply.headers["etag"].strip('"'))

    def adopted() -> bool:
        workers = gateway.control.get("/admin/v1/status").json()["workers"]
        return bool(workers) and all(worker["revision"] >= revision for worker in workers)

    eventually(adopted, "the workers know the flag")


def logged(samples: Path) -> Counter[str]:
    blocks = SegmentReader(samples).read(10**9)
    return Counter(json.loads(line)["prediction_id"] for _file, block in blocks for line in block.splitlines())


async def client(url: str, answered: list[str], until_s: float) -> None:
    while time.monotonic() < until_s:
        try:
            async with Client(url) as connection:
                while time.monotonic() < until_s:
                    answer = await connection.post("/v2/models/iris/infer", json.dumps(BODY).encode())
                    assert answer.status == 200, answer.body
                    answered.append(answer.headers["x-prediction-id"])
        except (OSError, EOFError):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("door", ["fast", "asgi"])
def test_after_kill_9_each_prediction_that_was_answered_is_in_the_log_once(tmp_path: Path, door: str) -> None:
    write_package(tmp_path / "models", classifier())
    settings: SettingsTable = {"cache": {"max_bytes": 0}, "sampling": {"segment_max_bytes": 50_000}}
    with LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings, options=("--door", door)) as gateway:
        make_durable(gateway)
        answered: list[str] = []

        def kill_twice() -> None:
            for _ in range(2):
                seen = len(answered)
                eventually(lambda seen=seen: len(answered) > seen + 200, "the clients are being answered")  # type: ignore[misc]
                gateway.kill("worker")

        async def load() -> None:
            async with asyncio.timeout(60):
                killing = asyncio.create_task(asyncio.to_thread(kill_twice))
                until_s = time.monotonic() + 8
                await asyncio.gather(*(client(gateway.data_url, answered, until_s) for _ in range(CLIENTS)))
                await killing

        asyncio.run(load())
    found = logged(tmp_path / "state" / "samples")
    print(len(answered), "answered,", len(found), "in the log")
    assert len(answered) > 400
    assert set(answered) <= found.keys()
    assert set(found.values()) == {1}


def test_a_full_disk_refuses_instead_of_answering_what_is_not_in_the_log(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    samples = tmp_path / "state" / "samples"
    settings: SettingsTable = {"sampling": SAMPLING, "cache": {"max_bytes": 0}}
    with (
        small_disk(samples, "size=128k"),
        LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as gateway,
    ):
        make_durable(gateway)
        answered: list[str] = []
        reply = gateway.data.post("/v2/models/iris/infer", json=BODY)
        while reply.status_code == 200:
            answered.append(reply.headers["x-prediction-id"])
            reply = gateway.data.post("/v2/models/iris/infer", json=BODY)
        assert reply.status_code == 503
        assert "retry-after" in reply.headers
        assert "could not be logged" in reply.text
        assert len(answered) > 10
        subprocess.run(["mount", "-o", "remount,size=8m", str(samples)], check=True)
        reply = gateway.data.post("/v2/models/iris/infer", json=BODY)
        assert reply.status_code == 200
        answered.append(reply.headers["x-prediction-id"])
        assert logged(samples) == Counter(answered)

        def counted() -> bool:
            return 'outcome="sample_log_unavailable"' in gateway.control.get("/metrics").text

        eventually(counted, "the refusal is counted")
