"""BF16: to and from FP32 without loss, and through a real model."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from gateway.errors import PackageInvalid
from gateway.models.runtime import OnnxRuntime
from gateway.tensors import from_bfloat16, to_bfloat16
from tests.builders import IR_VERSION, OPSETS


@given(bits=hnp.arrays(np.uint16, st.integers(0, 20)))
def test_all_values_of_bfloat16_come_back(bits: np.ndarray) -> None:
    floats = from_bfloat16(bits)
    back = to_bfloat16(floats)
    numbers = ~np.isnan(floats)
    np.testing.assert_array_equal(back[numbers], bits[numbers])
    assert np.isnan(from_bfloat16(back)[~numbers]).all()


@given(floats=hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=5)))
def test_other_numbers_are_rounded_as_ml_dtypes_does(floats: np.ndarray) -> None:
    ours, theirs = from_bfloat16(to_bfloat16(floats)), floats.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)


def model_of(*, text_in: bool, half_out: bool) -> OnnxRuntime:
    """``sum`` = x of BF16 + more of FP32; as ``y`` of BF16, too, if half_out; a text comes back if text_in."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "more"], ["sum"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [None, 2]),
        helper.make_tensor_value_info("more", TensorProto.FLOAT, [None, 2]),
    ]
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None, 2])]
    if half_out:
        nodes.append(helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16))
        outputs.append(helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [None, 2]))
    if text_in:
        nodes.append(helper.make_node("Identity", ["text"], ["same"]))
        inputs.append(helper.make_tensor_value_info("text", TensorProto.STRING, [None]))
        outputs.append(helper.make_tensor_value_info("same", TensorProto.STRING, [None]))
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return OnnxRuntime(model.SerializeToString())


X = np.array([[1.5, -2.0], [0.0, 256.0]], np.float32)
MORE = np.array([[1.0, 1.0], [0.001, 1.0]], np.float32)


def test_a_model_takes_and_gives_it() -> None:
    runtime = model_of(text_in=False, half_out=True)
    assert [spec.datatype for spec in runtime.signature.outputs] == ["FP32", "BF16"]
    found = runtime.apart().run({"x": X, "more": MORE[:, ::-1][:, ::-1]})
    np.testing.assert_array_equal(found["sum"], X + MORE)
    np.testing.assert_array_equal(found["y"], from_bfloat16(to_bfloat16(X + MORE)))
    assert found["y"].dtype == np.float32


def test_a_single_number_without_dimensions_stays_one() -> None:
    scalars = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("x", TensorProto.BFLOAT16), ("n", 1))]
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["n"], ["m"])]
    given = [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, []), helper.make_tensor_value_info("m", 1, [])]
    graph = helper.make_graph(nodes, "g", scalars, given)
    runtime = OnnxRuntime(helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION).SerializeToString())
    found = runtime.run({"x": np.array(1.5, np.float32), "n": np.array(2, np.float32)})
    assert (found["y"].shape, found["m"].shape) == ((), ())
    assert (found["y"].item(), found["m"].item()) == (1.5, 2.0)


def test_a_model_takes_it_beside_texts() -> None:
    texts = np.array([b"a", "ü".encode()], dtype=object)
    found = model_of(text_in=True, half_out=False).run({"x": X, "more": MORE, "text": texts})
    np.testing.assert_array_equal(found["sum"], X + MORE)
    assert found["same"].tolist() == texts.tolist()


def test_a_model_that_gives_it_and_takes_texts_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(PackageInvalid, match=r"outputs of BF16 beside inputs of texts \(text\)"):
        model_of(text_in=True, half_out=True)
