"""TensorFlow Serving's codecs: rows and columns in and out, and what is refused in which words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gateway.codecs.codec import Request
from gateway.codecs.tfs import ClassifyCodec, PredictCodec, RegressCodec
from gateway.errors import InvalidInput
from gateway.tensors import Feature, Signature, TensorSpec

# The example of the documentation: a text, a row and a small matrix per row.
SENSORS = Signature(
    inputs=(
        TensorSpec("tag", "BYTES", (-1,)),
        TensorSpec("signal", "FP32", (-1, 5)),
        TensorSpec("sensor", "INT64", (-1, 2, 2)),
    ),
    outputs=(TensorSpec("score", "FP32", (-1,)), TensorSpec("image_bytes", "BYTES", (-1,))),
)
MATRIX = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 3)),),
    outputs=(TensorSpec("y", "FP32", (-1, 2), "probabilities"),),
    features=tuple(Feature(name, "x", column) for column, name in enumerate("abc")),
    classes=("no", "yes"),
)
WHOLE = Signature(inputs=(TensorSpec("x", "FP32", (2, 3)),), outputs=(TensorSpec("y", "FP32", (2,)),), batchable=False)
ROWS = {
    "instances": [
        {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
        {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
    ]
}
COLUMNS = {
    "inputs": {
        "tag": ["foo", "bar"],
        "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
        "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
    }
}


def decode(document: Any, signature: Signature = SENSORS, codec: Any = None) -> Request:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return (codec or PredictCodec()).bind("m", "1", signature).decode(body, {})


def test_rows_and_columns_are_the_same_tensors() -> None:
    rows, columns = decode(ROWS), decode(COLUMNS)
    assert rows.rows == columns.rows == 2
    for name, array in rows.inputs.items():
        assert array.dtype == columns.inputs[name].dtype
        np.testing.assert_array_equal(array, columns.inputs[name])
    assert rows.inputs["sensor"].shape == (2, 2, 2)


def test_answers_are_in_the_form_of_the_request_and_bytes_are_base64() -> None:
    bound = PredictCodec().bind("m", "1", SENSORS)
    images = np.array([b"\x00\xff", b"b"], dtype=object)
    outputs = {"score": np.array([0.5, np.nan], np.float32), "image_bytes": images}
    rows = json.loads(bound.encode(decode(ROWS), outputs).body)
    first, second = rows["predictions"]
    assert first == {"score": 0.5, "image_bytes": {"b64": "AP8="}}
    assert np.isnan(second["score"])
    columns = json.loads(bound.encode(decode(COLUMNS), outputs).body)
    assert columns["outputs"]["image_bytes"] == [{"b64": "AP8="}, {"b64": "Yg=="}]
    assert [json.loads(body) for body in bound.encode_rows(outputs) or []][:1] == [{"predictions": [first]}]


def test_one_row_read_in_the_short_way_is_what_the_long_way_reads() -> None:
    bound = PredictCodec().bind("m", "1", MATRIX)
    bodies = [json.dumps({"instances": [[number, 2.5, -3]]}).encode() for number in range(4)]
    assert bound.decode_plain(bodies) == [None] * 4  # nothing is known yet
    for body in bodies[:2]:
        assert bound.decode(body, {}).is_plain
    for body, flat in zip(bodies, bound.decode_plain(bodies), strict=True):
        assert flat == bound.decode(body, {}).flat
    for body in (b'{"inputs": [[1, 2.5, -3]]}', b'{"instances": [[1, 2.5, -3]], "signature_name": ""}'):
        assert bound.decode_plain([body]) == [None]
        np.testing.assert_array_equal(bound.decode(body, {}).inputs["x"], np.array([[1, 2.5, -3]], np.float32))


def test_a_model_that_takes_no_rows_is_asked_in_columns() -> None:
    request = decode({"inputs": [[1, 2, 3], [4, 5, 6]]}, WHOLE)
    assert request.inputs["x"].shape == (2, 3)
    bound = PredictCodec().bind("m", "1", WHOLE)
    assert bound.encode(request, {"y": np.array([1.0, 2.0], np.float32)}).body == b'{"outputs":[1.0,2.0]}'
    with pytest.raises(InvalidInput, match="takes no rows"):
        decode({"instances": [[1, 2, 3], [4, 5, 6]]}, WHOLE)


BAD: dict[str, tuple[Any, str, str]] = {
    "nothing": ({}, "body", "exactly one of"),
    "a list": ([1], "body", "a JSON object"),
    "no rows": ({"instances": []}, "instances", "an array of rows"),
    "a lacking input": ({"instances": [{"tag": "a"}]}, "instances[0].signal", "all of tag, signal, sensor"),
    "an unknown input": ({"inputs": {"tga": ["a"]}}, "inputs.tga", "only tag"),
    "a bare row of several inputs": ({"instances": ["foo"]}, "instances[0]", "an object with all of"),
    "a text in a row": (
        {"instances": [ROWS["instances"][0], {**ROWS["instances"][1], "signal": [1, 2, "x", 4, 5]}]},
        "instances[1].signal[2]",
        "a number",
    ),
    "a ragged row": ({"inputs": {**COLUMNS["inputs"], "signal": [[1], [1, 2]]}}, "inputs.signal, array 1", "2 values"),
    "another shape": ({"inputs": {**COLUMNS["inputs"], "signal": [[1], [2]]}}, "inputs.signal.shape", "[-1, 5]"),
    "several lengths": ({"inputs": {**COLUMNS["inputs"], "tag": ["a"]}}, "inputs.signal.shape", "1 rows"),
    "no base64": ({"inputs": {**COLUMNS["inputs"], "tag": ["a", {"b64": "%"}]}}, "inputs.tag[1].b64", "base64"),
    "no text": ({"inputs": {**COLUMNS["inputs"], "tag": ["a", {"b64": "/w=="}]}}, "inputs.tag[1].b64", "UTF-8"),
    "a signature": ({**COLUMNS, "signature_name": "other"}, "signature_name", "serving_default"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_its_place(name: str) -> None:
    document, field, words = BAD[name]
    with pytest.raises(InvalidInput) as caught:
        decode(document)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_examples_are_features_or_whole_rows_of_an_input() -> None:
    for examples in ([{"a": 1, "b": [2.0], "c": 3, "unused": 4}], [{"x": [1, 2, 3]}]):
        request = decode({"examples": examples}, MATRIX, ClassifyCodec())
        np.testing.assert_array_equal(request.inputs["x"], np.array([[1, 2, 3]], np.float32))
    bound = ClassifyCodec().bind("m", "1", MATRIX)
    body = bound.encode(request, {"y": np.array([[0.25, 0.75]], np.float32)}).body
    assert json.loads(body) == {"results": [[["no", 0.25], ["yes", 0.75]]]}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"examples": [{"a": 1, "b": 2}]}, "examples.c"),
        ({"examples": [{"a": 1, "b": 2, "c": "x"}]}, "examples[0].c"),
        ({"examples": [{"a": 1, "b": 2, "c": 3}], "context": {"a": 1}}, "examples[0].a"),
        ({"examples": []}, "examples"),
        ({"examples": [1]}, "examples[0]"),
        ({"context": 1, "examples": [{}]}, "context"),
    ],
)
def test_examples_that_do_not_fit_are_refused_by_name(document: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(document, MATRIX, ClassifyCodec())
    assert caught.value.field == field


def test_a_verb_that_the_model_cannot_do_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one number per row"):
        decode({"examples": [{"a": 1, "b": 2, "c": 3}]}, MATRIX, RegressCodec())
    with pytest.raises(InvalidInput, match="probabilities"):
        decode({"examples": [{"tag": "a"}]}, SENSORS, ClassifyCodec())
