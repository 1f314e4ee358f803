"""The comparison itself: what counts as equal, as a tie and as wrong, and whether a row depends on its company."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converters.original import Answer
from converters.verify import OnnxModel, compare, invariance, tolerance_for
from gateway.errors import ConversionRefused
from gateway.tensors import Array, Signature, Tensors, TensorSpec

TOLERANCE = 1e-5


def answer(probabilities: Array) -> Answer:
    best = np.sort(probabilities, axis=1)
    outputs = {"label": probabilities.argmax(axis=1), "probabilities": probabilities}
    return Answer(outputs, best[:, -1] - best[:, -2])


def test_a_label_that_differs_between_classes_as_good_as_equal_is_named_a_tie() -> None:
    original = answer(np.array([[0.5, 0.5], [0.9, 0.1]]))
    found = {"label": np.array([1, 0]), "probabilities": np.array([[0.5, 0.5], [0.9, 0.1]], np.float32)}
    comparison = compare(original, found, TOLERANCE)
    assert (comparison.ties, comparison.mismatches, comparison.over_tolerance) == (1, 0, 0)
    assert comparison.agrees


def test_a_label_that_differs_elsewhere_is_a_mismatch_however_close_the_probabilities() -> None:
    original = answer(np.array([[0.51, 0.49], [0.9, 0.1]]))
    found = {"label": np.array([1, 0]), "probabilities": np.array([[0.51, 0.49], [0.9, 0.1]], np.float32)}
    comparison = compare(original, found, TOLERANCE)
    assert (comparison.ties, comparison.mismatches) == (0, 1)
    assert not comparison.agrees
    assert comparison.first[0] == {"row": 0, "difference": pytest.approx(0, abs=1e-7), "original": 0, "onnx": 1}


def test_not_a_number_is_wrong_unless_both_say_so() -> None:
    original = Answer({"value": np.array([[np.nan], [np.nan], [1.0]])}, None)
    assert compare(original, {"value": np.array([[np.nan], [np.nan], [1.0]])}, TOLERANCE).agrees
    comparison = compare(original, {"value": np.array([[np.nan], [2.0], [np.nan]])}, TOLERANCE)
    assert comparison.over_tolerance == 2
    assert not compare(Answer({"value": np.array([[np.inf]])}, None), {"value": np.array([[1.0]])}, TOLERANCE).agrees


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.data(),
)
def test_one_wrong_value_among_right_ones_is_found(values: list[float], data: st.DataObject) -> None:
    expected = np.array(values).reshape(-1, 1)
    row = data.draw(st.integers(0, len(values) - 1))
    found = expected.copy()
    found[row] += 2 * TOLERANCE * (1 + abs(found[row])) * data.draw(st.sampled_from([-1, 1]))
    assert compare(Answer({"value": expected}, None), {"value": expected}, TOLERANCE).agrees
    comparison = compare(Answer({"value": expected}, None), {"value": found}, TOLERANCE)
    assert comparison.over_tolerance == 1
    assert comparison.first[0]["row"] == row


def test_a_small_column_is_not_judged_by_the_size_of_a_large_one() -> None:
    expected = Answer({"value": np.array([[1e6, 1e6, 1e-3], [2e6, 1e6, 2e-3], [0.0, 1e6, 3e-3]])}, None)
    found = expected.outputs["value"].copy()
    found[1, 2] += 1e-6
    assert compare(expected, {"value": found}, tolerance_for(expected)).over_tolerance == 1
    assert compare(expected, {"value": expected.outputs["value"] * (1 + 1e-6)}, tolerance_for(expected)).agrees


def test_a_text_that_is_another_one_is_wrong() -> None:
    texts = np.array([[b"a", b"b"], [b"c", b"d"]], dtype=object)
    other = texts.copy()
    other[1, 0] = b"x"
    assert compare(Answer({"value": texts}, None), {"value": texts.copy()}, TOLERANCE).agrees
    comparison = compare(Answer({"value": texts}, None), {"value": other}, TOLERANCE)
    assert (comparison.over_tolerance, comparison.first[0]["onnx"]) == (1, "x")


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ConversionRefused, match="'value'"):
        compare(Answer({"value": np.zeros((3, 1))}, None), {"value": np.zeros((3, 2))}, TOLERANCE)


def model_of(*nodes: onnx.NodeProto) -> OnnxModel:
    """A model from ``x`` to ``value``, both float [rows, 1]."""
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1]) for name in ("x", "value")]
    proto = helper.make_model(
        helper.make_graph(list(nodes), "graph", made[:1], made[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    spec = TensorSpec("x", "FP32", (-1, 1))
    return OnnxModel(proto.SerializeToString(), Signature((spec,), (TensorSpec("value", "FP32", (-1, 1)),)))


def some_rows() -> Tensors:
    return {"x": np.linspace(-1, 1, 40, dtype=np.float32).reshape(-1, 1)}


def test_a_model_that_looks_at_the_whole_batch_is_found_out() -> None:
    mean = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0])
    centred = model_of(mean, helper.make_node("Sub", ["x", "mean"], ["value"]))
    found = invariance(centred, some_rows(), TOLERANCE, np.random.default_rng(0))
    assert not found.holds
    assert found.over_tolerance > 0


def test_a_model_that_looks_at_each_row_alone_is_invariant() -> None:
    found = invariance(
        model_of(helper.make_node("Tanh", ["x"], ["value"])), some_rows(), TOLERANCE, np.random.default_rng(0)
    )
    assert found.holds
    assert found.max_difference <= 1e-6
