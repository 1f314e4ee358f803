"""A sample log of a made-up model, as long as one likes: in segments, or straight in the Parquet files they become."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE, Manifest, sha256_of
from gateway.offline.columns import kinds_of, read_lines, schema_of, table_of, values_by_name
from gateway.offline.parts import footer, part_path
from gateway.samples.labels import Label, LabelLog
from gateway.samples.lines import LineBuilder
from gateway.samples.record import Sample
from gateway.samples.segments import SegmentWriter, partition_of
from gateway.tensors import Feature, Signature, TensorSpec

MODEL, VERSION = "synthetic", "1"
# 2026-03-01 10:00:00 UTC
START_NS = 1_772_359_200 * 10**9
_ROWS_PER_REQUEST = 10
_REQUEST_NS = 10**6
_REFERENCE_ROWS = 5000
# Rows of a part, about 64 MiB, and of a row group: as the compactor makes them.
_PART_ROWS, _GROUP_ROWS = 327_600, 32_760


def signature_of(features: int) -> Signature:
    return Signature(
        inputs=(TensorSpec("input", "FP32", (-1, features)),),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"), TensorSpec("probabilities", "FP32", (-1, 2))),
        features=tuple(Feature(f"feature_{index}", "input", index) for index in range(features)),
        classes=(0, 1),
    )


def write_package(models: Path, features: int) -> None:
    """A package with a reference of 5,000 rows that look like those of the log; its model is none."""
    folder = models / MODEL / VERSION
    folder.mkdir(parents=True)
    rng, names = np.random.default_rng(1), [f"feature_{index}" for index in range(features)]
    columns: dict[str, Any] = {name: rng.normal(size=_REFERENCE_ROWS) for name in names}
    columns |= {"label": rng.integers(0, 2, _REFERENCE_ROWS)}
    columns |= {f"probabilities.{index}": rng.random(_REFERENCE_ROWS) for index in range(2)}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / REFERENCE_FILE)
    (folder / MODEL_FILE).write_bytes(b"not read")
    files = {name: sha256_of(folder / name) for name in (MODEL_FILE, REFERENCE_FILE)}
    (folder / MANIFEST_FILE).write_bytes(Manifest(MODEL, VERSION, files, signature_of(features)).to_json())


def _samples(rows: int, features: int) -> Iterator[Sample]:
    """Requests of ten rows, one each millisecond."""
    signature, rng = signature_of(features), np.random.default_rng(0)
    for request in range(rows // _ROWS_PER_REQUEST):
        ts_ns = START_NS + request * _REQUEST_NS
        yield Sample(
            *(f"{rng.bytes(16).hex()}", "", ts_ns, MODEL, VERSION, "0" * 64, "stable", 1, "STATIC", 1.0, "random"),
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


def write_segments(root: Path, rows: int, features: int, *, labels: bool = False) -> int:
    """A log of *rows* rows in closed segments of 16 MiB; returns its bytes. labels: one for each tenth row, too."""
    writer = SegmentWriter(root, "benchmark", max_bytes=16 * 1024 * 1024, max_age_s=3600.0)
    truths = LabelLog(root, boot="benchmark", max_bytes=16 * 1024 * 1024, max_age_s=3600.0)
    builder = LineBuilder(_ROWS_PER_REQUEST)
    for sample in _samples(rows, features):
        writer.write(MODEL, VERSION, sample.ts_ns, b"".join(builder.lines(sample)))
        if labels:
            arrived_ns = sample.ts_ns + 10**9
            truths.append([Label(sample.prediction_id, 1, arrived_ns, row=0).to_line()], arrived_ns)
    writer.close()
    truths.close()
    return sum(path.stat().st_size for path in root.glob("model=*/**/*.jsonl"))


def write_parts(root: Path, rows: int, features: int) -> int:
    """The same kind of log as the compactor leaves it, without a segment on the way; returns its bytes."""
    first = b"".join(b"".join(LineBuilder(10).lines(sample)) for sample in _samples(_GROUP_ROWS, features))
    records, _rejected = read_lines(first.splitlines(), MODEL, VERSION)
    values = values_by_name(records)
    kinds = kinds_of(values)
    pattern, schema, rng = table_of(values, kinds), schema_of(kinds), np.random.default_rng(0)
    folder = root / partition_of(MODEL, VERSION, START_NS)
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, _PART_ROWS), 1):
        end = min(rows, start + _PART_ROWS)
        with pyarrow.parquet.ParquetWriter(part_path(folder, number), schema, compression="zstd") as writer:
            for group in range(start, end, _GROUP_ROWS):
                table = _renewed(pattern.slice(0, min(_GROUP_ROWS, end - group)), group, rng)
                writer.write_table(table, row_group_size=_GROUP_ROWS)
            writer.add_key_value_metadata(footer({f"benchmark-1-{number:06d}.jsonl": end - start}))
    return sum(path.stat().st_size for path in root.rglob("*.parquet"))


def _renewed(table: Any, first_row: int, rng: np.random.Generator) -> Any:
    """*table* with other times, ids and values, as random as the ones before."""
    rows = table.num_rows
    requests = -(-rows // _ROWS_PER_REQUEST)
    digits = rng.bytes(16 * requests).hex()
    ids = [digits[32 * (row // _ROWS_PER_REQUEST) :][:32] for row in range(rows)]
    ts_ns = START_NS + (first_row + np.arange(rows)) // _ROWS_PER_REQUEST * _REQUEST_NS
    columns = []
    for field in table.schema:
        if field.name == "prediction_id":
            columns.append(pyarrow.array(ids))
        elif field.name in ("ts_ns", "ts"):
            times = pyarrow.array(ts_ns if field.name == "ts_ns" else ts_ns // 1000)
            columns.append(times.cast(field.type))
        elif field.name.startswith("inputs."):
            # What was logged with 32 bits is the shortest decimal of that value.
            columns.append(pyarrow.array(np.round(rng.normal(size=rows), 7)))
        else:
            columns.append(table[field.name])
    return pyarrow.table(columns, schema=table.schema)
