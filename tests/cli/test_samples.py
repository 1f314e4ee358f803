"""``sluicegate samples``: what a person or a notebook gets of the sample log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from gateway.cli import main
from gateway.samples.lines import to_lines
from gateway.samples.segments import SegmentWriter
from tests.builders import classifier, regressor
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample

HOUR_NS = 3600 * 10**9


@pytest.fixture
def log(state: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A log of 30 rows of iris version 1 (one an hour), 5 of version 2 and 5 of house; gives iris 1's lines."""
    monkeypatch.chdir(state.parent)  # away from any settings file
    writer = SegmentWriter(state / "samples", "b1", max_bytes=2000, max_age_s=60.0, clock=FakeClock())
    lines: list[bytes] = []
    for linear, rows in ((classifier(), 30), (classifier(version="2"), 5), (regressor(), 5)):
        table = np.random.default_rng(0).normal(size=(rows, len(linear.features))).astype(np.float32)
        for hour, row in enumerate(table):
            sample = linear_sample(row[np.newaxis], linear, ts_ns=TEN_O_CLOCK_NS + hour * HOUR_NS)
            written = to_lines(sample, 64)
            writer.write(linear.model, linear.version, sample.ts_ns, b"".join(written))
            if (linear.model, linear.version) == ("iris", "1"):
                lines += written
    writer.close()
    return lines


def test_tail_prints_the_newest_lines_of_the_log_as_they_are(
    log: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["samples", "tail", "--state", str(state), "--model", "iris", "-n", "3", "--json"]) == 0
    assert capsys.readouterr().out.encode() == b"".join(log[-3:])


def test_tail_is_readable(log: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "tail", "--state", str(state), "--version", "1", "--model", "iris", "-n", "1"]) == 0
    record = json.loads(log[-1])
    line = capsys.readouterr().out
    assert line.startswith("2026-03-02 15:00:00.000 iris 1 stable miss | label=")
    assert f"sepal_length={record['inputs']['sepal_length']:.6g}" in line
    assert line.count("\n") == 1


def test_tail_says_which_rule_wanted_a_row_and_which_error_was_the_answer(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state.parent)
    writer = SegmentWriter(state / "samples", "b1", max_bytes=10**6, max_age_s=60.0)
    failed: dict[str, Any] = {"sample_reason": "error", "cache": "bypass", "outputs": {}}
    rows = (
        linear_sample(np.ones((1, 4))),
        linear_sample(np.ones((1, 4)), sample_reason="slow"),
        replace(linear_sample(np.ones((1, 4))), error="model_failed", **failed),
        replace(linear_sample(np.ones((1, 4))), error="invalid_input", **failed, inputs={}),
    )
    for place, sample in enumerate(rows):
        writer.write("iris", "1", TEN_O_CLOCK_NS + place, b"".join(to_lines(sample, 64)))
    writer.close()
    assert main(["samples", "tail", "--state", str(state)]) == 0
    usual, slow, broken, unread = capsys.readouterr().out.splitlines()
    inputs = "sepal_length=1 sepal_width=1 petal_length=1 petal_width=1"
    assert usual.startswith("2026-03-01 10:00:00.000 iris 1 stable miss | label=")
    assert slow.startswith("2026-03-01 10:00:00.000 iris 1 stable miss sampled=slow | label=")
    assert broken == f"2026-03-01 10:00:00.000 iris 1 stable bypass sampled=error | error=model_failed | {inputs}"
    assert unread == "2026-03-01 10:00:00.000 iris 1 stable bypass sampled=error | error=invalid_input | no inputs"


def test_tail_finds_the_log_by_the_environment(
    log: list[bytes], state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICEGATE_PATHS__STATE", str(state))
    assert main(["samples", "tail"]) == 0
    assert capsys.readouterr().out.count("\n") == 10


def test_a_log_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "tail", "--state", str(tmp_path / "nowhere")]) == 1
    assert "there is no sample log" in capsys.readouterr().err


def test_no_such_rows_is_an_answer(log: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "tail", "--state", str(state), "--model", "unknown"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no such samples" in captured.err


@pytest.mark.parametrize("options", [["-n", "0"], ["-n", "x"]])
def test_a_count_that_is_none_is_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["samples", "tail", *options])
    assert ended.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def _export(state: Path, out: Path, *options: str) -> int:
    return main(["samples", "export", "--state", str(state), "--out", str(out), *options])


def test_export_writes_the_lines_of_a_span_of_time(
    log: list[bytes], state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    span = ("--since", "2026-03-01T12:00", "--until", "2026-03-01T15:00:00+00:00")
    assert _export(state, out, "--model", "iris", "--version", "1", *span, "--json") == 0
    assert out.read_bytes() == b"".join(log[2:5])
    assert json.loads(capsys.readouterr().out) == {"rows": 3, "file": str(out)}


def test_export_to_parquet_gives_a_typed_column_per_input_and_output(
    log: list[bytes], state: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    assert _export(state, out, "--model", "iris", "--version", "1") == 0
    table = pyarrow.parquet.read_table(out)
    assert table.num_rows == 30
    assert str(table.schema.field("inputs.sepal_width").type) == "double"
    assert str(table.schema.field("outputs.label").type) == "int64"
    assert str(table.schema.field("ts_ns").type) == "int64"
    wanted = [json.loads(line)["inputs"]["sepal_width"] for line in log]
    assert table["inputs.sepal_width"].to_pylist() == wanted
    found = duckdb.execute(f"select count(*), avg(\"inputs.sepal_width\") from '{out}'").fetchone()
    assert found == (30, pytest.approx(float(np.mean(wanted))))


def test_export_to_csv_takes_several_models_whose_columns_differ(log: list[bytes], state: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert _export(state, out) == 0
    table = pyarrow.csv.read_csv(out)
    assert table.num_rows == 40
    assert {"inputs.sepal_width", "inputs.rooms", "outputs.value"} <= set(table.column_names)
    assert table["inputs.rooms"].null_count == 35


def test_infinite_and_missing_values_keep_their_columns_numeric(state: Path, tmp_path: Path) -> None:
    sample = linear_sample(iris_rows(4))
    rows = sample.inputs["input"]
    rows[1, 0], rows[2, 0], rows[3, 0] = np.nan, np.inf, -np.inf
    writer = SegmentWriter(state / "samples", "b1", max_bytes=10**6, max_age_s=60.0)
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"".join(to_lines(sample, 64)))
    writer.close()
    assert _export(state, tmp_path / "out.parquet") == 0
    column = pyarrow.parquet.read_table(tmp_path / "out.parquet")["inputs.sepal_length"].to_pylist()
    assert column == [pytest.approx(float(rows[0, 0])), None, float("inf"), float("-inf")]


def test_rows_that_fit_into_no_table_are_refused_and_leave_no_file(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = SegmentWriter(state / "samples", "b1", max_bytes=10**6, max_age_s=60.0)
    for value in (b"true", b"1"):
        writer.write("iris", "1", TEN_O_CLOCK_NS, b'{"ts_ns":%d,"inputs":{"x":%s}}\n' % (TEN_O_CLOCK_NS, value))
    writer.close()
    assert _export(state, tmp_path / "out.parquet") == 1
    assert "choose one --model and --version" in capsys.readouterr().err
    assert list(tmp_path.glob("*out*")) == []


def test_an_unknown_format_and_an_unwritable_place_are_refused(
    log: list[bytes], state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(state, tmp_path / "out.xlsx") == 1
    assert "expected a file that ends in .parquet, .csv, .jsonl, or --format" in capsys.readouterr().err
    assert _export(state, tmp_path / "no" / "such" / "out.csv") == 1
    assert "No such file or directory" in capsys.readouterr().err
