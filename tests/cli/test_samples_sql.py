"""``sluicegate samples sql``, and the other verbs once a log is Parquet in part."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from gateway.cli import EXIT_BROKEN_PIPE, main
from gateway.offline.compactor import Compactor
from gateway.samples.lines import to_lines
from gateway.samples.segments import SegmentReader, SegmentWriter
from tests.builders import classifier, regressor
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, linear_sample

SECOND_NS = 10**9


@pytest.fixture
def lines(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """30 rows of iris 1, 10 of iris 2 and 10 of house, the first half of each compacted; gives all lines."""
    monkeypatch.chdir(state.parent)  # away from any settings file
    root = state / "samples"
    writer = SegmentWriter(root, "b1", max_bytes=10**6, max_age_s=60.0, clock=FakeClock())
    written: list[bytes] = []

    def write(half: int) -> None:
        for linear, rows in ((classifier(), 15), (classifier(version="2"), 5), (regressor(), 5)):
            table = np.random.default_rng(half).normal(size=(rows, len(linear.features))).astype(np.float32)
            for index, row in enumerate(table):
                second = len(written)
                identity = f"{linear.model}-{linear.version}-{half}-{index}"
                ts_ns = TEN_O_CLOCK_NS + second * SECOND_NS
                sample = linear_sample(row[np.newaxis], linear, prediction_id=identity, ts_ns=ts_ns)
                found = to_lines(sample, 1)
                writer.write(linear.model, linear.version, ts_ns, found[0])
                written.extend(found)

    write(0)
    writer.close()
    reader = SegmentReader(root)
    list(reader.read(10**9))
    compactor = Compactor(root, root, after_s=0.0, clock=lambda: 2e9)
    while compactor.step(reader.watermark, lambda: True):
        pass
    write(1)
    assert len(list(root.rglob("*.parquet"))) == len(list(root.rglob("*.open"))) == 3
    yield written
    writer.close()


def _sql(state: Path, query: str, capsys: pytest.CaptureFixture[str], form: str = "jsonl") -> list[Any]:
    assert main(["samples", "sql", query, "--state", str(state), "--format", form]) == 0
    out = capsys.readouterr().out
    return [json.loads(line) for line in out.splitlines()] if form == "jsonl" else out.splitlines()


def test_sql_sees_every_row_of_both_forms_once(
    lines: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in (state / "samples").rglob("*"))
    query = """select model, version, count(*) as rows, count(distinct prediction_id) as ids,
               avg("inputs.sepal_width") as width from samples group by all order by all"""
    iris = [json.loads(line) for line in lines if b'"iris"' in line]
    widths = {
        version: float(np.mean([row["inputs"]["sepal_width"] for row in iris if row["version"] == version]))
        for version in ("1", "2")
    }
    assert _sql(state, query, capsys) == [
        {"model": "house", "version": "1", "rows": 10, "ids": 10, "width": None},
        {"model": "iris", "version": "1", "rows": 30, "ids": 30, "width": pytest.approx(widths["1"])},
        {"model": "iris", "version": "2", "rows": 10, "ids": 10, "width": pytest.approx(widths["2"])},
    ]
    assert sorted(path.name for path in (state / "samples").rglob("*")) == before


def test_sql_prints_csv_and_a_table(lines: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "select version, count(*) as n, min(ts) as first, null as nothing from samples group by 1 order by 1"
    first = ["1,40,2026-03-01 10:00:00,", "2,10,2026-03-01 10:00:15,"]
    assert _sql(state, query, capsys, "csv") == ["version,n,first,nothing", *first]
    table = _sql(state, query, capsys, "table")
    assert any("2026-03-01 10:00:15" in line and "10" in line for line in table)


def test_sql_joins_labels_where_they_are(lines: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = state / "samples" / "labels" / "date=2026-03-01"
    folder.mkdir(parents=True)
    labels = [
        {"prediction_id": "iris-1-0-0", "label": 2, "ts_ns": TEN_O_CLOCK_NS, "source": "lab"},
        {"prediction_id": "iris-1-1-0", "label": {"species": "x"}, "ts_ns": TEN_O_CLOCK_NS, "weight": 0.5},
    ]
    text = "".join(json.dumps(label) + "\n" for label in labels)
    (folder / "b1-1-000001.jsonl.open").write_text(text + '{"prediction_id": "to')
    query = "select prediction_id, label, weight from samples join labels using (prediction_id) order by 1"
    assert _sql(state, query, capsys) == [
        {"prediction_id": "iris-1-0-0", "label": "2", "weight": None},
        {"prediction_id": "iris-1-1-0", "label": '{"species":"x"}', "weight": 0.5},
    ]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("copy samples to 'stolen.parquet'", "expected one SELECT"),
        ("select 1; drop view samples", "expected one SELECT"),
        ("", "expected one SELECT"),
        ("set enable_external_access=true", "expected one SELECT"),
        ("select * from read_csv('/etc/passwd')", "Cannot access"),
        ("select no_such_column from samples", "no_such_column"),
        ("selekt", "syntax error"),
    ],
)
def test_sql_reads_the_log_and_does_nothing_else(
    query: str, why: str, lines: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["samples", "sql", query, "--state", str(state)]) == 1
    assert why in capsys.readouterr().err
    assert not list(state.parent.glob("stolen*"))


def test_sql_over_an_empty_log_says_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "samples").mkdir(parents=True)
    assert main(["samples", "sql", "select 1", "--state", str(state)]) == 1
    assert "no samples" in capsys.readouterr().err


def test_tail_and_export_see_both_forms(
    lines: list[bytes], state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["samples", "tail", "--state", str(state), "-n", "40", "--json"]) == 0
    assert capsys.readouterr().out.encode() == b"".join(lines[-40:])
    out = tmp_path / "rows.txt"
    for form in ("jsonl", "parquet", "csv"):
        assert main(["samples", "export", "--state", str(state), "--out", str(out), "--format", form]) == 0
        if form == "jsonl":
            assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(lines)
        elif form == "parquet":
            table = pyarrow.parquet.read_table(out)
            assert table.num_rows == len(lines)
            assert set(table["version"].to_pylist()) == {"1", "2"}
        else:
            assert len(out.read_text().splitlines()) == len(lines) + 1


def test_a_reader_that_has_seen_enough_is_no_error(lines: list[bytes], state: Path) -> None:
    query = "select a.prediction_id from samples a, samples b, samples c"
    command = [sys.executable, "-m", "gateway", "samples", "sql", query, "--state", str(state), "--format", "csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "prediction_id\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == EXIT_BROKEN_PIPE
