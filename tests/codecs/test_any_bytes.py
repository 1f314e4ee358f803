"""Whatever bytes come by whatever protocol: they are read, or refused by name; nothing else happens."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs.codec import Codec
from gateway.errors import InvalidInput
from gateway.serving.protocols import codecs_of, prediction_paths
from gateway.tensors import DTYPES, Feature, Signature, Tensors, TensorSpec

CODECS = {codec.name: codec for codec in codecs_of(prediction_paths())}
SIGNATURES = [
    Signature(
        inputs=(TensorSpec("x", "FP32", (-1, 2)),),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"), TensorSpec("p", "FP32", (-1, 2), "probabilities")),
        features=(Feature("a", "x", 0), Feature("b", "x", 1, missing_allowed=True)),
        classes=(0, 1),
    ),
    Signature(inputs=(TensorSpec("x", "FP32", (-1,)),), outputs=(TensorSpec("y", "FP32", (-1,)),)),
    Signature(
        inputs=(TensorSpec("n", "INT64", (-1, 1)), TensorSpec("t", "BYTES", (-1, 1)), TensorSpec("o", "BOOL", (-1,))),
        outputs=(TensorSpec("y_bytes", "BYTES", (-1, 1)),),
        features=(Feature("n", "n", 0), Feature("t", "t", 0, "categorical"), Feature("o", "o", 0, "categorical")),
    ),
    Signature(
        inputs=(TensorSpec("image", "UINT8", (-1, -1, 3)),),
        outputs=(TensorSpec("y", "FP64", ()),),
        batchable=False,
    ),
    Signature(inputs=(TensorSpec("s", "FP16", ()),), outputs=(TensorSpec("y", "FP16", (2, 2)),), batchable=False),
]
# Bodies that say something to one of the protocols, to be changed.
MEANT: list[Any] = [
    {"instances": [[1, 2], [3, 4.5]]},
    {"instances": [{"n": 1, "t": {"b64": "YQ=="}, "o": True}]},
    {"inputs": {"n": [[1]], "t": [["a"]], "o": [False]}, "signature_name": "serving_default"},
    {"examples": [{"a": 1.5, "b": None}], "context": {}},
    {"dataframe_split": {"columns": ["a", "b"], "data": [[1, None]]}, "params": {"outputs": ["p"]}},
    {"dataframe_records": [{"n": 1, "t": "x", "o": False}]},
    {"data": [1.0, 2.0]},
    [[1, 2]],
    {"inputs": [[[1, 2, 3]]]},
    {"rows": [{"a": 1, "b": 2}]},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["a", "n", "b64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "x", "n", "b64"]), inner),
    max_leaves=6,
)
CONTENT_TYPES = st.sampled_from(
    ["", "application/json", "text/csv", "application/octet-stream", "multipart/form-data; boundary=B", "text/plain;x"]
)


def changed(document: Any, value: Any, draw: random.Random) -> Any:
    """A document with something in it replaced."""
    if draw.random() < 0.2 or not isinstance(document, list | dict) or not document:
        return value
    if isinstance(document, list):
        place = draw.randrange(len(document))
        return [changed(item, value, draw) if index == place else item for index, item in enumerate(document)]
    key = draw.choice(list(document))
    return {name: changed(item, value, draw) if name == key else item for name, item in document.items()}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 3)) == 0:
        content = draw(st.binary(max_size=40))
        return draw(
            st.sampled_from(
                [content, b"--B\r\nContent-Disposition: form-data; name=data\r\n\r\n" + content + b"\r\n--B--"]
            )
        )
    document = changed(draw(st.sampled_from(MEANT)), draw(JSON), draw(st.randoms(use_true_random=False)))
    return json.dumps(document).encode("utf-8", "surrogatepass")


def answered(signature: Signature, rows: int) -> Tensors:
    """Some outputs of that signature."""
    return {
        spec.name: (
            np.full([rows if size == -1 else size for size in spec.shape], b"x", object)
            if spec.datatype == "BYTES"
            else np.full([rows if size == -1 else size for size in spec.shape], np.nan).astype(DTYPES[spec.datatype])
        )
        for spec in signature.outputs
    }


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=60)
@given(body=bodies(), content_type=CONTENT_TYPES, number=st.integers(0, len(SIGNATURES) - 1))
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_any_bytes_are_read_or_refused_by_name(name: str, body: bytes, content_type: str, number: int) -> None:
    codec: Codec = CODECS[name]
    signature, headers = SIGNATURES[number], {"content-type": content_type} if content_type else {}
    bound = codec.bind("m", "1", signature)
    try:
        request = bound.decode(body, headers)
    except InvalidInput as error:
        json.loads(codec.error(error))
        return
    assert set(request.inputs) == {spec.name for spec in signature.inputs}
    outputs = answered(signature, request.rows)
    try:
        told = json.loads(bound.encode(request, outputs).body)
    except InvalidInput:
        assert name == "oip"  # FP16 as JSON is refused there
        return
    if request.is_plain:
        whole = bound.encode_rows(outputs)
        assert whole is None or json.dumps(json.loads(whole[0])) == json.dumps(told)
    flats = bound.decode_plain([body]) if not codec.cache_headers(headers) else [None]
    assert flats[0] in (None, request.flat)
