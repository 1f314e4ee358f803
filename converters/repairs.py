"""What skl2onnx cannot write, or writes otherwise than scikit-learn answers: converters of our own for these steps.

Each is a pair for skl2onnx: what writes the nodes of a step into its container, and what tells the shape of the result.
Nodes compute in the type that comes in, so that they are as good in doubles as skl2onnx lets the rest be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from skl2onnx.operator_converters.imputer_op import convert_sklearn_imputer
from skl2onnx.operator_converters.linear_classifier import convert_sklearn_linear_classifier
from skl2onnx.operator_converters.one_hot_encoder import convert_sklearn_one_hot_encoder
from skl2onnx.shape_calculators.imputer import calculate_sklearn_imputer_output_shapes
from skl2onnx.shape_calculators.k_bins_discretiser import calculate_sklearn_k_bins_discretiser
from skl2onnx.shape_calculators.one_hot_encoder import calculate_sklearn_one_hot_encoder_output_shapes
from skl2onnx.shape_calculators.power_transformer import powertransformer_shape_calculator
from skl2onnx.shape_calculators.tuned_threshold_classifier import (
    tuned_threshold_classifier_shape_calculator,
)
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomTreesEmbedding, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, PowerTransformer

from converters.rows import MISSING_TEXT
from converters.steps import within
from gateway.tensors import Array

# Attributes that change what `transform` returns, or in which form, and no answer; skl2onnx refuses their usual values.
_HARMLESS: Mapping[type, Mapping[str, Any]] = {
    VotingClassifier: {"flatten_transform": False},
    RandomTreesEmbedding: {"sparse_output": False},
}


@contextlib.contextmanager
def convertible(estimator: Any) -> Iterator[None]:
    """While skl2onnx looks at it, the estimator has attributes that skl2onnx takes and that change no answer."""
    changed: list[tuple[Any, str, Any]] = []
    try:
        for each in within(estimator):
            for name, value in _HARMLESS.get(type(each), {}).items():
                changed.append((each, name, getattr(each, name)))
                setattr(each, name, value)
        yield
    finally:
        for each, name, value in changed:
            setattr(each, name, value)


class _Nodes:
    """Nodes of one step, written into skl2onnx's container."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        self._scope, self._container = scope, container
        self.given = [variable.full_name for variable in operator.inputs]
        self.is_double = isinstance(operator.inputs[0].type, DoubleTensorType)
        self.is_text = isinstance(operator.inputs[0].type, StringTensorType)
        self.dtype = np.float64 if self.is_double else np.float32

    def add(self, kind: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        made = out or self._scope.get_unique_variable_name("r")
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(kind, list(inputs), [made], name=name, op_domain=domain, **attributes)
        return made

    def constant(self, values: Any, element: int | None = None) -> str:
        """A constant in the type of the step's input, unless *element* says which."""
        array = np.asarray(values)
        name: str = self._scope.get_unique_variable_name("c")
        element = element or (TensorProto.DOUBLE if self.is_double else TensorProto.FLOAT)
        flat = [text.encode() for text in array.ravel()] if element == TensorProto.STRING else array.ravel().tolist()
        self._container.add_initializer(name, element, list(array.shape), flat)
        return name

    def matrix(self) -> str:
        """All columns that come in."""
        return self.given[0] if len(self.given) == 1 else self.add("Concat", *self.given, axis=1)

    def column(self, matrix: str, index: int) -> str:
        return self.add("Gather", matrix, self.constant([index], TensorProto.INT64), axis=1)


def _imputer(scope: Any, operator: Any, container: Any) -> None:
    """The operator Imputer takes no doubles in ONNX Runtime, and no texts: what is missing is put in by a choice."""
    step, nodes = operator.raw_operator, _Nodes(scope, operator, container)
    if not nodes.is_double and not nodes.is_text:
        convert_sklearn_imputer(scope, operator, container)
        return
    is_nan = step.missing_values is None or step.missing_values != step.missing_values
    if step.add_indicator or not is_nan:
        raise NotImplementedError(
            "a SimpleImputer that adds indicators, or takes something for missing that is not NaN"
        )
    rows = nodes.matrix()
    if nodes.is_text:
        # Equal takes texts from operator set 19 on; this operator always has.
        lacking = nodes.add(
            "LabelEncoder", rows, domain="ai.onnx.ml",
            keys_strings=[MISSING_TEXT.decode()], values_int64s=[1], default_int64=0,
        )  # fmt: skip
        lacking = nodes.add("Cast", lacking, to=TensorProto.BOOL)
        filling = nodes.constant([[str(text) for text in step.statistics_]], TensorProto.STRING)
    else:
        statistics = np.asarray(step.statistics_, dtype=np.float64).reshape(1, -1)
        if np.isnan(statistics).any():
            raise NotImplementedError("a SimpleImputer that drops columns")
        lacking, filling = nodes.add("IsNaN", rows), nodes.constant(statistics)
    nodes.add("Where", lacking, filling, rows, out=operator.outputs[0].full_name)


def _one_hot(scope: Any, operator: Any, container: Any) -> None:
    """Numbers are compared as they are; skl2onnx cuts them to whole ones, so that 0.5 would be the category 0."""
    step, nodes = operator.raw_operator, _Nodes(scope, operator, container)
    kinds = (FloatTensorType, DoubleTensorType)
    has_rare = any(
        "infrequent_sklearn" in step._compute_transformed_categories(i) for i in range(len(step.categories_))
    )
    if has_rare or not all(isinstance(variable.type, kinds) for variable in operator.inputs):
        convert_sklearn_one_hot_encoder(scope, operator, container)
        return
    matrix = nodes.matrix()
    parts = []
    for index, categories in enumerate(step.categories_):
        column, known = nodes.column(matrix, index), np.asarray(categories, dtype=np.float64)
        hits = [nodes.add("Equal", column, nodes.constant(known[~np.isnan(known)].reshape(1, -1)))]
        if np.isnan(known).any():  # the last one, as scikit-learn sorts them
            hits.append(nodes.add("IsNaN", column))
        hit = nodes.add("Concat", *hits, axis=1) if len(hits) > 1 else hits[0]
        dropped = None if step.drop_idx_ is None else step.drop_idx_[index]
        if dropped is not None:
            kept = np.delete(np.arange(len(known)), dropped)
            hit = nodes.add("Gather", hit, nodes.constant(kept, TensorProto.INT64), axis=1)
        parts.append(hit)
    together = nodes.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    whole = isinstance(operator.outputs[0].type, Int64TensorType)
    nodes.add("Cast", together, to=TensorProto.INT64 if whole else TensorProto.FLOAT, out=operator.outputs[0].full_name)


def _bins(scope: Any, operator: Any, container: Any) -> None:
    """The bin is how many inner edges are at most the value; skl2onnx compares in float32 only."""
    step, nodes = operator.raw_operator, _Nodes(scope, operator, container)
    matrix = nodes.matrix()
    parts = []
    for index, edges in enumerate(step.bin_edges_):
        column = nodes.column(matrix, index)
        reached = nodes.add("GreaterOrEqual", column, nodes.constant(np.reshape(edges[1:-1], (1, -1))))
        reached = nodes.add("Cast", reached, to=TensorProto.FLOAT)
        axis = nodes.constant([1], TensorProto.INT64)
        number = nodes.add("ReduceSum", reached, axis, keepdims=1)
        if step.encode != "ordinal":
            numbers = nodes.constant([np.arange(step.n_bins_[index])], TensorProto.FLOAT)
            number = nodes.add("Cast", nodes.add("Equal", number, numbers), to=TensorProto.FLOAT)
        parts.append(number)
    together = nodes.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    doubled = isinstance(operator.outputs[0].type, DoubleTensorType)
    nodes.add(
        "Cast", together, to=TensorProto.DOUBLE if doubled else TensorProto.FLOAT, out=operator.outputs[0].full_name
    )


def _bins_shape(operator: Any) -> None:
    """As skl2onnx's, which knows no sparse answer, though it is the same numbers."""
    calculate_sklearn_k_bins_discretiser(operator)


def _power(scope: Any, operator: Any, container: Any) -> None:
    """Each column by its own exponent, which is known; skl2onnx's form has no doubles."""
    step, nodes = operator.raw_operator, _Nodes(scope, operator, container)
    lambdas = np.asarray(step.lambdas_, dtype=np.float64).reshape(1, -1)
    rows, zero, one = nodes.matrix(), nodes.constant(0.0), nodes.constant(1.0)
    if step.method == "box-cox":
        powered = _raised(nodes, rows, lambdas)
    else:  # what is negative and what is not are raised apart, and each is zero where the other is not
        above = _raised(nodes, nodes.add("Add", nodes.add("Max", rows, zero), one), lambdas)
        below = _raised(nodes, nodes.add("Sub", one, nodes.add("Min", rows, zero)), 2 - lambdas)
        powered = nodes.add("Sub", above, below)
    if step.standardize:
        scaler = step._scaler
        powered = nodes.add("Sub", powered, nodes.constant(np.reshape(scaler.mean_, (1, -1))))
        powered = nodes.add("Div", powered, nodes.constant(np.reshape(scaler.scale_, (1, -1))))
    doubled = isinstance(operator.outputs[0].type, DoubleTensorType)
    nodes.add(
        "Cast", powered, to=TensorProto.DOUBLE if doubled else TensorProto.FLOAT, out=operator.outputs[0].full_name
    )


def _raised(nodes: _Nodes, base: str, exponents: Array) -> str:
    """(base ** exponent - 1) / exponent by column, and its limit log(base) where the exponent is 0."""
    is_zero = np.abs(exponents) < np.finfo(np.float64).eps
    safe = np.where(is_zero, 1.0, exponents)
    raised = nodes.add("Sub", nodes.add("Pow", base, nodes.constant(safe)), nodes.constant(1.0))
    raised = nodes.add("Div", raised, nodes.constant(safe))
    if not is_zero.any():
        return raised
    return nodes.add("Where", nodes.constant(is_zero, TensorProto.BOOL), nodes.add("Log", base), raised)


def _power_shape(operator: Any) -> None:
    powertransformer_shape_calculator(operator)
    given = operator.inputs[0].type
    if isinstance(given, DoubleTensorType):
        operator.outputs[0].type = DoubleTensorType(given.shape)


def _discriminant(scope: Any, operator: Any, container: Any) -> None:
    """Of two classes the probability is the logistic function of the score; skl2onnx takes it of twice the score."""
    step = operator.raw_operator
    if len(step.classes_) == 2:
        logistic = LogisticRegression()
        logistic.coef_, logistic.intercept_, logistic.classes_ = step.coef_, step.intercept_, step.classes_
        operator.raw_operator = logistic
    try:
        convert_sklearn_linear_classifier(scope, operator, container)
    finally:
        operator.raw_operator = step


def _threshold(scope: Any, operator: Any, container: Any) -> None:
    """The label is by the threshold that was tuned; skl2onnx takes the likelier class."""
    step, nodes = operator.raw_operator, _Nodes(scope, operator, container)
    if len(step.classes_) != 2 or not hasattr(step.estimator_, "predict_proba"):
        raise NotImplementedError("a threshold for anything but the probability of the second class of two")
    inner = scope.declare_local_operator(sklearn_operator_name_map[type(step.estimator_)], step.estimator_)
    inner.inputs = operator.inputs
    unused = scope.declare_local_variable("label", operator.outputs[0].type.__class__())
    given = scope.declare_local_variable("given", operator.outputs[1].type.__class__())
    inner.outputs.extend([unused, given])
    probabilities = nodes.add("Identity", given.onnx_name, out=operator.outputs[1].full_name)
    second = nodes.add("Gather", probabilities, nodes.constant(1, TensorProto.INT64), axis=1)
    reached = nodes.add("GreaterOrEqual", second, nodes.constant(step.best_threshold_))
    texts = isinstance(step.classes_[0], str)
    element = TensorProto.STRING if texts else TensorProto.INT64
    no, yes = (nodes.constant([str(each) if texts else int(each)], element) for each in step.classes_)
    nodes.add("Where", reached, yes, no, out=operator.outputs[0].full_name)


Writer = Callable[[Any, Any, Any], None]
_REPAIRS: Sequence[tuple[type, Writer, Callable[[Any], None]]] = (
    (SimpleImputer, _imputer, calculate_sklearn_imputer_output_shapes),
    (OneHotEncoder, _one_hot, calculate_sklearn_one_hot_encoder_output_shapes),
    (KBinsDiscretizer, _bins, _bins_shape),
    (PowerTransformer, _power, _power_shape),
    (LinearDiscriminantAnalysis, _discriminant, calculate_linear_classifier_output_shapes),
    (TunedThresholdClassifierCV, _threshold, tuned_threshold_classifier_shape_calculator),
)
WRITERS: Mapping[type, Writer] = {step: write for step, write, _ in _REPAIRS}
SHAPES: Mapping[type, Callable[[Any], None]] = {step: shape for step, _, shape in _REPAIRS}
