"""The ONNX file of a package: trees by our own hand, what prepares their features and all else by skl2onnx."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from converters import from_sklearn
from converters.original import Original
from converters.steps import steps
from converters.trees import Graph, Precision, write_labels, write_scores
from converters.verify import OnnxModel
from gateway.errors import ConversionRefused
from gateway.tensors import Signature, TensorSpec

MAX_IR_VERSION = 10
_ELEMENT_TYPES = {
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "INT64": TensorProto.INT64,
    "BYTES": TensorProto.STRING,
}
_PRECISIONS: dict[int, Precision] = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}


def to_onnx(original: Original, signature: Signature) -> bytes:
    """The model as ONNX bytes with the inputs and outputs of *signature*. Raises ConversionRefused if it cannot be."""
    if original.ensemble is None:
        proto = from_sklearn.whole(original, signature) if original.head is None else _in_two(original, signature)
        _name_outputs(proto, signature, original.description)
    else:
        proto = _of_trees(original, signature)
    _drop_unused_initializers(proto)
    one_import_per_domain(proto)
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    proto.producer_name = "sluicegate"
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ConversionRefused(f"{original.description} became an ONNX file that is not valid: {error}") from error
    content: bytes = proto.SerializeToString()
    return content


def _of_trees(original: Original, signature: Signature) -> Any:
    """The features, prepared if need be, through the trees."""
    ensemble = original.ensemble
    assert ensemble is not None
    graph = Graph()
    opsets = {"": from_sklearn.OPSET, "ai.onnx.ml": from_sklearn.ML_OPSET}
    if original.head is not None:
        proto = from_sklearn.head(original, signature)
        opsets.update({opset.domain: max(opset.version, opsets.get(opset.domain, 0)) for opset in proto.opset_import})
        rows, precision = _prepared(graph, proto)
    elif any(spec.datatype == "BYTES" for spec in signature.inputs):
        raise ConversionRefused(f"{original.description} takes texts without a preparation that makes numbers of them")
    else:
        names = [spec.name for spec in signature.inputs]
        rows = names[0] if len(names) == 1 else graph.add("Concat", *names, axis=1)
        precision = _PRECISIONS[_ELEMENT_TYPES[signature.inputs[0].datatype]]
    columns = 2 if ensemble.link == "sigmoid" and ensemble.targets == 1 else ensemble.targets
    if original.classes is None:
        if columns != 1:
            raise ConversionRefused(f"{original.description} gives {columns} values per row, and one is what is served")
        write_scores(graph, ensemble, rows, given=precision, out="value")
    else:
        if columns != len(original.classes):
            raise ConversionRefused(f"{original.description} has {len(original.classes)} classes and {columns} scores")
        write_scores(graph, ensemble, rows, given=precision, out="probabilities")
        write_labels(graph, "probabilities", original.classes, out="label")
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                spec.name, _ELEMENT_TYPES[spec.datatype], ["rows" if size == -1 else size for size in spec.shape]
            )
            for spec in specs
        ]
        for specs in (signature.inputs, signature.outputs)
    )
    made = helper.make_graph(graph.nodes, "sluicegate", inputs, outputs, graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()])


def _in_two(original: Original, signature: Signature) -> Any:
    """What prepares the features, in doubles; then the rest in float32, with the outputs that it has by itself."""
    graph = Graph()
    before = from_sklearn.head(original, signature)
    rows, _ = _prepared(graph, before)
    *_, step = steps(original.estimator)
    body = onnx.compose.add_prefix(from_sklearn.last(original, int(step.n_features_in_)), "b_")
    graph.add("Cast", rows, out=body.graph.input[0].name, to=TensorProto.FLOAT)
    opsets: dict[str, int] = {}
    for opset in (*before.opset_import, *body.opset_import):
        opsets[opset.domain] = max(opset.version, opsets.get(opset.domain, 0))
    made = helper.make_graph(
        [*graph.nodes, *body.graph.node],
        "sluicegate",
        before.graph.input,
        body.graph.output,
        [*graph.constants, *body.graph.initializer],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()])


def _prepared(graph: Graph, proto: Any) -> tuple[str, Precision]:
    """Take over what prepares the features; returns the name of its result and its type. Its inputs keep their names.

    Names inside are given a prefix, since one of them may be what an output is called.
    """
    kept = {argument.name for argument in proto.graph.input} | {""}

    def renamed(name: str) -> str:
        return name if name in kept else f"h_{name}"

    for node in proto.graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        graph.nodes.append(node)
    for constant in proto.graph.initializer:
        constant.name = renamed(constant.name)
        graph.constants.append(constant)
    result = proto.graph.output[0]
    precision = _PRECISIONS.get(result.type.tensor_type.elem_type)
    if precision is None:
        raise ConversionRefused("the preparation of the features gives no floating-point numbers")
    return renamed(result.name), precision


def _drop_unused_initializers(proto: Any) -> None:
    """skl2onnx leaves constants behind that no node reads; ONNX Runtime warns of each."""
    read = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    kept = [constant for constant in proto.graph.initializer if constant.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def one_import_per_domain(proto: Any) -> None:
    """skl2onnx may import ai.onnx twice, which tools down the line refuse."""
    highest: dict[str, int] = {}
    for opset in proto.opset_import:
        highest[opset.domain] = max(opset.version, highest.get(opset.domain, 0))
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in highest.items())


def _name_outputs(proto: Any, signature: Signature, name: str) -> None:
    """Give the outputs our names and dimensions. Scores that are no probabilities are dropped."""
    graph = proto.graph
    found = [output.name for output in graph.output]
    if len(found) < len(signature.outputs):
        raise ConversionRefused(f"skl2onnx gave {name} the outputs {found}, expected {len(signature.outputs)} of them")
    del graph.output[len(signature.outputs) :]
    one_import_per_domain(proto)
    # What it says of its outputs is not always so; the runtime knows.
    real = {spec.name: spec for spec in OnnxModel(proto.SerializeToString()).signature.outputs}
    del graph.output[:]
    for old, spec in zip(found, signature.outputs, strict=False):
        _give(graph, old, real[old], spec)
        dims = ["rows" if size == -1 else size for size in spec.shape]
        graph.output.append(helper.make_tensor_value_info(spec.name, _ELEMENT_TYPES[spec.datatype], dims))
    for argument in graph.input:
        argument.type.tensor_type.shape.dim[0].Clear()
        argument.type.tensor_type.shape.dim[0].dim_param = "rows"


def _give(graph: Any, old: str, real: TensorSpec, spec: TensorSpec) -> None:
    """Let the output *old*, which is *real*, be as *spec* says: its name, its type and its dimensions."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if real.datatype != spec.datatype:
        steps.append(("Cast", {"to": _ELEMENT_TYPES[spec.datatype]}))
    if len(real.shape) != len(spec.shape):
        shape = numpy_helper.from_array(np.array(spec.shape, dtype=np.int64), f"{spec.name}__shape")
        graph.initializer.append(shape)
        steps.append(("Reshape", {}))
    if not steps:
        if old != spec.name:
            _rename(graph, old, spec.name)
        return
    _rename(graph, spec.name, f"{spec.name}__inner")
    at = f"{spec.name}__inner" if old == spec.name else old
    for index, (operator, attributes) in enumerate(steps):
        out = spec.name if index == len(steps) - 1 else f"{spec.name}__{index}"
        inputs = [at, f"{spec.name}__shape"] if operator == "Reshape" else [at]
        graph.node.append(helper.make_node(operator, inputs, [out], **attributes))
        at = out


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a value in all nodes; a value that has the new name already makes way."""
    for constant in graph.initializer:
        if constant.name == new:
            constant.name = f"{new}__inner"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == new:
                    names[index] = f"{new}__inner"
                elif name == old:
                    names[index] = new
