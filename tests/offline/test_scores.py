"""The numbers: scores of labelled rows, and which output and classes labels are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from gateway.offline.scores import Judged, scores_of
from gateway.offline.targets import Target, UnknownClass, target_of
from gateway.tensors import Signature, TensorSpec
from tests.offline.labelled import close


def judged(truth: Any, predicted: Any, scores: list[float] | None = None) -> Judged:
    return Judged(0, "p", 0, predicted, scores, truth, 1.0, "", 0.0)


def test_two_classes_have_one_auc_and_a_brier_score_of_the_second() -> None:
    target = Target("label", "label", True, ("no", "yes"), ("p.no", "p.yes"))
    chances = np.array([0.1, 0.4, 0.35, 0.8])
    truth = ["no", "no", "yes", "yes"]
    rows = [judged(t, "yes" if p > 0.5 else "no", [1 - p, p]) for t, p in zip(truth, chances.tolist(), strict=True)]
    found = scores_of(rows, target)
    is_yes = [each == "yes" for each in truth]
    assert close(found["auc"], sklearn_metrics.roc_auc_score(is_yes, chances))
    assert close(found["brier"], sklearn_metrics.brier_score_loss(is_yes, chances))
    assert close(found["log_loss"], sklearn_metrics.log_loss(is_yes, chances))


_CLASSES = ("a", "b", "c")


@st.composite
def _judged_rows(draw: st.DrawFn) -> list[Judged]:
    """Rows of two or three classes, of which some occur on one side only; chances and weights that are often equal."""
    names = st.sampled_from(_CLASSES[: draw(st.integers(2, 3))])
    chance = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
    weight = st.sampled_from([1.0, 1.0, 0.5]) | st.floats(1e-3, 1e3)
    row = st.builds(
        lambda truth, predicted, chances, weight: replace(judged(truth, predicted, chances), weight=weight),
        *(names, names, st.tuples(chance, chance, chance).map(list), weight),
    )
    return draw(st.lists(row, min_size=1, max_size=30))


@given(_judged_rows())
def test_the_scores_of_classes_are_those_of_scikit_learn(rows: list[Judged]) -> None:
    found = scores_of(rows, Target("label", "label", True, _CLASSES, ("p.a", "p.b", "p.c")))
    truth, predicted, weights = ([getattr(row, name) for row in rows] for name in ("truth", "predicted", "weight"))
    assert close(found["accuracy"], sklearn_metrics.accuracy_score(truth, predicted, sample_weight=weights))
    names = sorted({*truth, *predicted})
    wanted = sklearn_metrics.precision_recall_fscore_support(
        truth, predicted, labels=names, sample_weight=weights, zero_division=0.0
    )
    by_class = {each["class"]: each for each in found["classes"]}
    for name, of_each in zip(("precision", "recall", "f1"), wanted[:3], strict=True):
        assert close(found[name], float(np.mean(of_each)))
        assert [by_class[each][name] for each in names] == pytest.approx(of_each.tolist())
    areas = [
        sklearn_metrics.roc_auc_score(
            [each == name for each in truth], [row.scores[place] for row in rows if row.scores], sample_weight=weights
        )
        for place, name in enumerate(_CLASSES)
        if name in truth and {*truth} != {name}
    ]
    assert (found["auc"] is None) == (not areas)
    assert not areas or found["auc"] == pytest.approx(float(np.mean(areas)))


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3)), min_size=1, max_size=30))
def test_the_errors_of_numbers_are_those_of_scikit_learn(rows: list[tuple[float, float, float]]) -> None:
    told = [replace(judged(truth, predicted), weight=weight) for truth, predicted, weight in rows]
    found = scores_of(told, Target("y", "y", False))
    truth, predicted, weights = map(list, zip(*rows, strict=True))
    wanted = sklearn_metrics.mean_squared_error(truth, predicted, sample_weight=weights)
    assert found["rmse"] ** 2 == pytest.approx(wanted)
    wanted = sklearn_metrics.mean_absolute_error(truth, predicted, sample_weight=weights)
    assert found["mae"] == pytest.approx(wanted)


def test_what_cannot_be_told_is_none_and_not_a_number() -> None:
    target = Target("label", "label", True, ("no", "yes"), ("p.no", "p.yes"))
    only_one = scores_of([judged("no", "no", [0.9, 0.1])], target)
    assert (only_one["accuracy"], only_one["auc"]) == (1.0, None)
    unknown = scores_of([judged("perhaps", "no", [0.9, 0.1])], target)
    assert (unknown["accuracy"], unknown["auc"], unknown["brier"], unknown["log_loss"]) == (0.0, None, None, None)
    sure_and_wrong = scores_of([judged("yes", "no", [1.0, 0.0])], target)
    assert 30 < sure_and_wrong["log_loss"] < 40


@pytest.mark.parametrize(
    ("outputs", "classes", "wanted"),
    [
        ((TensorSpec("value", "FP32", (-1, 1)),), None, Target("value", "value", False)),
        ((TensorSpec("y", "FP32", (-1,)),), None, Target("y", "y", False)),
        ((TensorSpec("y", "FP32", (-1, 2)),), None, None),
        ((TensorSpec("y", "BYTES", (-1,)),), None, None),
        ((TensorSpec("label", "INT64", (-1,), "label"),), None, Target("label", "label", True)),
        ((TensorSpec("label", "INT64", (-1,), "label"),), ("a", "b"), Target("label", "label", True)),
        ((TensorSpec("label", "INT64", (-1,), "label"),), (-1, 1), Target("label", "label", True, ("-1", "1"))),
        (
            (TensorSpec("p", "FP32", (-1, 2), "probabilities"),),
            ("a", "b"),
            Target("p", "", True, ("a", "b"), ("p.a", "p.b")),
        ),
        ((TensorSpec("p", "FP32", (-1, 2), "probabilities"),), None, None),
    ],
)
def test_what_labels_are_about(
    outputs: Sequence[TensorSpec], classes: tuple[str | int, ...] | None, wanted: Target
) -> None:
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    assert target_of(Signature(inputs, tuple(outputs), classes=classes)) == wanted


def test_labels_are_equal_to_classes_wherever_they_come_from() -> None:
    numbers = Target("label", "label", True, ("0", "1"))
    assert [numbers.truth(label) for label in (1, 1.0, "1", True, False, {"label": 0})] == ["1"] * 4 + ["0"] * 2
    booleans = Target("label", "label", True, ("false", "true"))
    assert booleans.truth(True) == "true"
    for unknown in ("banana", 2, -0.5):
        with pytest.raises(UnknownClass, match="the model has no class"):
            numbers.truth(unknown)
    assert Target("label", "label", True).truth("banana") == "banana"  # the package names no classes
    price = Target("value", "value", False)
    assert price.truth("2.5") == 2.5
    for wrong in ("much", True, {"other": 1}):
        with pytest.raises((ValueError, TypeError)):
            price.truth(wrong)


def test_weights_that_are_almost_nothing_change_no_area() -> None:
    target = Target("label", "label", True, ("no", "yes"), ("p.no", "p.yes"))
    rows = [judged(truth, "no", [1 - p, p]) for truth, p in (("no", 0.1), ("yes", 0.4), ("no", 0.6), ("yes", 0.9))]
    assert scores_of([replace(row, weight=1e-200) for row in rows], target)["auc"] == scores_of(rows, target)["auc"]
