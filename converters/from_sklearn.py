"""From fitted scikit-learn estimators to ONNX by skl2onnx: whole models, and what prepares the features for trees."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
from skl2onnx.operator_converters.imputer_op import convert_sklearn_imputer
from skl2onnx.shape_calculators.imputer import calculate_sklearn_imputer_output_shapes
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer

from converters.original import Original, steps
from converters.sources import told
from gateway.errors import ConversionRefused
from gateway.tensors import Signature

# Runtimes of the last years load these; skl2onnx takes lower ones where the operators allow.
OPSET = 18
ML_OPSET = 3
# Lower case as Python has it, for more than ASCII; every Linux of the last years knows it without language packs.
_LOCALE = "C.UTF-8"
_TYPES = {"FP32": FloatTensorType, "FP64": DoubleTensorType, "BYTES": StringTensorType}


def whole(original: Original, signature: Signature) -> onnx.ModelProto:
    """The model, with probabilities as one matrix instead of a dictionary per row. Raises ConversionRefused."""
    options: dict[int, Any] = {}
    # Any option for the whole keeps skl2onnx from setting zipmap, which it then refuses, for LinearSVC.
    if original.task == "classifier":
        option = "zipmap" if original.has_probabilities else "output_class_labels"
        options = {id(original.estimator): {option: False}}
    return _tried(_with_inputs(original.estimator, signature, options), original.description)


def head(original: Original, signature: Signature) -> onnx.ModelProto:
    """What prepares the features, with one output: the columns that the trees see. Raises ConversionRefused."""
    proto = _tried(_with_inputs(original.head, signature, {}), original.description)
    if len(proto.graph.output) != 1 or any(
        attribute.HasField("g") for n in proto.graph.node for attribute in n.attribute
    ):
        raise ConversionRefused(
            f"skl2onnx gave the preparation of {original.description} a form that is not known here"
        )
    return proto


def _with_inputs(estimator: Any, signature: Signature, options: Mapping[int, Any]) -> Callable[[], Any]:
    types = [(spec.name, _TYPES[spec.datatype]([None, spec.shape[1]])) for spec in signature.inputs]
    texts = {id(step): {"locale": _LOCALE} for step in _branches(estimator) if isinstance(step, CountVectorizer)}
    return functools.partial(
        convert_sklearn,
        estimator,
        initial_types=types,
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        options={**texts, **options},
        custom_conversion_functions={SimpleImputer: _imputer},
        custom_shape_calculators={SimpleImputer: calculate_sklearn_imputer_output_shapes},
    )


def _branches(estimator: Any) -> Iterator[Any]:
    """All steps, those inside of a ColumnTransformer too."""
    for step in steps(estimator):
        yield step
        if isinstance(step, ColumnTransformer):
            for _, branch, _ in step.transformers_:
                yield from _branches(branch)


def _imputer(scope: Any, operator: Any, container: Any) -> None:
    """The operator Imputer takes no doubles in ONNX Runtime: there, what is missing is put in by a choice."""
    step, given = operator.raw_operator, operator.inputs[0]
    if not isinstance(given.type, DoubleTensorType):
        convert_sklearn_imputer(scope, operator, container)
        return
    filling = np.asarray(step.statistics_, dtype=np.float64).reshape(1, -1)
    is_nan = step.missing_values is None or np.isnan(step.missing_values)
    if step.add_indicator or np.isnan(filling).any() or not is_nan:
        raise NotImplementedError("a SimpleImputer that adds indicators, drops columns, or takes a number for missing")
    lacking, filled = (scope.get_unique_variable_name(name) for name in ("lacking", "filling"))
    container.add_initializer(filled, onnx.TensorProto.DOUBLE, list(filling.shape), filling.ravel())
    container.add_node("IsNaN", [given.full_name], [lacking], name=scope.get_unique_operator_name("IsNaN"))
    container.add_node(
        "Where",
        [lacking, filled, given.full_name],
        [operator.outputs[0].full_name],
        name=scope.get_unique_operator_name("Where"),
    )


def _tried(convert: Callable[[], Any], description: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skl2onnx's own use of protobuf and numpy
        logging.getLogger("skl2onnx").setLevel(logging.ERROR)
        try:
            return convert()
        except Exception as error:  # skl2onnx raises everything from NotImplementedError to its own
            raise ConversionRefused(f"skl2onnx cannot convert {description}: {told(error)}") from error
