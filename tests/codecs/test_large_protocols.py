"""Large bodies of the other protocols, and of named rows, are read another way: same values, same refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.codecs import records
from gateway.codecs.codec import BoundCodec, Codec
from gateway.codecs.large import LARGE_BYTES, tensors_document
from gateway.codecs.mlflow import MlflowCodec
from gateway.codecs.native import NativeCodec
from gateway.codecs.records import head, named_rows
from gateway.codecs.tfs import ClassifyCodec, PredictCodec, RegressCodec
from gateway.codecs.torchserve import TorchServeCodec
from gateway.errors import InvalidInput
from gateway.tensors import Feature, Signature, TensorSpec

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        NativeCodec(),
        PredictCodec(),
        ClassifyCodec(),
        RegressCodec(),
        MlflowCodec(),
        TorchServeCodec(lambda error: 400),
    )
}
NAMES = ["f0", "a_longer_name", "é, 2"]
OUTPUTS = (TensorSpec("p", "FP32", (-1, 2), "probabilities"), TensorSpec("y", "FP32", (-1,), "value"))


def signature(datatype: str, kind: str = "matrix", *, missing_allowed: bool = True) -> Signature:
    """matrix: of named features; column: of one; tensors: two inputs, and no rows."""
    if kind == "tensors":
        inputs = (TensorSpec("x", datatype, (-1, 3)), TensorSpec("z", datatype, (2, 2)))
        return Signature(inputs, OUTPUTS)
    names = NAMES if kind == "matrix" else NAMES[:1]
    features = tuple(Feature(name, "x", i, missing_allowed=missing_allowed) for i, name in enumerate(names))
    return Signature((TensorSpec("x", datatype, (-1, len(names))),), OUTPUTS, features)


def outcome(bound: BoundCodec, body: bytes) -> Any:
    """All that a body says, bit for bit; or which field is refused, and why. Where JSON ends is left out."""
    try:
        request = bound.decode(body, {"content-type": "application/json"})
    except InvalidInput as error:
        return (error.field, error.expected, "" if error.expected == "valid JSON" else error.came)
    tensors = {name: (a.dtype, a.shape, a.tobytes()) for name, a in request.inputs.items()}
    return (type(request), request.rows, request.is_plain, request.outputs, tensors)


def assert_same(bound: BoundCodec, body: bytes) -> None:
    """The body alone, and with so many blanks behind it that it is a large one."""
    assert len(body) < LARGE_BYTES
    assert outcome(bound, body + b" " * LARGE_BYTES) == outcome(bound, body)


def columns_of(rows: list[Any], names: list[str]) -> dict[str, Any]:
    return {name: [row[place] if place < len(row) else 0 for row in rows] for place, name in enumerate(names)}


def named(rows: list[Any], names: list[str]) -> list[Any]:
    return [dict(zip(names, row, strict=False)) for row in rows]


# By protocol, what rows of columns with these names may be written as.
Form = Callable[[list[Any], list[str]], Any]
FORMS: dict[str, list[Form]] = {
    "native": [
        lambda rows, names: {"columns": names, "rows": rows},
        lambda rows, names: {"rows": named(rows, names)},
    ],
    "tfs": [
        lambda rows, names: {"instances": rows},
        lambda rows, names: {"signature_name": "serving_default", "instances": rows},
        lambda rows, names: {"instances": rows[0]},
        lambda rows, names: {"instances": [rows]},
        lambda rows, names: {"instances": [{"x": row} for row in rows]},
        lambda rows, names: {"inputs": rows},
        lambda rows, names: {"inputs": {"x": rows}},
        lambda rows, names: {"inputs": {"x": rows, "z": rows}},
        lambda rows, names: {"inputs": {"z": rows[:2], "x": rows}},
        lambda rows, names: {"inputs": rows, "instances": rows},
        lambda rows, names: {"inputs": {}},
    ],
    "tfs_classify": [
        lambda rows, names: {"examples": named(rows, names)},
        lambda rows, names: {"examples": named(rows, names), "context": {}},
    ],
    "tfs_regress": [lambda rows, names: {"examples": named(rows, names)}],
    "mlflow": [
        lambda rows, names: {"dataframe_split": {"columns": names, "data": rows}},
        lambda rows, names: {"dataframe_split": {"index": list(range(len(rows))), "columns": names, "data": rows}},
        lambda rows, names: {"dataframe_split": {"data": rows, "index": [[0]]}, "params": {"outputs": ["y"]}},
        lambda rows, names: {"dataframe_split": {"data": rows, "columns": "".join(names)}},
        lambda rows, names: {"dataframe_split": {"data": columns_of(rows, names)}},
        lambda rows, names: {"dataframe_records": named(rows, names)},
        lambda rows, names: {"dataframe_records": rows},
        lambda rows, names: {"instances": rows, "params": {"outputs": ["p", "y"]}},
        lambda rows, names: {"instances": rows, "params": {"x": 1}},
        lambda rows, names: {"instances": named(rows, names)},
        lambda rows, names: {"instances": columns_of(rows, names)},
        lambda rows, names: {"inputs": rows},
        lambda rows, names: {"inputs": {"x": rows}},
        lambda rows, names: {"inputs": {"x": rows, "z": rows[:2]}},
        lambda rows, names: {"inputs": columns_of(rows, names)},
        lambda rows, names: {"inputs": {**columns_of(rows, names), "x": rows}},
        lambda rows, names: {"inputs": named(rows, names)},
        lambda rows, names: {"x": ["dataframe_split"], "instances": rows},
        lambda rows, names: named(rows, names),
        lambda rows, names: rows,
    ],
    "torchserve": [
        lambda rows, names: rows,
        lambda rows, names: rows[0],
        lambda rows, names: {"data": rows},
        lambda rows, names: {"data": rows[0]},
        lambda rows, names: {"data": rows, "x": 1},
        lambda rows, names: named(rows, names),
        lambda rows, names: {"data": named(rows, names)},
        lambda rows, names: {"x": rows},
        lambda rows, names: {"x": rows, "z": rows[:2]},
    ],
}
ALL = [(name, place) for name, forms in FORMS.items() for place in range(len(forms))]
# Those of them that hold nothing but numbers.
PLAIN = [
    *[("native", 1), ("tfs", 0), ("tfs", 1), ("tfs", 5), ("tfs", 6), ("tfs_classify", 0), ("tfs_regress", 0)],
    *[("mlflow", form) for form in (0, 1, 5, 9, 11, 12, 14, 16, 18)],
    *[("torchserve", form) for form in (0, 1, 2, 3, 5, 6)],
]
INTEGERS = st.integers(-200, 300) | st.integers(-(2**70), 2**70)
FLOATS = st.floats(width=32) | st.floats() | st.sampled_from([-0.0, 1e-45, 3.4e38, 3.5e38, 1e308, 16777217.0])
STRANGE: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, "1", "{", [], [1], {}, {"b64": "MQ=="}, math.nan, math.inf]
)
PUT = ["", *'[]{},:"-.eE0 1nN\\', "NaN", "null", ',"f0":1', '"f0":', "{}", "[1]", "\\u0000", "\n", "\0", "é", "\x8e"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[list[Any]], list[str]]:
    """A datatype, rows of it, and names of their columns: most likely right, but not surely."""
    datatype = draw(st.sampled_from(["FP32", "FP64", "INT64", "UINT8"]))
    usual = st.integers(0, 200) | FLOATS if datatype.startswith("FP") else st.integers(0, 200)
    rows = [draw(st.lists(usual, min_size=3, max_size=3)) for _ in range(draw(st.integers(1, 4)))]
    names = draw(st.sampled_from([NAMES, NAMES, NAMES[::-1], ["f0", "x", NAMES[1]], [*NAMES, "more"], NAMES[:1]]))
    if len(names) != 3:
        rows = [(row * 2)[: len(names)] for row in rows]
    if draw(st.integers(0, 2)) == 0:
        row = rows[draw(st.integers(0, len(rows) - 1))]
        row[draw(st.integers(0, len(row) - 1))] = draw(STRANGE | usual | INTEGERS)
    if draw(st.integers(0, 7)) == 0:
        rows[-1] = draw(st.sampled_from([rows[-1][:-1], [*rows[-1], 1], [], [rows[-1]]]))
    return datatype, rows, names


def written(document: Any, style: int) -> bytes:
    """The document as clients write it: compact, with blanks, or in lines."""
    styles: list[dict[str, Any]] = [{"separators": (",", ":")}, {}, {"indent": 1}]
    return json.dumps(document, ensure_ascii=False, **styles[style]).encode("utf-8", "replace")


@pytest.mark.parametrize(("name", "form"), ALL)
@given(
    drawn=tables(),
    style=st.integers(0, 2),
    kind=st.sampled_from(["matrix", "matrix", "column", "tensors"]),
    missing_allowed=st.booleans(),
)
@example(("FP32", [[1, None, math.nan], [math.inf, 4, -math.inf]], NAMES), 0, "matrix", True)
@example(("FP32", [[1, None, 2], [3, 4, 5]], NAMES), 1, "matrix", False)
@example(("FP32", [[1, 2, 3.5e38]], NAMES), 0, "matrix", True)
@example(("INT64", [[1, 2, 2**63]], NAMES), 0, "matrix", True)
@example(("INT64", [[1, 2, 3.0]], NAMES), 0, "matrix", True)
@example(("UINT8", [[1, 2, 256]], NAMES), 0, "matrix", True)
@example(("FP64", [[1], [2]], NAMES[:1]), 0, "column", True)
@example(("FP32", [[1, 2, 3], [4, 5], [6, 7, 8, 9]], NAMES), 0, "matrix", True)
def test_large_bodies_have_the_outcome_of_small_ones(
    name: str, form: int, drawn: tuple[str, list[list[Any]], list[str]], style: int, kind: str, missing_allowed: bool
) -> None:
    datatype, rows, names = drawn
    body = written(FORMS[name][form](rows, names), style)
    if len(body) < LARGE_BYTES:
        told = signature(datatype, kind, missing_allowed=missing_allowed)
        assert_same(CODECS[name].bind("m", "1", told), body)


@pytest.mark.parametrize(("name", "form"), ALL)
@given(drawn=tables(), style=st.integers(0, 2), place=st.floats(0, 1), cut=st.integers(0, 3), put=st.sampled_from(PUT))
@example(("FP32", [[1, 2, 3]], NAMES), 0, 0.999, 1, "")
def test_broken_bodies_have_the_same_outcome(
    name: str, form: int, drawn: tuple[str, list[list[Any]], list[str]], style: int, place: float, cut: int, put: str
) -> None:
    datatype, rows, names = drawn
    body = written(FORMS[name][form](rows, names), style)
    position = 1 + int(place * (len(body) - 1))
    body = body[:position] + put.encode("latin-1" if put == "\x8e" else "utf-8") + body[position + cut :]
    if len(body) < LARGE_BYTES:
        assert_same(CODECS[name].bind("m", "1", signature(datatype)), body)


NASTY_ROWS = """{"a":1,"b":2},{"a":3,"b":4}
{"a":1,"b":2},{"b":4,"a":3}
{"a":1,"b":2},{"a":3,"b":4,"c":5}
{"a":1,"b":2},{"a":3}
{"a":1,"b":2},{}
{},{"a":1,"b":2}
{"a":1,"b":2},{"a":1,"b":2,"b":3}
{"a":1,"b":2,"b":3}
{"a":"b":1,2}
{"a":1,"b":2},{"a":"b":1,2}
{"a":1,"b":2},{"a":1,2}
{"a":1,"b":2},{1,2}
{"a":1,"b":2},[3,4]
{"a":1,"b":2},["a":3,"b":4}
{"a":1,"b":2},{"a":3,"b":4]
{"a":1,"b":2},{{"a":3,"b":4}}
{"a":1,"b":2}{"a":3,"b":4}
{"a":1,"b":2},,{"a":3,"b":4}
{"a":1,"b":2},{"a":3,"b":4},
{"a":1,"b":2},{"a":3,,"b":4}
{"a":1,"b":2},{"a":3,"b":4,}
{"a":1,"b":2},{"a":3 "b":4}
{"a":1,"b":2},{"a":3,"b" :4}
{"a":1,"b":2},{"a":3,"b"4}
{"a":1,"b":2},{"a"::3,"b":4}
{"a":1,"b":2},{"a":3:,"b":4}
{"a":1,"b":2},{"a":,"b":4}
{"a":1,"b":2},{"a":3,4,"b":5}
{"a":1,"b":2},{"a":3,4,"b":}
{"a":1,"b":2},{ "a":3,"b":4}
{"a":1,"b":2},{"a":3, "b":4}
{"a":1, "b":2}, {"a":3,"b":4}
{"a":1, "b":2}, {"a":3, "b":4}
{"a": 1, "b": 2}, {"a": 3, "b": 4}
{"a":1,"b":2},{"a":"3","b":4}
{"a":1,"b":2},{"a":"b","b":4}
{"a":1,"b":2},{"a":null,"b":4}
{"a":1,"b":2},{"a":NaN,"b":-Infinity}
{"a":NaN,"b":2},{"a":null,"b":-Infinity}
{"a":1,"b":2},{"a":true,"b":4}
{"a":1,"b":2},{"a":{},"b":4}
{"a":1,"b":2},{"a":[3],"b":4}
{"a":1,"b":2},{"a":01,"b":4}
{"a":1,"b":2},{"A":3,"b":4}
{"a":1,"b":2},{"H":3,"b":4}
{"a":1,"b":2},{"a ":3,"b":4}
{"a":1,"b":2},{"\\u0061":3,"b":4}
{"\\u0061":1,"b":2}
{"a":1,"b":2},{"a\\":3,"b":4}
{"a":1,"b":2},{"a":3,"b":4}]
{"a":1,"b":2},{"a":3,"b":4}],"x":[1
{"a":1,"b":2},{"a":3|,"b":4}
{"a":1,"b":2},{"a":3,"b":4~
{"a":1,"b":2},|"a":3,"b":4}
{"a":1,"b":2},{"a":3,"b":4\x7f""".splitlines()


@pytest.mark.parametrize("part_bytes", [1, records.PART_BYTES])
@pytest.mark.parametrize("rows", NASTY_ROWS)
def test_nasty_rows_are_read_or_refused_as_in_a_small_body(
    rows: str, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PART_BYTES", part_bytes)  # of one row, or all of them
    features = (Feature("a", "x", 0, missing_allowed=True), Feature("b", "x", 1, missing_allowed=True))
    told = Signature((TensorSpec("x", "FP32", (-1, 2)),), OUTPUTS, features)
    for name, around in (
        ("native", '{"rows":[%s]}'),
        ("tfs_classify", '{"examples":[%s]}'),
        ("mlflow", '{"dataframe_records":[%s]}'),
        ("mlflow", "[%s]"),
        ("torchserve", '{"data":[%s]}'),
        ("torchserve", "[%s]"),
    ):
        assert_same(CODECS[name].bind("m", "1", told), (around % rows).encode())


SIXTY = [f"{'long ' * (i % 4)}name of {i}" for i in range(60)]


@pytest.mark.parametrize("style", [0, 1])
@pytest.mark.parametrize("rows", [1, 7, 700])
@pytest.mark.parametrize("names", [SIXTY[:1], SIXTY], ids=["1", "60"])
def test_many_named_rows_are_read_in_one_go(style: int, rows: int, names: list[str]) -> None:
    """The comparisons above would hold as well if nothing were. Those of many rows are read in several parts."""
    expected = np.random.default_rng(rows).normal(size=(rows, len(names)))
    body = written({"rows": named(expected.tolist(), names)}, style)
    found = records.named_rows(body, records.head("rows"), "FP64")
    assert found is not None
    assert found[0] == names
    np.testing.assert_array_equal(found[1], expected)
    last = body.rfind(b'name of 0":')
    other = body[:last] + b"name of 1" + body[last + len("name of 1") :]
    if rows > 1:
        assert records.named_rows(other, records.head("rows"), "FP64") is None


@pytest.mark.parametrize(("name", "form"), PLAIN)
@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_plain_tables_of_all_protocols_make_no_object_per_number(
    name: str, form: int, datatype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(3000).reshape(1000, 3)
    if name == "torchserve" and form in (1, 3):  # one row
        rows = rows[:1]
    values = rows / 4 if datatype == "FP32" else rows
    body = written(FORMS[name][form](values.tolist(), NAMES), 0) + b" " * LARGE_BYTES
    bound = CODECS[name].bind("m", "1", signature(datatype))

    def refuse(*_: Any) -> Any:
        raise AssertionError("read by orjson")

    for read in ("parse_json", "parse_finite"):
        monkeypatch.setattr(f"{type(bound).__module__}.{read}", refuse, raising=False)
    found = bound.decode(body, {"content-type": "application/json"}).inputs["x"]
    np.testing.assert_array_equal(found, values)
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    ("name", "around"), [("tfs", '{"instances":[%s]}'), ("mlflow", '{"dataframe_split":{"data":[%s]}}')]
)
def test_wide_rows_are_learned_and_then_read_together(name: str, around: str) -> None:
    names = [f"f{column}" for column in range(200)]
    features = tuple(Feature(name, "x", column) for column, name in enumerate(names))
    told = Signature((TensorSpec("x", "FP32", (-1, 200)),), OUTPUTS, features)
    bound = CODECS[name].bind("m", "1", told)
    rows = np.random.default_rng(1).normal(size=(3, 200))
    bodies = [(around % json.dumps(row)).encode() for row in rows.tolist()]
    assert bound.decode_plain(bodies) == [None] * 3
    bound.decode(bodies[0], {})
    assert bound.decode_plain(bodies) == [None] * 3
    request = bound.decode(bodies[1], {})  # the second that is written so
    assert request.is_plain
    assert request.inputs["x"].tobytes() == rows[1:2].astype(np.float32).tobytes()
    assert bound.decode_plain(bodies) == [row.astype(np.float32).tobytes() for row in rows]


FOUR = ["a", "b", "c", "d"]
# By protocol, bodies of which parts could be taken for something else than what they are.
AMBIGUOUS = [
    ("tfs", "x", '{"inputs":{"x":[[1,2,3,4]],"x":[[5,6,7,8]]}}'),
    ("tfs", "x", '{"inputs":[[1,2,3,4]],"inputs":[[5,6,7,8]]}'),
    ("mlflow", "x", '{"inputs":{"a":[1],"b":[2],"c":[3],"d":[4],"d":[5]}}'),
    ("mlflow", "x", '{"inputs":{"a":[1],"b":[2,3,4],"c":[5,6],"d":[7,8]}}'),
    ("mlflow", "x", '{"inputs":{"a":[[1],2],"b":[3,4],"c":[5,6],"d":[7,8]}}'),
    ("mlflow", "x", '{"inputs":{"a":[[1],[2]],"b":[[3],[4]],"c":[[5],[6]],"d":[[7],[8]]}}'),
    ("mlflow", "x", '{"inputs":{"a":[1,2],"b":[3,4],"c":[5,6],"d":[7,NaN]}}'),
    ("mlflow", "x", '{"inputs":{"a":[1,2],"b":[3,4],"c":[5,6],"d":[7,null]}}'),
    ("mlflow", "x", '{"inputs":{"a":[1,2],"b":[3,4],"c":[5,6],"d":[7,3.5e38]}}'),
    ("mlflow", "x", '{"inputs":{"a":[1,2],"b":[3,4],"c":[5,6],"e":[7,8]}}'),
    ("mlflow", "x", '{"inputs":{"d":[1,2],"b":[3,4],"c":[5,6],"a":[7,8],"e":[9,0]}}'),
    ("mlflow", "x", '{"dataframe_split":{"data":[[1,2,3,4]],"data":[[5,6,7,8]]}}'),
    ("mlflow", "x", '{"dataframe_split":{"columns":["a","b","c","a"],"data":[[5,6,7,8]]}}'),
    # An input that is called like its feature.
    ("mlflow", "a", '{"instances":[{"a":1},{"a":null}]}'),
    ("mlflow", "a", '{"dataframe_records":[{"a":1},{"a":null}]}'),
    ("torchserve", "a", '{"data":[{"a":1},{"a":null}]}'),
    ("tfs_classify", "a", '{"examples":[{"a":1},{"a":null}]}'),
    # A feature that is called like the key around all of them.
    ("torchserve", "data", '{"data":[{"data":1},{"data":2}]}'),
    ("torchserve", "data", '{"data":[[1],[2]]}'),
    ("torchserve", "data", '[{"data":1},{"data":2}]'),
]


@pytest.mark.parametrize(("name", "kind", "text"), AMBIGUOUS)
def test_what_could_be_taken_for_something_else_is_not(name: str, kind: str, text: str) -> None:
    """kind: the input's name with four features, or that of its only feature."""
    names = FOUR if kind == "x" else [kind]
    features = tuple(Feature(feature, kind, column, missing_allowed=True) for column, feature in enumerate(names))
    told = Signature((TensorSpec(kind, "FP32", (-1, len(names))),), OUTPUTS, features)
    assert_same(CODECS[name].bind("m", "1", told), text.encode())


def test_hostile_keys_cost_no_more_than_to_read_them() -> None:
    """Ways that would take the square of their number leave such bodies to orjson."""
    many = {f"k{number:06d}": 1 for number in range(20_000)}
    begin = head("rows")
    assert named_rows(orjson.dumps({"rows": [many | {"y" * 1000: 1}]}), begin, "FP64") is None
    assert tensors_document(orjson.dumps({"inputs": {key: [1] for key in many}}), {"inputs": ""}, {"x": "FP32"}) is None
    assert tensors_document(orjson.dumps({"inputs": [[1]], **many}), {"inputs": ""}, {"": "FP32"}) is None
    wide = {f"k{number:03d}": 1 for number in range(500)}  # as wide as models are
    assert named_rows(orjson.dumps({"rows": [wide]}), begin, "FP64") is not None
