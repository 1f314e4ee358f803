"""The compacted log, read by other tools in the very lines that the docs give them."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pytest

from gateway.offline.compactor import Compactor
from gateway.samples.labels import Label, LabelLog
from gateway.samples.lines import to_lines
from gateway.samples.segments import SegmentReader, SegmentWriter
from tests.builders import classifier, regressor
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, linear_sample

OPERATE = Path(__file__).parents[2] / "docs" / "operate.md"
HOUR_NS = 3600 * 10**9
HOURS = 3


def documented(name: str) -> list[str]:
    """The lines of Python below the mark *name* in docs/operate.md."""
    (block,) = re.findall(rf"<!-- run: {name} -->\n```python\n(.*?)```", OPERATE.read_text(), re.DOTALL)
    return str(block).splitlines()


@pytest.fixture
def lines(state: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A log of three hours as Parquet, the second with traces, whose newest rows are a segment, and labels; gives
    the compacted rows of iris 2."""
    monkeypatch.chdir(state.parent)
    assert state.name == "state"  # as in the docs
    root = state / "samples"
    writer = SegmentWriter(root, "b1", max_bytes=10**7, max_age_s=60.0, clock=FakeClock())
    written: list[dict[str, Any]] = []

    def write(linear: Any, ts_ns: int, **fields: Any) -> list[bytes]:
        table = np.random.default_rng(ts_ns % 97).normal(size=(50, len(linear.features)))
        sample = linear_sample(table, linear, ts_ns=ts_ns, prediction_id=f"p{ts_ns}", **fields)
        found = to_lines(sample, 64)
        writer.write(linear.model, linear.version, ts_ns, b"".join(found))
        return found

    for hour in range(HOURS):
        ts_ns = TEN_O_CLOCK_NS + hour * HOUR_NS
        traced = {"trace_id": "0" * 31 + "1"} if hour == 1 else {}
        written += map(json.loads, write(classifier(version="2"), ts_ns, **traced))
        write(classifier(), ts_ns)
        write(regressor(), ts_ns)
    writer.close()
    reader = SegmentReader(root)
    list(reader.read(10**9))
    compactor = Compactor(root, models, after_s=0.0, clock=lambda: 2e9)
    while compactor.step(reader.watermark, lambda: True):
        pass
    write(classifier(version="2"), TEN_O_CLOCK_NS + 2 * HOUR_NS + 1)
    labels = LabelLog(root, boot="b1", max_bytes=10**6, max_age_s=3600)
    labels.append([Label("p1", 1, TEN_O_CLOCK_NS).to_line()], TEN_O_CLOCK_NS)
    assert list(root.rglob("*.open"))
    return written


def rows_by(tool: str, **modules: Any) -> Any:
    """What the documented line of one tool gives."""
    names: dict[str, Any] = {"glob": glob, **modules}
    chosen = [line for line in documented("read the parts") if f" {tool}." in line or line.startswith("files")]
    exec("\n".join(chosen), names)
    return names["rows"]


def test_pandas_reads_all_rows_and_columns_of_a_version(lines: list[dict[str, Any]]) -> None:
    rows = rows_by("pandas", pandas=pandas)
    assert len(rows) == len(lines) == 50 * HOURS
    assert rows["inputs.sepal_width"].tolist() == [line["inputs"]["sepal_width"] for line in lines]
    assert rows["outputs.label"].tolist() == [line["outputs"]["label"] for line in lines]
    assert rows["trace_id"].count() == 50
    with pytest.raises(Exception, match=r"jsonl"):  # as the docs say
        pandas.read_parquet("state/samples")


def test_polars_reads_them_too(lines: list[dict[str, Any]]) -> None:
    polars = pytest.importorskip("polars")
    rows = rows_by("polars", polars=polars)
    assert rows["inputs.sepal_width"].to_list() == [line["inputs"]["sepal_width"] for line in lines]
    assert rows["trace_id"].count() == 50


def test_duckdb_reads_every_version_with_its_name(lines: list[dict[str, Any]]) -> None:
    duckdb.set_default_connection(duckdb.connect())  # whose other users may have left something half read
    rows = rows_by("duckdb", duckdb=duckdb)
    columns = 'model, version::varchar, count(*), count("inputs.rooms"), count(trace_id)'
    assert sorted(rows.aggregate(columns).fetchall()) == [
        ("house", "1", 150, 150, 0),
        ("iris", "1", 150, 0, 0),
        ("iris", "2", 150, 0, 50),
    ]
