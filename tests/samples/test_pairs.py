"""Comparing pairs of answers: sums of parts are the sums of the whole, and quantiles are as exact as they say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gateway.samples import pairs
from gateway.samples.pairs import RELATIVE_ERROR, ChangeSketch, Kind, PairSums, compare, sums_from_json
from gateway.tensors import Array, Signature, Tensors, TensorSpec

CHANGES = st.lists(st.just(0.0) | st.floats(1e-12, 1e12), min_size=1, max_size=60)
QUANTILES = (1e-9, 0.01, 0.07, 0.25, 0.5, 0.9, 0.99, 1.0)
KINDS: dict[str, Kind] = {"label": "label", "probabilities": "probabilities", "value": "score"}


def sketch_of(changes: list[float]) -> ChangeSketch:
    sketch = ChangeSketch()
    sketch.add(np.array(changes))
    return sketch


@given(CHANGES)
def test_quantiles_are_within_their_stated_error(changes: list[float]) -> None:
    sketch = sketch_of(changes)
    assert sketch.count == len(changes)
    assert sketch.largest == max(changes)
    for q in QUANTILES:
        exact = float(np.quantile(changes, q, method="inverted_cdf"))
        found = sketch.quantile(q)
        assert found is not None
        assert abs(found - exact) <= RELATIVE_ERROR * exact * (1 + 1e-9)


@given(CHANGES, CHANGES)
def test_merged_sketches_are_the_sketch_of_all(one: list[float], other: list[float]) -> None:
    merged = sketch_of(one)
    merged.merge(sketch_of(other))
    whole = sketch_of(one + other)
    assert (merged.bins, merged.none, merged.largest) == (whole.bins, whole.none, whole.largest)


def test_a_sketch_stays_bounded_whatever_comes() -> None:
    sketch = ChangeSketch()
    assert sketch.quantile(0.5) is None
    sketch.add(np.geomspace(1e-300, 1e300, 50_000))
    assert len(sketch.bins) <= 1106
    assert sketch.largest == 1e300
    assert sketch.quantile(0.1) == 0.0
    assert sketch.quantile(1.0) == pytest.approx(1e12, rel=0.06)


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensors, Tensors, list[int]]:
    """Outputs of two versions for some requests of some rows."""
    rows_of = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    total = sum(rows_of)

    def outputs() -> Tensors:
        return {
            "label": draw(arrays.arrays(np.int64, (total,), elements=st.integers(0, 2))),
            "probabilities": draw(arrays.arrays(np.float32, (total, 3), elements=FLOATS)),
            "value": draw(arrays.arrays(np.float64, (total, 1), elements=st.floats())),
        }

    return outputs(), outputs(), rows_of


def one_by_one(base: Tensors, shadow: Tensors, rows_of: list[int]) -> dict[str, Any]:
    """The same sums, row by row in plain Python."""
    found: dict[str, Any] = {"copies": 0, "rows": 0, "base_invalid": 0, "invalid": 0, "labels": 0, "classes": 0}
    found["largest"] = 0.0
    start = 0
    for rows in rows_of:
        span = range(start, start + rows)
        start += rows
        wrong: dict[str, list[int]] = {"base": [], "shadow": []}
        for row in span:
            for name in ("probabilities", "value"):
                for a, b in zip(base[name][row].tolist(), shadow[name][row].tolist(), strict=True):
                    if a == b or (np.isnan(a) and np.isnan(b)):
                        continue
                    if not np.isfinite(b):
                        wrong["shadow"].append(row)
                    if not np.isfinite(a):
                        wrong["base"].append(row)
        if wrong["shadow"]:
            found["invalid"] += 1
            continue
        found["copies"] += 1
        for row in span:
            if row in wrong["base"]:
                found["base_invalid"] += 1
                continue
            found["rows"] += 1
            found["labels"] += int(base["label"][row] != shadow["label"][row])
            found["classes"] += int(base["probabilities"][row].argmax() != shadow["probabilities"][row].argmax())
            a, b = float(base["value"][row, 0]), float(shadow["value"][row, 0])
            if a != b and np.isfinite(a):
                found["largest"] = max(found["largest"], min(abs(b - a), np.finfo(np.float64).max))
    return found


@given(answers())
def test_a_comparison_is_that_of_its_rows_one_by_one(case: tuple[Tensors, Tensors, list[int]]) -> None:
    base, shadow, rows_of = case
    sums, exact = compare(base, shadow, rows_of, KINDS), one_by_one(base, shadow, rows_of)
    assert (sums.copies, sums.rows, sums.base_invalid) == (exact["copies"], exact["rows"], exact["base_invalid"])
    assert sums.failed.get("invalid", 0) == exact["invalid"]
    assert sums.outputs["label"].flips == exact["labels"]
    assert sums.outputs["probabilities"].flips == exact["classes"]
    assert sums.outputs["value"].changes.largest == exact["largest"]
    assert {output.rows for output in sums.outputs.values()} == {sums.rows}


@given(answers(), st.integers(1, 5))
def test_sums_of_parts_merge_to_those_of_the_whole(case: tuple[Tensors, Tensors, list[int]], cut: int) -> None:
    base, shadow, rows_of = case
    whole, merged = compare(base, shadow, rows_of, KINDS), PairSums()
    for first, last in ((0, cut), (cut, len(rows_of))):
        part = slice(sum(rows_of[:first]), sum(rows_of[:last]))
        if rows_of[first:last]:
            cut_of = [{name: array[part] for name, array in outputs.items()} for outputs in (base, shadow)]
            merged.merge(compare(cut_of[0], cut_of[1], rows_of[first:last], KINDS))
    assert shown(merged) == shown(whole)


def shown(sums: PairSums) -> dict[str, Any]:
    plain = sums.to_json()
    for output in plain["outputs"].values():
        if "size_sum" in output:
            output["size_sum"] = pytest.approx(output["size_sum"])
    return plain


@given(answers())
def test_sums_go_through_json_unchanged(case: tuple[Tensors, Tensors, list[int]]) -> None:
    sums = compare(*case, KINDS)
    sums.merge(PairSums(timed=1, base_s=0.5, shadow_s=0.75, dropped={"busy": 2}, failed={"error": 1}))
    text = json.dumps(sums.to_json(), allow_nan=False)
    assert sums_from_json(json.loads(text)).to_json() == sums.to_json()


@pytest.mark.parametrize("wrong", [[], {}, {"copies": "x"}, {**PairSums().to_json(), "outputs": {"y": {"kind": "?"}}}])
def test_what_is_no_sums_is_told(wrong: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        sums_from_json(wrong)


def texts(*values: str) -> Array:
    return np.array([value.encode() for value in values], dtype=object)


def test_texts_and_truths_are_labels() -> None:
    base = {"name": texts("a", "b", "b"), "yes": np.array([[True], [False], [True]])}
    shadow = {"name": texts("a", "b", "c"), "yes": np.array([[False], [True], [True]])}
    sums = compare(base, shadow, [1, 1, 1], {"name": "label", "yes": "label"})
    assert (sums.outputs["name"].flips, sums.outputs["yes"].flips) == (1, 2)


def test_another_shape_or_a_missing_output_is_invalid() -> None:
    base = {"y": np.zeros((2, 1))}
    for shadow in ({"y": np.zeros((2, 2))}, {"y": np.zeros(3)}, {"y": np.zeros((0, 1))}, {}):
        sums = compare(base, shadow, [1, 1], {"y": "score"})
        assert (sums.copies, sums.rows, sums.failed) == (0, 0, {"invalid": 2})


def test_a_model_without_rows_is_compared_as_one() -> None:
    sums = compare({"y": np.arange(6.0).reshape(2, 3)}, {"y": np.arange(6.0).reshape(2, 3) + 2}, [1], {"y": "score"})
    assert (sums.rows, sums.outputs["y"].changes.largest) == (1, 2.0)


def signature(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), **more: Any) -> Signature:
    return Signature(inputs or (TensorSpec("x", "FP32", (-1, 4)),), outputs, **more)


@pytest.mark.parametrize(
    ("shadow", "why"),
    [
        (signature(TensorSpec("x", "FP32", (-1, 4))), ""),
        (signature(TensorSpec("x", "FP32", (-1, -1))), ""),
        (signature(TensorSpec("x", "FP32", (-1, 5))), "its input 'x' is FP32 [-1, 5], and requests bring FP32 [-1, 4]"),
        (signature(TensorSpec("x", "FP64", (-1, 4))), "its input 'x' is FP64 [-1, 4], and requests bring FP32 [-1, 4]"),
        (signature(TensorSpec("z", "FP32", (-1, 4))), "it takes z, and requests bring x"),
        (signature(batchable=False), "one of them takes rows in batches and the other does not"),
    ],
)
def test_a_version_with_other_inputs_cannot_run_copies(shadow: Signature, why: str) -> None:
    assert pairs.inputs_differ(signature(), shadow) == why


def test_outputs_are_compared_by_what_they_are() -> None:
    base = (
        TensorSpec("label", "INT64", (-1,), "label"),
        TensorSpec("p", "FP32", (-1, 3), "probabilities"),
        TensorSpec("value", "FP32", (-1, 1)),
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("gone", "FP32", (-1,)),
    )
    other = (
        TensorSpec("label", "INT32", (-1,)),
        TensorSpec("p", "FP64", (-1, 3)),
        TensorSpec("value", "INT64", (-1, 1)),
        TensorSpec("text", "INT64", (-1,)),
    )
    assert pairs.comparable(signature(outputs=base), signature(outputs=other)) == {
        "label": "label",
        "p": "probabilities",
    }
    many = tuple(TensorSpec(f"y{i}", "FP32", (-1,)) for i in range(40))
    assert len(pairs.comparable(signature(outputs=many), signature(outputs=many))) == pairs.MAX_OUTPUTS
