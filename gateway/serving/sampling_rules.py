"""Which predictions go to the sample log though chance did not draw them, and how many of these there may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gateway.flags.sampling import SamplingRules
from gateway.metrics import ServingMetrics
from gateway.samples.record import HEADER, KEY, LOW_CONFIDENCE, OUTLIER, SLOW
from gateway.tensors import DTYPES, Array, Signature, Tensors

if TYPE_CHECKING:  # the parts that are asked here make use of this
    from gateway.serving.call import Call

# Per input tensor: columns, and the smallest and largest value of each that the reference holds, in its own type.
Ranges: TypeAlias = Mapping[str, tuple[list[int], Array, Array]]

DROPPED = "rule_budget"


class RuleBudget:
    """At most so many predictions per second and model that are sampled by rules, saved up for one second at most.

    Used on the event loop only. What exceeds it is dropped and counted.
    """

    def __init__(self, max_per_s: float, metrics: ServingMetrics, *, clock: Callable[[], float]) -> None:
        self._max_per_s = max_per_s
        self._saved_most = max(1.0, max_per_s) if max_per_s else 0.0
        self._dropped = metrics.samples_dropped.labels(DROPPED)
        self._clock = clock
        self._saved: dict[str, tuple[float, float]] = {}  # by model: how many it may now, and when that was

    def takes(self, model: str) -> bool:
        """Whether one more prediction of *model* may be sampled by a rule; if so, it is counted as such."""
        now_s = self._clock()
        saved, at_s = self._saved.get(model, (self._saved_most, now_s))
        saved = min(self._saved_most, saved + (now_s - at_s) * self._max_per_s)
        is_within = saved >= 1.0
        self._saved[model] = (saved - is_within, now_s)
        if not is_within:
            self._dropped.inc()
        return is_within


def why(
    rules: SamplingRules, call: Call, inputs: Tensors, confidences: Callable[[], Sequence[float]], took_s: float
) -> str | None:
    """The first rule that wants an answered prediction, None if none does.

    confidences: gives the largest probability of each of its rows. took_s: the time of its answer or of its run,
    whichever is longer.
    """
    if rules.keys and call.headers.get("x-targeting-key") in rules.keys:
        return KEY
    for name, wanted in rules.headers:
        if call.headers.get(name) in wanted:
            return HEADER
    bound = rules.low_confidence
    if bound is not None and not all(confidence >= bound for confidence in confidences()):  # of NaN nobody is sure
        return LOW_CONFIDENCE
    if rules.outliers and is_outside(call.live.ranges, inputs):
        return OUTLIER
    if rules.slow_s is not None and took_s > rules.slow_s:
        return SLOW
    return None


def confidences_of(signature: Signature, outputs: Tensors) -> list[float]:
    """Per row of *outputs* the largest probability; of a single one, that it is so or is not. Empty: there are none."""
    name = next((spec.name for spec in signature.outputs if spec.role == "probabilities"), None)
    array = None if name is None else outputs.get(name)
    if array is None or not array.size or array.dtype.kind != "f":
        return []
    table = array.reshape(len(array) if signature.batchable and array.ndim else 1, -1)
    largest = table.max(axis=1) if table.shape[1] > 1 else np.maximum(table, 1 - table)[:, 0]
    found: list[float] = largest.tolist()
    return found


def ranges_of(reference: Mapping[str, Any], signature: Signature) -> Ranges:
    """What the reference of a manifest says of numeric features: their smallest and largest values, by input."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    described = reference.get("features")
    for feature in signature.features:
        histogram = described.get(feature.name) if isinstance(described, dict) else None
        edges = histogram.get("edges") if isinstance(histogram, dict) else None
        if isinstance(edges, list) and len(edges) > 1 and all(isinstance(edge, int | float) for edge in edges):
            found.setdefault(feature.input, []).append((feature.column, edges[0], edges[-1]))
    ranges: dict[str, tuple[list[int], Array, Array]] = {}
    for name, unordered in found.items():
        columns = sorted(unordered)
        spec = signature.input(name)
        if spec is None or spec.datatype not in DTYPES or not signature.batchable:
            continue
        dtype = DTYPES[spec.datatype]
        if dtype.kind == "f":  # rounded as inputs are, or the very largest value would lie outside
            with np.errstate(over="ignore"):
                low, high = (np.array([column[side] for column in columns]).astype(dtype) for side in (1, 2))
        elif dtype.kind in "iu":
            low = np.array([math.floor(column[1]) for column in columns], np.float64)
            high = np.array([math.ceil(column[2]) for column in columns], np.float64)
        else:
            continue
        ranges[name] = ([column[0] for column in columns], low, high)
    return ranges


def is_outside(ranges: Ranges, inputs: Tensors) -> bool:
    """Whether a value of *inputs* is smaller or larger than all that the reference holds of its feature."""
    for name, (columns, low, high) in ranges.items():
        array = inputs.get(name)
        if array is None or not array.size:
            continue
        table = array.reshape(len(array), -1)
        if len(columns) != table.shape[1]:
            table = table[:, columns]
        if bool(((table < low) | (table > high)).any()):
            return True
    return False
