"""Metrics of many processes: merged on one page, and kept when a process dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import metric_files
from tests.disks import read_only, small_disk

# Counts as a worker would, says its pid, and stays until its stdin is closed.
WORKER = """
import os, sys
from gateway.metrics import ServingMetrics, process_registry
counted = ServingMetrics(process_registry())
counted.requests.labels("iris", "1", "stable", "ok").inc(float(sys.argv[1]))
counted.run_s.labels("iris", "1").observe(0.002)
counted.in_flight.set(5)
counted.last_inference_s.labels("iris", "1").set(float(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def count_in_a_process(directory: Path, requests: int) -> int:
    """Let a process count *requests* and end; returns its pid."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(requests)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout)


def value_of(page: bytes, name: str) -> float | None:
    """The sum over all series of *name*, None if there is none."""
    values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", page.decode(), re.MULTILINE)
    return sum(map(float, values)) if values else None


def test_the_page_adds_up_what_the_processes_counted(tmp_path: Path) -> None:
    for requests in (3, 4):
        count_in_a_process(tmp_path, requests)
    page = metric_files.render(tmp_path)
    assert value_of(page, "sluicegate_requests_total") == 7
    assert value_of(page, "sluicegate_run_duration_seconds_count") == 2


def test_the_page_can_be_had_of_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    count_in_a_process(tmp_path, 3)
    with read_only(tmp_path):
        page = metric_files.render(tmp_path)
    assert value_of(page, "sluicegate_requests_total") == 3


# Fills the disk that it counts on, then goes on counting, under more labels than its files have room for.
WORKER_ON_A_FULL_DISK = """
import os, sys
from gateway.metrics import ServingMetrics, process_registry
counted = ServingMetrics(process_registry())
counted.requests.labels("iris", "1", "stable", "ok").inc(3)
ballast = os.open(os.path.join(os.environ["PROMETHEUS_MULTIPROC_DIR"], "ballast"), os.O_WRONLY | os.O_CREAT)
try:
    while os.write(ballast, bytes(4096)):
        pass
except OSError:
    pass
for number in range(int(sys.argv[1])):
    counted.requests.labels(f"model-{number}", "1", "stable", "ok").inc()
counted.requests.labels("iris", "1", "stable", "ok").inc(4)
print(os.getpid(), flush=True)
"""


def count_on_a_full_disk(directory: Path, labels: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WORKER_ON_A_FULL_DISK, str(labels)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
    )


def test_a_full_disk_ends_nobody_who_counts(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=2m"):
        done = count_on_a_full_disk(tmp_path / "disk", 100)  # a page or two more
        assert (done.returncode, done.stderr) == (0, "")
        assert value_of(metric_files.render(tmp_path / "disk"), "sluicegate_requests_total") == 107
        done = count_on_a_full_disk(tmp_path / "disk", 0)  # one that starts when it is full already
        assert done.returncode == 0
        assert "counts go on in memory" in done.stderr
        assert value_of(metric_files.render(tmp_path / "disk"), "sluicegate_requests_total") == 107


def test_counts_for_which_a_full_disk_has_no_room_go_on_in_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=2m"):
        done = count_on_a_full_disk(tmp_path / "disk", 1000)
        assert done.returncode == 0
        assert done.stderr.count("counts go on in memory") == 1
        told = value_of(metric_files.render(tmp_path / "disk"), "sluicegate_requests_total")
        assert told is not None
        assert 100 < told < 1000


def test_the_dead_are_added_up_when_the_disk_has_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=2m"):
        pid = int(count_on_a_full_disk(tmp_path / "disk", 0).stdout)
        with pytest.raises(OSError, match="No space left"):
            metric_files.fold(tmp_path / "disk", pid)
        assert value_of(metric_files.render(tmp_path / "disk"), "sluicegate_requests_total") == 7
        (tmp_path / "disk" / "ballast").unlink()
        metric_files.fold(tmp_path / "disk", pid)
        assert value_of(metric_files.render(tmp_path / "disk"), "sluicegate_requests_total") == 7


def test_counts_of_the_dead_stay_and_their_gauges_and_files_go(tmp_path: Path) -> None:
    pids = [count_in_a_process(tmp_path, requests) for requests in (3, 4, 5)]
    before = metric_files.render(tmp_path)
    for pid in pids:
        metric_files.fold(tmp_path, pid)
    after = metric_files.render(tmp_path)
    for name in (
        "sluicegate_requests_total", "sluicegate_run_duration_seconds_count",
        "sluicegate_last_prediction_timestamp_seconds",
    ):  # fmt: skip
        assert value_of(after, name) == value_of(before, name) != 0
    assert value_of(after, "sluicegate_last_prediction_timestamp_seconds") == 5
    assert value_of(before, "sluicegate_in_flight_requests") == 15
    assert value_of(after, "sluicegate_in_flight_requests") is None
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["counter_0.db", "gauge_max_0.db", "histogram_0.db"]


def test_folding_a_process_that_counted_nothing_changes_nothing(tmp_path: Path) -> None:
    pid = count_in_a_process(tmp_path, 3)
    metric_files.fold(tmp_path, pid + 1)
    assert value_of(metric_files.render(tmp_path), "sluicegate_requests_total") == 3


def test_a_file_torn_by_a_kill_is_dropped_and_named_and_spoils_nothing(tmp_path: Path) -> None:
    healthy, torn = (count_in_a_process(tmp_path, requests) for requests in (3, 4))
    file = tmp_path / f"counter_{torn}.db"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'["sluicegate_requests"', b'\0"sluicegate_requests"'))
    assert file.read_bytes() != content
    with pytest.raises(ValueError, match=rf"counter_{torn}\.db"):
        metric_files.fold(tmp_path, torn)
    metric_files.fold(tmp_path, healthy)
    page = metric_files.render(tmp_path)
    assert value_of(page, "sluicegate_requests_total") == 3
    assert value_of(page, "sluicegate_run_duration_seconds_count") == 2, "its other file was whole"
