"""``sluicegate samples sql``, and the other verbs once a log is Parquet in part."""

from __future__ import annotations

import json
import re
import shlex
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
from gateway.samples.labels import Label
from gateway.samples.lines import to_lines
from gateway.samples.segments import SegmentReader, SegmentWriter
from tests.builders import classifier, regressor
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, linear_sample

SECOND_NS = 10**9
OPERATE = Path(__file__).parents[2] / "docs" / "operate.md"


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


def _write_labels(state: Path, *labels: dict[str, Any], name: str = "b1-1-000001.jsonl") -> None:
    """Labels as a worker writes them, in this order."""
    folder = state / "samples" / "labels" / "date=2026-03-01"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (Label(**{"ts_ns": TEN_O_CLOCK_NS, **label}).to_line() for label in labels)
    (folder / name).write_bytes(b"".join(lines))


def _labelled(state: Path, capsys: pytest.CaptureFixture[str], ids: str) -> dict[str, Any]:
    query = f"select * from labelled where prediction_id like '{ids}' order by prediction_id, row"
    return {f"{found['prediction_id']} {found['row']}": found for found in _sql(state, query, capsys)}


def test_labelled_has_each_sampled_row_once_with_its_latest_label_by_the_time_that_it_is_about(
    lines: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hour_ns = 3600 * SECOND_NS
    first, second, third, fourth = (f"iris-1-0-{index}" for index in range(4))
    _write_labels(
        state,
        # The later arrival is of an earlier event.
        {"prediction_id": first, "label": "right", "ts_ns": TEN_O_CLOCK_NS + 10, "event_ts_ns": TEN_O_CLOCK_NS + 9},
        {"prediction_id": first, "label": "old", "ts_ns": TEN_O_CLOCK_NS + hour_ns, "event_ts_ns": TEN_O_CLOCK_NS + 8},
        # The same one three times, one of them as another kind of number.
        {"prediction_id": second, "label": 1, "ts_ns": TEN_O_CLOCK_NS + 5 * SECOND_NS, "source": "lab"},
        {"prediction_id": second, "label": 1, "ts_ns": TEN_O_CLOCK_NS + 5 * SECOND_NS, "source": "lab"},
        {"prediction_id": second, "label": 1.0, "ts_ns": TEN_O_CLOCK_NS + 4 * SECOND_NS, "row": 0},
        # So late that the monitor no longer counts it.
        {"prediction_id": third, "label": {"species": "x"}, "ts_ns": TEN_O_CLOCK_NS + 24 * hour_ns, "weight": 0.5},
        {"prediction_id": fourth, "label": True, "row": 7},  # there is no such row
        {"prediction_id": "nobody", "label": 3},
    )
    _write_labels(state, {"prediction_id": first, "label": "older", "event_ts_ns": 1}, name="b2-1-000001.jsonl.open")
    found = _labelled(state, capsys, "%")
    assert len(found) == len(lines)
    assert len(_sql(state, "select * from labelled", capsys)) == len(lines)
    names = ("label", "label_source", "label_weight", "labels", "is_disputed")
    assert {name: [found[f"{name} 0"][field] for field in names] for name in (first, second, third, fourth)} == {
        first: ['"right"', "", None, 3, True],
        second: ["1", "lab", None, 3, False],
        third: ['{"species":"x"}', "", 0.5, 1, False],
        fourth: [None, None, None, 0, False],
    }
    assert found[f"{first} 0"]["label_event_ts_ns"] == TEN_O_CLOCK_NS + 9
    assert found[f"{first} 0"]["label_ts_ns"] == TEN_O_CLOCK_NS + 10
    assert found[f"{second} 0"]["label_delay_s"] == pytest.approx(4.0)  # its row is a second after ten
    assert found[f"{third} 0"]["label_delay_s"] == pytest.approx(24 * 3600 - 2)
    assert found[f"{first} 0"].keys() > json.loads(lines[0]).keys() - {"inputs", "outputs", "latency_us"}
    query = "select label ->> '$' as said from labelled where prediction_id = 'iris-1-0-0'"
    assert _sql(state, query, capsys) == [{"said": "right"}]


def test_labels_of_a_request_of_several_rows_are_told_by_row_and_one_without_a_row_is_of_none(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state.parent)
    writer = SegmentWriter(state / "samples", "b1", max_bytes=10**6, max_age_s=60.0, clock=FakeClock())
    sample = linear_sample(np.zeros((3, 4), np.float32), prediction_id="three")
    writer.write("iris", "1", sample.ts_ns, b"".join(to_lines(sample, 64)))
    writer.close()
    assert _sql(state, "select * from labels", capsys) == []
    assert {row["label"] for row in _labelled(state, capsys, "three").values()} == {None}
    _write_labels(
        state,
        {"prediction_id": "three", "label": 9, "ts_ns": TEN_O_CLOCK_NS + 99},
        {"prediction_id": "three", "label": 0, "row": 0},
        {"prediction_id": "three", "label": 2, "row": 2},
        {"prediction_id": "three", "label": 1, "row": 2, "ts_ns": TEN_O_CLOCK_NS + 1},
    )
    found = _labelled(state, capsys, "three")
    assert {name: (row["label"], row["labels"], row["is_disputed"]) for name, row in found.items()} == {
        "three 0": ("0", 1, False),
        "three 1": (None, 0, False),
        "three 2": ("1", 2, True),
    }
    rows = _sql(state, "select row, label from labels order by row nulls first, ts_ns", capsys)
    assert [(each["row"], each["label"]) for each in rows] == [(None, "9"), (0, "0"), (2, "2"), (2, "1")]


def test_the_documented_question_for_the_accuracy_by_labels_has_the_answer(
    lines: list[bytes], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (written,) = re.findall(r'^sluicegate (samples sql "[^`]*")$', OPERATE.read_text(), re.MULTILINE)
    iris = [record for record in map(json.loads, lines) if record["model"] == "iris"]
    wrong = set(range(0, len(iris), 5))
    answers = [record["outputs"]["label"] for record in iris]
    said = [(answer + 1) % 3 if index in wrong else answer for index, answer in enumerate(answers)]
    _write_labels(
        state,
        *({"prediction_id": record["prediction_id"], "label": label} for record, label in zip(iris, said, strict=True)),
        # Too late to count there.
        {"prediction_id": iris[0]["prediction_id"], "label": answers[0], "ts_ns": TEN_O_CLOCK_NS + 3601 * SECOND_NS},
    )
    assert main([*shlex.split(written), "--state", str(state), "--format", "jsonl"]) == 0
    shares = {}
    for version in ("1", "2"):
        of_version = [index not in wrong for index, record in enumerate(iris) if record["version"] == version]
        of_version = of_version[1:] if version == "1" else of_version
        shares[version] = pytest.approx(sum(of_version) / len(of_version))
    found = map(json.loads, capsys.readouterr().out.splitlines())
    assert {row["version"]: row["accuracy"] for row in found} == shares


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


def test_the_rows_of_named_predictions_are_found_in_both_forms_and_those_without_are_told(
    lines: list[bytes], state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("iris-1-0-3", "iris-1-1-3", "house-1-0-2")  # of a Parquet file, of a segment, of another model
    ids = [part for identity in wanted for part in ("--prediction-id", identity)]
    of_them = [line for line in lines if json.loads(line)["prediction_id"] in wanted]
    tail = ["samples", "tail", "--state", str(state)]
    assert main([*tail, *ids, "--json"]) == 0
    assert capsys.readouterr().out.encode() == b"".join(of_them)
    assert main([*tail, *ids, "--model", "iris", "--prediction-id", "iris-1-0"]) == 0
    printed = capsys.readouterr()
    assert [line.split(" | ")[0].split(" miss ")[1] for line in printed.out.splitlines()] == [
        "iris-1-0-3 row 0",
        "iris-1-1-3 row 0",
    ]
    assert printed.err.splitlines() == [
        f"no row of prediction {identity}: not sampled, removed, or not written yet"
        for identity in ("house-1-0-2", "iris-1-0")
    ]
    out = tmp_path / "rows.jsonl"
    for path in (out, out.with_suffix(".parquet")):
        export = ["samples", "export", "--state", str(state), "--out", str(path), "--prediction-id", "nobody", *ids]
        assert main(export) == 0
        assert capsys.readouterr().err.splitlines() == [
            "no row of prediction nobody: not sampled, removed, or not written yet"
        ]
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(of_them)
    ids_in_table = pyarrow.parquet.read_table(out.with_suffix(".parquet"))["prediction_id"].to_pylist()
    assert sorted(ids_in_table) == sorted(wanted)


def test_tail_gives_all_rows_of_a_named_prediction_and_the_newest_before_a_time(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state.parent)
    writer = SegmentWriter(state / "samples", "b1", max_bytes=10**7, max_age_s=60.0, clock=FakeClock())
    for second in range(60):
        sample = linear_sample(
            np.zeros((30, 4), np.float32), prediction_id=f"p{second}", ts_ns=TEN_O_CLOCK_NS + second * SECOND_NS
        )
        writer.write("iris", "1", sample.ts_ns, b"".join(to_lines(sample, 64)))
    writer.close()

    def tail(*options: str) -> list[tuple[str, int]]:
        assert main(["samples", "tail", "--state", str(state), "--json", *options]) == 0
        found = map(json.loads, capsys.readouterr().out.splitlines())
        return [(record["prediction_id"], record["row"]) for record in found]

    assert tail("--prediction-id", "p3") == [("p3", row) for row in range(30)]
    assert len(tail("--prediction-id", "p3", "-n", "4")) == 4
    assert {name for name, _row in tail("--until", "2026-03-01T10:00:20", "-n", "60")} == {"p18", "p19"}
    assert tail("--prediction-id", "p3", "--since", "2026-03-01T10:00:04") == []
    assert {name for name, _row in tail("--since", "2026-03-01T10:00:57", "-n", "1000")} == {"p57", "p58", "p59"}


@pytest.mark.parametrize("identity", ["", "x" * 129, "\u00e4", "a\nb"])
def test_what_is_no_prediction_id_is_refused(identity: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["samples", "tail", "--prediction-id", identity])
    assert ended.value.code == 2
    assert "expected a prediction id of 1 to 128 characters" in capsys.readouterr().err


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
