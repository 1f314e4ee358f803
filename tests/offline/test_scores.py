"""The numbers: scores of labelled rows, and which output and classes labels are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
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
