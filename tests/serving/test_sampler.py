"""The sampler: what it is given is written; what it cannot write is dropped and counted; nobody ever waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.metrics import ServingMetrics, process_registry
from gateway.samples.record import SampleGroup
from gateway.samples.segments import SegmentReader
from gateway.serving.sampler import Sampler, free_bytes
from gateway.settings import SamplingSettings
from gateway.tensors import Signature, TensorSpec
from tests.builders import classifier
from tests.live import eventually
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample, sample_of

PLENTY = 2**40


class Counters:
    """The metrics of one worker, and what they say of samples."""

    def __init__(self) -> None:
        self._registry = process_registry()
        self.metrics = ServingMetrics(self._registry)

    def dropped(self, reason: str) -> int:
        return int(self._registry.get_sample_value("sluicegate_samples_dropped_total", {"reason": reason}) or 0)

    @property
    def written(self) -> int:
        return int(self._registry.get_sample_value("sluicegate_samples_written_total") or 0)

    def handed(self, model: str) -> int:
        return int(self._registry.get_sample_value("sluicegate_samples_total", {"model": model}) or 0)


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def make(tmp_path: Path, counters: Counters) -> Iterator[Callable[..., Sampler]]:
    """Makes started samplers that write below tmp_path, and closes them all in the end."""
    made: list[Sampler] = []

    def start(*, free: Callable[[Path], int] = lambda _path: PLENTY, root: Path = tmp_path, **keys: Any) -> Sampler:
        settings = SamplingSettings(**{"min_free_bytes": 0, "sync_s": 0.01, **keys})
        key = tmp_path / "redaction.key"
        sampler = Sampler(settings, root, boot="b1", metrics=counters.metrics, redaction_key=key, free_bytes=free)
        sampler.start()
        made.append(sampler)
        return sampler

    yield start
    for sampler in made:
        sampler.close(10)


def _records(root: Path) -> list[dict[str, Any]]:
    blocks = SegmentReader(root).read(10**9)
    return [json.loads(line) for _file, block in blocks for line in block.splitlines()]


class StuckDisk:
    """A disk on which nothing goes forward until it is released; says how much is free."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.entered = threading.Event()

    def __call__(self, _path: Path) -> int:
        self.entered.set()
        self.released.wait(20)
        return PLENTY


def test_every_offered_sample_is_in_the_log_after_close_and_no_segment_is_left_open(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    sampler = make(segment_max_bytes=50_000)
    rows = iris_rows(500)
    for index, row in enumerate(rows):
        sampler.offer(linear_sample(row[np.newaxis], prediction_id=f"p{index}", version=str(1 + index % 2)))
    sampler.offer(linear_sample(iris_rows(3), model="house", prediction_id="p500"))
    sampler.close(10)
    assert sorted(record["prediction_id"] for record in _records(tmp_path)) == sorted(
        [f"p{index}" for index in range(500)] + ["p500"] * 3
    )
    assert list(tmp_path.rglob("*.open")) == []
    assert (tmp_path / "sample.schema.json").exists()
    assert (counters.written, counters.handed("iris"), counters.handed("house")) == (503, 500, 1)


def test_samples_are_visible_to_a_follower_while_the_worker_serves(
    tmp_path: Path, make: Callable[..., Sampler]
) -> None:
    sampler = make()
    sampler.offer(linear_sample(iris_rows(1)))
    assert eventually(lambda: _records(tmp_path), "the sample is in the log")[0]["prediction_id"] == "p0"
    assert len(list(tmp_path.rglob("*.open"))) == 1


def test_old_segments_are_closed_though_nothing_new_comes(tmp_path: Path, make: Callable[..., Sampler]) -> None:
    sampler = make(segment_max_age_s=0.1)
    sampler.offer(linear_sample(iris_rows(1)))
    eventually(lambda: list(tmp_path.rglob("*.jsonl")), "the segment is closed by age")


@pytest.mark.parametrize("bound", [{"max_queue_records": 20}, {"max_queue_bytes": 20 * (4 * 4 + 8 + 3 * 4)}])
def test_while_the_disk_is_stuck_offers_return_at_once_and_what_exceeds_the_queue_is_counted(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters, bound: dict[str, int]
) -> None:
    disk = StuckDisk()
    sampler = make(free=disk, **bound)
    sampler.offer(linear_sample(iris_rows(1), prediction_id="first"))
    assert disk.entered.wait(20)
    for index in range(1000):
        sampler.offer(linear_sample(iris_rows(1), prediction_id=f"p{index}"))
    assert counters.dropped("queue_full") == 980
    disk.released.set()
    sampler.close(10)
    assert [record["prediction_id"] for record in _records(tmp_path)] == [
        "first",
        *(f"p{index}" for index in range(20)),
    ]


def _group(count: int) -> SampleGroup:
    """One run of *count* rows, all of them sampled: p0, p1, ..."""
    linear, rows = classifier(), iris_rows(count)
    like = sample_of({}, {}, linear.signature, rows=1)
    identities = [(f"p{index}", "") for index in range(count)]
    values = [row.tobytes() for row in rows]
    return SampleGroup(like, identities, linear.signature.inputs[0], values, linear.answer(rows), list(range(count)))


def test_all_rows_of_a_run_are_written_though_they_were_offered_at_once(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    sampler = make()
    sampler.offer_group(_group(300))
    sampler.close(10)
    sampler.offer_group(_group(2))
    records = _records(tmp_path)
    assert [record["prediction_id"] for record in records] == [f"p{index}" for index in range(300)]
    assert {(record["row"], record["rows"]) for record in records} == {(0, 1)}
    wanted = [list(map(float, row)) for row in iris_rows(300)]
    assert np.array([list(record["inputs"].values()) for record in records], np.float32).tolist() == wanted
    assert (counters.written, counters.handed("iris"), counters.dropped("closed")) == (300, 300, 2)


def test_of_a_run_that_is_larger_than_the_room_in_the_queue_the_first_rows_are_written(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    disk = StuckDisk()
    sampler = make(free=disk, max_queue_records=20)
    sampler.offer(linear_sample(iris_rows(1), prediction_id="first"))
    assert disk.entered.wait(20)
    sampler.offer(linear_sample(iris_rows(1), prediction_id="second"))
    sampler.offer_group(_group(30))
    sampler.offer_group(_group(3))
    assert counters.dropped("queue_full") == 11 + 3
    disk.released.set()
    eventually(lambda: counters.written == 21, "what was queued is written")
    sampler.offer_group(_group(20))  # there is room again for as many as before
    sampler.close(10)
    ids = [record["prediction_id"] for record in _records(tmp_path)]
    assert ids == ["first", "second", *(f"p{index}" for index in range(19)), *(f"p{index}" for index in range(20))]


def test_a_run_whose_rows_fit_no_signature_costs_its_neighbours_nothing(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    sampler = make()
    broken = _group(3)
    broken.places[1] = 7  # the run has no such row
    sampler.offer_group(broken)
    sampler.offer(linear_sample(iris_rows(1), prediction_id="right"))
    sampler.close(10)
    assert [record["prediction_id"] for record in _records(tmp_path)] == ["right"]
    assert counters.dropped("write_error") == 3


def test_texts_count_by_their_length_against_the_bytes_that_may_be_queued(
    make: Callable[..., Sampler], counters: Counters
) -> None:
    disk = StuckDisk()
    sampler = make(free=disk, max_queue_bytes=10_000)
    sampler.offer(linear_sample(iris_rows(1)))
    assert disk.entered.wait(20)
    signature = Signature((TensorSpec("text", "BYTES", (-1, 1)),), (TensorSpec("value", "FP32", (-1, 1)),))
    text = np.array([[b"x" * 4000]], dtype=object)
    for _ in range(10):
        sampler.offer(sample_of({"text": text}, {"value": np.zeros((1, 1), np.float32)}, signature, rows=1))
    assert counters.dropped("queue_full") == 8
    disk.released.set()


def test_close_does_not_wait_for_a_stuck_disk(make: Callable[..., Sampler], counters: Counters) -> None:
    disk = StuckDisk()
    sampler = make(free=disk)
    sampler.offer(linear_sample(iris_rows(1)))
    assert disk.entered.wait(20)
    sampler.close(0.05)
    sampler.offer(linear_sample(iris_rows(1)))
    assert counters.dropped("closed") == 1
    disk.released.set()


def test_below_the_floor_of_free_space_samples_are_dropped_until_there_is_room_again(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    free = [PLENTY]
    sampler = make(free=lambda _path: free[0], min_free_bytes=1000)
    sampler.offer(linear_sample(iris_rows(1), prediction_id="before"))
    eventually(lambda: counters.written == 1, "the first is written")
    free[0] = 999
    for _ in range(3):
        sampler.offer(linear_sample(iris_rows(2), prediction_id="lost"))
    eventually(lambda: counters.dropped("disk_full") == 3, "three predictions are counted as dropped")
    eventually(lambda: sampler.losses.trouble, "its status says so")
    assert sampler.losses.trouble.startswith("disk_full: ")
    assert "min_free_bytes" in sampler.losses.trouble
    free[0] = 1000
    sampler.offer(linear_sample(iris_rows(1), prediction_id="after"))
    sampler.close(10)
    assert [record["prediction_id"] for record in _records(tmp_path)] == ["before", "after"]
    assert sampler.losses.to_json() == {"lost": {"disk_full": 3, "write_error": 0}, "trouble": ""}


def test_the_free_space_that_is_looked_at_is_the_real_one(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    assert 0 < free_bytes(tmp_path) <= stat.f_blocks * stat.f_frsize


def test_a_really_full_disk_is_counted_and_writing_goes_on_by_itself_when_there_is_room(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    """Needs root: a file system of 128 KiB is mounted, filled by the sampler, then enlarged."""
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.getuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", small], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        sampler = make(root=small, free=free_bytes)
        decided: list[str] = []
        while not counters.dropped("disk_full"):
            decided.append(f"p{len(decided)}")
            sampler.offer(linear_sample(iris_rows(64), prediction_id=decided[-1]))
            eventually(
                lambda: counters.written // 64 + counters.dropped("disk_full") == len(decided), "written or dropped"
            )
        subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
        sampler.offer(linear_sample(iris_rows(1), prediction_id="after"))
        sampler.close(10)
        ids = [record["prediction_id"] for record in _records(small)]  # each line parses
        assert ids == [name for name in decided[:-1] for _row in range(64)] + ["after"]
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_log_directory_that_cannot_be_written_costs_samples_and_nothing_else(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    root = tmp_path / "log"
    root.write_text("a file where the directory should be")
    sampler = make(root=root)
    sampler.offer(linear_sample(iris_rows(1)))
    eventually(lambda: counters.dropped("write_error") == 1, "the sample is counted as dropped")
    root.unlink()
    sampler.offer(linear_sample(iris_rows(1), prediction_id="after"))
    eventually(lambda: counters.written == 1, "the next one is written")
    assert [record["prediction_id"] for record in _records(root)] == ["after"]


def test_a_sample_that_does_not_fit_its_signature_costs_its_neighbours_nothing(
    tmp_path: Path, make: Callable[..., Sampler], counters: Counters
) -> None:
    disk = StuckDisk()
    sampler = make(free=disk)
    sampler.offer(linear_sample(iris_rows(1), prediction_id="first"))
    assert disk.entered.wait(20)  # so that the next three are written together
    broken = linear_sample(iris_rows(3), prediction_id="broken")
    broken.rows = 7
    for sample in (linear_sample(iris_rows(1), prediction_id="left"), broken):
        sampler.offer(sample)
    sampler.offer(linear_sample(iris_rows(1), prediction_id="right"))
    disk.released.set()
    sampler.close(10)
    assert [record["prediction_id"] for record in _records(tmp_path)] == ["first", "left", "right"]
    assert counters.dropped("write_error") == 1
    assert sampler.losses.to_json()["lost"] == {"disk_full": 0, "write_error": 1}


def test_a_large_request_is_logged_in_part_and_says_so(tmp_path: Path, make: Callable[..., Sampler]) -> None:
    sampler = make(max_rows_per_request=5)
    sampler.offer(linear_sample(iris_rows(100)))
    sampler.close(10)
    records = _records(tmp_path)
    assert [(record["row"], record["rows"]) for record in records] == [(row, 100) for row in range(0, 100, 20)]


def test_segments_that_dead_processes_left_open_are_closed_at_start(
    tmp_path: Path, make: Callable[..., Sampler]
) -> None:
    folder = tmp_path / "model=iris" / "version=1" / "date=2026-03-01" / "hour=10"
    folder.mkdir(parents=True)
    (folder / f"b0-{os.getpid()}-000001.jsonl.open").write_bytes(b'{"ok":1}\n{"to')
    make()
    closed = folder / f"b0-{os.getpid()}-000001.jsonl"
    eventually(closed.exists, "the stale segment is closed")
    assert closed.read_bytes() == b'{"ok":1}\n'


def test_a_sampler_that_was_never_started_can_be_closed(tmp_path: Path, counters: Counters) -> None:
    sampler = Sampler(
        SamplingSettings(), tmp_path, boot="b1", metrics=counters.metrics, redaction_key=tmp_path / "redaction.key"
    )
    sampler.offer(linear_sample(iris_rows(1), ts_ns=TEN_O_CLOCK_NS))
    sampler.close(1)
