"""TorchServe's codec: JSON, raw bytes and forms are the same row, and one row gets one answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gateway.codecs.codec import Request
from gateway.codecs.torchserve import TorchServeCodec
from gateway.errors import GatewayError, InvalidInput, QueueFull, UnknownModel
from gateway.serving.replies import status_of
from gateway.tensors import Feature, Signature, TensorSpec

CODEC = TorchServeCodec(status_of)
MATRIX = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 3)),),
    outputs=(TensorSpec("y", "FP32", (-1, 1)),),
    features=tuple(Feature(name, "x", column) for column, name in enumerate("abc")),
)
TEXT = Signature(inputs=(TensorSpec("text", "BYTES", (-1, 1)),), outputs=MATRIX.outputs)
FORM = {"content-type": "multipart/form-data; boundary=B"}
RAW = np.array([1, 2, 3], np.float32).tobytes()


def form(content: bytes, head: str = 'Content-Disposition: form-data; name="data"; filename="f"') -> bytes:
    return b"--B\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n--B--\r\n"


def decode(body: bytes, headers: Any = {}, signature: Signature = MATRIX) -> Request:  # noqa: B006  # only read
    return CODEC.bind("m", "1", signature).decode(body, headers)


ONE_ROW: dict[str, tuple[bytes, Any]] = {
    "a row": (b"[1, 2, 3]", {}),
    "data": (b'{"data": [1, 2, 3]}', {"content-type": "application/json"}),
    "features": (b'{"a": 1, "b": 2, "c": 3}', {}),
    "data of features": (b'{"data": {"a": 1, "b": 2, "c": 3}}', {}),
    "an input": (b'{"x": [1, 2, 3]}', {}),
    "raw": (RAW, {"content-type": "application/octet-stream"}),
    "raw of no type": (RAW, {}),
    "a form with raw bytes": (form(RAW), FORM),
    "a form with JSON": (form(b"[1,2,3]"), {"content-type": 'multipart/form-data; charset=x; boundary="B"'}),
    "a form with more": (b'--B\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n' + form(RAW), FORM),
}


@pytest.mark.parametrize("name", ONE_ROW)
def test_one_row_however_it_comes_gets_one_answer(name: str) -> None:
    request = decode(*ONE_ROW[name])
    np.testing.assert_array_equal(request.inputs["x"], np.array([[1, 2, 3]], np.float32))
    outputs = {"y": np.array([[0.5]], np.float32)}
    assert CODEC.bind("m", "1", MATRIX).encode(request, outputs).body == b"0.5"


def test_several_parts_of_a_form_are_rows() -> None:
    part = b'--B\r\nContent-Disposition: form-data; name="data"\r\n\r\n'
    request = decode(part + b"[1,2,3]\r\n" + part + b'[{"a":4,"b":5,"c":6},{"a":7,"b":8,"c":9}]\r\n' + form(RAW), FORM)
    assert request.inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 3]]
    outputs = {"y": np.arange(4, dtype=np.float32).reshape(4, 1)}
    assert CODEC.bind("m", "1", MATRIX).encode(request, outputs).body == b"[0.0,1.0,2.0,3.0]"
    with pytest.raises(InvalidInput, match=r"part 1: inputs\.x\.shape"):
        decode(part + b"[1,2,3]\r\n" + form(b"[1,2]"), FORM)
    wide = Signature(inputs=(TensorSpec("x", "FP32", (-1, -1)),), outputs=MATRIX.outputs)
    with pytest.raises(InvalidInput, match=r"part 1: inputs\.x\.shape"):
        decode(part + b"[1,2,3]\r\n" + form(b"[1,2]"), FORM, wide)


def test_bytes_that_begin_like_json_are_bytes_and_json_that_curl_calls_bytes_is_json() -> None:
    begins = b"[\0\0@" * 3
    head = 'Content-Disposition: form-data; name="data"\r\nContent-Type: application/octet-stream'
    for body, headers in ((begins, {}), (form(begins, head), FORM)):
        assert decode(body, headers).inputs["x"].tobytes() == begins
    text = form(b"[1,2,3]", head)
    assert decode(text, FORM).inputs["x"].tolist() == [[1, 2, 3]]
    with pytest.raises(InvalidInput, match="valid JSON"):
        decode(b"[1,2", {})


@pytest.mark.parametrize("body", [b"[[1,2,3]]", b'[{"a":1,"b":2,"c":3}]', b'{"data":[[1,2,3]]}'])
def test_a_list_of_rows_gets_a_list(body: bytes) -> None:
    outputs = {"y": np.array([[0.5]], np.float32)}
    assert CODEC.bind("m", "1", MATRIX).encode(decode(body), outputs).body == b"[0.5]"


def test_a_raw_text_is_the_text() -> None:
    assert decode(b"good film", {}, TEXT).inputs["text"].tolist() == [[b"good film"]]
    assert decode(b"[sic]", {"content-type": "application/octet-stream"}, TEXT).inputs["text"].tolist() == [[b"[sic]"]]


@pytest.mark.parametrize(
    ("body", "headers", "field"),
    [
        (b"", {}, "body"),
        (b"null", {"content-type": "application/json"}, "body"),
        (b"[]", {}, "body"),
        (b"[1, 2]", {}, "inputs.x.shape"),
        (b'{"a": 1, "b": 2}', {}, "c"),
        (b"abc", {}, "inputs.x"),
        (form(RAW, "Content-Disposition: form-data"), FORM, "part 0"),
        (form(RAW).replace(b"data;", b"x;"), {"content-type": "multipart/form-data"}, "header content-type"),
        (form(RAW).replace(b'"data"', b'"image"'), FORM, "body"),
        (b"--B", FORM, "body"),
    ],
)
def test_what_does_not_fit_is_refused(body: bytes, headers: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(body, headers)
    assert caught.value.field == field


def test_what_a_body_is_read_by_is_part_of_the_cache_key() -> None:
    kinds = [
        "",
        "application/json",
        "application/octet-stream",
        "multipart/form-data; boundary=B",
        "multipart/form-data; boundary=C",
    ]
    assert len({CODEC.cache_headers({"content-type": kind}) for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (UnknownModel("no"), 404, "ModelNotFoundException"),
        (QueueFull("no"), 503, "ServiceUnavailableException"),
        (InvalidInput("a", "b", "c"), 400, "BadRequestException"),
        (GatewayError("no"), 500, "InternalServerException"),
    ],
)
def test_errors_carry_their_status_and_a_name(error: GatewayError, code: int, kind: str) -> None:
    assert json.loads(CODEC.error(error)) == {"code": code, "type": kind, "message": str(error)}
