"""How fast, and with how much memory, the sample log is read, made Parquet, and read again.

Writes segments of a made-up model by the code that serving uses, and does each step in a process of its own, so that
its memory is its own. One thread each, but for DuckDB's query.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import duckdb
import numpy as np
import orjson
import pyarrow.parquet

from gateway.offline.compactor import Compactor
from gateway.offline.parts import Parts
from gateway.samples.lines import LineBuilder
from gateway.samples.record import Sample
from gateway.samples.search import Selection, select
from gateway.samples.segments import SegmentReader, SegmentWriter
from gateway.tensors import Feature, Signature, TensorSpec

# 2026-03-01 10:00:00 UTC
_START_NS = 1_772_359_200 * 10**9
_ROWS_PER_REQUEST = 10
_STEP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took for *rows* rows: seconds on the clock and of processor time, most memory at once."""

    rows: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


def write(root: Path, rows: int, features: int) -> int:
    """A log of *rows* rows in closed segments of 16 MiB; returns its bytes."""
    signature = Signature(
        inputs=(TensorSpec("input", "FP32", (-1, features)),),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"), TensorSpec("probabilities", "FP32", (-1, 2))),
        features=tuple(Feature(f"feature_{index}", "input", index) for index in range(features)),
    )
    writer = SegmentWriter(root, "benchmark", max_bytes=16 * 1024 * 1024, max_age_s=3600.0)
    builder, rng = LineBuilder(_ROWS_PER_REQUEST), np.random.default_rng(0)
    for request in range(rows // _ROWS_PER_REQUEST):
        ts_ns = _START_NS + request * 10**6
        sample = Sample(
            *(f"{rng.bytes(16).hex()}", "", ts_ns, "synthetic", "1", "0" * 64, "stable", 1, "STATIC", 1.0, "random"),
            inputs={"input": rng.normal(size=(_ROWS_PER_REQUEST, features)).astype(np.float32)},
            outputs={
                "label": rng.integers(0, 2, _ROWS_PER_REQUEST),
                "probabilities": rng.random((_ROWS_PER_REQUEST, 2)).astype(np.float32),
            },
            signature=signature,
            rows=_ROWS_PER_REQUEST,
            queue_s=0.0,
            run_s=2e-5,
            batch_rows=_ROWS_PER_REQUEST,
            cache="miss",
            protocol="native",
        )
        writer.write("synthetic", "1", ts_ns, b"".join(builder.lines(sample)))
    writer.close()
    return sum(path.stat().st_size for path in root.rglob("*.jsonl"))


def _blocks(reader: SegmentReader) -> Iterator[bytes]:
    """All blocks of lines, as large as the monitor takes them."""
    while blocks := list(reader.read(_STEP_BYTES)):
        if not any(block for _file, block in blocks):
            return
        yield from (block for _file, block in blocks)


def read_lines(root: Path) -> int:
    """Follow the segments and decode each line, as the monitor does."""
    return sum(sum(bool(orjson.loads(line)) for line in block.splitlines()) for block in _blocks(SegmentReader(root)))


def compact(root: Path) -> int:
    """Make Parquet of all segments."""
    reader = SegmentReader(root)
    for _block in _blocks(reader):
        pass
    compactor, rows = Compactor(root, root, after_s=0.0), 0
    while done := compactor.step(reader.watermark, lambda: True):
        rows += done.rows
    return rows


def read_columns(root: Path) -> int:
    """All columns of all Parquet files, by pyarrow."""
    rows = 0
    for path in root.rglob("*.parquet"):
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(use_threads=False):
            rows += batch.num_rows
    return rows


def read_records(root: Path) -> int:
    """Each row of the Parquet files as the line that it was, as ``samples export`` to JSON Lines does."""
    return sum(1 for _row in select(root, Selection(), Parts()))


def ask(root: Path) -> int:
    """The mean of each feature by DuckDB."""
    files = [str(path) for path in root.rglob("*.parquet")]
    names = pyarrow.parquet.read_schema(files[0]).names
    means = ", ".join(f'avg("{name}")' for name in names if name.startswith("inputs."))
    found = duckdb.execute(f"select count(*), {means} from read_parquet(?)", [files]).fetchone()  # noqa: S608
    assert found is not None
    return int(found[0])


STEPS: dict[str, Callable[[Path], int]] = {
    "JSON Lines, read and decoded": read_lines,
    "compaction": compact,
    "Parquet, all columns (pyarrow)": read_columns,
    "Parquet, rows as lines (select)": read_records,
    "Parquet, mean of each feature (DuckDB)": ask,
}


def _measured(step: Callable[[Path], int], root: Path, back: Connection) -> None:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    rows = step(root)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    back.send(Cost(rows, wall_s, cpu_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure(step: Callable[[Path], int], root: Path) -> Cost:
    """Do *step* in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measured, args=(step, root, there))
    process.start()
    there.close()
    cost: Cost = here.recv()
    process.join()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sluicegate-benchmark-") as folder:
        root = Path(folder)
        line_bytes = write(root, options.rows, options.features)
        print(f"{options.rows} rows of {options.features} features, {platform.processor() or platform.machine()}")
        print(f"{'':40}{'rows/s':>10}{'rows/cpu s':>12}{'peak MB':>10}")
        for name, step in STEPS.items():
            cost = measure(step, root)
            assert cost.rows == options.rows, f"{name}: {cost.rows} rows of {options.rows}"
            speeds = f"{cost.rows / cost.wall_s:>10,.0f}{cost.rows / cost.cpu_s:>12,.0f}"
            print(f"{name:40}{speeds}{cost.peak_bytes / 1e6:>10.0f}")
        parquet_bytes = sum(path.stat().st_size for path in root.rglob("*.parquet"))
        print(f"bytes per row: {line_bytes / options.rows:.0f} as lines, {parquet_bytes / options.rows:.0f} as Parquet")


if __name__ == "__main__":
    main()
