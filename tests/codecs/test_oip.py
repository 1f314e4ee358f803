"""The Open Inference Protocol codec: what it takes, what it refuses and by which words, what it gives back."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from gateway.codecs.oip_json import OipCodec
from gateway.errors import InvalidInput
from gateway.tensors import BINARY_ONLY, DTYPES, Feature, Signature, TensorSpec, from_bfloat16

IRIS = Signature(
    inputs=(TensorSpec("input", "FP32", (-1, 4)),),
    outputs=(TensorSpec("label", "INT64", (-1,), "label"), TensorSpec("probabilities", "FP32", (-1, 3))),
)
ROW = [5.1, 3.5, 1.4, 0.2]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": ROW, **changes}


def decode(document: Any, signature: Signature = IRIS) -> Any:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return OipCodec().bind("iris", "1", signature).decode(body, {})


@pytest.mark.parametrize("data", [ROW, [ROW]], ids=["flat", "nested"])
def test_flat_and_nested_data_give_the_same_tensor(data: Any) -> None:
    request = decode({"inputs": [tensor(data=data)]})
    assert request.rows == 1
    assert request.inputs["input"].dtype == np.float32
    np.testing.assert_array_equal(request.inputs["input"], np.array([ROW], np.float32))


REFUSED: list[tuple[Any, str, str]] = [
    (b"", "body", "empty body"),
    (b"{nope", "body", "valid JSON"),
    ([1], "body", "array"),
    ({}, "inputs", "null"),
    ({"inputs": []}, "inputs.input", "no such input"),
    ({"inputs": [3]}, "inputs[0]", "number 3"),
    ({"inputs": [tensor(name="other")]}, "inputs[0].name", "an input of model 'iris': input"),
    ({"inputs": [tensor(), tensor()]}, "inputs.input", "twice"),
    ({"inputs": [tensor(datatype="FP64")]}, "inputs.input.datatype", "FP32"),
    ({"inputs": [tensor(shape=[1, 3])]}, "inputs.input.shape", "[-1, 4]"),
    ({"inputs": [tensor(shape=[4])]}, "inputs.input.shape", "[-1, 4]"),
    ({"inputs": [tensor(shape=[1, -4])]}, "inputs.input.shape", "whole numbers"),
    ({"inputs": [tensor(shape=[1, 4.0])]}, "inputs.input.shape", "whole numbers"),
    ({"inputs": [tensor(shape=[500, 4.0], data=ROW * 500)]}, "inputs.input.shape", "whole numbers"),
    ({"inputs": [tensor(shape=[0, 4], data=[])]}, "inputs", "at least 1 row"),
    ({"inputs": [tensor(shape=[2, 4])]}, "inputs.input.data", "shape [2, 4]"),
    ({"inputs": [tensor(data=[ROW, ROW[:3]], shape=[2, 4])]}, "inputs.input.data, array 1", "4 values"),
    ({"inputs": [tensor(data=[1, 2, None, 4])]}, "inputs.input.data[2]", "null"),
    ({"inputs": [tensor(data=[1, "2", 3, 4])]}, "inputs.input.data[1]", 'string "2"'),
    ({"inputs": [tensor(data=[1, 2, 3, True])]}, "inputs.input.data[3]", "boolean true"),
    ({"inputs": [tensor(data=[1, 2, 3, 1e300])]}, "inputs.input.data[3]", "range of FP32"),
    ({"inputs": [tensor(data=[1, 2, 3, 10**400])]}, "body", "infinity when parsed as double"),
    (b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[1,2,NaN,4]}]}', "inputs.input", "NaN"),
    ({"inputs": [tensor()], "outputs": [{"name": "x"}]}, "outputs[0].name", "label, probabilities"),
    ({"inputs": [tensor()], "id": 7}, "id", "number 7"),
    ({"inputs": [tensor()], "parameters": {"timeout": -1}}, "parameters.timeout", "microseconds"),
    ({"inputs": [tensor()], "parameters": {"priority": "high"}}, "parameters.priority", "whole number of at least 0"),
    ({"inputs": [tensor()], "parameters": {"priority": True}}, "parameters.priority", "boolean true"),
    (
        {"inputs": [tensor(data=None, parameters={"shared_memory_region": "r"})]},
        "inputs.input.parameters.shared_memory_region",
        "no shared memory",
    ),
    (
        {"inputs": [tensor()], "outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]},
        "outputs[0].parameters.shared_memory_region",
        "no shared memory",
    ),
    (
        {"inputs": [tensor()], "outputs": [{"name": "label", "parameters": {"classification": 0}}]},
        "outputs[0].parameters.classification",
        "at least 1",
    ),
    (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "body", "valid JSON"),
    ({"inputs": [tensor(data=json.loads("[" * 30 + "1" + "]" * 30))]}, "inputs.input.data", "more than 16 nested"),
]


@pytest.mark.parametrize(("document", "field", "words"), REFUSED, ids=[f"{n}-{r[1]}" for n, r in enumerate(REFUSED)])
def test_a_wrong_request_is_refused_by_name(document: Any, field: str, words: str) -> None:
    strict = Signature(IRIS.inputs, IRIS.outputs, tuple(Feature(f"f{i}", "input", i) for i in range(4)))
    with pytest.raises(InvalidInput) as caught:
        decode(document, strict)
    assert caught.value.field.startswith(field)
    assert words in str(caught.value)


@pytest.mark.parametrize(("datatype", "value"), [("UINT8", 300), ("INT8", -129), ("INT64", 2**63), ("UINT64", -1)])
def test_an_integer_out_of_range_is_refused_not_wrapped(datatype: str, value: int) -> None:
    signature = Signature((TensorSpec("x", datatype, (-1,)),), (TensorSpec("y", datatype, (-1,)),))
    document = {"inputs": [{"name": "x", "shape": [2], "datatype": datatype, "data": [1, value]}]}
    with pytest.raises(InvalidInput, match=rf"x\.data\[1\].*{datatype}"):
        decode(document, signature)


def test_id_timeout_and_wished_outputs_are_read() -> None:
    request = decode(
        {
            "id": "abc",
            "parameters": {"timeout": 250_000, "priority": 1},
            "inputs": [tensor()],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    )
    assert (request.id, request.timeout_s, request.priority) == ("abc", 0.25, 1)
    assert request.outputs == (("probabilities", True, 0),)


def test_a_reply_without_numbers_for_nan_says_so_in_tokens() -> None:
    bound = OipCodec().bind("iris", "1", IRIS)
    outputs = {"label": np.array([1]), "probabilities": np.array([[np.nan, np.inf, 0.5]], np.float32)}
    body = bound.encode(decode({"inputs": [tensor()]}), outputs).body
    assert b"[NaN,Infinity,0.5]" in body
    assert json.loads(body)["outputs"][0]["data"] == [1]


def arrays(datatype: str) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
    if datatype == "BYTES":
        return hnp.arrays(
            object, shapes, elements=st.text(max_size=5).map(lambda text: text.encode("utf-8", "replace"))
        )
    if datatype == "BF16":
        return hnp.arrays(np.uint16, shapes).map(lambda bits: bits.view(ml_dtypes.bfloat16))
    return hnp.arrays(DTYPES[datatype], shapes)


def as_floats(array: Any) -> Any:
    """An array of BF16 as FP32, since numpy cannot compare its NaN; others as they are."""
    return from_bfloat16(array.view(np.uint16)) if array.dtype == ml_dtypes.bfloat16 else array


@given(data=st.data(), datatype=st.sampled_from(sorted(DTYPES)), binary=st.booleans(), binary_out=st.booleans())
def test_tensors_of_tritonclient_come_in_and_go_back_unchanged(
    data: st.DataObject, datatype: str, binary: bool, binary_out: bool
) -> None:
    """Encoded by NVIDIA's client, decoded by us, encoded by us, decoded by NVIDIA's client."""
    if datatype in BINARY_ONLY:
        binary = binary_out = True
    array = data.draw(arrays(datatype))
    finite = datatype not in ("FP32", "FP64") or bool(np.isfinite(array).all())
    sent = InferInput("x", list(array.shape), datatype)
    sent.set_data_from_numpy(array, binary_data=binary or not finite)
    wanted = InferRequestedOutput("x", binary_data=binary_out)
    body, json_size = InferenceServerClient.generate_request_body([sent], outputs=[wanted])
    headers = {} if json_size is None else {"inference-header-content-length": str(json_size)}
    spec = TensorSpec("x", datatype, (-1,) * array.ndim)
    bound = OipCodec().bind("m", "1", Signature((spec,), (spec,)))
    request = bound.decode(body, headers)
    np.testing.assert_array_equal(request.inputs["x"], as_floats(array))

    encoded = bound.encode(request, request.inputs)
    length = dict(encoded.headers).get(b"inference-header-content-length")
    result = InferResult.from_response_body(encoded.body, header_length=int(length) if length else None)
    back = result.as_numpy("x")
    assert back.shape == array.shape
    if datatype == "BYTES":
        texts = [value if isinstance(value, bytes) else value.encode() for value in back.ravel()]
        assert texts == array.ravel().tolist()
    else:
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(as_floats(back), as_floats(array))


@given(body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode), length=st.none() | st.text(max_size=4))
def test_any_bytes_are_decoded_or_refused_with_invalid_input(body: bytes, length: str | None) -> None:
    bound = OipCodec().bind("iris", "1", IRIS)
    headers = {} if length is None else {"inference-header-content-length": length}
    with contextlib.suppress(InvalidInput):  # anything else fails the test
        bound.decode(body, headers)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(shape=JSON, data=JSON, parameters=JSON, outputs=JSON)
def test_any_json_in_place_of_a_tensor_is_decoded_or_refused(
    shape: Any, data: Any, parameters: Any, outputs: Any
) -> None:
    document = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": shape, "data": data, "parameters": parameters}],
        "outputs": outputs,
    }
    with contextlib.suppress(InvalidInput):  # anything else fails the test
        decode(json.dumps(document).encode())


def test_binary_tensors_are_refused_by_name_when_bytes_are_missing_or_left_over() -> None:
    bound = OipCodec().bind("iris", "1", IRIS)
    head = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]}
    encoded = json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(encoded))}
    good = encoded + np.array(ROW, np.float32).tobytes()
    np.testing.assert_array_equal(bound.decode(good, headers).inputs["input"], np.array([ROW], np.float32))
    with pytest.raises(InvalidInput, match="binary_data_size"):
        bound.decode(good[:-1], headers)
    with pytest.raises(InvalidInput, match="1 bytes after the last binary input"):
        bound.decode(good + b"x", headers)
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        bound.decode(good, {"inference-header-content-length": "9999"})


@pytest.mark.parametrize("rows", [2, 10**12, 2**62, 10**18])
def test_strings_that_did_not_come_are_refused_before_memory_is_taken_for_them(rows: int) -> None:
    signature = Signature((TensorSpec("x", "BYTES", (-1, 1)),), (TensorSpec("y", "FP32", (-1,)),))
    head = {"name": "x", "shape": [rows, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
    document = json.dumps({"inputs": [head]}).encode()
    headers = {"inference-header-content-length": str(len(document))}
    with pytest.raises(InvalidInput, match=r"inputs\.x"):
        OipCodec().bind("m", "1", signature).decode(document + b"\1\0\0\0a", headers)


@pytest.mark.parametrize("shape", [[2**62, 0], [2**63 - 1, 0], [2**40, 2**40, 0]])
@pytest.mark.parametrize("content", [{"data": []}, {"parameters": {"binary_data_size": 0}}])
def test_an_empty_tensor_of_an_impossible_shape_is_refused(shape: list[int], content: dict[str, Any]) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,) * len(shape)),), (TensorSpec("y", "FP32", (-1,)),))
    document = json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", **content}]}).encode()
    headers = {"inference-header-content-length": str(len(document))}
    with pytest.raises(InvalidInput, match=r"inputs\.x\.shape"):
        OipCodec().bind("m", "1", signature).decode(document, headers)


def test_a_small_binary_tensor_does_not_hold_a_large_body_in_memory() -> None:
    head = {"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    document = json.dumps({"inputs": [head], "id": "x" * 1_000_000}).encode()
    body = document + np.array([ROW], np.float32).tobytes()
    request = OipCodec().bind("m", "1", IRIS).decode(body, {"inference-header-content-length": str(len(document))})
    array = request.inputs["input"]
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert owner.base is None, "it owns its 16 bytes"
    assert array.tolist() == np.array([ROW], np.float32).tolist()


def test_a_byte_that_is_no_boolean_is_refused_by_name() -> None:
    signature = Signature((TensorSpec("x", "BOOL", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    bound = OipCodec().bind("m", "1", signature)
    head = {"inputs": [{"name": "x", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}]}
    encoded = json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(encoded))}
    assert bound.decode(encoded + b"\0\1\1", headers).inputs["x"].tolist() == [False, True, True]
    with pytest.raises(InvalidInput, match="a byte of 2"):
        bound.decode(encoded + b"\0\2\1", headers)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_binary_outputs_travel_row_by_row_however_they_lie_in_memory(shape: tuple[int, int], order: Any) -> None:
    array = np.asarray(np.arange(math.prod(shape)).reshape(shape), np.float32, order=order)
    signature = Signature(IRIS.inputs, (TensorSpec("a", "FP32", (-1, -1)), TensorSpec("b", "FP32", (-1, -1))))
    bound = OipCodec().bind("m", "1", signature)
    request = decode({"inputs": [tensor()], "parameters": {"binary_data_output": True}}, signature)
    encoded = bound.encode(request, {"a": array, "b": array})
    length = int(dict(encoded.headers)[b"inference-header-content-length"])
    assert encoded.body[length:] == 2 * np.ascontiguousarray(array).tobytes()


def test_a_raw_body_is_one_row_of_the_one_input() -> None:
    request = (
        OipCodec()
        .bind("iris", "1", IRIS)
        .decode(np.array(ROW, np.float32).tobytes(), {"inference-header-content-length": "0"})
    )
    assert request.rows == 1
    assert request.binary
    np.testing.assert_array_equal(request.inputs["input"], np.array([ROW], np.float32))


@pytest.mark.parametrize(("shape", "text"), [((-1, 1), b"427"), ((-1,), b""), ((-1, 1), "é".encode() * 300)])
def test_a_raw_text_comes_without_its_length(shape: tuple[int, ...], text: bytes) -> None:
    signature = Signature((TensorSpec("x", "BYTES", shape),), (TensorSpec("y", "BYTES", shape),))
    request = OipCodec().bind("m", "1", signature).decode(text, {"inference-header-content-length": "0"})
    assert request.inputs["x"].ravel().tolist() == [text]
    several = Signature((TensorSpec("x", "BYTES", (-1, 2)),), signature.outputs)
    with pytest.raises(InvalidInput, match=r"inputs\.x.*2 strings"):
        OipCodec().bind("m", "1", several).decode(text, {"inference-header-content-length": "0"})
