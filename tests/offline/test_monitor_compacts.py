"""The monitor and its compactor together: no row is missed or counted twice, whatever becomes of its segment."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.metric_files import render
from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline.monitor import Monitor
from gateway.offline.parts import Parts
from gateway.offline.windows import load_memory
from gateway.samples.labels import Label, LabelLog
from gateway.samples.record import Sample
from gateway.samples.search import Selection, select
from gateway.settings import Settings
from tests.builders import classifier, write_package
from tests.live import eventually
from tests.offline.logs import Log, document, monitor_settings
from tests.offline.test_monitor_process import MonitorProcess, Start, start
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample

__all__ = ["start"]  # the fixture


def _samples(start_row: int, rows: int) -> list[Sample]:
    return [
        linear_sample(row[np.newaxis], prediction_id=f"p{index:06d}", ts_ns=TEN_O_CLOCK_NS + index * 10**6)
        for index, row in enumerate(iris_rows(rows, start_row), start_row)
    ]


def _begin_labels(settings: Settings) -> None:
    """The first label of all, of a row that is not there: from now on rows are followed for their labels, too."""
    labels = LabelLog(settings.sample_log_path, boot="w", max_bytes=3000, max_age_s=3600)
    labels.append([Label("none", 1, TEN_O_CLOCK_NS).to_line()], TEN_O_CLOCK_NS)


def _age(settings: Settings, by_s: float) -> None:
    """All segments were last written so long ago."""
    for path in settings.sample_log_path.rglob("*.jsonl"):
        os.utime(path, (time.time() - by_s,) * 2)


def _always() -> bool:
    return True


def _monitor(settings: Settings) -> Monitor:
    return Monitor(settings, MonitorMetrics(process_registry()), clock=FakeClock(TEN_O_CLOCK_NS / 1e9))


def _read_all(monitor: Monitor) -> None:
    while monitor.step():
        pass
    monitor.report()
    monitor.save()


def _ids(settings: Settings) -> Counter[str]:
    return Counter(record["prediction_id"] for record, _line in select(settings.sample_log_path, Selection(), Parts()))


@pytest.fixture
def settings(models: Path, state: Path) -> Settings:
    write_package(models, classifier(), reference_rows=500)
    return monitor_settings(models, state, window_rows=50, min_window_rows=10, compact_after_s=1e-6)


def test_only_what_is_saved_is_compacted(settings: Settings) -> None:
    log = Log(settings, max_bytes=3000)
    log.write(*_samples(0, 40))
    log.close()
    _age(settings, 2 * settings.labels.wait_s)
    monitor = _monitor(settings)
    while monitor.step():
        pass
    monitor.compact(_always)
    assert not list(settings.sample_log_path.rglob("*.parquet"))
    monitor.save()
    monitor.compact(_always)
    assert not list(settings.sample_log_path.rglob("*.jsonl"))
    assert _ids(settings) == Counter(f"p{index:06d}" for index in range(40))


def test_rows_stay_in_segments_until_the_labels_have_them(settings: Settings) -> None:
    """The first label comes after its row was read for drift, but before it may be late: the row must be found."""
    log = Log(settings, max_bytes=3000)
    log.write(*_samples(0, 40))
    log.close()
    monitor = _monitor(settings)
    _read_all(monitor)
    _age(settings, settings.labels.wait_s - 60)
    monitor.compact(_always)
    assert not list(settings.sample_log_path.rglob("*.parquet"))
    labels = LabelLog(settings.sample_log_path, boot="w", max_bytes=3000, max_age_s=3600)
    labels.append([Label("p000007", 1, TEN_O_CLOCK_NS + 10**9).to_line()], TEN_O_CLOCK_NS + 10**9)
    monitor.step()
    monitor.compact(_always)
    assert not list(settings.sample_log_path.rglob("*.parquet"))  # read, but not for good
    _read_all(monitor)
    monitor.compact(_always)
    assert list(settings.sample_log_path.rglob("*.parquet"))
    found = document(settings, "iris").performance
    assert found is not None
    assert found["labels"]["matched"] == 1


def test_a_monitor_that_starts_again_does_not_count_compacted_rows_again(settings: Settings) -> None:
    for start_row in (0, 30):
        log = Log(settings, boot=f"b{start_row}", max_bytes=3000)
        log.write(*_samples(start_row, 30))
        log.close()
        _age(settings, 2 * settings.labels.wait_s)
        monitor = _monitor(settings)
        _read_all(monitor)
        monitor.compact(_always)
        assert list(settings.sample_log_path.rglob("*.parquet"))
        monitor.tidy()
        monitor.save()
    _read_all(_monitor(settings))
    monitor = _monitor(settings)
    _read_all(monitor)
    assert document(settings, "iris").versions[0].rows_total == 60


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_monitor_that_lost_its_memory_finds_the_same_rows_again(settings: Settings, left_behind: bool) -> None:
    """left_behind: a compactor was killed before it removed the segments."""
    log = Log(settings, max_bytes=3000)
    log.write(*_samples(0, 60))
    log.close()
    _age(settings, 2 * settings.labels.wait_s)
    before = _monitor(settings)
    _read_all(before)
    kept = {path: path.read_bytes() for path in settings.sample_log_path.rglob("*.jsonl")}
    before.compact(_always)
    if left_behind:
        for path, content in kept.items():
            path.write_bytes(content)
    log = Log(settings, boot="b2")
    log.write(*_samples(60, 25))
    wanted = load_memory(settings.monitor_path / "memory.json", limit_rows=50).windows["iris", "1"].rows_total
    assert wanted == 60
    (settings.monitor_path / "memory.json").unlink()
    for _life in range(2):
        _read_all(_monitor(settings))
        memory = load_memory(settings.monitor_path / "memory.json", limit_rows=50)
        window = memory.windows["iris", "1"]
        assert window.rows_total == 85
        assert [row[1] for row in window.rows()] == [f"p{index:06d}" for index in range(35, 85)]
        assert not [name for name in memory.watermark.offsets if name.endswith(".parquet")]
    log.close()


def test_compaction_can_be_switched_off(models: Path, state: Path) -> None:
    settings = monitor_settings(models, state, compact_after_s=0)
    log = Log(settings)
    log.write(*_samples(0, 10))
    log.close()
    monitor = _monitor(settings)
    _read_all(monitor)
    monitor.compact(_always)
    assert len(list(settings.sample_log_path.rglob("*.jsonl"))) == 1


def _counted(settings: Settings, rows: int) -> Callable[[], bool]:
    return lambda: document(settings, "iris").versions[0].rows_total >= rows


def _compacted(settings: Settings) -> bool:
    """Whether every closed segment has become Parquet."""
    root = settings.sample_log_path
    return bool(list(root.rglob("*.parquet"))) and not list(root.rglob("*.jsonl"))


def test_a_process_killed_while_it_compacts_misses_and_repeats_nothing(
    settings: Settings, tmp_path: Path, start: Start
) -> None:
    """Two workers write, segments are closed and compacted all the time, the monitor is killed ten times."""
    rng = random.Random(2)
    workers = [Log(settings, boot=f"w{index}", max_bytes=6_000) for index in range(2)]
    written = 0
    _begin_labels(settings)

    def write(rows: int) -> None:
        nonlocal written
        for sample in _samples(written, rows):
            rng.choice(workers).write(sample)
        written += rows

    for _kill in range(10):
        write(rng.randrange(1, 120))
        process: MonitorProcess = start(settings)
        eventually(_counted(settings, written), "the rows so far are counted")
        write(rng.randrange(1, 60))
        for _beat in range(rng.randrange(2)):
            process.next_word()
        assert process.send(signal.SIGKILL) == -signal.SIGKILL
        assert _ids(settings) == Counter(f"p{index:06d}" for index in range(written))
    for worker in workers:
        worker.close()
    process = start(settings)
    eventually(lambda: _compacted(settings), "all segments become Parquet")
    eventually(_counted(settings, written), "all rows are counted")
    assert process.send(signal.SIGTERM) == 0
    window = load_memory(settings.monitor_path / "memory.json", limit_rows=50).windows["iris", "1"]
    assert window.rows_total == written
    assert [row[1] for row in window.rows()] == [f"p{index:06d}" for index in range(written - 50, written)]
    assert _ids(settings) == Counter(f"p{index:06d}" for index in range(written))
    assert b"sluicegate_compacted_rows_total" in render(tmp_path / "metrics")
