"""How fast, and with how much memory, the sample log is read, made Parquet, read again, and followed by the monitor.

Writes a made-up log by the code that serving and compactor use, and does each step in a process of its own, so that
its memory is its own. One thread each, but for DuckDB's query.
"""

from __future__ import annotations

import argparse
import cProfile
import datetime
import multiprocessing
import platform
import pstats
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import orjson
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).parents[1]))

from made_log import MODEL, START_NS, VERSION, write_package, write_parts, write_segments

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline import memory
from gateway.offline.batches import batches
from gateway.offline.compactor import Compactor
from gateway.offline.hours import Bounds
from gateway.offline.monitor import Monitor
from gateway.offline.parts import Parts
from gateway.offline.past_hours import PastHours
from gateway.offline.reference import load_reference
from gateway.samples.search import Selection, select
from gateway.samples.segments import SegmentReader
from gateway.settings import MonitorSettings, PathSettings, SamplingSettings, Settings

_STEP_BYTES = 4 * 1024 * 1024
# How often a monitor reports and saves: gateway/offline/process.py.
_REPORT_S, _SAVE_S, _REST = 1.0, 5.0, 10


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took for *rows* rows: seconds on the clock and of processor time, most memory at once."""

    rows: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


def _blocks(reader: SegmentReader) -> Iterator[bytes]:
    """All blocks of lines, as large as the monitor takes them."""
    while blocks := list(reader.read(_STEP_BYTES)):
        if not any(block for _file, block in blocks):
            return
        yield from (block for _file, block in blocks)


def read_lines(state: Path) -> int:
    """Follow the segments and decode each line, and nothing else."""
    reader = SegmentReader(state / "samples")
    return sum(sum(bool(orjson.loads(line)) for line in block.splitlines()) for block in _blocks(reader))


def compact(state: Path) -> int:
    """Make Parquet of all segments."""
    root = state / "samples"
    reader = SegmentReader(root)
    for _block in _blocks(reader):
        pass
    compactor, rows = Compactor(root, root, after_s=0.0), 0
    while done := compactor.step(reader.watermark, lambda: True):
        rows += done.rows
    return rows


def read_columns(state: Path) -> int:
    """All columns of all Parquet files, by pyarrow."""
    rows = 0
    for path in state.rglob("*.parquet"):
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(use_threads=False):
            rows += batch.num_rows
    return rows


def read_records(state: Path) -> int:
    """Each row of the Parquet files as the line that it was, as ``samples export`` to JSON Lines does."""
    return sum(1 for _row in select(state / "samples", Selection(), Parts()))


def ask(state: Path) -> int:
    """The mean of each feature by DuckDB."""
    import duckdb  # here, or its memory would be counted as the monitor's

    files = [str(path) for path in state.rglob("*.parquet")]
    names = pyarrow.parquet.read_schema(files[0]).names
    means = ", ".join(f'avg("{name}")' for name in names if name.startswith("inputs."))
    found = duckdb.execute(f"select count(*), {means} from read_parquet(?)", [files]).fetchone()  # noqa: S608  # our own names
    assert found is not None
    return int(found[0])


def follow(state: Path) -> int:
    """Follow all there is with a new monitor, as the monitor's process does: it reports and saves as often."""
    memory.keep_small()
    settings = Settings(
        paths=PathSettings(state.parent / "models", state),
        monitor=MonitorSettings(compact_after_s=0),
        sampling=SamplingSettings(keep_s=0, max_log_bytes=0),
    )
    monitor = Monitor(settings, MonitorMetrics(process_registry()), clock=lambda: START_NS / 1e9 + 7 * 86_400)
    # By processor time, as if the core were its own: what else this machine does must not change how much is reported.
    now_s = time.thread_time()
    due_s = {monitor.report: now_s + _REPORT_S, monitor.save: now_s + _SAVE_S}
    every_s = {monitor.report: _REPORT_S, monitor.save: _SAVE_S}
    while monitor.step():
        for duty, at_s in due_s.items():
            now_s = time.thread_time()
            if now_s >= at_s:
                duty()
                ended_s = time.thread_time()
                due_s[duty] = ended_s + max(every_s[duty], _REST * (ended_s - now_s))
    monitor.report()
    monitor.save()
    (document,) = (orjson.loads(path.read_bytes()) for path in settings.drift_path.glob("*.json"))
    (version,) = document["versions"]
    assert version["status"] != "no reference", version["reason"]
    assert version["timeline"], "not one window was finished"
    return int(version["rows_total"])


def sketch_hours(state: Path) -> float:
    """Seconds of processor time per row that the history of columns by hour takes, beside reading them.

    All but reports; the rows are in the last hour, and in chunks as the monitor takes them.
    """
    began_s = START_NS / 1e9
    history = PastHours(state / "history", Bounds(48, 60), 2**40, clock=lambda: began_s, dice=random.Random(0))
    shape, rows_taken, spent_s = load_reference(state.parent / "models" / MODEL / VERSION).shape, 0, 0.0
    for path in sorted(state.rglob("*.parquet")):
        for batch in batches(path):
            for chunk in batch.taken.chunks:
                rows = chunk.rows(shape)
                spent_s -= time.thread_time()
                history.take(chunk, rows)
                spent_s += time.thread_time()
                rows_taken += len(rows)
    spent_s -= time.thread_time()
    history.save()
    return (spent_s + time.thread_time()) / rows_taken


def _lines(state: Path, rows: int, features: int) -> int:
    return write_segments(state / "samples", rows, features)


def _lines_and_labels(state: Path, rows: int, features: int) -> int:
    return write_segments(state / "samples", rows, features, labels=True)


def _parts(state: Path, rows: int, features: int) -> int:
    return write_parts(state / "samples", rows, features)


@dataclass(frozen=True, slots=True)
class Step:
    """log: what it needs, by name; of the steps on one log, "compaction" comes before what reads Parquet."""

    log: str
    run: Callable[[Path], int]


LOGS: dict[str, Callable[[Path, int, int], int]] = {"lines": _lines, "labels": _lines_and_labels, "parts": _parts}
STEPS = {
    "JSON Lines, read and decoded": Step("lines", read_lines),
    "JSON Lines, followed by the monitor": Step("lines", follow),
    "the same with labels for a tenth": Step("labels", follow),
    "compaction": Step("lines", compact),
    "Parquet, all columns (pyarrow)": Step("parts", read_columns),
    "Parquet, followed by the monitor": Step("parts", follow),
    "Parquet, rows as lines (select)": Step("parts", read_records),
    "Parquet, mean of each feature (DuckDB)": Step("parts", ask),
}


def _measured(run: Callable[[Path], int], state: Path, back: Connection) -> None:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    rows = run(state)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    back.send(Cost(rows, wall_s, cpu_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure(run: Callable[[Path], int], state: Path) -> Cost:
    """Do it in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measured, args=(run, state, there))
    process.start()
    there.close()
    cost: Cost = here.recv()
    process.join()
    return cost


def _profile(run: Callable[[Path], int], state: Path) -> None:
    profile = cProfile.Profile()
    profile.runcall(run, state)
    pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--only", default="", metavar="TEXT", help="the steps whose name has this in it")
    parser.add_argument("--profile", action="store_true", help="of each step, in this process, instead of its cost")
    options = parser.parse_args(arguments)
    steps = {name: step for name, step in STEPS.items() if options.only.lower() in name.lower()}
    with tempfile.TemporaryDirectory(prefix="sluicegate-benchmark-") as folder:
        write_package(Path(folder) / "models", options.features)
        sizes = {
            log: LOGS[log](Path(folder) / log, options.rows, options.features)
            for log in dict.fromkeys(step.log for step in steps.values())
        }
        today, machine = datetime.date.today(), platform.processor() or platform.machine()
        print(f"{options.rows} rows of {options.features} features, {today}, {machine}")
        print("".join(f"{log}: {size / options.rows:.0f} bytes per row. " for log, size in sizes.items()))
        print(f"{'':40}{'rows/s':>10}{'rows/cpu s':>12}{'peak MB':>10}")
        for name, step in steps.items():
            if options.profile:
                print(name)
                _profile(step.run, Path(folder) / step.log)
                continue
            cost = measure(step.run, Path(folder) / step.log)
            assert cost.rows == options.rows, f"{name}: {cost.rows} rows of {options.rows}"
            speeds = f"{cost.rows / cost.wall_s:>10,.0f}{cost.rows / cost.cpu_s:>12,.0f}"
            print(f"{name:40}{speeds}{cost.peak_bytes / 1e6:>10.0f}", flush=True)
        if (Path(folder) / "parts").is_dir():
            print(f"history of columns by hour: {1e6 * sketch_hours(Path(folder) / 'parts'):.2f} us a row")


if __name__ == "__main__":
    main()
