"""From fitted scikit-learn estimators to ONNX by skl2onnx: whole models, and what prepares the features for trees."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer

from converters.original import Original
from converters.repairs import SHAPES, WRITERS, convertible
from converters.sources import told
from converters.steps import steps
from gateway.errors import ConversionRefused
from gateway.tensors import Signature, TensorSpec

# Runtimes of the last years load these; skl2onnx takes lower ones where the operators allow.
OPSET = 18
ML_OPSET = 3
# Lower case as Python has it, for more than ASCII; every Linux of the last years knows it without language packs.
_LOCALE = "C.UTF-8"
_TYPES = {"FP32": FloatTensorType, "FP64": DoubleTensorType, "BYTES": StringTensorType}


def whole(original: Original, signature: Signature) -> onnx.ModelProto:
    """The model, with probabilities as one matrix instead of a dictionary per row. Raises ConversionRefused."""
    return _tried(
        _with_inputs(original.estimator, signature, _options(original, original.estimator)), original.description
    )


def last(original: Original, width: int) -> onnx.ModelProto:
    """The step that decides, alone: it takes its *width* features in float32, as ``rows``. Raises ConversionRefused."""
    *_, step = steps(original.estimator)
    given = Signature((TensorSpec("rows", "FP32", (-1, width)),), ())
    return _tried(_with_inputs(step, given, _options(original, step)), original.description)


def _options(original: Original, estimator: Any) -> dict[int, Any]:
    # Any option for the whole keeps skl2onnx from setting zipmap, which it then refuses, for LinearSVC.
    if original.task != "classifier":
        return {}
    return {id(estimator): {"zipmap" if original.has_probabilities else "output_class_labels": False}}


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
    named = functools.partial(
        convert_sklearn,
        estimator,
        initial_types=types,
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        options={**texts, **options},
        custom_conversion_functions=dict(WRITERS),
        custom_shape_calculators=dict(SHAPES),
    )

    def made() -> Any:
        with convertible(estimator):
            proto = named()
        _name_inputs(proto.graph, [spec.name for spec in signature.inputs])
        return proto

    return made


def _name_inputs(graph: Any, names: Sequence[str]) -> None:
    """Inputs by the names of the columns; skl2onnx puts other characters for some of theirs."""
    renamed = {given.name: name for given, name in zip(graph.input, names, strict=True) if given.name != name}
    for given in graph.input:
        given.name = renamed.get(given.name, given.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _branches(estimator: Any) -> Iterator[Any]:
    """All steps, those inside of a ColumnTransformer too."""
    for step in steps(estimator):
        yield step
        if isinstance(step, ColumnTransformer):
            for _, branch, _ in step.transformers_:
                yield from _branches(branch)


def _tried(convert: Callable[[], Any], description: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skl2onnx's own use of protobuf and numpy
        logging.getLogger("skl2onnx").setLevel(logging.ERROR)
        try:
            return convert()
        except Exception as error:  # skl2onnx raises everything from NotImplementedError to its own
            raise ConversionRefused(f"skl2onnx cannot convert {description}: {told(error)}") from error
