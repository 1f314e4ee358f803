"""Packages of real ONNX models that do what a candidate must not do, each otherwise the classifier it was made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, sha256_of
from tests.builders import Linear, write_package

Fault = Literal["nan", "raise", "rows", "hang", "memory", "large"]
# Rows whose first feature is above this are those that "nan" and "hang" go wrong on.
BAD_ABOVE = 10.0
LARGE_BYTES = 2**29
_HANG_TURNS = 2_000_000  # some 20 us each


def write_faulty(root: Path, linear: Linear, fault: Fault) -> Path:
    """Write a package of *linear*, a classifier, with one fault, and return it.

    nan: the logarithm of a negative number in rows above BAD_ABOVE. raise: an index out of range, in every row.
    rows: twice as many rows as were asked. hang: a loop of most of a minute if the batch has a row above BAD_ABOVE.
    memory: a tensor of terabytes if it has; large: one of LARGE_BYTES.
    """
    make = {"nan": _nan, "raise": _raise, "rows": _rows, "hang": _hang, "memory": _memory, "large": _large}[fault]
    return _rewritten(root, linear, make)


def write_erring(root: Path, linear: Linear, *, above: float) -> Path:
    """Write a package of *linear*, a classifier, that raises on rows whose first feature is above a limit."""
    return _rewritten(root, linear, lambda graph: _raise_above(graph, above))


def _rewritten(root: Path, linear: Linear, rewrite: Callable[[Any], None]) -> Path:
    target = write_package(root, linear)
    proto = onnx.load(target / MODEL_FILE)
    rewrite(proto.graph)
    onnx.checker.check_model(proto)
    onnx.save(proto, target / MODEL_FILE)
    manifest = Manifest(linear.model, linear.version, {MODEL_FILE: sha256_of(target / MODEL_FILE)}, linear.signature)
    (target / MANIFEST_FILE).write_bytes(manifest.to_json())
    return target


def _constant(graph: Any, name: str, value: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return name


def _instead(graph: Any, output: str, *nodes: Any) -> None:
    """Rename what gives *output*, and have *nodes*, which may read ``good``, give it."""
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = "good"
    graph.node.extend(nodes)


def _first_feature(graph: Any) -> list[Any]:
    _constant(graph, "first", np.array([0], np.int64))
    return [helper.make_node("Gather", ["input", "first"], ["feature"], axis=1)]


def _nan(graph: Any) -> None:
    _constant(graph, "limit", np.float32(BAD_ABOVE))
    _instead(
        graph,
        "probabilities",
        *_first_feature(graph),
        helper.make_node("Sub", ["limit", "feature"], ["gap"]),
        helper.make_node("Log", ["gap"], ["log_gap"]),
        helper.make_node("Sub", ["log_gap", "log_gap"], ["nothing"]),
        helper.make_node("Add", ["good", "nothing"], ["probabilities"]),
    )


def _raise(graph: Any) -> None:
    _constant(graph, "hundred", np.int64(100))
    _instead(
        graph,
        "label",
        helper.make_node("Add", ["best", "hundred"], ["beyond"]),
        helper.make_node("Gather", ["classes", "beyond"], ["label"]),
    )


def _raise_above(graph: Any, above: float) -> None:
    _constant(graph, "limit", np.float32(above))
    _constant(graph, "hundred", np.int64(100))
    _constant(graph, "none", np.int64(0))
    _instead(
        graph,
        "label",
        *_first_feature(graph),
        helper.make_node("ReduceMax", ["feature"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["is_bad"]),
        helper.make_node("Where", ["is_bad", "hundred", "none"], ["offset"]),
        helper.make_node("Add", ["best", "offset"], ["beyond"]),
        helper.make_node("Gather", ["classes", "beyond"], ["label"]),
    )


def _memory(graph: Any, values: int = 2**42) -> None:
    _constant(graph, "limit", np.float32(BAD_ABOVE))
    _constant(graph, "huge", np.array([values], np.int64))
    _constant(graph, "small", np.array([1], np.int64))
    _instead(
        graph,
        "probabilities",
        *_first_feature(graph),
        helper.make_node("ReduceMax", ["feature"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["is_bad"]),
        helper.make_node("Where", ["is_bad", "huge", "small"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["good", "zero"], ["probabilities"]),
    )


def _large(graph: Any) -> None:
    _memory(graph, LARGE_BYTES // 4)


def _rows(graph: Any) -> None:
    _instead(graph, "probabilities", helper.make_node("Concat", ["good", "good"], ["probabilities"], axis=0))


def _hang(graph: Any) -> None:
    _constant(graph, "limit", np.float32(BAD_ABOVE))
    _constant(graph, "many", np.int64(_HANG_TURNS))
    _constant(graph, "one", np.int64(1))
    _constant(graph, "forever", np.array(True))
    _constant(graph, "square", np.full((96, 96), 1 / 96, np.float32))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "square"], ["next_state"]),
            helper.make_node("Identity", ["go_on"], ["still"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [96, 96]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, [96, 96]),
        ],
    )
    _instead(
        graph,
        "probabilities",
        *_first_feature(graph),
        helper.make_node("ReduceMax", ["feature"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["is_bad"]),
        helper.make_node("Where", ["is_bad", "many", "one"], ["turns"]),
        helper.make_node("Mul", ["square", "largest"], ["start"]),
        helper.make_node("Loop", ["turns", "forever", "start"], ["spun"], body=body),
        helper.make_node("ReduceSum", ["spun"], ["sum"], keepdims=0),
        helper.make_node("Sub", ["sum", "sum"], ["zero"]),
        helper.make_node("Add", ["good", "zero"], ["probabilities"]),
    )
