"""The short ways of the codecs give what the long ways give: byte for byte out, bit for bit in."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.codecs.codec import BoundCodec, Codec, Request
from gateway.codecs.mlflow import MlflowCodec
from gateway.codecs.native import NativeCodec
from gateway.codecs.oip_json import OipCodec
from gateway.codecs.texts import array_text, row_texts, value_texts
from gateway.codecs.tfs import PredictCodec
from gateway.errors import InvalidInput
from gateway.tensors import DTYPES, Array, Feature, Signature, Tensors, TensorSpec

CODECS: list[Codec] = [OipCodec(), NativeCodec()]
# Names that a template must not take for gaps of its own.
LABEL, SCORES, EXTRA = "label", 'sco%res"', "%b extra"


def texts(rows: int) -> st.SearchStrategy[Array]:
    def made(values: list[str]) -> Array:
        array = np.empty(rows, dtype=object)
        array[:] = [value.encode("utf-8", "replace") for value in values]
        return array

    return st.lists(st.text(max_size=4), min_size=rows, max_size=rows).map(made)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Signature, Tensors]:
    """A signature of three outputs, and a batch of them."""
    rows, width = draw(st.integers(1, 4) | st.integers(8, 10)), draw(st.integers(1, 3))
    label_type = draw(st.sampled_from(["INT64", "BYTES", "BOOL"]))
    score_type = draw(st.sampled_from(["FP32", "FP64"]))
    label = draw(texts(rows)) if label_type == "BYTES" else draw(hnp.arrays(DTYPES[label_type], rows))
    outputs = {
        LABEL: label,
        SCORES: draw(hnp.arrays(DTYPES[score_type], (rows, width))),
        EXTRA: draw(hnp.arrays(np.float32, (rows, 1))),
    }
    signature = Signature(
        inputs=(TensorSpec("input", "FP32", (-1, 2)),),
        outputs=(
            TensorSpec(LABEL, label_type, (-1,), "label"),
            TensorSpec(SCORES, score_type, (-1, width), "probabilities"),
            TensorSpec(EXTRA, "FP32", (-1, 1)),
        ),
        features=(Feature("a", "input", 0), Feature("b", "input", 1)),
        classes=tuple(f"%d class {index}" for index in range(width)),
    )
    return signature, outputs


def plain(rows: int = 1) -> Request:
    request = Request(rows, {"input": np.zeros((rows, 2), np.float32)})
    request.is_plain = True
    return request


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@given(drawn=answers())
def test_a_row_of_a_batch_is_written_as_it_is_written_alone(codec: Codec, drawn: tuple[Signature, Tensors]) -> None:
    signature, outputs = drawn
    bound: BoundCodec = codec.bind("mo%del", "1", signature)
    bodies = bound.encode_rows(outputs)
    alone = [
        bound.encode(plain(), {name: array[row : row + 1] for name, array in outputs.items()}).body
        for row in range(len(outputs[LABEL]))
    ]
    if bodies is not None:
        assert bodies == alone
    for body in alone:
        json.loads(body if body.startswith(b"{") else b"{" + body[1:])


@pytest.mark.parametrize("codec", [*CODECS, PredictCodec(), MlflowCodec()], ids=lambda codec: codec.name)
@given(drawn=answers(), data=st.data())
def test_rows_of_a_batch_are_written_as_they_are_written_alone(
    codec: Codec, drawn: tuple[Signature, Tensors], data: st.DataObject
) -> None:
    signature, outputs = drawn
    bound: BoundCodec = codec.bind("mo%del", "1", signature)
    rows = len(outputs[LABEL])
    starts = data.draw(st.lists(st.integers(0, rows - 1), max_size=3))
    spans = [(start, data.draw(st.integers(start + 1, rows))) for start in starts]
    bodies = bound.encode_rows(outputs, spans)
    if bodies is not None:
        assert bodies == [
            bound.encode(plain(stop - start), {name: array[start:stop] for name, array in outputs.items()}).body
            for start, stop in spans
        ]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@given(drawn=answers())
def test_many_rows_are_written_as_each_is_written_alone(codec: Codec, drawn: tuple[Signature, Tensors]) -> None:
    """A reply of many rows in its own words: the native one joins predictions, that of /v2 joins flat data."""
    signature, outputs = drawn
    bound: BoundCodec = codec.bind("mo%del", "1", signature)
    rows = len(outputs[LABEL])

    def read(first: int, stop: int) -> Any:
        cut = {name: array[first:stop] for name, array in outputs.items()}
        body = bound.encode(plain(), cut).body
        document = json.loads(body if body.startswith(b"{") else b"{" + body[1:])
        return document.get("predictions") or [output["data"] for output in document["outputs"]]

    alone = [read(row, row + 1) for row in range(rows)]
    whole = (
        list(chain.from_iterable(alone))
        if codec.name == "native"
        else [list(chain.from_iterable(data)) for data in zip(*alone, strict=True)]
    )
    assert repr(read(0, rows)) == repr(whole)  # NaN is not equal to itself


@given(array=hnp.arrays(hnp.floating_dtypes(sizes=(32, 64), endianness="<"), hnp.array_shapes(max_dims=2)))
def test_numbers_are_written_so_that_python_reads_the_same_bits(array: Array) -> None:
    values = [float(value) for value in array.ravel()]
    kind = array.dtype.type
    for written in (array_text(array), b"[" + b",".join(value_texts(array)) + b"]"):
        assert repr([float(kind(value)) for value in json.loads(written)]) == repr(values)
    rows = row_texts(array)
    assert rows is not None
    assert [len(json.loads(b"[" + row + b"]")) for row in rows] == [array.size // len(array)] * len(array)


NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([-0.0, 1e-45, 3.4e38, 3.5e38, 1e308, 16777217])


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "INT32"])
@given(rows=st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=1, max_size=4), data=st.data())
def test_flat_values_are_the_bits_that_arrays_would_hold(datatype: str, rows: list[list[Any]], data: Any) -> None:
    """By the short way (one input, nothing else said) and by the long one (with an id): same bits, or both refused."""
    if datatype.startswith("INT"):
        rows = [[int(value) if math.isfinite(value) else 0 for value in row] for row in rows]
    signature = Signature((TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))
    bound = OipCodec().bind("m", "1", signature)
    tensor = {"name": "x", "shape": [len(rows), 2], "datatype": datatype, "data": [v for row in rows for v in row]}
    found: list[Any] = []
    for document in ({"inputs": [tensor]}, {"id": "1", "inputs": [tensor]}):
        try:
            request = bound.decode(json.dumps(document).encode(), {})
        except InvalidInput as error:
            found.append(str(error))
        else:
            found.append((request.inputs["x"].dtype, request.inputs["x"].shape, request.inputs["x"].tobytes()))
    assert found[0] == found[1] or (isinstance(found[0], str) and isinstance(found[1], str))
