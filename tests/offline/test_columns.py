"""Rows of the log as columns and back: nothing is changed on the way, and what is no sample is found."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.offline.columns import (
    KindMismatch,
    declared_kinds,
    kinds_in,
    kinds_of,
    read_lines,
    records_of,
    schema_of,
    table_of,
    together,
    values_by_name,
)
from gateway.offline.usual_lines import UsualLines
from gateway.samples.lines import to_lines
from tests.builders import classifier
from tests.samples.make import iris_rows, linear_sample

SUMMARY = {"datatype": "UINT8", "shape": [3, 224, 224], "sha256": "00ff"}

_floats = st.floats(allow_nan=False).map(
    lambda value: value if np.isfinite(value) else ["-Infinity", "Infinity"][value > 0]
)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    _floats,
    st.text(),
    st.just(SUMMARY),
    st.just([0.5, 1.5]),
)
_names = st.text(min_size=1, max_size=5).filter(lambda name: "\0" not in name)


@st.composite
def _groups(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Inputs of some rows with the same names; columns of one kind mostly, some of several."""
    names = draw(st.lists(_names, unique=True, max_size=4))
    kinds = [draw(st.sampled_from([_floats, st.integers(-5, 5), st.booleans(), st.text(), _scalars])) for _ in names]
    rows = draw(st.integers(1, 6))
    return [{name: draw(st.none() | kind) for name, kind in zip(names, kinds, strict=True)} for _ in range(rows)]


def _record(row: int, /, **fields: Any) -> dict[str, Any]:
    """A record as serving writes it, with other *fields*."""
    return {**json.loads(to_lines(linear_sample(iris_rows(1)), 1)[0]), **{"row": row, **fields}}


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


@given(_groups(), _groups())
@settings(max_examples=80, deadline=None)
def test_every_value_comes_back_as_it_was(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
    rows = min(len(inputs), len(outputs))
    records = [_record(row, inputs=inputs[row], outputs=outputs[row]) for row in range(rows)]
    lines = [orjson.dumps(record) for record in records]
    records = [orjson.loads(line) for line in lines]
    values = values_by_name(records)
    kinds = kinds_of(values)
    table = table_of(values, kinds)
    assert kinds_in(table.schema) == {name: "float" if kind == "none" else kind for name, kind in kinds.items()}
    found = [orjson.dumps(record) for record in records_of(table, "iris", "1")]
    assert [orjson.loads(line) for line in found] == records
    assert read_lines(found, "iris", "1") == (records, [])


def test_a_usual_row_comes_back_byte_for_byte() -> None:
    lines = to_lines(linear_sample(iris_rows(50)), 50)
    records, rejected = read_lines(lines, "iris", "1")
    assert rejected == []
    values = values_by_name(records)
    table = table_of(values, kinds_of(values))
    assert [orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE) for found in records_of(table, "iris", "1")] == lines


def test_columns_have_the_types_that_tools_expect() -> None:
    sample = linear_sample(iris_rows(3))
    rows = sample.inputs["input"]
    rows[0, 0], rows[1, 0] = np.nan, np.inf
    records, _rejected = read_lines(to_lines(sample, 3), "iris", "1")
    records[0]["inputs"]["image"] = SUMMARY
    records[0]["redacted"] = ["name"]
    records[0]["embedding"] = [0.25, 0.5]
    records[0]["outputs"]["large"] = 2**63
    values = values_by_name(records)
    table = table_of(values, kinds_of(values))
    types = {field.name: str(field.type) for field in table.schema}
    assert types["inputs.sepal_length"] == types["sample_rate"] == types["outputs.probabilities.0"] == "double"
    assert types["outputs.label"] == types["latency_us.run"] == types["flag_revision"] == types["ts_ns"] == "int64"
    assert types["outputs.large"] == "uint64"
    assert types["inputs.image"] == types["variant"] == types["cache"] == "string"
    assert types["ts"] == "timestamp[us]"
    assert table.schema.field("redacted").type == pyarrow.list_(pyarrow.string())
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float64())
    assert table["inputs.sepal_length"].to_pylist() == [None, float("inf"), pytest.approx(float(rows[2, 0]))]
    assert str(table["ts"][0]) == "2026-03-01 10:00:00"
    assert not {"model", "version"} & set(table.column_names)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"schema":1}',
        *(
            orjson.dumps(_record(0, **wrong))
            for wrong in (
                {"schema": 2},
                {"model": "house"},
                {"version": "2"},
                {"row": "0"},
                {"row": None},
                {"ts_ns": 1.5},
                {"ts_ns": 2**63},
                {"prediction_id": 7},
                {"inputs": None},
                {"outputs": [1]},
                {"latency_us": 5},
                {"latency_us": {"queue": "x", "run": 1}},
                {"sample_rate": "all"},
                {"variant": True},
            )
        ),
    ],
)
def test_a_line_that_is_no_sample_is_told_from_one(line: bytes) -> None:
    good = orjson.dumps(_record(0))
    records, rejected = read_lines([good, line, good], "iris", "1")
    assert len(records) == 2
    assert rejected == [line]


def test_fields_that_later_versions_add_become_columns_and_those_that_earlier_ones_lack_are_null() -> None:
    old, new = _record(0), _record(1, weight=2, scores={"ks": 0.5})
    del old["cache"]
    values = values_by_name([old, new])
    table = table_of(values, kinds_of(values))
    assert table["weight"].to_pylist() == [None, 2]
    assert table["cache"].to_pylist() == [None, "miss"]
    assert table["scores.ks"].to_pylist() == [None, 0.5]
    found = list(records_of(table, "iris", "1"))
    assert "cache" not in found[0]
    assert "weight" not in found[0]
    assert found[1]["scores"] == {"ks": 0.5}


def test_a_column_without_values_has_the_type_that_the_manifest_says() -> None:
    declared = declared_kinds(classifier().signature)
    assert declared["inputs.sepal_length"] == "float"
    assert declared["outputs.label"] == "int"
    assert kinds_of({"inputs.sepal_length": [None, None]}) == {"inputs.sepal_length": "none"}
    assert together({"x": "none"}, {"x": "text"}) == {"x": "text"}
    assert str(schema_of({"x": "none"}).field("x").type) == "double"


def test_kinds_that_one_column_cannot_hold_are_kept_as_text() -> None:
    assert together({"x": "text"}, {"x": "float"}) == {"x": "json"}
    assert together({"x": "int", "y": "bool"}, {"x": "float", "z": "int"}) == {"x": "float", "y": "bool", "z": "int"}
    with pytest.raises(KindMismatch):
        table_of({"x": [2**53 + 1]}, {"x": "float"})
    with pytest.raises(KindMismatch):
        table_of({"y": [1]}, {"x": "int"})


def _usual_rows(rows: int) -> list[bytes]:
    return to_lines(linear_sample(iris_rows(rows)), rows)


def test_usual_lines_are_read_into_columns_at_once() -> None:
    lines = _usual_rows(20)
    kinds = kinds_of(values_by_name(read_lines(lines, "iris", "1")[0]))
    found = UsualLines(kinds, "iris", "1").table(b"".join(lines), 20)
    assert list(map(_line, records_of(found, "iris", "1"))) == lines


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 700), st.binary(max_size=3), st.integers(0, 3)), max_size=2),
    st.sampled_from(["iris", "house"]),
)
@settings(max_examples=300, deadline=None)
@example([(0, 0, b"\xbf", 0)], "iris")
@example([(0, 0, b"\xef\xbb\xbf", 0)], "iris")
def test_whatever_becomes_of_a_line_both_ways_of_reading_agree(
    damages: list[tuple[int, int, bytes, int]], model: str
) -> None:
    """damages: (which line, where in it, what is put there instead of how many bytes)."""
    lines = _usual_rows(4)
    kinds = kinds_of(values_by_name(read_lines(lines, "iris", "1")[0]))
    for which, start, put, instead in damages:
        line = lines[which][:-1]
        lines[which] = line[:start] + put.replace(b"\n", b"") + line[start + instead :] + b"\n"
    found = UsualLines(kinds, model, "1").table(b"".join(lines), len(lines))
    if found is not None:
        records, rejected = read_lines(lines, model, "1")
        assert rejected == []
        assert found.equals(table_of(values_by_name(records), kinds))
    elif not damages and model == "iris":
        raise AssertionError("usual lines were not read")


@given(_groups())
@settings(max_examples=80, deadline=None)
def test_values_of_any_kind_are_read_alike_or_left_to_the_other_way(inputs: list[dict[str, Any]]) -> None:
    lines = [orjson.dumps(_record(row, inputs=group)) + b"\n" for row, group in enumerate(inputs)]
    records, _rejected = read_lines(lines, "iris", "1")
    values = values_by_name(records)
    kinds = kinds_of(values)
    found = UsualLines(kinds, "iris", "1").table(b"".join(lines), len(lines))
    assert found is None or found.equals(table_of(values, kinds))
