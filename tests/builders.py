"""Tiny real ONNX models and packages of them, each version with weights of its own, and what they must answer."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.models.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    REFERENCE_FILE,
    Manifest,
    sha256_of,
)
from gateway.tensors import Array, Feature, Signature, Tensors, TensorSpec

IR_VERSION = 10
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]

IRIS_FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
COLOURS = ("blue", "green", "red")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear model that knows its own answers.

    classes None: a regressor with the output ``value`` FP32 [-1, 1]. Else a classifier with ``label`` (INT64 or BYTES,
    [-1]) and ``probabilities`` FP32 [-1, k]. The one input is ``input`` FP32 [-1, n], n named features.
    weights: float32 [n, k], bias: float32 [k]. iterations: turns of a loop that only costs time, about 20 us each.
    """

    model: str
    version: str
    features: tuple[str, ...]
    classes: tuple[int | str, ...] | None
    weights: Array
    bias: Array
    iterations: int = 0

    @property
    def signature(self) -> Signature:
        features = tuple(Feature(name, "input", column) for column, name in enumerate(self.features))
        inputs = (TensorSpec("input", "FP32", (-1, len(self.features))),)
        if self.classes is None:
            return Signature(inputs, (TensorSpec("value", "FP32", (-1, 1), "value"),), features)
        label = "INT64" if isinstance(self.classes[0], int) else "BYTES"
        outputs = (
            TensorSpec("label", label, (-1,), "label"),
            TensorSpec("probabilities", "FP32", (-1, len(self.classes)), "probabilities"),
        )
        return Signature(inputs, outputs, features, self.classes)

    def answer(self, rows: Any) -> Tensors:
        """What the model gives for *rows* [r, n], computed with numpy alone. Right to about 1e-6."""
        scores = np.asarray(rows, np.float32).reshape(-1, len(self.features)) @ self.weights + self.bias
        if self.classes is None:
            return {"value": scores}
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        labels = np.array(self.classes, dtype=np.int64 if isinstance(self.classes[0], int) else object)
        return {"label": labels[scores.argmax(axis=1)], "probabilities": powers / powers.sum(axis=1, keepdims=True)}

    def proto(self) -> Any:
        """The model as an onnx.ModelProto."""
        nodes = []
        constants = [
            numpy_helper.from_array(self.weights, "weights"),
            numpy_helper.from_array(self.bias, "bias"),
        ]
        source = "input"
        if self.iterations:
            nodes += _busy_loop(constants, self.iterations)
            nodes.append(helper.make_node("Add", ["input", "zero"], ["late_input"]))
            source = "late_input"
        nodes.append(helper.make_node("MatMul", [source, "weights"], ["product"]))
        if self.classes is None:
            nodes.append(helper.make_node("Add", ["product", "bias"], ["value"]))
            outputs = [helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, 1])]
        else:
            is_text = isinstance(self.classes[0], str)
            constants.append(
                helper.make_tensor("classes", TensorProto.STRING, [len(self.classes)], [str(c) for c in self.classes])
                if is_text
                else numpy_helper.from_array(np.array(self.classes, np.int64), "classes")
            )
            nodes += [
                helper.make_node("Add", ["product", "bias"], ["scores"]),
                helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
                helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
                helper.make_node("Gather", ["classes", "best"], ["label"]),
            ]
            label_type = TensorProto.STRING if is_text else TensorProto.INT64
            outputs = [
                helper.make_tensor_value_info("label", label_type, [None]),
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, len(self.classes)]),
            ]
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, len(self.features)])]
        graph = helper.make_graph(nodes, f"{self.model}-{self.version}", inputs, outputs, constants)
        return _checked(graph)


def _busy_loop(constants: list[Any], iterations: int) -> list[Any]:
    """Nodes that give ``zero``, a scalar 0, after *iterations* matrix products; it cannot be folded away."""
    constants += [
        numpy_helper.from_array(np.array(iterations, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "forever"),
        numpy_helper.from_array(np.full((96, 96), 1 / 96, np.float32), "square"),
    ]
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
    loop = helper.make_node("Loop", ["turns", "forever", "start"], ["spun"], body=body)
    # The start depends on the input, so that the loop runs for every call: square * (0 * sum of the input).
    return [
        helper.make_node("ReduceSum", ["input"], ["total"], keepdims=0),
        helper.make_node("Sub", ["total", "total"], ["nothing"]),
        helper.make_node("Mul", ["square", "nothing"], ["start"]),
        loop,
        helper.make_node("ReduceSum", ["spun"], ["zero"], keepdims=0),
    ]


def _checked(graph: Any) -> Any:
    proto = helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION, producer_name="sluicegate tests")
    onnx.checker.check_model(proto)
    return proto


def _random(model: str, version: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{model}/{version}".encode()))


def classifier(
    model: str = "iris",
    version: str = "1",
    *,
    features: Sequence[str] = IRIS_FEATURES,
    classes: Sequence[int | str] = (0, 1, 2),
    iterations: int = 0,
) -> Linear:
    """A classifier whose weights follow from its model and version."""
    draw = _random(model, version)
    weights = draw.normal(size=(len(features), len(classes))).astype(np.float32)
    bias = draw.normal(size=len(classes)).astype(np.float32)
    return Linear(model, version, tuple(features), tuple(classes), weights, bias, iterations)


def regressor(
    model: str = "house", version: str = "1", *, features: Sequence[str] = ("rooms", "age"), iterations: int = 0
) -> Linear:
    """A regressor whose weights follow from its model and version."""
    draw = _random(model, version)
    weights = draw.normal(size=(len(features), 1)).astype(np.float32)
    bias = draw.normal(size=1).astype(np.float32)
    return Linear(model, version, tuple(features), None, weights, bias, iterations)


def write_package(
    root: Path,
    linear: Linear,
    *,
    reference_rows: int = 0,
    golden: bool = False,
    missing_allowed: bool = False,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``<root>/<model>/<version>/`` as a converter would, and return it.

    The package appears whole, by a rename. reference_rows: rows of reference.parquet and its histograms (normal
    distribution, mean 0, deviation 1); 0 writes none. golden: also golden.json with one pair. missing_allowed: for all
    features.
    """
    target = root / linear.model / linear.version
    building = root / linear.model / f".{linear.version}.building"
    building.mkdir(parents=True)
    onnx.save(linear.proto(), building / MODEL_FILE)
    signature = linear.signature
    features = tuple(replace(feature, missing_allowed=missing_allowed) for feature in signature.features)
    signature = replace(signature, features=features)
    reference: Mapping[str, Any] = {}
    if reference_rows:
        reference = _write_reference(building / REFERENCE_FILE, linear, reference_rows)
    if golden:
        (building / GOLDEN_FILE).write_text(json.dumps(_golden(linear)))
    files = {path.name: sha256_of(path) for path in sorted(building.iterdir())}
    manifest = Manifest(linear.model, linear.version, files, signature, reference=reference, card=card or {})
    (building / MANIFEST_FILE).write_bytes(manifest.to_json())
    building.rename(target)
    return target


def write_bare(root: Path, linear: Linear) -> Path:
    """Write ``<root>/<model>/<version>/`` with model.onnx alone, and return it."""
    target = root / linear.model / linear.version
    target.mkdir(parents=True)
    onnx.save(linear.proto(), target / MODEL_FILE)
    return target


def write_mixed_package(root: Path, model: str = "paint", version: str = "1") -> Path:
    """A regressor over ``size`` FP32 [-1, 1] and ``colour`` BYTES [-1, 1]: value = size * weight + price of the colour.

    The weight is the version's number, the prices are 10 (blue), 20 (green), 30 (red) and 0 for other colours.
    """
    target = root / model / version
    target.mkdir(parents=True)
    weight = numpy_helper.from_array(np.array([float(version)], np.float32), "weight")
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["colour"],
            ["price"],
            domain="ai.onnx.ml",
            keys_strings=list(COLOURS),
            values_floats=[10.0, 20.0, 30.0],
            default_float=0.0,
        ),
        helper.make_node("Mul", ["size", "weight"], ["weighted"]),
        helper.make_node("Add", ["weighted", "price"], ["value"]),
    ]
    inputs = [
        helper.make_tensor_value_info("size", TensorProto.FLOAT, [None, 1]),
        helper.make_tensor_value_info("colour", TensorProto.STRING, [None, 1]),
    ]
    outputs = [helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, 1])]
    onnx.save(_checked(helper.make_graph(nodes, model, inputs, outputs, [weight])), target / MODEL_FILE)
    signature = Signature(
        inputs=(TensorSpec("size", "FP32", (-1, 1)), TensorSpec("colour", "BYTES", (-1, 1))),
        outputs=(TensorSpec("value", "FP32", (-1, 1), "value"),),
        features=(Feature("size", "size", 0), Feature("colour", "colour", 0, "categorical")),
    )
    manifest = Manifest(model, version, {MODEL_FILE: sha256_of(target / MODEL_FILE)}, signature)
    (target / MANIFEST_FILE).write_bytes(manifest.to_json())
    return target


def write_half_plus(root: Path, model: str, constant: float, version: str = "123") -> None:
    """TensorFlow Serving's toy models: y = x / 2 + constant, a number per row."""
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["more"], value_float=constant),
        helper.make_node("Mul", ["x", "half"], ["product"]),
        helper.make_node("Add", ["product", "more"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]
    target = root / model / version
    target.mkdir(parents=True)
    onnx.save(_checked(helper.make_graph(nodes, model, inputs, outputs)), target / MODEL_FILE)


def _write_reference(path: Path, linear: Linear, rows: int) -> dict[str, Any]:
    """reference.parquet, and the manifest's histograms of it."""
    import pyarrow
    import pyarrow.parquet

    inputs = _random(linear.model, linear.version).normal(size=(rows, len(linear.features))).astype(np.float32)
    answers = linear.answer(inputs)
    feature_columns: dict[str, Array] = {name: inputs[:, index] for index, name in enumerate(linear.features)}
    output_columns: dict[str, Array] = {}
    for column in linear.signature.output_columns():
        values = answers[column.output]
        output_columns[column.name] = values if column.index is None else values[:, column.index]
    pyarrow.parquet.write_table(pyarrow.table({**feature_columns, **output_columns}), path)
    return {
        "rows": rows,
        "features": {name: _histogram(values) for name, values in feature_columns.items()},
        "outputs": {name: _histogram(values) for name, values in output_columns.items()},
    }


def _histogram(values: Array) -> dict[str, Any]:
    if values.dtype.kind not in "f":
        names, counts = np.unique(values.astype(str), return_counts=True)
        return {"kind": "categorical", "counts": dict(zip(names.tolist(), counts.tolist(), strict=True)),
                "missing_rate": 0.0}  # fmt: skip
    edges = np.quantile(values.astype(np.float64), np.linspace(0, 1, 11))
    counts, _ = np.histogram(values, bins=edges)
    quantiles = {f"{q:g}": float(np.quantile(values, q)) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
    return {"kind": "numeric", "edges": edges.tolist(), "counts": counts.tolist(), "quantiles": quantiles,
            "missing_rate": 0.0}  # fmt: skip


def _golden(linear: Linear) -> dict[str, Any]:
    """golden.json with one pair of two rows."""
    rows = np.linspace(-1, 1, 2 * len(linear.features), dtype=np.float32).reshape(2, -1)
    answers = linear.answer(rows)
    outputs = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(answers[spec.name].shape),
            "data": answers[spec.name].ravel().tolist(),
        }
        for spec in linear.signature.outputs
    ]
    request = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]
    }
    return {
        "schema": 1,
        "pairs": [{"request": request, "response": {"outputs": outputs}}],
        "tolerance": {"absolute": 1e-5},
    }
