"""From a fitted scikit-learn model to ONNX: one input matrix or one input per column, and outputs by our names."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

import onnx
from onnx import TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType

from converters.original import Original, first_line
from converters.rows import is_text
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import MAX_FEATURES, Feature, Signature, TensorSpec

# Runtimes of the last years load these; skl2onnx takes lower ones where the operators allow.
OPSET = 18
ML_OPSET = 3
MAX_IR_VERSION = 10
MATRIX_INPUT = "input"
_ELEMENT_TYPES = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BYTES": TensorProto.STRING}


def choose_features(original: Original, frame: Any, *, target: str | None) -> tuple[Any, list[str]]:
    """The columns of *frame* that are the model's features, in its order, and the names of those that are left over.

    Raises InvalidInput if columns are missing, or too many to know which ones are meant.
    """
    if target is not None and target not in frame.columns:
        raise InvalidInput("target", repr(target), f"a column of the data: {_some(list(frame.columns))}")
    names = [name for name in frame.columns if name != target]
    if original.feature_names is not None:
        if target in original.feature_names:
            raise InvalidInput(
                "target", f"{target!r}, a feature of the model", "the column with the true labels or values"
            )
        absent = [name for name in original.feature_names if name not in names]
        if absent:
            raise InvalidInput("data", f"no column {_some(absent)}", "every feature that the model was fitted with")
        chosen = list(original.feature_names)
        return frame[chosen], [name for name in names if name not in chosen]
    if original.width is not None and len(names) != original.width:
        hint = "" if target is not None else "; name the label column with --target"
        raise InvalidInput("data", f"{len(names)} columns", f"the model's {original.width} features{hint}")
    return frame[names], []


def signature_of(original: Original, frame: Any) -> Signature:
    """The signature of the package: features, inputs and outputs; nothing may be missing in it yet.

    frame: the features as choose_features gives them. Raises InvalidInput for columns that cannot be packaged.
    """
    names = list(frame.columns)
    if len(names) > MAX_FEATURES:
        raise InvalidInput("data", f"{len(names)} features", f"at most {MAX_FEATURES}")
    texts = {name for name in names if is_text(frame[name], name)}
    if texts or original.selects_by_name:
        inputs = tuple(TensorSpec(name, "BYTES" if name in texts else "FP32", (-1, 1)) for name in names)
        features = tuple(Feature(name, name, 0, "categorical" if name in texts else "numeric") for name in names)
    else:
        inputs = (TensorSpec(MATRIX_INPUT, "FP32", (-1, len(names))),)
        features = tuple(Feature(name, MATRIX_INPUT, column) for column, name in enumerate(names))
    signature = Signature(inputs, _outputs_of(original), features, original.classes)
    taken = {column.name for column in signature.output_columns()} | {spec.name for spec in signature.outputs}
    for name in names:
        if name in taken:
            raise InvalidInput("data", f"a feature named {name!r}", "another name, since an output has this one")
    return signature


def _outputs_of(original: Original) -> tuple[TensorSpec, ...]:
    if original.classes is None:
        return (TensorSpec("value", "FP32", (-1, 1), "value"),)
    label = TensorSpec("label", "BYTES" if isinstance(original.classes[0], str) else "INT64", (-1,), "label")
    if not original.has_probabilities:
        return (label,)
    return label, TensorSpec("probabilities", "FP32", (-1, len(original.classes)), "probabilities")


def to_onnx(original: Original, signature: Signature) -> bytes:
    """The model as ONNX bytes with the inputs and outputs of *signature*.

    Raises ConversionRefused if skl2onnx cannot write it.
    """
    types = [
        (spec.name, (StringTensorType if spec.datatype == "BYTES" else FloatTensorType)([None, spec.shape[1]]))
        for spec in signature.inputs
    ]
    proto = _converted(original, types)
    _drop_unused_initializers(proto)
    _one_import_per_domain(proto)
    _name_outputs(proto, signature, original.description)
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    proto.producer_name = "sluicegate"
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ConversionRefused(f"{original.description} became an ONNX file that is not valid: {error}") from error
    content: bytes = proto.SerializeToString()
    return content


def _converted(original: Original, types: list[tuple[str, Any]]) -> Any:
    """skl2onnx's own result, with probabilities as one matrix instead of a dictionary per row."""
    convert = functools.partial(
        convert_sklearn, original.estimator, initial_types=types, target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skl2onnx's own use of protobuf and numpy
        logging.getLogger("skl2onnx").setLevel(logging.ERROR)
        try:
            if original.task == "regressor":
                return convert()
            # Any option for the whole keeps skl2onnx from setting zipmap, which it then refuses, for LinearSVC.
            option = "zipmap" if original.has_probabilities else "output_class_labels"
            return convert(options={id(original.estimator): {option: False}})
        except Exception as error:  # skl2onnx raises everything from NotImplementedError to its own
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConversionRefused(f"skl2onnx cannot convert {original.description}: {reason}") from error


def _drop_unused_initializers(proto: Any) -> None:
    """skl2onnx leaves constants behind that no node reads; ONNX Runtime warns of each."""
    read = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    kept = [constant for constant in proto.graph.initializer if constant.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _one_import_per_domain(proto: Any) -> None:
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
    del graph.output[:]
    for old, spec in zip(found, signature.outputs, strict=False):
        if old != spec.name:
            _rename(graph, old, spec.name)
        dims = ["rows" if size == -1 else size for size in spec.shape]
        graph.output.append(helper.make_tensor_value_info(spec.name, _ELEMENT_TYPES[spec.datatype], dims))
    for argument in graph.input:
        argument.type.tensor_type.shape.dim[0].Clear()
        argument.type.tensor_type.shape.dim[0].dim_param = "rows"


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a value in all nodes; a value that has the new name already makes way."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == new:
                    names[index] = f"{new}__inner"
                elif name == old:
                    names[index] = new


def _some(names: list[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:5])
    return f"{listed} and {len(names) - 5} more" if len(names) > 5 else listed
