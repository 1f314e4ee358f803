"""What of a network's answers is judged, where nobody said which output is the label: the best class, or the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from converters.original import Answer, Family
from converters.quality import Truth
from converters.quantize import Gate, Subject
from converters.ready import Repacked
from converters.verify import TOLERANCE
from gateway.tensors import Array, Signature, Tensors

_FLOATS = ("FP16", "FP32", "FP64")
_SUM_WITHIN = 1e-3


class View:
    """From a model's outputs to ``label`` with ``probabilities`` or ``scores``, or to ``value``.

    The first output of fixed width and at least two numbers per row stands for classes; else all floats are values.
    """

    def __init__(self, signature: Signature) -> None:
        self._label = next((spec.name for spec in signature.outputs if spec.role == "label"), None)
        self._scores = next(
            (
                spec.name
                for spec in signature.outputs
                if spec.datatype in _FLOATS and len(spec.shape) == 2 and spec.shape[1] > 1
            ),
            None,
        )
        self._width = next((spec.shape[1] for spec in signature.outputs if spec.name == self._scores), 0)
        self._values = [spec.name for spec in signature.outputs if spec.datatype in _FLOATS]
        self._given = signature.classes

    @property
    def classes(self) -> Sequence[Any] | None:
        """The labels that are judged; None if values are."""
        if self._scores is None:
            return None
        return tuple(range(self._width)) if self._label is None else self._given

    def __call__(self, outputs: Tensors) -> Tensors:
        if self._scores is None:
            rows = len(next(iter(outputs.values())))
            return {"value": np.concatenate([outputs[name].reshape(rows, -1) for name in self._values], axis=1)}
        scores = outputs[self._scores]
        label = scores.argmax(axis=1) if self._label is None else outputs[self._label]
        return {"label": label, ("probabilities" if _are_shares(scores) else "scores"): scores}

    def answer(self, outputs: Tensors) -> Answer:
        seen = self(outputs)
        if self._scores is None:
            return Answer(seen, None)
        best = np.sort(outputs[self._scores], axis=1)
        return Answer(seen, best[:, -1] - best[:, -2])


def subject_in(made: Repacked, gate: Gate) -> Subject | None:
    """A ready model as what its variants are compared with.

    None if it was tried on rows that were drawn, gives no floats, or is not batched anyway. Raises InvalidInput if the
    true labels or values are none that it could give.
    """
    signature, inputs, outputs = made.signature, made.inputs, made.outputs
    is_served_in_batches = signature.batchable and signature.batch_invariant and signature.cacheable
    if inputs is None or outputs is None or not signature.features or made.report.get("drawn_at_random", True):
        return None
    if not is_served_in_batches or not any(spec.datatype in _FLOATS for spec in signature.outputs):
        return None
    view = View(signature)
    truth = None if made.truth is None else Truth(view.classes, made.truth)
    expected = view.answer(outputs)
    size = max(float(np.median(np.abs(array))) for array in expected.outputs.values() if array.dtype.kind == "f")
    tolerance = TOLERANCE * max(1.0, size)
    family = family_of(made.content)
    return Subject(made.content, signature, inputs, expected, tolerance, family, truth, gate, view)


def family_of(content: bytes) -> Family:
    """What kind of model decides, by the operators of its graph."""
    proto = onnx.load_from_string(content)
    kinds = [node.op_type for node in proto.graph.node]
    constants = {constant.name for constant in proto.graph.initializer}
    if any(kind.startswith("TreeEnsemble") for kind in kinds):
        return "trees"
    layers = [
        node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm", "Conv") and constants & set(node.input)
    ]
    if len(layers) > 1:
        return "neural network"
    return "linear" if layers or any(kind.startswith("Linear") for kind in kinds) else "other"


def _are_shares(scores: Array) -> bool:
    return bool((scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max(initial=0.0) < _SUM_WITHIN)
