"""Loading a version: what a bare model shows of itself when it is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.models.manifest import MODEL_FILE
from gateway.models.source import DirectorySource
from gateway.serving.loading import Loaded, load
from gateway.serving.outputs import OutputCheck
from tests.builders import IR_VERSION, OPSETS, classifier, write_bare, write_package


def loaded(root: Path, model: str) -> Loaded:
    return load(DirectorySource(root), model, "1", intra_op_threads=1, on_runtime=lambda _runtime: None)


def test_a_model_that_keeps_the_rows_apart_may_share_runs(models: Path) -> None:
    write_bare(models, classifier("iris", "1"))
    assert loaded(models, "iris").signature.batch_invariant


def test_outputs_of_another_shape_than_the_model_says_are_known(models: Path) -> None:
    """As skl2onnx says of a forest with several targets."""
    graph = helper.make_graph(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=1), helper.make_node("Identity", ["x"], ["same"])],
        "wider",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1]),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, [None, None]),
        ],
    )
    (models / "wider" / "1").mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION), models / "wider" / "1" / MODEL_FILE
    )
    found = loaded(models, "wider")
    assert found.misdeclared == {"y"}
    x, wide = np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32)
    assert not OutputCheck(found.signature, found.misdeclared).bad_rows({"x": x}, {"y": wide, "same": x}, 3)
    assert OutputCheck(found.signature).bad_rows({"x": x}, {"y": wide, "same": x}, 3) == {0, 1, 2}
    write_bare(models, classifier("iris", "1"))
    assert not loaded(models, "iris").misdeclared


def test_a_model_that_gives_one_row_for_many_shares_no_run(models: Path) -> None:
    bounds = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("from", 0), ("to", 1))]
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "from", "to"], ["y"])],
        "first",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        bounds,
    )
    (models / "first" / "1").mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION), models / "first" / "1" / MODEL_FILE
    )
    signature = loaded(models, "first").signature
    assert signature.batchable
    assert not signature.batch_invariant


def test_the_first_golden_row_is_kept_to_be_shown_unless_something_may_not_be_told(models: Path) -> None:
    write_package(models, classifier("iris", "1"), golden=True)
    shown = loaded(models, "iris").example
    assert shown is not None
    assert shown["input"].shape == (1, 4)
    assert shown["input"].base is None, "a copy: the other rows need not be kept"
    write_bare(models, classifier("bare", "1"))
    assert loaded(models, "bare").example is None
    secret = {"redact": {"sepal_length": "drop"}}
    write_package(models, classifier("secret", "1"), golden=True, card=secret)
    assert loaded(models, "secret").example is None
