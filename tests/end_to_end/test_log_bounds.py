"""The sample log on disks that are full or read-only, and above its bounds: predictions go on, and so does the log."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from gateway.samples.segments import SegmentReader
from tests.builders import classifier, write_package
from tests.disks import small_disk
from tests.live import LiveGateway, SettingsTable, eventually


def counted(gateway: LiveGateway, metric: str) -> float:
    lines = gateway.control.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


def ask(gateway: LiveGateway, rows: int = 64) -> str:
    body = {"inputs": [{"name": "input", "shape": [rows, 4], "datatype": "FP32", "data": [1.5, 2, 3, 4] * rows}]}
    reply = gateway.data.post("/v2/models/iris/infer", json=body)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-prediction-id"]


def ids(root: Path) -> set[str]:
    blocks = SegmentReader(root).read(10**9)
    return {json.loads(line)["prediction_id"] for _file, block in blocks for line in block.splitlines()}  # all parse


SAMPLING = {"rate": 1.0, "sync_s": 0.01, "min_free_bytes": 0}


def test_a_full_disk_costs_samples_and_says_so_and_the_log_goes_on_when_there_is_room(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    samples = tmp_path / "state" / "samples"
    settings: SettingsTable = {"sampling": SAMPLING}
    with small_disk(samples, "size=256k"):
        with LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as gateway:
            dropped = 'sluicegate_samples_dropped_total{reason="disk_full"}'
            before = ask(gateway)
            eventually(lambda: ask(gateway) and counted(gateway, dropped) > 2, "the disk is full")
            assert '"reason": "disk_full"' in gateway.log
            subprocess.run(["mount", "-o", "remount,size=8m", str(samples)], check=True)
            after = ask(gateway)
            eventually(lambda: after in ids(samples), "the log is written again")
            assert "the sample log is written again" in gateway.log
        assert {before, after} <= ids(samples)


def test_what_a_full_disk_costs_is_an_alarm_and_its_end_another(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    samples = tmp_path / "state" / "samples"
    settings: SettingsTable = {"sampling": SAMPLING}
    with (
        small_disk(samples, "size=256k"),
        LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as gateway,
    ):

        def told(log: str, state: str) -> dict[str, Any] | None:
            rows = gateway.control.get("/admin/v1/audit", params={"limit": 1000}).json()["rows"]
            found = [row["after"] for row in rows if row["verb"] == "alarm.samples" and row["after"]["log"] == log]
            return found[-1] if found and found[-1]["state"] == state and len(found) == 1 + (state != "open") else None

        def label() -> int:
            return gateway.data.post("/v1/feedback", json={"prediction_id": ask(gateway), "label": 1}).status_code

        assert label() == 200
        eventually(lambda: label() == 503, "the disk is full")
        first = eventually(lambda: told("samples", "open"), "the samples are missed")
        assert "disk_full: " in first["why"]
        assert "on worker 0" in first["why"]
        assert "No space left" in eventually(lambda: told("labels", "open"), "so are the labels")["why"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(samples)], check=True)
        eventually(lambda: label() == 200, "there is room again")
        dropped = counted(gateway, 'sluicegate_samples_dropped_total{reason="disk_full"}')
        over = eventually(lambda: told("samples", "recovered"), "the log has recovered", timeout_s=60)
        assert over["lost"] == {"disk_full": dropped}
        assert eventually(lambda: told("labels", "recovered"), "the labels too")["lost"]["disk_full"] >= 1


def test_a_read_only_disk_costs_samples_and_nothing_else(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    samples = tmp_path / "state" / "samples"
    settings: SettingsTable = {"sampling": SAMPLING}
    with (
        small_disk(samples, "size=8m,ro"),
        LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as gateway,
    ):
        for _ in range(3):
            ask(gateway)
        dropped = 'sluicegate_samples_dropped_total{reason="write_error"}'
        eventually(lambda: counted(gateway, dropped) == 3, "the samples are counted")
        assert '"reason": "write_error"' in gateway.log
        subprocess.run(["mount", "-o", "remount,rw", str(samples)], check=True)
        after = ask(gateway)
        eventually(lambda: after in ids(samples), "the log is written")


def test_the_monitor_keeps_the_log_within_its_bytes_while_it_is_written(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    samples = tmp_path / "state" / "samples"
    settings: SettingsTable = {
        "sampling": {**SAMPLING, "segment_max_bytes": 20_000, "max_log_bytes": 100_000},
        "monitor": {"poll_s": 0.05},
    }
    with LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as gateway:
        for _ in range(20):  # about 600 kB
            ask(gateway)

        def is_within() -> bool:
            return sum(path.stat().st_size for path in samples.rglob("*.jsonl")) <= 100_000

        removed = "sluicegate_sample_log_removed_files_total"
        eventually(lambda: counted(gateway, removed) > 0 and is_within(), "old segments are removed", timeout_s=40)
        latest = ask(gateway)
        eventually(lambda: latest in ids(samples), "the log goes on")
        eventually(lambda: counted(gateway, "sluicegate_sample_log_bytes") > 0, "its size is told")
