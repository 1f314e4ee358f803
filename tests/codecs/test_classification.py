"""The classification extension: the highest values of a row as texts, and tritonclient asking for them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from gateway.codecs.classification import highest
from gateway.codecs.oip_json import OipCodec
from gateway.errors import InvalidInput
from gateway.tensors import Signature, TensorSpec

WORDS = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 1)),),
    outputs=(TensorSpec("label", "BYTES", (-1,), "label"), TensorSpec("p", "FP32", (-1, 3), "probabilities")),
    classes=("no", "perhaps", "yes"),
)
OUTPUTS = {
    "label": np.array([b"yes", b"no"], dtype=object),
    "p": np.array([[0.25, 0.125, 0.625], [0.5, 0.5, 0.0]], np.float32),
}


def texts(array: Any) -> list[Any]:
    found: list[Any] = np.vectorize(bytes.decode, otypes=[object])(array).tolist()
    return found


def test_the_highest_come_first_and_of_equal_ones_the_first() -> None:
    assert texts(highest(OUTPUTS["p"], 2, WORDS.classes, batchable=True)) == [  # type: ignore[arg-type]  # all texts here
        ["0.625:2:yes", "0.25:0:no"],
        ["0.5:0:no", "0.5:1:perhaps"],
    ]


def test_more_than_there_are_gives_all_and_without_labels_their_places_alone() -> None:
    array = np.array([[3, 2**63 + 1, 0]], np.uint64)
    assert texts(highest(array, 9, None, batchable=True)) == [["9223372036854775809:1", "3:0", "0:2"]]
    assert texts(highest(np.array([1.5, -2.0]), 1, None, batchable=False)) == ["1.5:0"]
    assert texts(highest(np.array([7, 8]), 5, None, batchable=True)) == [["7:0"], ["8:0"]]


def test_nan_comes_last() -> None:
    array = np.array([[np.nan, 0.5, np.inf]])
    assert texts(highest(array, 3, None, batchable=True)) == [["Infinity:2", "0.5:1", "NaN:0"]]


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_asks_for_classes_and_gets_texts(binary: bool) -> None:
    sent = InferInput("x", [2, 1], "FP32")
    sent.set_data_from_numpy(np.zeros((2, 1), np.float32))
    wanted = [InferRequestedOutput("p", binary_data=binary, class_count=1), InferRequestedOutput("label", binary)]
    body, size = InferenceServerClient.generate_request_body([sent], outputs=wanted)
    bound = OipCodec().bind("m", "1", WORDS)
    request = bound.decode(body, {"inference-header-content-length": str(size)})
    encoded = bound.encode(request, OUTPUTS)
    length = dict(encoded.headers).get(b"inference-header-content-length")
    result = InferResult.from_response_body(encoded.body, header_length=int(length) if length else None)
    found = [text if isinstance(text, str) else text.decode() for text in result.as_numpy("p").ravel()]
    assert found == ["0.625:2:yes", "0.5:0:no"]
    assert result.as_numpy("p").shape == (2, 1)
    assert result.get_output("p")["datatype"] == "BYTES"


def test_texts_have_no_highest() -> None:
    wanted = [{"name": "label", "parameters": {"classification": 1}}]
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    with pytest.raises(InvalidInput, match=r"outputs\[0\]\.parameters\.classification.*output of numbers"):
        OipCodec().bind("m", "1", WORDS).decode(json.dumps({"inputs": [tensor], "outputs": wanted}).encode(), {})
