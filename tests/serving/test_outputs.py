"""The check of what a model gave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.outputs import OutputCheck
from gateway.tensors import Array, Signature, TensorSpec

MODEL = Signature(
    (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("label", "INT64", (-1,)))
)
CHECK = OutputCheck(MODEL)
NUMBERS = st.sampled_from([0.0, 1.0, -3e38, 3e38, np.nan, np.inf, -np.inf])


def bad(y: Array, *, x: Array | None = None, label: Array | None = None) -> list[int]:
    rows = len(y)
    x = np.zeros((rows, 2), np.float32) if x is None else x
    label = np.zeros(rows, np.int64) if label is None else label
    return sorted(CHECK.bad_rows({"x": x}, {"y": y, "label": label}, rows))


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=70))
def test_a_row_is_bad_if_it_is_not_finite_unless_nan_came_in(rows: list[tuple[float, float, float]]) -> None:
    table = np.array(rows, np.float32)
    y, x = table[:, :2], np.zeros((len(rows), 2), np.float32)
    x[:, 0] = table[:, 2]
    wanted = [
        place
        for place, (a, b, given_x) in enumerate(rows)
        if np.isinf(a) or np.isinf(b) or ((np.isnan(a) or np.isnan(b)) and not np.isnan(given_x))
    ]
    assert bad(y, x=x) == wanted


@pytest.mark.parametrize(
    "y", [np.zeros((3, 3), np.float32), np.zeros((3,), np.float32), np.zeros((3, 2), np.float64), np.zeros((3, 2, 1))]
)
def test_all_rows_are_bad_if_a_shape_or_type_is_wrong(y: Array) -> None:
    assert bad(y) == [0, 1, 2]
    assert bad(np.zeros((3, 2), np.float32), label=np.zeros((3, 1), np.int64)) == [0, 1, 2]
    assert bad(np.zeros((3, 2), np.float32)) == []


def test_a_model_without_rows_is_one_row() -> None:
    fixed = Signature(
        (TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "FP32", ())), batchable=False
    )
    check = OutputCheck(fixed)
    inputs = {"x": np.ones(3, np.float32)}
    for y, z, wanted in (([1.0, 2.0], 1.0, []), ([1.0, np.nan], 1.0, [0]), ([1.0], np.inf, [0])):
        outputs = {"y": np.array(y, np.float32), "z": np.array(z, np.float32)}
        assert sorted(check.bad_rows(inputs, outputs, 1)) == wanted
