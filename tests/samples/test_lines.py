"""One line per row: what stands in it, and that the values come back as they were."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.redaction import Rules, parse_card, parse_rule
from gateway.samples.lines import LineBuilder, picked_rows, to_lines
from gateway.samples.record import Sample, SampleGroup, json_schema
from gateway.tensors import DTYPES, FLOATS, Array, Feature, Signature, Tensors, TensorSpec, features_of
from tests.builders import classifier
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample, sample_of
from tests.samples.reference import expected_lines

_ANSWER = TensorSpec("answer", "FP32", (-1,))


def _signature(*inputs: TensorSpec, **fields: Any) -> Signature:
    return Signature(inputs, (_ANSWER,), features_of(inputs), **fields)


def _records(tensors: Tensors, signature: Signature, rows: int) -> list[dict[str, Any]]:
    sample = sample_of(tensors, {"answer": np.zeros(rows, np.float32)}, signature, rows=rows)
    return [json.loads(line) for line in to_lines(sample, 10_000)]


def test_a_line_tells_who_asked_what_was_answered_and_why() -> None:
    linear = classifier()
    rows = iris_rows(2)
    lines = to_lines(linear_sample(rows, cache="hit", batch_rows=0, run_s=0.0), 64)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    first, second = (json.loads(line) for line in lines)
    assert (first["row"], second["row"]) == (0, 1)
    answer = linear.answer(rows)
    assert np.array(list(second["inputs"].values()), np.float32).tolist() == rows[1].tolist()
    assert second.pop("inputs").keys() == set(linear.features)
    assert second["outputs"]["label"] == answer["label"][1]
    assert second.pop("outputs").keys() == {"label", "probabilities.0", "probabilities.1", "probabilities.2"}
    assert second == {
        "schema": 1,
        "prediction_id": "p0",
        "row": 1,
        "rows": 2,
        "request_id": "r0",
        "ts_ns": TEN_O_CLOCK_NS,
        "model": "iris",
        "version": "1",
        "digest": "d1",
        "variant": "stable",
        "flag_revision": 3,
        "variant_weight": None,
        "reason": "STATIC",
        "sample_rate": 1.0,
        "sample_reason": "random",
        "protocol": "native",
        "latency_us": {"queue": 250, "run": 0},
        "batch_rows": 0,
        "cache": "hit",
        "error": None,
        "redacted": [],
    }


def test_the_schema_beside_the_data_lists_exactly_the_fields_of_a_line() -> None:
    record = json.loads(to_lines(linear_sample(iris_rows(1), trace_id="4bf9"), 64)[0])
    schema = json.loads(json_schema())
    assert list(record) == list(schema["properties"])
    # Rows from before these were known are right without them.
    assert set(record) - set(schema["required"]) == {"variant_weight", "error", "redacted", "trace_id"}
    assert record["trace_id"] == "4bf9"
    assert "trace_id" not in json.loads(to_lines(linear_sample(iris_rows(1)), 64)[0])
    assert record["cache"] in schema["properties"]["cache"]["enum"]


@given(
    hnp.arrays(
        hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
        st.tuples(st.integers(1, 5), st.integers(1, 6)),
        elements={"allow_nan": True, "allow_infinity": True},
    )
)
def test_every_float_reads_back_to_the_same_bits_with_missing_and_infinite_told_apart(table: Array) -> None:
    spec = TensorSpec("x", {2: "FP16", 4: "FP32", 8: "FP64"}[table.dtype.itemsize], (-1, table.shape[1]))
    records = _records({"x": table}, _signature(spec), len(table))
    for record, row in zip(records, table, strict=True):
        values = list(record["inputs"].values())
        assert len(values) == len(row)
        for value, wanted in zip(values, row, strict=True):
            if math.isnan(wanted):
                assert value is None
            elif math.isinf(wanted):
                assert value == ("Infinity" if wanted > 0 else "-Infinity")
            else:
                assert table.dtype.type(value) == wanted


@given(hnp.arrays(hnp.integer_dtypes(endianness="=") | hnp.unsigned_integer_dtypes(endianness="="), (3, 2)))
def test_every_whole_number_reads_back_exactly(table: Array) -> None:
    records = _records({"x": table}, _signature(TensorSpec("x", "INT64", (-1, 2))), 3)
    assert [list(record["inputs"].values()) for record in records] == table.tolist()


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_every_text_reads_back_exactly(texts: list[str]) -> None:
    column = np.array([text.encode() for text in texts], object).reshape(-1, 1)
    records = _records({"city": column}, _signature(TensorSpec("city", "BYTES", (-1, 1))), len(texts))
    assert [record["inputs"]["city"] for record in records] == texts


def test_bytes_that_are_no_text_do_not_spoil_the_line() -> None:
    column = np.array([b"\xff\n", None], object)
    records = _records({"city": column}, _signature(TensorSpec("city", "BYTES", (-1,))), 2)
    assert [record["inputs"]["city"] for record in records] == ["\\xff\n", None]


def test_a_short_decimal_stays_short() -> None:
    line = to_lines(linear_sample(np.full((1, 4), 0.1)), 64)[0]
    assert b'"sepal_length":0.1,' in line


def test_features_of_several_inputs_stand_together_in_one_row() -> None:
    signature = Signature(
        inputs=(
            TensorSpec("size", "FP32", (-1, 1)),
            TensorSpec("colour", "BYTES", (-1, 1)),
            TensorSpec("n", "INT64", (-1,)),
        ),
        outputs=(_ANSWER,),
        features=(Feature("size", "size", 0), Feature("colour", "colour", 0, "categorical"), Feature("n", "n", 0)),
    )
    tensors: Tensors = {
        "size": np.array([[1.5], [np.nan]], np.float32),
        "colour": np.array([[b"red"], [b"blue"]], object),
        "n": np.array([7, 8]),
    }
    assert [record["inputs"] for record in _records(tensors, signature, 2)] == [
        {"size": 1.5, "colour": "red", "n": 7},
        {"size": None, "colour": "blue", "n": 8},
    ]


def test_named_columns_of_a_wider_input_are_picked_by_position() -> None:
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, 3)),), (_ANSWER,), (Feature("last", "x", 2), Feature("first", "x", 0))
    )
    table = np.array([[1, 2, 3]], np.float32)
    assert _records({"x": table}, signature, 1)[0]["inputs"] == {"last": 3.0, "first": 1.0}


def test_an_image_is_written_as_a_summary_by_which_equal_ones_are_found() -> None:
    spec = TensorSpec("image", "FP32", (-1, 3, 8, 8))
    images = np.zeros((3, 3, 8, 8), np.float32)
    images[2] = 1
    first, second, third = (record["inputs"]["image"] for record in _records({"image": images}, _signature(spec), 3))
    assert (first["datatype"], first["shape"]) == ("FP32", [3, 8, 8])
    assert first == second != third


def test_a_model_without_rows_gives_one_line() -> None:
    signature = _signature(TensorSpec("image", "FP32", (3, 8)), batchable=False)
    record = _records({"image": np.zeros((3, 8), np.float32)}, signature, 1)[0]
    assert record["inputs"]["image"]["shape"] == [3, 8]


@given(st.integers(1, 5000), st.integers(1, 100))
def test_a_large_request_is_written_in_rows_spread_evenly(rows: int, max_rows: int) -> None:
    picks = list(picked_rows(rows, max_rows))
    assert len(picks) == min(rows, max_rows)
    assert all(0 <= pick < rows for pick in picks)
    gaps = {right - left for left, right in pairwise(picks)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_the_rows_of_a_large_request_carry_their_own_values_and_the_true_number_of_rows() -> None:
    rows = iris_rows(1000)
    records = [json.loads(line) for line in to_lines(linear_sample(rows), 10)]
    assert [record["row"] for record in records] == list(range(0, 1000, 100))
    assert {record["rows"] for record in records} == {1000}
    written = np.array([list(record["inputs"].values()) for record in records], np.float32)
    assert written.tolist() == rows[::100].tolist()


def _redacted(sample: Sample, **rules: str) -> dict[str, Any]:
    sample.redact = parse_card(rules)
    (line,) = LineBuilder(64, key=lambda: bytes(32)).lines(sample)
    found: dict[str, Any] = json.loads(line)
    return found


def test_what_the_card_redacts_is_not_in_the_line_which_says_whose_it_was() -> None:
    row = np.array([[30.5, 987.25, 5.5, math.nan]])
    rules = {"sepal_length": "bucket 18 65", "sepal_width": "drop", "petal_length": "hash", "petal_width": "hash"}
    record = _redacted(linear_sample(row), **rules, **{"probabilities.0": "drop"})
    assert record["inputs"] == {
        "sepal_length": "[18, 65)",
        "petal_length": parse_rule("hash").replace("petal_length", 5.5, bytes(32)),
        "petal_width": None,
    }
    assert "probabilities.0" not in record["outputs"]
    assert record["outputs"].keys() >= {"label", "probabilities.1"}
    assert record["redacted"] == sorted([*rules, "probabilities.0"])


def test_a_rule_for_a_tensor_holds_for_all_its_columns() -> None:
    row = np.array([[30.5, 987.25, 5.5, 1.5]])
    record = _redacted(linear_sample(row), input="hash", probabilities="drop", sepal_width="drop")
    assert record["inputs"] == {
        name: parse_rule("hash").replace(name, value, bytes(32))
        for name, value in {"sepal_length": 30.5, "petal_length": 5.5, "petal_width": 1.5}.items()
    }
    assert set(record["outputs"]) == {"label"}


def test_no_summary_of_a_tensor_is_written_that_would_tell_of_a_redacted_value_in_it() -> None:
    signature = _signature(TensorSpec("image", "FP32", (-1, 2000)), TensorSpec("x", "FP32", (2, 2)), batchable=False)
    signature = replace(signature, features=(Feature("secret", "x", 0), Feature("b", "x", 1)))
    tensors = {"image": np.zeros((1, 2000), np.float32), "x": np.zeros((2, 2), np.float32)}
    sample = sample_of(tensors, {"answer": np.zeros(1, np.float32)}, signature, rows=1)
    assert _redacted(sample)["inputs"].keys() == {"image", "x"}
    assert _redacted(sample, secret="hash")["inputs"].keys() == {"image"}
    assert _redacted(sample, image="hash")["inputs"].keys() == {"x"}


def test_without_a_key_nothing_that_is_to_be_hashed_is_written() -> None:
    sample = linear_sample(iris_rows(1), redact=parse_card({"sepal_length": "hash"}))
    with pytest.raises(OSError, match="no key"):
        to_lines(sample, 64)


def test_one_builder_keeps_the_layouts_of_many_signatures_apart() -> None:
    builder = LineBuilder(64)
    for width in (1, 2, 3) * 200:  # new signatures all the time, as under reloads
        names = tuple(f"f{index}" for index in range(width))
        sample = linear_sample(np.ones((1, width)), classifier(features=names))
        assert list(json.loads(builder.lines(sample)[0])["inputs"]) == list(names)


# -- many at a time, held against the reference ---------------------------------------------------

_TEXTS = st.text(max_size=6) | st.sampled_from(['a"b', "a\\", 'a",', "\n", "\x00", "é", "\u2028"])
_NAMES = st.text(max_size=5) | st.sampled_from(["x", "y", 'q"', "back\\", "wide", "answer", "answer.0"])
_RULES = st.sampled_from(["drop", "hash", "bucket 0 1.5"])
_KEY = bytes(range(32))


@st.composite
def _tables(draw: st.DrawFn, datatype: str, shape: tuple[int, ...]) -> Array:
    """An array of one datatype with all that it can hold; the dimension 0 is the rows."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        element = st.binary(max_size=4) | _TEXTS.map(lambda text: text.encode()) | _TEXTS
        size = math.prod(shape)
        table = np.empty(size, object)
        table[:] = draw(st.lists(element, min_size=size, max_size=size))
        return table.reshape(shape)
    if datatype in FLOATS:
        # Where orjson goes over to exponents, and what JSON has no number for.
        ends = [0.0, -0.0, 1e-6, 3.8e-6, 1e-5, 0.1, 65504.0, math.inf, -math.inf, math.nan]
        small = st.sampled_from(ends if datatype == "FP16" else [*ends, 1.5e13, 1e16])
        any_value = st.floats(width=dtype.itemsize * 8)  # type: ignore[arg-type]
        return draw(hnp.arrays(dtype, shape, elements=any_value | small.map(lambda value: float(dtype.type(value)))))
    return draw(hnp.arrays(dtype, shape))


@st.composite
def _signatures(draw: st.DrawFn) -> Signature:
    """Inputs and outputs of all datatypes and shapes; features that fit them, or not quite."""
    specs = []
    for name in draw(st.lists(_NAMES, min_size=2, max_size=4, unique=True)):
        shape = draw(st.sampled_from([(-1,), (-1, 1), (-1, 3), (-1, 0), (-1, 2, 2)]))
        role: Any = draw(st.sampled_from(["value", "label", "probabilities"]))
        specs.append(TensorSpec(name, draw(st.sampled_from(list(DTYPES))), shape, role))
    cut = draw(st.integers(1, len(specs) - 1))
    features: tuple[Feature, ...] = features_of(specs[:cut])
    if draw(st.booleans()):
        names = draw(st.lists(_NAMES, min_size=len(features[:5]), max_size=len(features[:5]), unique=True))
        features = tuple(
            Feature(name, feature.input, feature.column) for name, feature in zip(names, features, strict=False)
        )
        features = tuple(draw(st.permutations(features)))
    classes = draw(st.sampled_from([None, ('a"', "b", "c"), (1, 2, 3)]))
    batchable = draw(st.integers(0, 9)) > 0
    return Signature(tuple(specs[:cut]), tuple(specs[cut:]), features, classes, batchable=batchable)


@st.composite
def _samples(draw: st.DrawFn, signature: Signature, redact: Rules) -> Sample:
    rows = draw(st.sampled_from([1, 1, 1, 1, 2, 7])) if signature.batchable else 1
    first = rows if signature.batchable else draw(st.integers(1, 3))
    sides = [
        {spec.name: draw(_tables(spec.datatype, (first, *spec.shape[1:]))) for spec in specs}
        for specs in (signature.inputs, signature.outputs)
    ]
    failed = draw(st.integers(0, 9)) == 0
    return sample_of(
        sides[0],
        {} if failed else sides[1],
        signature,
        rows=rows,
        prediction_id=draw(_TEXTS),
        request_id=draw(_TEXTS),
        ts_ns=draw(st.integers(0, 2**63 - 1)),
        model=draw(st.sampled_from(["iris", "iris", "house"])),
        variant=draw(st.sampled_from(["stable", 'can"ary'])),
        flag_revision=draw(st.integers(0, 2)),
        variant_weight=draw(st.sampled_from([None, 0.25, 1.0])),
        sample_rate=draw(st.floats(0, 1)),
        queue_s=draw(st.sampled_from([0.0, 1e-4, 5.0])),
        run_s=draw(st.sampled_from([0.0, 1.25e-4])),
        cache=draw(st.sampled_from(["hit", "miss"])),
        error="invalid_input" if failed else None,
        redact=redact,
    )


@st.composite
def _logs(draw: st.DrawFn) -> tuple[list[Sample], dict[str, Rules]]:
    """Samples of one or two signatures in any order, and the rules of the settings."""
    signatures = draw(st.lists(_signatures(), min_size=1, max_size=2))
    named = [sorted(signature.names()) for signature in signatures]
    cards = [parse_card(draw(st.just({}) | st.dictionaries(st.sampled_from(names), _RULES))) for names in named]
    chosen = draw(st.lists(st.integers(0, len(signatures) - 1), min_size=1, max_size=6))
    samples = [draw(_samples(signatures[index], cards[index])) for index in chosen]
    setting = parse_card(draw(st.just({}) | st.dictionaries(st.sampled_from(named[0]), _RULES)))
    return samples, {"house": setting}


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_logs(), st.integers(1, 8))
def test_the_lines_of_many_samples_are_to_the_byte_those_of_each_read_row_by_row(
    log: tuple[list[Sample], dict[str, Rules]], max_rows: int
) -> None:
    samples, rules = log
    wanted = [line for sample in samples for line in expected_lines(sample, max_rows, rules, lambda: _KEY)]
    found = LineBuilder(max_rows, rules, lambda: _KEY).pieces(samples)
    assert all(piece.endswith(b"\n") for piece in found)
    assert b"".join(found).splitlines(keepends=True) == wanted


def test_many_lines_come_in_pieces_of_whole_lines() -> None:
    first = linear_sample(iris_rows(1))
    samples = [replace(first, prediction_id=f"p{number}") for number in range(50)]
    pieces = LineBuilder(64).pieces(samples)
    assert 1 < len(pieces) < 50
    found = [json.loads(line)["prediction_id"] for piece in pieces for line in piece.splitlines()]
    assert found == [sample.prediction_id for sample in samples]


@settings(deadline=None)
@given(st.data(), st.sampled_from([name for name in DTYPES if name != "BYTES"]), st.integers(1, 6))
def test_the_lines_of_a_group_are_to_the_byte_those_of_its_predictions_one_by_one(
    data: st.DataObject, datatype: str, count: int
) -> None:
    signature = _signature(TensorSpec("x", datatype, (-1, 3)))
    spec = signature.inputs[0]
    table = data.draw(_tables(datatype, (count, 3)))
    rows = count + data.draw(st.sampled_from([0, 4]))  # all rows of the run, or some of them
    outputs = {"answer": data.draw(_tables("FP32", (rows,))), "which": np.arange(rows)}
    places = data.draw(st.just(range(rows)) | st.permutations(range(rows)))[:count]
    like = sample_of({}, {}, signature, rows=1, prediction_id="", request_id="")
    identities = [(f"p{index}", data.draw(_TEXTS)) for index in range(count)]
    values = [row.tobytes() for row in table]
    group = SampleGroup(like, identities, spec, values, outputs, list(places))
    singly = [
        replace(
            like,
            prediction_id=prediction_id,
            request_id=request_id,
            inputs={"x": table[index : index + 1]},
            outputs={name: array[place : place + 1] for name, array in outputs.items()},
        )
        for index, ((prediction_id, request_id), place) in enumerate(zip(identities, places, strict=True))
    ]
    wanted = b"".join(line for sample in singly for line in expected_lines(sample, 64, {}, lambda: _KEY))
    assert LineBuilder(64).block([group]) == wanted
    # Beside others, of whatever kind, nothing is exchanged.
    assert LineBuilder(64).block([singly[0], group, *singly]) == (
        b"".join(expected_lines(singly[0], 64, {}, lambda: _KEY)) + 2 * wanted
    )


def test_a_sample_with_other_rows_than_it_says_takes_no_line_of_its_neighbours() -> None:
    samples = [linear_sample(iris_rows(1, seed), prediction_id=f"p{seed}") for seed in range(3)]
    samples[0].inputs["input"] = iris_rows(2, 10)
    samples[2].inputs["input"] = iris_rows(0, 10)
    lines = LineBuilder(64).block(samples).splitlines(keepends=True)
    assert lines == [line for sample in samples for line in expected_lines(sample, 64, {}, lambda: _KEY)]
    assert lines[1] == to_lines(samples[1], 64)[0]
