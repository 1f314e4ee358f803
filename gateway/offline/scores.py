"""How good predictions were whose truth is known: one table of rows in, one set of numbers out.

Pure; scikit-learn's definitions, which check their arguments for ten times as long as they count in windows of some
hundred rows. Everything that cannot be told of these rows is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.offline.calibration import calibration_of
from gateway.offline.targets import Answer, Target
from gateway.tensors import Array

# So many classes are told one by one; beyond that, the most frequent ones.
_MAX_CLASSES = 50


@dataclass(frozen=True, slots=True)
class Judged:
    """One row whose truth is known. scores: probabilities in the order of the target's classes."""

    ts_ns: int
    prediction_id: str
    row: int
    predicted: Answer
    scores: list[float] | None
    truth: Answer
    weight: float
    slice: str
    delay_s: float


def scores_of(rows: Sequence[Judged], target: Target) -> dict[str, Any]:
    """The numbers of *rows*, of which there is one at least."""
    weights = np.array([row.weight for row in rows])
    return _of_classes(rows, target, weights) if target.is_classes else _of_numbers(rows, weights)


def _of_numbers(rows: Sequence[Judged], weights: Array) -> dict[str, Any]:
    """Mean absolute error, root of the mean squared error, and bias: the mean of prediction minus truth."""
    predicted = np.array([row.predicted for row in rows], dtype=np.float64)
    truth = np.array([row.truth for row in rows], dtype=np.float64)
    return {
        "rows": len(rows),
        "mae": float(np.average(np.abs(predicted - truth), weights=weights)),
        "rmse": float(np.sqrt(np.average((predicted - truth) ** 2, weights=weights))),
        "bias": float(np.average(predicted - truth, weights=weights)),
    }


def _of_classes(rows: Sequence[Judged], target: Target, weights: Array) -> dict[str, Any]:
    """Accuracy; precision, recall and F1 per class and as plain means over the classes that occur (macro); and of the
    probabilities: AUC (one against the rest, plain mean), Brier score, log loss and expected calibration error."""
    truth, predicted = [str(row.truth) for row in rows], [str(row.predicted) for row in rows]
    names = sorted({*truth, *predicted})
    places = {name: place for place, name in enumerate(names)}
    true_places = np.array([places[name] for name in truth])
    places_said = np.array([places[name] for name in predicted])
    is_right = true_places == places_said
    there, said, right = (
        np.bincount(which, weights=weight, minlength=len(names))
        for which, weight in (
            (true_places, weights),
            (places_said, weights),
            (true_places[is_right], weights[is_right]),
        )
    )
    by_class = _shares(right, said), _shares(right, there), _shares(2 * right, said + there)
    counts = Counter(truth)
    told = sorted(range(len(names)), key=lambda index: (-counts[names[index]], names[index]))[:_MAX_CLASSES]
    return {
        "rows": len(rows),
        "accuracy": float(np.average(is_right, weights=weights)),
        "precision": float(np.mean(by_class[0])),
        "recall": float(np.mean(by_class[1])),
        "f1": float(np.mean(by_class[2])),
        **_of_probabilities(rows, target),
        "classes": [
            {
                "class": names[index],
                "rows": counts[names[index]],
                "precision": float(by_class[0][index]),
                "recall": float(by_class[1][index]),
                "f1": float(by_class[2][index]),
            }
            for index in sorted(told)
        ],
    }


def calibration_in(rows: Sequence[Judged], target: Target) -> dict[str, Any] | None:
    """Whether the probabilities mean what they say: see `calibration_of`; None if no row has probabilities.

    of: the class whose chance is looked at. Of two classes that is the second one; of more, empty: in each row that
    with the highest chance (top label).
    """
    if (known := _known(rows, target)) is None:
        return None
    scores, truth, weights = known
    if len(target.classes) == 2:
        return {"of": target.classes[1], **calibration_of(scores[:, 1], truth == 1, weights)}
    return {"of": "", **calibration_of(scores.max(axis=1), scores.argmax(axis=1) == truth, weights)}


def _known(rows: Sequence[Judged], target: Target) -> tuple[Array, Array, Array] | None:
    """Probabilities, places of the true classes among them, and weights of the rows that have both; None if no row has.

    Rows without probabilities, or of a class that the model does not know, are left out.
    """
    place = {name: index for index, name in enumerate(target.classes)}
    usable = [row for row in rows if row.scores is not None and row.truth in place]
    if not usable or not target.scores:
        return None
    scores = np.array([row.scores for row in usable], dtype=np.float64)
    truth = np.array([place[str(row.truth)] for row in usable])
    return scores, truth, np.array([row.weight for row in usable])


def _of_probabilities(rows: Sequence[Judged], target: Target) -> dict[str, float | None]:
    """AUC, Brier score (of two classes that of the second, of more the sum over all), log loss, calibration error."""
    if (known := _known(rows, target)) is None:
        return {"auc": None, "brier": None, "log_loss": None, "ece": None}
    scores, truth, weights = known
    calibration = calibration_in(rows, target)
    hot = np.eye(len(target.classes))[truth]
    squared = ((scores - hot) ** 2).sum(axis=1)
    given = np.clip(scores[np.arange(len(truth)), truth], np.finfo(np.float64).eps, 1.0)
    # Of two classes, both say the same.
    columns = [1] if len(target.classes) == 2 else range(len(target.classes))
    areas = [
        _area(truth == column, scores[:, column], weights)
        for column in columns
        if 0 < np.count_nonzero(truth == column) < len(truth)
    ]
    return {
        "auc": float(np.mean(areas)) if areas else None,
        "brier": float(np.average(squared, weights=weights)) / (2 if len(target.classes) == 2 else 1),
        "log_loss": float(np.average(-np.log(given), weights=weights)),
        "ece": None if calibration is None else calibration["ece"],
    }


def _shares(parts: Array, wholes: Array) -> Array:
    """0 of nothing."""
    return np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0)


def _area(is_true: Array, scores: Array, weights: Array) -> float:
    """Under the ROC curve: how often a true row has a higher score than one that is not; equal ones count half."""
    _values, places = np.unique(scores, return_inverse=True)
    true, false = (np.bincount(places, weights=weights * which) for which in (is_true, ~is_true))
    lower = np.cumsum(false) - false
    # Divided by one after the other: weights may be so small that their product is nothing.
    return float(np.sum(true / true.sum() * ((lower + false / 2) / false.sum())))
