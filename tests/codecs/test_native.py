"""The native protocol: named rows and columns in, labels and probabilities by name out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs.native import NativeCodec
from gateway.codecs.oip_json import OipCodec
from gateway.errors import InvalidInput
from gateway.tensors import Feature, Signature, TensorSpec

MIXED = Signature(
    inputs=(
        TensorSpec("age", "FP32", (-1, 1)),
        TensorSpec("city", "BYTES", (-1, 1)),
        TensorSpec("n", "INT64", (-1, 1)),
    ),
    outputs=(
        TensorSpec("label", "BYTES", (-1,), "label"),
        TensorSpec("probabilities", "FP32", (-1, 2), "probabilities"),
    ),
    features=(
        Feature("age", "age", 0, missing_allowed=True),
        Feature("city", "city", 0, "categorical"),
        Feature("n", "n", 0),
    ),
    classes=("no", "yes"),
)
ROW = {"age": 31.5, "city": "Bern", "n": 2}


def decode(document: Any, signature: Signature = MIXED) -> Any:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return NativeCodec().bind("m", "3", signature).decode(body, {})


def matrix(width: int) -> Signature:
    return Signature(
        inputs=(TensorSpec("input", "FP64", (-1, width)),),
        outputs=(TensorSpec("value", "FP64", (-1, 1)),),
        features=tuple(Feature(f"f{i}", "input", i, missing_allowed=True) for i in range(width)),
    )


def test_named_rows_become_one_tensor_per_input() -> None:
    request = decode({"rows": [ROW, {**ROW, "age": None}]})
    assert request.rows == 2
    assert request.inputs["city"].ravel().tolist() == [b"Bern", b"Bern"]
    assert request.inputs["n"].dtype == np.int64
    ages = request.inputs["age"].ravel().tolist()
    assert ages[0] == 31.5
    assert math.isnan(ages[1])


def test_columns_may_come_in_any_order() -> None:
    request = decode({"columns": ["n", "age", "city"], "rows": [[2, 31.5, "Bern"]]})
    same = decode({"rows": [ROW]})
    for name, array in same.inputs.items():
        np.testing.assert_array_equal(request.inputs[name], array)


def test_features_are_placed_by_their_column_not_by_their_order_in_the_manifest() -> None:
    signature = Signature(
        inputs=(TensorSpec("input", "FP32", (-1, 2)),),
        outputs=(TensorSpec("value", "FP32", (-1, 1)),),
        features=(Feature("second", "input", 1), Feature("first", "input", 0)),
    )
    assert decode({"rows": [{"first": 1, "second": 2}]}, signature).inputs["input"].tolist() == [[1.0, 2.0]]


REFUSED: list[tuple[Any, str, str]] = [
    (b"[]", "body", "object with 'rows'"),
    ({"row": []}, "row", "unknown key"),
    ({"rows": []}, "rows", "at least one row"),
    ({"rows": {}}, "rows", "array of rows"),
    ({"rows": [3]}, "rows[0]", "number 3"),
    ({"rows": [ROW, {**ROW, "town": 1}]}, "rows[1].town", "age, city, n"),
    ({"rows": [{"age": 1, "n": 2}]}, "rows[0].city", "every feature"),
    ({}, "rows", "nothing"),
    ({"rows": [{**ROW, "age": "31"}]}, "rows[0].age", 'string "31"'),
    ({"rows": [ROW, {**ROW, "n": 1.5}]}, "rows[1].n", "whole number"),
    ({"rows": [{**ROW, "n": None}]}, "rows[0].n", "null"),
    ({"rows": [{**ROW, "city": None}]}, "rows[0].city", "null"),
    ({"rows": [{**ROW, "city": 7}]}, "rows[0].city", "a string"),
    ({"columns": ["age", "city"], "rows": [[1, "x"]]}, "columns", "no 'n'"),
    ({"columns": ["age", "city", "n", "x"], "rows": [[1, "x", 2, 3]]}, "columns[3]", "'x'"),
    ({"columns": ["age", "age", "city", "n"], "rows": []}, "rows", "at least one row"),
    ({"columns": ["age", "age"], "rows": [[1, 2]]}, "columns[1]", "twice"),
    ({"columns": ["age", "city", "n"], "rows": [[1, "x"]]}, "rows[0]", "3 values"),
]


@pytest.mark.parametrize(("document", "field", "words"), REFUSED, ids=[f"{n}-{r[1]}" for n, r in enumerate(REFUSED)])
def test_a_wrong_request_is_refused_by_name(document: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(document)
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize("when", ["2026-11-26", "2026-11-26T20:00:00Z", ""])
def test_a_date_is_the_text_or_the_number_that_the_model_was_fitted_on(when: str) -> None:
    assert decode({"rows": [{**ROW, "city": when}]}).inputs["city"].item() == when.encode()
    with pytest.raises(InvalidInput, match=r"rows\[0\]\.age: expected a number, got string"):
        decode({"rows": [{**ROW, "age": when}]})


def test_a_text_outside_of_a_closed_list_is_refused_by_either_protocol() -> None:
    closed = Signature(
        inputs=(TensorSpec("city", "BYTES", (-1, 1)),),
        outputs=(TensorSpec("value", "FP32", (-1, 1)),),
        features=(Feature("city", "city", 0, "categorical", ("Bern", "Basel")),),
    )
    decode({"rows": [{"city": "Basel"}]}, closed)
    with pytest.raises(InvalidInput, match=r"row 1, feature 'city'.*one of 'Bern', 'Basel', got 'Oslo'"):
        decode({"rows": [{"city": "Bern"}, {"city": "Oslo"}]}, closed)
    tensor = {"name": "city", "shape": [1, 1], "datatype": "BYTES", "data": ["Oslo"]}
    with pytest.raises(InvalidInput, match="'Oslo'"):
        OipCodec().bind("m", "1", closed).decode(json.dumps({"inputs": [tensor]}).encode(), {})


def test_a_missing_text_passes_a_closed_list_where_it_may_be_missing() -> None:
    def closed(*, missing_allowed: bool) -> Signature:
        feature = Feature("city", "city", 0, "categorical", ("Bern", "Ulm"), missing_allowed)
        return Signature((TensorSpec("city", "BYTES", (-1, 1)),), MIXED.outputs, (feature,))

    for row in ({"city": None}, {}):
        request = decode({"rows": [row, {"city": "Ulm"}]}, closed(missing_allowed=True))
        assert request.inputs["city"].tolist() == [[b""], [b"Ulm"]]
    with pytest.raises(InvalidInput, match="one of 'Bern', 'Ulm'"):
        decode({"rows": [{"city": ""}]}, closed(missing_allowed=False))


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows":[{"\\ud800":NaN}]}',
        b'{"\\udfff":NaN}',
        b'{"rows":[{"age":NaN,"city":"\\ud800","n":1}]}',
        b'{"rows":[{"age":NaN,"city":"\xed\xa0\x80","n":1}]}',
        b'{"rows":[{"age":NaN,"city":"\xff","n":1}]}',
    ],
)
def test_text_that_is_no_unicode_is_refused_beside_nan_too(body: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(body)
    assert caught.value.field == "body"
    for codec in (NativeCodec(), OipCodec()):
        json.loads(codec.error(caught.value))  # the refusal itself can be told


def test_the_reply_names_classes_variant_and_prediction() -> None:
    bound = NativeCodec().bind("m", "3", MIXED)
    outputs = {
        "label": np.array([b"yes", b"no"], dtype=object),
        "probabilities": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
    }
    encoded = bound.encode(decode({"rows": [ROW, ROW]}), outputs)
    assert bound.stamp is not None
    assert json.loads(bound.stamp(encoded.body, "canary", "c0ffee")) == {
        "model": "m",
        "model_version": "3",
        "variant": "canary",
        "prediction_id": "c0ffee",
        "predictions": [
            {"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}},
            {"label": "no", "probabilities": {"no": 0.5, "yes": 0.5}},
        ],
    }


@given(
    rows=st.lists(
        st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
def test_rows_and_columns_read_the_same_numbers(rows: list[list[float | None]]) -> None:
    names = ["f0", "f1", "f2"]
    named = decode({"rows": [dict(zip(names, row, strict=True)) for row in rows]}, matrix(3))
    columnar = decode({"columns": names, "rows": rows}, matrix(3))
    expected = np.array([[math.nan if value is None else value for value in row] for row in rows])
    np.testing.assert_array_equal(named.inputs["input"], expected)
    np.testing.assert_array_equal(columnar.inputs["input"], expected)


@given(body=st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_decoded_or_refused_with_invalid_input(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(body)
