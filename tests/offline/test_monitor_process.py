"""The monitor as a process of its own: told to stop, orphaned, killed at any moment, and on real data."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.offline.report import DriftDocument
from gateway.offline.windows import load_memory
from gateway.samples.record import Sample
from gateway.settings import Settings, to_plain
from gateway.tensors import Feature, Signature, TensorSpec
from tests.builders import classifier, write_bare, write_package
from tests.live import eventually
from tests.offline.logs import Log, document, monitor_settings, write_reference_package
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample, sample_of

_MONITOR = """
import json, sys
from pathlib import Path
from gateway.offline.process import run_monitor
from gateway.settings import from_plain

def say(word):
    print(word, flush=True)

settings, lifeline_fd = from_plain(json.loads(sys.argv[1])), int(sys.argv[2])
run_monitor(settings, boot="b1", run_dir=Path("."), report=say, lifeline_fd=lifeline_fd)
"""


class MonitorProcess:
    """A monitor that runs; it ends when its lifeline is cut, when it is told to, or when it is killed."""

    def __init__(self, settings: Settings, metrics_dir: Path) -> None:
        metrics_dir.mkdir(exist_ok=True)
        lifeline_fd, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MONITOR, json.dumps(to_plain(settings)), str(lifeline_fd)],
            pass_fds=[lifeline_fd],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)},
        )
        os.close(lifeline_fd)

    def next_word(self) -> str:
        """What it reports next; waits for it."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self._process.send_signal(number)
        return self._ended()

    def cut_lifeline(self) -> int:
        """Let the supervisor die; returns the exit code."""
        os.close(self._lifeline)
        self._lifeline = -1
        return self._ended()

    def _ended(self) -> int:
        code = self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        return code

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None


Start = Callable[[Settings], MonitorProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts monitors, waits until they are ready, and kills what is left in the end."""
    started: list[MonitorProcess] = []

    def begin(settings: Settings) -> MonitorProcess:
        started.append(MonitorProcess(settings, tmp_path / "metrics"))
        assert started[-1].next_word() == "ready"
        return started[-1]

    yield begin
    for process in started:
        if process.is_running:
            process.send(signal.SIGKILL)


def _seen(settings: Settings, model: str, rows: int) -> Callable[[], DriftDocument | None]:
    """A check for the report that has counted so many rows of version 1."""

    def look() -> DriftDocument | None:
        found = document(settings, model)
        return found if found.versions[0].rows_total >= rows else None

    return look


def _samples(start_row: int, rows: int) -> list[Sample]:
    return [
        linear_sample(row[np.newaxis], prediction_id=f"p{index:06d}", ts_ns=TEN_O_CLOCK_NS + index * 10**6)
        for index, row in enumerate(iris_rows(rows, start_row), start_row)
    ]


def test_it_beats_and_ends_cleanly_when_it_is_told_to(models: Path, state: Path, start: Start) -> None:
    settings = monitor_settings(models, state)
    process = start(settings)
    assert (process.next_word(), process.next_word()) == ("beat", "beat")
    assert process.send(signal.SIGTERM) == 0


def test_it_ends_at_once_when_its_supervisor_is_gone_and_the_next_one_counts_each_row_once(
    models: Path, state: Path, start: Start
) -> None:
    settings = monitor_settings(models, state)
    write_bare(models, classifier())
    process = start(settings)
    log = Log(settings)
    log.write(*_samples(0, 40))
    eventually(_seen(settings, "iris", 40), "the rows are counted")
    log.write(*_samples(40, 10))  # the last words of a worker
    assert process.cut_lifeline() == 0
    process = start(settings)
    eventually(_seen(settings, "iris", 50), "the last words are counted too")
    assert process.send(signal.SIGTERM) == 0
    assert document(settings, "iris").versions[0].rows_total == 50
    memory = load_memory(settings.monitor_path / "memory.json", limit_rows=1000)
    assert memory.windows["iris", "1"].rows_total == 50


def test_a_disk_that_takes_no_report_stops_nothing_and_the_report_comes_when_it_does(
    models: Path, state: Path, start: Start
) -> None:
    settings = monitor_settings(models, state)
    write_bare(models, classifier())
    state.mkdir()
    settings.drift_path.write_text("a file where the directory should be")
    process = start(settings)
    Log(settings).write(*_samples(0, 50))
    assert (process.next_word(), process.next_word()) == ("beat", "beat")
    settings.drift_path.unlink()
    eventually(_seen(settings, "iris", 50), "the report is written")
    assert process.send(signal.SIGTERM) == 0


def test_killed_at_any_moment_it_neither_loses_nor_repeats_a_row(models: Path, state: Path, start: Start) -> None:
    """Rows come in all the time, from two workers that close segments as they go; the monitor is killed again and
    again. In the end it has counted each row once, and its window is the truth."""
    rng = random.Random(1)
    settings = monitor_settings(models, state, window_rows=400, poll_s=0.01)
    write_package(models, classifier(), reference_rows=500)
    workers = [Log(settings, boot=f"w{index}", max_bytes=30_000) for index in range(2)]
    written = 0

    def write(rows: int) -> None:
        nonlocal written
        for sample in _samples(written, rows):
            rng.choice(workers).write(sample)
        written += rows

    for _kill in range(3):
        process = start(settings)
        write(rng.randrange(1, 200))
        # At least this much was read in this life; how much more, and how much of it was saved, is left to chance.
        eventually(_seen(settings, "iris", written), "the rows so far are counted")
        write(rng.randrange(1, 400))
        for _ in range(rng.randrange(3)):
            write(rng.randrange(1, 50))
        assert process.send(signal.SIGKILL) == -signal.SIGKILL
        write(rng.randrange(1, 100))
    process = start(settings)
    found = eventually(_seen(settings, "iris", written), "all rows are counted")
    assert process.send(signal.SIGTERM) == 0
    memory = load_memory(settings.monitor_path / "memory.json", limit_rows=400)
    window = memory.windows["iris", "1"]
    assert found.versions[0].rows_total == window.rows_total == written
    assert [row[1] for row in window.rows()] == [f"p{index:06d}" for index in range(written - 400, written)]


def test_killed_at_any_moment_each_hour_of_the_history_has_each_of_its_rows_once(
    models: Path, state: Path, start: Start
) -> None:
    """Rows of the last five hours, of which four are kept as hours, come in any order while the monitor is killed."""
    rng = random.Random(2)
    settings = monitor_settings(models, state, window_rows=200, poll_s=0.01, history_hours=4, history_days=3)
    write_package(models, classifier(), reference_rows=500)
    workers = [Log(settings, boot=f"w{index}", max_bytes=30_000) for index in range(2)]
    began_hour = time.time_ns() // (3600 * 10**9) - 5
    written: Counter[int] = Counter()

    def write(rows: int) -> None:
        for table in iris_rows(rows, rng.randrange(1000)):
            hour = began_hour + rng.randrange(6)
            name, ts_ns = f"p{written.total():06d}", (hour * 3600 + rng.randrange(3600)) * 10**9
            rng.choice(workers).write(linear_sample(table[np.newaxis], prediction_id=name, ts_ns=ts_ns))
            written[hour] += 1

    for _kill in range(2):
        process = start(settings)
        write(rng.randrange(100, 300))
        eventually(_seen(settings, "iris", written.total()), "the rows so far are counted")
        write(rng.randrange(1, 400))
        assert process.send(signal.SIGKILL) == -signal.SIGKILL
        write(rng.randrange(1, 100))
    process = start(settings)
    found = eventually(_seen(settings, "iris", written.total()), "all rows are counted").versions[0].courses
    assert process.send(signal.SIGTERM) == 0
    assert found is not None
    assert sum(day.rows for day in found.days) == written.total()
    hours = {hour.from_s // 3600: hour.rows for hour in found.hours}
    # Where an hour ended while this ran, one hour less is kept.
    assert len(hours) >= 3
    assert hours == {hour: written[hour] for hour in hours}
    assert (found.too_late_rows, found.ahead_rows) == (0, 0)


def test_drift_of_real_measurements_is_found_and_the_untouched_half_of_them_is_not(
    models: Path, state: Path, start: Start
) -> None:
    """Breast cancer measurements from scikit-learn; a clinic whose new microscope measures radii 25 % too large."""
    from sklearn.datasets import load_breast_cancer

    cancer = load_breast_cancer()
    names = [str(name) for name in cancer.feature_names]
    order = np.random.default_rng(0).permutation(len(cancer.data))
    reference, current = cancer.data[order[:300]], cancer.data[order[300:]]
    signature = Signature(
        inputs=(TensorSpec("input", "FP32", (-1, 30)),),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"),),
        features=tuple(Feature(name, "input", column) for column, name in enumerate(names)),
    )
    columns = {name: reference[:, index] for index, name in enumerate(names)}
    label = {"label": cancer.target[order[:300]]}
    for model in ("clean", "shifted"):
        write_reference_package(models, model, "1", signature, {**columns, **label})
    shifted = current.copy()
    touched = {"mean radius", "worst radius"}
    for name in touched:
        shifted[:, names.index(name)] *= 1.25
    settings = monitor_settings(models, state)
    log = Log(settings)
    for model, rows in (("clean", current), ("shifted", shifted)):
        tensors = {"input": rows.astype(np.float32)}
        outputs = {"label": cancer.target[order[300:]]}
        log.write(sample_of(tensors, outputs, signature, rows=len(rows), model=model))

    start(settings)
    clean = eventually(_seen(settings, "clean", len(current)), "clean rows are compared").versions[0]
    found = eventually(_seen(settings, "shifted", len(current)), "shifted rows are compared").versions[0]
    assert (clean.status, clean.drifted) == ("stable", ())
    assert {column.name for column in found.drifted} == touched
