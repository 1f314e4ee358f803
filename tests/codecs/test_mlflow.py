"""MLflow's codec: four JSON forms and CSV are the same table, and each column that does not fit is named."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from gateway.codecs.codec import Request
from gateway.codecs.mlflow import MlflowCodec
from gateway.errors import InvalidInput
from gateway.tensors import Feature, Signature, TensorSpec

CSV = {"content-type": "text/csv; charset=utf-8"}
MIXED = Signature(
    inputs=(
        TensorSpec("numbers", "FP32", (-1, 2)),
        TensorSpec("count", "INT64", (-1, 1)),
        TensorSpec("colour", "BYTES", (-1, 1)),
    ),
    outputs=(TensorSpec("label", "BYTES", (-1,), "label"), TensorSpec("p", "FP32", (-1, 2), "probabilities")),
    features=(
        Feature("size", "numbers", 0),
        Feature("weight", "numbers", 1, missing_allowed=True),
        Feature("count", "count", 0),
        Feature("colour", "colour", 0, "categorical", ("red", "blue")),
    ),
    classes=("no", "yes"),
)
COLUMNS = ["colour", "size", "weight", "count"]
DATA = [["red", 1.5, None, 3], ["blue", 2, 4.5, 5]]
RECORDS = [dict(zip(COLUMNS, row, strict=True)) for row in DATA]


def decode(document: Any, headers: Any = {}) -> Request:  # noqa: B006  # only read
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return MlflowCodec().bind("m", "1", MIXED).decode(body, headers)


FORMS: dict[str, tuple[Any, Any]] = {
    "split": ({"dataframe_split": {"columns": COLUMNS, "data": DATA, "index": [0, 1]}}, {}),
    "records": ({"dataframe_records": RECORDS}, {}),
    "instances": ({"instances": RECORDS}, {}),
    "inputs": ({"inputs": {name: [record[name] for record in RECORDS] for name in COLUMNS}}, {}),
    "positions": ({"dataframe_split": {"data": [[row[1], row[2], row[3], row[0]] for row in DATA]}}, {}),
    "tensors": (
        {"inputs": {"numbers": [[1.5, math.nan], [2, 4.5]], "count": [3, 5], "colour": [["red"], ["blue"]]}},
        {},
    ),
    "CSV": (b",colour,size,weight,count\n0,red,1.5,,3\n1,blue,2,4.5,5\n", CSV),
    "CSV of Excel": ('\ufeffcolour,size,weight,count\r\n"red",1.5,NaN,3\r\nblue,2,4.5,5'.encode(), CSV),
}


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_are_the_same_inputs(name: str) -> None:
    request = decode(*FORMS[name])
    assert request.rows == 2
    np.testing.assert_array_equal(request.inputs["numbers"], np.array([[1.5, np.nan], [2, 4.5]], np.float32))
    np.testing.assert_array_equal(request.inputs["count"], np.array([[3], [5]], np.int64))
    assert request.inputs["colour"].tolist() == [[b"red"], [b"blue"]]


def split(column: str, value: Any) -> Any:
    row = [value if name == column else came for name, came in zip(COLUMNS, DATA[0], strict=True)]
    return {"dataframe_split": {"columns": COLUMNS, "data": [DATA[1], row]}}


BAD: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "a text for a number": (split("size", "1.5"), "column 'size', row 1", ("a number", 'string "1.5"')),
    "a fraction for a whole number": (split("count", 1.5), "column 'count', row 1", ("a whole number", "1.5")),
    "a number for a text": (split("colour", 7), "column 'colour', row 1", ("a string",)),
    "null": (split("size", None), "column 'size', row 1", ("null", "may not be missing")),
    "no column": ({"dataframe_records": [{"size": 1, "count": 2}]}, "column 'colour'", ("nothing",)),
    "no form": ({"rows": []}, "body", ("exactly one of dataframe_split",)),
    "two forms": ({"inputs": [], "instances": []}, "body", ("exactly one of",)),
    "a short row": ({"dataframe_split": {"columns": COLUMNS, "data": [[1]]}}, "dataframe_split.data[0]", ("1 values",)),
    "a column twice": ({"dataframe_split": {"columns": ["size"] * 2, "data": [[1, 2]]}},
                       "dataframe_split.columns", ("'size' twice",)),
    "parameters": ({"dataframe_records": RECORDS, "params": {"top_k": 1}}, "params.top_k", ("only outputs",)),
    "an output": ({"inputs": [], "params": {"outputs": ["q"]}}, "params.outputs[0]", ("label, p",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_its_column(name: str) -> None:
    document, field, words = BAD[name]
    with pytest.raises(InvalidInput) as caught:
        decode(document)
    assert caught.value.field == field
    for word in words:
        assert word in str(caught.value)


def test_all_columns_that_do_not_fit_are_told_at_once() -> None:
    wrong = [dict(RECORDS[0]), {"colour": 1, "size": "x", "weight": 2, "count": 2.5}]
    with pytest.raises(InvalidInput) as caught:
        decode({"dataframe_records": wrong})
    for place in ("column 'size', row 1", "column 'count', row 1", "column 'colour', row 1"):
        assert place in caught.value.field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"colour,size,weight,count\n", "body"),
        (b"colour,size,weight,count\nred,1\n", "row 0"),
        (b"colour,size,weight,count\nred,1_0,1,1\n", "column 'size', row 0"),
        (b"colour,size,weight,count\nred,1e400,1,1\n", "column 'size', row 0"),
        (b"colour,size,weight,count\nred,1,1,1.0\n", "column 'count', row 0"),
        (b"colour,size,weight,count\n\xff,1,1,1\n", "body"),
        (b'colour,size\n"red,1\n', "body"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(body: bytes, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(body, CSV)
    assert caught.value.field == field


def test_predictions_are_the_labels_or_what_the_parameters_name() -> None:
    bound = MlflowCodec().bind("m", "1", MIXED)
    outputs = {"label": np.array([b"no", b"yes"], object), "p": np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)}
    document: dict[str, Any] = {"dataframe_records": RECORDS}
    assert json.loads(bound.encode(decode(document), outputs).body) == {"predictions": ["no", "yes"]}
    assert bound.encode_rows(outputs) == [b'{"predictions":["no"]}', b'{"predictions":["yes"]}']
    asked = decode({**document, "params": {"outputs": ["p", "label"]}})
    assert json.loads(bound.encode(asked, outputs).body)["predictions"][1] == {"p": [0.5, 0.5], "label": "yes"}


def test_rows_of_a_matrix_are_read_in_the_short_way_once_their_form_is_known() -> None:
    spec = TensorSpec("x", "FP32", (-1, 2))
    signature = Signature((spec,), (TensorSpec("y", "FP32", (-1,)),), (Feature("a", "x", 0), Feature("b", "x", 1)))
    bound = MlflowCodec().bind("m", "1", signature)
    bodies = [b'{"dataframe_split":{"columns":["a","b"],"data":[[%d,2.5]]}}' % number for number in range(3)]
    assert bound.decode_plain(bodies) == [None] * 3
    flats = [bound.decode(body, {}).flat for body in bodies]
    assert bound.decode_plain(bodies) == flats
    turned = b'{"dataframe_split":{"columns":["b","a"],"data":[[2.5,1]]}}'
    assert bound.decode(turned, {}).flat == flats[1]
    assert bound.decode_plain([turned]) == [None]


def test_csv_and_json_never_share_an_answer() -> None:
    codec = MlflowCodec()
    assert codec.cache_headers({"content-type": "Text/CSV"}) != codec.cache_headers(
        {"content-type": "application/json"}
    )
    assert codec.cache_headers({}) == ""
