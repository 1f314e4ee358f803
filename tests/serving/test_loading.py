"""Loading a version: what a bare model shows of itself when it is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.models.manifest import MODEL_FILE
from gateway.models.source import DirectorySource
from gateway.serving.loading import Loaded, load
from tests.builders import IR_VERSION, OPSETS, classifier, write_bare


def loaded(root: Path, model: str) -> Loaded:
    return load(DirectorySource(root), model, "1", intra_op_threads=1, on_runtime=lambda _runtime: None)


def test_a_model_that_keeps_the_rows_apart_may_share_runs(models: Path) -> None:
    write_bare(models, classifier("iris", "1"))
    assert loaded(models, "iris").signature.batch_invariant


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
