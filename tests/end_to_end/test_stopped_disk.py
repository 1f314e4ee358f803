"""A sample log on a disk that stands still: each prediction is answered, samples are dropped, and the log goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.test_log_bounds import SAMPLING, ask, counted, ids
from tests.live import LiveGateway, SettingsTable, eventually

QUEUE_RECORDS = 20
DROPPED = 'sluicegate_samples_dropped_total{reason="queue_full"}'


@contextmanager
def freezable_disk(path: Path, image: Path) -> Iterator[None]:
    """A file system of its own at *path*, that of a file, so that it can be frozen. Needs root."""
    path.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(32 * 1024 * 1024)
    make = ["mkfs.ext4", "-q", str(image)]
    mount = ["mount", "-o", "loop", str(image), str(path)]
    try:
        if os.getuid() != 0 or any(subprocess.run(each, capture_output=True).returncode for each in (make, mount)):
            pytest.skip("needs the right to mount a file system of a file")
    except FileNotFoundError as error:
        pytest.skip(f"needs {error.filename}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Whatever writes to this file system stands still; no signal ends that."""
    subprocess.run(["fsfreeze", "--freeze", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(path)], check=True)


def test_a_disk_that_stands_still_costs_samples_and_no_prediction(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    samples = tmp_path / "state" / "samples"
    settings: SettingsTable = {
        "sampling": {**SAMPLING, "max_queue_records": QUEUE_RECORDS},
        "cache": {"max_bytes": 0},
    }
    with (
        freezable_disk(samples, tmp_path / "disk.img"),
        LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings) as gateway,
    ):
        worker = gateway.child_pids("worker")
        before = ask(gateway, rows=1)
        eventually(lambda: before in ids(samples), "the log is written")
        with frozen(samples):
            asked = [ask(gateway, rows=1) for _ in range(5 * QUEUE_RECORDS)]
            # What the writer had taken when it came to a stand is not in the queue any more.
            eventually(lambda: counted(gateway, DROPPED) >= len(asked) - 3 * QUEUE_RECORDS, "the rest is dropped")
            assert not ids(samples) & set(asked)
            assert gateway.child_pids("worker") == worker
        eventually(lambda: asked[0] in ids(samples), "what was queued is written")
        later: list[str] = []

        def goes_on() -> bool:  # the first may come before the writer has made room in the queue
            later.append(ask(gateway, rows=1))
            return not ids(samples).isdisjoint(later)

        eventually(goes_on, "the log goes on")

        def all_told() -> bool:
            return counted(gateway, DROPPED) + len(ids(samples)) == 1 + len(asked) + len(later)

        eventually(all_told, "each prediction is in the log or counted")
