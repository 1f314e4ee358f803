"""Schemas and examples of bodies: what a schema takes the codec takes, example by example, for models of every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from gateway.codecs.schema_parts import Described, plain
from gateway.codecs.schemas import Bodies, bodies_of, error_of
from gateway.errors import InvalidInput
from gateway.serving.protocols import codecs_of, prediction_paths
from gateway.tensors import Feature, Signature, Tensors, TensorSpec
from tests.builders import classifier

CODECS = {codec.name: codec for codec in codecs_of(prediction_paths())}
IRIS = classifier().signature
PAINT = Signature(
    inputs=(TensorSpec("size", "FP32", (-1, 1)), TensorSpec("colour", "BYTES", (-1, 1))),
    outputs=(TensorSpec("value", "FP32", (-1, 1)),),
    features=(
        Feature("size", "size", 0, missing_allowed=True),
        Feature("colour", "colour", 0, "categorical", ("red", "blue")),
    ),
)
COUNTS = Signature(
    inputs=(TensorSpec("x", "INT64", (-1,)),),
    outputs=(TensorSpec("y", "BYTES", (-1,)),),
    features=(Feature("x", "x", 0),),
)
IMAGE = Signature(inputs=(TensorSpec("image", "UINT8", (-1, 2, 2)),), outputs=(TensorSpec("score", "FP64", (-1, 1)),))
WHOLE = Signature(
    inputs=(TensorSpec("series", "FP64", (-1, 2)),), outputs=(TensorSpec("next", "FP64", (2,)),), batchable=False
)
ROWS: dict[str, tuple[Signature, Tensors]] = {
    "a matrix": (IRIS, {"input": np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)}),
    "numbers and texts": (
        PAINT,
        {"size": np.array([[1.5]], np.float32), "colour": np.array([[b"red"]], dtype=object)},
    ),
    "one integer": (COUNTS, {"x": np.array([7], np.int64)}),
    "no features": (IMAGE, {"image": np.arange(4, dtype=np.uint8).reshape(1, 2, 2)}),
    "no rows": (WHOLE, {"series": np.arange(6.0).reshape(3, 2)}),
}


def described(kind: str) -> Described:
    signature, inputs = ROWS[kind]
    return Described(signature, example=plain(signature, inputs))


def takes(schema: Any, body: Any) -> bool:
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(body))


@pytest.mark.parametrize("protocol", CODECS)
@pytest.mark.parametrize("kind", ROWS)
def test_an_example_is_taken_by_its_schema_and_by_its_codec(kind: str, protocol: str) -> None:
    signature, inputs = ROWS[kind]
    bodies = bodies_of(protocol, described(kind))
    if bodies is None:
        assert protocol in ("native", "tfs_classify", "tfs_regress")
        return
    example = bodies.example
    if example is None:
        assert (kind, protocol) == ("no rows", "torchserve")
        return
    assert takes(bodies.request, example)
    Draft202012Validator.check_schema(bodies.response)
    read = CODECS[protocol].bind("m", "1", signature).decode(json.dumps(example).encode(), {}).inputs
    for name, array in inputs.items():
        assert read[name].tolist() == array.tolist()


def test_of_a_protocol_that_cannot_ask_a_model_nothing_is_said() -> None:
    assert bodies_of("native", described("no features")) is None
    assert bodies_of("tfs_classify", described("numbers and texts")) is None
    assert bodies_of("tfs_regress", described("a matrix")) is None


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_are_asked_for_by_what_is_no_json_and_told_where_json_can(datatype: str) -> None:
    taken = replace(IMAGE, inputs=(TensorSpec("image", datatype, (-1, 2)),))
    found = {protocol: bodies_of(protocol, Described(taken)) for protocol in CODECS}
    told = {protocol: (bodies.request, set(bodies.others)) for protocol, bodies in found.items() if bodies is not None}
    raw, form = "application/octet-stream", "multipart/form-data"
    assert told == {"oip": (None, {raw}), "torchserve": (None, {raw, form})}
    given = Described(
        replace(IMAGE, outputs=(TensorSpec("score", datatype, (-1, 2)),)), example={"image": [[1, 2], [3, 4]]}
    )
    bodies = {protocol: bodies_of(protocol, given) for protocol in ("oip", "tfs", "mlflow", "torchserve")}
    assert all(each is not None and each.request is not None for each in bodies.values())
    assert bodies["oip"] is not None
    assert bodies["oip"].example["parameters"] == {"binary_data_output": True}


def test_a_table_of_an_example_is_read_back_and_what_has_no_such_form_says_none() -> None:
    bodies = bodies_of("mlflow", described("numbers and texts"))
    assert bodies is not None
    table = bodies.others["text/csv"].example
    assert table == "size,colour\n1.5,red\n"
    read = CODECS["mlflow"].bind("m", "1", PAINT).decode(table.encode(), {"content-type": "text/csv"}).inputs
    assert (read["size"].tolist(), read["colour"].tolist()) == ([[1.5]], [[b"red"]])
    for protocol, kind in (("native", "a matrix"), ("tfs", "a matrix"), ("mlflow", "no rows")):
        without = bodies_of(protocol, described(kind))
        assert without is not None
        assert not without.others
    several = bodies_of("torchserve", described("numbers and texts"))
    assert several is not None
    assert set(several.others) == {"multipart/form-data"}


def native(kind: str) -> Bodies:
    bodies = bodies_of("native", described(kind))
    assert bodies is not None
    return bodies


@pytest.mark.parametrize(
    "row",
    [
        {"size": 1.0, "colour": "red"},
        {"size": None, "colour": "blue"},
        {"colour": "red"},
        {"size": 1.0},
        {"size": 1.0, "colour": None},
        {"size": 1.0, "colour": "green"},
        {"size": True, "colour": "red"},
        {"size": 3.4028235677973366e38, "colour": "red"},
        {"size": 3.4028235677973362e38, "colour": "red"},
        {"size": 1.0, "colour": "red", "more": 1},
    ],
    ids=json.dumps,
)
def test_the_schema_of_named_rows_says_what_the_codec_says(row: dict[str, Any]) -> None:
    body = {"rows": [row]}
    try:
        CODECS["native"].bind("paint", "1", PAINT).decode(json.dumps(body).encode(), {})
        is_taken = True
    except InvalidInput:
        is_taken = False
    assert takes(native("numbers and texts").request, body) is is_taken


@pytest.mark.parametrize("protocol", CODECS)
def test_a_refusal_looks_as_its_schema_says(protocol: str) -> None:
    body = json.loads(CODECS[protocol].error(InvalidInput("rows", "null", "an array")))
    assert takes(error_of(protocol), body)
    assert not takes(error_of(protocol), {"oops": body})


def test_an_example_says_no_more_digits_than_the_datatype_has_and_null_where_a_value_is_missing() -> None:
    rows = {"size": np.array([[np.nan]], np.float32), "colour": np.array([[b"red"]], dtype=object)}
    example = plain(PAINT, rows)
    assert example == {"size": [None], "colour": ["red"]}
    bodies = bodies_of("native", Described(PAINT, example=example))
    tensors = bodies_of("oip", Described(PAINT, example=example))
    assert bodies is not None
    assert tensors is not None
    assert bodies.example == {"rows": [{"size": None, "colour": "red"}]}
    assert tensors.example is None
    assert plain(IRIS, {"input": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)}) == {"input": [0.1, 0.2, 0.3, 0.4]}
