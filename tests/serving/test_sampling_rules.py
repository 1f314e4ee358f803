"""What rules look at: how sure an answer is, whether an input was ever seen; and that they never add too much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.metrics import ServingMetrics, process_registry
from gateway.serving.sampling_rules import RuleBudget, confidences_of, is_outside, ranges_of
from gateway.tensors import Feature, Signature, Tensors, TensorSpec
from tests.builders import classifier
from tests.puppet import FakeClock


def test_rules_add_at_most_their_budget_per_second_and_model_and_the_rest_is_counted() -> None:
    registry, clock = process_registry(), FakeClock()
    budget = RuleBudget(10, ServingMetrics(registry), clock=clock)
    for _second in range(3):
        assert sum(budget.takes("iris") for _ in range(1000)) == 10
        assert sum(budget.takes("wine") for _ in range(5)) == 5  # one model takes nothing from another
        clock.advance(1.0)
    clock.advance(3600)
    assert sum(budget.takes("iris") for _ in range(1000)) == 10  # what was not used is not saved up for long
    assert registry.get_sample_value("sluicegate_samples_dropped_total", {"reason": "rule_budget"}) == 4 * 990


@pytest.mark.parametrize(("per_s", "taken"), [(0, 0), (0.5, 1)])
def test_a_budget_of_nothing_adds_nothing_and_a_small_one_adds_some(per_s: float, taken: int) -> None:
    clock = FakeClock()
    budget = RuleBudget(per_s, ServingMetrics(process_registry()), clock=clock)
    for _ in range(3):
        assert sum(budget.takes("m") for _ in range(100)) == taken
        clock.advance(2.0)


def test_the_confidence_of_a_row_is_its_largest_probability() -> None:
    outputs: Tensors = {
        "label": np.zeros(2, np.int64),
        "probabilities": np.array([[0.25, 0.75, 0], [0.4, 0.3, 0.3]], np.float32),
    }
    assert confidences_of(classifier().signature, outputs) == [0.75, np.float32(0.4)]
    one = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("p", "FP64", (-1, 1), "probabilities"),))
    assert confidences_of(one, {"p": np.array([[0.25], [0.75]])}) == [0.75, 0.75]  # it is so, or it is not
    assert confidences_of(one, {}) == []


REFERENCE = {
    "features": {
        "b": {"kind": "numeric", "edges": [-1.0, 0.0, 0.1], "counts": [1, 1]},
        "a": {"kind": "numeric", "edges": [10.0, 20.0], "counts": [2]},
        "c": {"kind": "categorical", "counts": {"x": 2}},
        "n": {"kind": "numeric", "edges": [1.5, 3.0], "counts": [2]},
    }
}
SIGNATURE = Signature(
    (TensorSpec("t", "FP32", (-1, 3)), TensorSpec("n", "INT64", (-1, 1)), TensorSpec("c", "BYTES", (-1, 1))),
    (TensorSpec("y", "FP32", (-1, 1)),),
    (Feature("b", "t", 2), Feature("a", "t", 0), Feature("free", "t", 1), Feature("c", "c", 0), Feature("n", "n", 0)),
)


@pytest.mark.parametrize(
    ("row", "number", "expected"),
    [
        ([10, 99, 0.1], 2, False),  # the largest value, rounded to 32 bits as inputs are, lies inside
        ([20, -99, -1], 2, False),
        ([20.001, 0, 0], 2, True),
        ([9.99, 0, 0], 2, True),
        ([15, 0, 0.10001], 2, True),
        ([15, 0, 0], 4, True),
        ([np.nan, 0, np.nan], 2, False),  # missing is no value
        ([np.inf, 0, 0], 2, True),
    ],
)
def test_an_input_is_outside_if_the_reference_holds_nothing_as_small_or_as_large(
    row: list[float], number: int, expected: bool
) -> None:
    ranges = ranges_of(REFERENCE, SIGNATURE)
    inside = [15, 0, 0]
    inputs = {
        "t": np.array([inside, row], np.float32),
        "n": np.array([[2], [number]]),
        "c": np.array([[b"x"], [b"never seen"]], dtype=object),
    }
    assert is_outside(ranges, inputs) is expected


@pytest.mark.parametrize("reference", [{}, {"features": None}, {"features": {"a": None}}, {"features": {"a": {}}}])
def test_a_reference_that_tells_no_ranges_makes_nobody_an_outlier(reference: dict[str, Any]) -> None:
    assert not is_outside(ranges_of(reference, SIGNATURE), {"t": np.full((1, 3), 1e30, np.float32)})
