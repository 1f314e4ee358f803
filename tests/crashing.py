"""Real models that end badly: one divides the smallest integer by -1, which traps on x86, another loops for hours."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.models.manifest import MODEL_FILE
from tests.builders import Linear

# Inputs whose sum is above this kill a model that crashes when it runs.
DEADLY_SUM = 1e6
only_where_it_traps = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="integer division does not trap on this processor"
)


def write_crashing(root: Path, linear: Linear, *, at_load: bool = False) -> Path:
    """Write ``<root>/<model>/<version>/model.onnx``: answers as *linear*, but for inputs whose sum is deadly.

    at_load: every input is, so that it crashes when it is warmed.
    """
    proto = linear.proto()
    graph = proto.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "input":
                node.input[index] = "survived"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(-1e30 if at_load else DEADLY_SUM, np.float32), "deadly_sum"),
            numpy_helper.from_array(np.array(np.iinfo(np.int64).min, np.int64), "lowest"),
            numpy_helper.from_array(np.array(1, np.int64), "one"),
            numpy_helper.from_array(np.array(2, np.int64), "two"),
            numpy_helper.from_array(np.array(0, np.float32), "naught"),
        ]
    )
    crash = [
        helper.make_node("ReduceSum", ["input"], ["sum_of_all"], keepdims=0),
        helper.make_node("Greater", ["sum_of_all", "deadly_sum"], ["is_deadly"]),
        helper.make_node("Cast", ["is_deadly"], ["deadly"], to=TensorProto.INT64),
        helper.make_node("Mul", ["deadly", "two"], ["twice"]),
        helper.make_node("Sub", ["one", "twice"], ["sign"]),
        helper.make_node("Div", ["lowest", "sign"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "naught"], ["nothing_left"]),
        helper.make_node("Add", ["input", "nothing_left"], ["survived"]),
    ]
    nodes = [*crash, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return _write(root, linear, proto)


def write_runaway(root: Path, linear: Linear) -> Path:
    """Write ``<root>/<model>/<version>/model.onnx``: answers as *linear*, after as many turns as its largest input.

    linear: with iterations; how many does not matter. A turn takes about 20 us.
    """
    proto = linear.proto()
    graph = proto.graph
    (constant,) = [each for each in graph.initializer if each.name == "turns"]
    graph.initializer.remove(constant)
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["turns"], to=TensorProto.INT64),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return _write(root, linear, proto)


def _write(root: Path, linear: Linear, proto: Any) -> Path:
    onnx.checker.check_model(proto)
    target = root / linear.model / linear.version
    target.mkdir(parents=True)
    onnx.save(proto, target / MODEL_FILE)
    return target
