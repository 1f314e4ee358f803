"""Large bodies are read another way than small ones, and that makes no difference: same values, same refusals."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.codecs.codec import BoundCodec
from gateway.codecs.large import LARGE_BYTES, native_matrix, oip_document
from gateway.codecs.native import NativeCodec
from gateway.codecs.oip_json import OipCodec
from gateway.errors import InvalidInput
from gateway.tensors import Feature, Signature, TensorSpec

NUMERIC = ["FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
NAMES = ["f0", "f1", "f2"]
OUTPUT = TensorSpec("y", "FP32", (-1,))


def outcome(bound: BoundCodec, body: bytes) -> Any:
    """All that a body says, bit for bit; or which field is refused, and why. Where JSON ends is left out."""
    try:
        request = bound.decode(body, {})
    except InvalidInput as error:
        return (error.field, error.expected, "" if error.field == "body" else error.came)
    tensors = {name: (a.dtype, a.shape, a.tobytes()) for name, a in request.inputs.items()}
    return (request.rows, tensors, request.id, request.outputs, request.binary, request.timeout_s)


def enlarged(body: bytes) -> bytes:
    """The same JSON with blanks behind its first brace, enough of them to make it a large body."""
    return body.replace(b"{", b"{" + b" " * LARGE_BYTES, 1)


def assert_same(bound: BoundCodec, body: bytes) -> None:
    assert len(body) < LARGE_BYTES
    assert outcome(bound, enlarged(body)) == outcome(bound, body)


def oip(*datatypes: str, rank: int = 2) -> BoundCodec:
    specs = tuple(TensorSpec(f"x{i}", datatype, (-1,) * rank) for i, datatype in enumerate(datatypes))
    return OipCodec().bind("m", "1", Signature(specs, (OUTPUT,)))


def native(datatype: str, *, missing_allowed: bool = True) -> BoundCodec:
    features = tuple(Feature(name, "x", i, missing_allowed=missing_allowed) for i, name in enumerate(NAMES))
    return NativeCodec().bind("m", "1", Signature((TensorSpec("x", datatype, (-1, 3)),), (OUTPUT,), features))


def tensor(
    shape: str = "[2,2]", data: str = "[1,2,3,4]", more: str = "", datatype: str = "FP32", name: str = "x0"
) -> str:
    return f'{{"name":"{name}","shape":{shape},"datatype":"{datatype}","data":{data}{more}}}'


def document(*tensors: str, more: str = "") -> str:
    return f'{{"inputs":[{",".join(tensors)}]{more}}}'


NASTY_DATA = """[[1,2],[3,4]]
[1,2,3,4.5]
[[1,2],[3]]
[[1,2],[3,4,5]]
[[1,2,3],[4]]
[[1,2],3,4]
[1,[2,3],[],4]
[1,2,[3,4],[]]
[[1,2],[3,[4]]]
[[1,[2]],[3,4]]
[[[1,2],[3,4]]]
[[[1],[2]],[[3],[4]]]
[[],[]]
[]
{}
"1234"
1
null
[1,2,3]
[1,2,3,4,5]
[1,2,3,null]
[1,2,3,true]
[1,2,3,"4"]
[1,2,3,{}]
[[1,2],{"a":1,"b":2}]
[[1,2],"ab"]
[1,2,3,1.0]
[1,2,3,-0]
[1,2,3,-0.0]
[1,2,3,1e2]
[1,2,3,NaN]
[1,2,3,-NaN]
[NaN,2,Infinity,-Infinity]
[1,2,3,1NaN]
[1,2,3,NaN1]
[1,2,3,NaN0]
[1,2,3,1Infinity]
[1,2,3,--Infinity]
[1,2,3,+Infinity]
[1,2,3,nan]
[1,2,NaN NaN,4]
[1,2,NaNNaN,4]
[1,2,3,-Infinit]
[1,2,3,3.4028234663852886e38]
[1,2,3,3.4028235e38]
[1,2,3,3.4028235677973366e38]
[1,2,3,-3.5e38]
[1,2,3,1e308]
[1,2,3,1e309]
[1,2,3,1e-400]
[1,2,3,1e-45]
[1,2,3,7.006492321624085e-46]
[1,2,3,16777217]
[1,2,3,0.1000000014901161193847656]
[1,2,3,1.00000017881393432617187499]
[1,2,3,9007199254740993]
[1,2,3,127]
[1,2,3,128]
[1,2,3,-129]
[1,2,3,255]
[1,2,3,256]
[1,2,3,-1]
[1,2,3,65536]
[1,2,3,2147483648]
[1,2,3,-2147483649]
[1,2,3,4294967296]
[1,2,3,9223372036854775807]
[1,2,3,9223372036854775808]
[1,2,3,-9223372036854775809]
[1,2,3,18446744073709551615]
[1,2,3,18446744073709551616]
[1,2,3,01]
[1,2,3,1.]
[1,2,3,.5]
[1,2,3,+1]
[1,2,3,0x1]
[1,2,3,]
[1,2,,3]
[1 2,3,4]
[1,2,3,4""".splitlines()
NASTY_DOCUMENTS = [
    document(tensor(shape=shape))
    for shape in (
        "[4]",
        "[2,2,1]",
        "[2,-2]",
        "[2,2.0]",
        "[2,true]",
        "[[2],2]",
        "[1,4]",
        "[4,1]",
        "[0,4]",
        "[2,NaN]",
        "null",
        "{}",
    )
] + [
    document(tensor(shape="[]", data="[1]")),
    document(tensor(shape="[1]", data="[1]")),
    document(tensor(more=',"data":[5,6,7,8]')),
    document(tensor(more=',"data":[[5,6],[7,8]]')),
    document(tensor(more=',"data":null')),
    document(tensor(more=',"shape":[1,4]')),
    document(tensor(more=',"parameters":{}')),
    document(tensor(more=',"parameters":{"a":[[1]],"b":{"c":1,"c":2}}')),
    document(tensor(more=',"parameters":{"binary_data_size":16}')),
    document(tensor(more=',"parameters":7')),
    document(tensor(more=',"x":"["')),
    document(tensor(more=',"x":"\\u005b"')),
    document(tensor(more=',"x":"NaN"')),
    document(tensor(data="[1,2,NaN,4]", more=',"x":"NaN"')),
    document(tensor(data="[1,2,NaN,4]", more=',"x":{"Infinity":1}')),
    document(tensor(data="[1,2,NaN,4]"), more=',"id":"NaN"'),
    document(tensor(data="[1,2,NaN,4]"), more=',"parameters":{"timeout":NaN}'),
    document(tensor(data="[1,2,NaN,4]"), more=',"id":"\\ud800"'),
    document(tensor(name="x1")),
    document(tensor(name="\\u0078\\u0030")),
    document(tensor(name="x0\\u0000")),
    document(tensor(datatype="FP16")),
    document(tensor(datatype="BYTES")),
    document(tensor(datatype="\\u0046P32")),
    document(tensor(), tensor()),
    document(tensor(), tensor(name="x1")),
    document(),
    document("[]"),
    document("7"),
    document(tensor(), more=',"id":"abc"'),
    document(tensor(), more=',"id":"\\ud83d\\ude00 \\n"'),
    document(tensor(), more=',"id":"\\ud800"'),
    document(tensor(), more=',"id":7'),
    document(tensor(), more=',"id":"a","id":"b"'),
    document(tensor(), more=',"inputs":[]'),
    document(tensor(), more=',"outputs":[]'),
    document(tensor(), more=',"outputs":null'),
    document(tensor(), more=',"outputs":[{"name":"y","parameters":{"binary_data":true}}]'),
    document(tensor(), more=',"outputs":[{"name":"z"}]'),
    document(tensor(), more=',"outputs":{}'),
    document(tensor(), more=',"parameters":{"timeout":1000,"binary_data_output":true}'),
    document(tensor(), more=',"parameters":{"timeout":1e3}'),
    document(tensor(), more=',"parameters":{"timeout":18446744073709551616}'),
    document(tensor(), more=',"x":' + "[" * 500 + "]" * 500),
    document(tensor(data="[" * 20 + "1" + "]" * 20)),
    document(tensor()) + "x",
    document(tensor()) + "{}",
    document(tensor()) + "\0",
    document(tensor()) + "\n",
    document(tensor())[:-1],
    "{" + document(tensor()),
    "[" + document(tensor()) + "]",
    "\ufeff" + document(tensor()),
    " " + document(tensor()),
    "{}",
    '{"inputs":{}}',
    '{"inputs":null}',
]


@pytest.mark.parametrize("data", NASTY_DATA)
def test_nasty_data_is_read_or_refused_as_in_a_small_body(data: str) -> None:
    for datatype in NUMERIC:
        assert_same(oip(datatype), document(tensor(data=data, datatype=datatype)).encode())
    assert_same(oip("FP32", rank=1), document(tensor(data=data, shape="[4]")).encode())
    assert_same(oip("FP32", rank=3), document(tensor(data=data, shape="[1,2,2]")).encode())


@pytest.mark.parametrize("text", NASTY_DOCUMENTS)
def test_nasty_documents_are_read_or_refused_as_small_ones(text: str) -> None:
    for bound in (oip("FP32"), oip("FP32", "FP32"), oip("FP32", rank=17)):
        assert_same(bound, text.encode())
    strict = Signature((TensorSpec("x0", "FP32", (-1, 2)),), (OUTPUT,), (Feature("a", "x0", 0), Feature("b", "x0", 1)))
    assert_same(OipCodec().bind("m", "1", strict), text.encode())


@pytest.mark.parametrize("id_bytes", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x1f", b"\x7f", "ü€😀".encode()])
def test_bytes_of_a_text_are_checked_as_in_a_small_body(id_bytes: bytes) -> None:
    assert_same(oip("FP32"), document(tensor(), more=',"id":"?"').encode().replace(b"?", id_bytes))


FLOATS = st.floats(width=32) | st.floats() | st.sampled_from([-0.0, 1e-45, 3.4e38, 3.5e38, 1e308, 16777217.0])
INTEGERS = st.integers(-200, 300) | st.integers(-(2**70), 2**70)
STRANGE: st.SearchStrategy[Any] = st.sampled_from([None, True, "1", [], [1], {}, math.nan, math.inf])


@st.composite
def written(draw: st.DrawFn) -> tuple[str, bytes]:
    """A datatype, and a request of one tensor of it: most likely right, but not surely."""
    datatype = draw(st.sampled_from(NUMERIC))
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))
    values = FLOATS | INTEGERS if datatype.startswith("FP") else INTEGERS
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    nested = [flat[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]
    data: list[Any] = draw(st.sampled_from([flat, nested]))
    if draw(st.integers(0, 3)) == 0:
        holder = draw(st.sampled_from([data, *(part for part in data if type(part) is list)]))
        holder[draw(st.integers(0, len(holder) - 1))] = draw(STRANGE | values)
    parts = {"name": "x0", "shape": shape, "datatype": datatype, "data": data}
    body: dict[str, Any] = {"inputs": [{key: parts[key] for key in draw(st.permutations(list(parts)))}]}
    if draw(st.booleans()):
        body["id"] = draw(st.text(max_size=4))
    return datatype, json.dumps(body, indent=draw(st.sampled_from([None, 1]))).encode()


@given(drawn=written())
def test_random_tensors_have_the_same_bits_or_the_same_refusal(drawn: tuple[str, bytes]) -> None:
    datatype, body = drawn
    if len(body) < LARGE_BYTES:
        assert_same(oip(datatype), body)


@given(
    drawn=written(),
    place=st.floats(0, 1),
    cut=st.integers(0, 3),
    put=st.sampled_from(["", *'[]{},:"-.eE0 1nN', "NaN", "Infinity", "null", "\\u0000", "\n", "\0", "é"]),
)
@example(("FP32", document(tensor()).encode()), 0.999, 1, "")
def test_broken_bodies_have_the_same_outcome(drawn: tuple[str, bytes], place: float, cut: int, put: str) -> None:
    datatype, body = drawn
    position = 1 + int(place * (len(body) - 1))
    body = body[:position] + put.encode() + body[position + cut :]
    if len(body) < LARGE_BYTES:
        assert_same(oip(datatype), body)


CELLS = st.none() | FLOATS | st.integers(-5, 5) | st.sampled_from(["1", True, [], [1], 2**80])


@given(
    datatype=st.sampled_from(["FP32", "FP64", "INT64", "UINT8"]),
    columns=st.permutations(NAMES) | st.lists(st.sampled_from([*NAMES, "f3", "null"]), max_size=4),
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3) | st.lists(CELLS, max_size=4), max_size=4),
    missing_allowed=st.booleans(),
    put=st.sampled_from(["", "[", ",", "NaN", "null", "-", "1"]),
    place=st.floats(0, 1),
)
@example("FP32", NAMES, [[1, None, math.nan], [math.inf, -math.inf, 4]], True, "", 0)
@example("FP32", NAMES, [[1, 2, 3]], True, ',"columns":["f0","f1","f2"]', 1)
@example("FP32", NAMES, [[1, 2, 3]], True, ',"rows":[[1,2,3]]', 1)
@example("FP32", NAMES, [[1, 2, 3]], True, ',"x":1', 1)
def test_columns_and_rows_have_the_same_outcome(
    datatype: str, columns: list[str], rows: list[Any], missing_allowed: bool, put: str, place: float
) -> None:
    body = json.dumps({"columns": columns, "rows": rows}).encode()
    position = 1 + int(place * (len(body) - 2))
    body = body[:position] + put.encode() + body[position:]
    if len(body) < LARGE_BYTES:
        bound = native(datatype, missing_allowed=missing_allowed)
        large = body + b" " * LARGE_BYTES  # behind, since its columns are to be named early
        assert outcome(bound, large) == outcome(bound, body)


@pytest.mark.parametrize(
    "text",
    [
        document(tensor()),
        document(tensor(data="[[1,2],[3,4]]")),
        document(tensor(data="[[1,NaN],[-Infinity,4]]")),
        document(tensor(), more=',"id":"a","parameters":{"timeout":1},"outputs":[{"name":"y"}]'),
        document(tensor(more=',"parameters":{"a":1}')),
        json.dumps(json.loads(document(tensor(data="[[1,2],[3,4]]"))), indent=2),
    ],
)
def test_requests_that_are_plainly_right_are_read_in_one_go(text: str) -> None:
    """The comparisons above would hold as well if nothing were."""
    found = oip_document(text.encode(), 1)
    assert found is not None
    assert found["inputs"][0]["data"].dtype == np.float32
    assert found["inputs"][0]["data"].shape == (4,)


def test_rows_that_are_plainly_right_are_read_in_one_go() -> None:
    body = b'{"columns":["f2","f0","f1"],"rows":[[1,2,3],[null,NaN,-Infinity]]}'
    matrix = native_matrix(body, NAMES, "FP32")
    assert matrix is not None
    np.testing.assert_array_equal(matrix, np.array([[2, 3, 1], [math.nan, -math.inf, math.nan]], np.float32))
    assert matrix.flags.c_contiguous


@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("columns", [1, 30])
def test_many_rows_and_wide_rows_nested_and_flat(rows: int, columns: int) -> None:
    expected = np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)
    for data in (expected.tolist(), expected.ravel().tolist()):
        body = enlarged(document(tensor(shape=f"[{rows},{columns}]", data=json.dumps(data))).encode())
        assert oip_document(body, 1) is not None
        np.testing.assert_array_equal(oip("FP32").decode(body, {}).inputs["x0"], expected)
        ragged = body.replace(b"],", b",1],", 1) if type(data[0]) is list else body.replace(b",", b",[],", 1)
        with pytest.raises(InvalidInput):
            oip("FP32").decode(ragged, {})
