"""LightGBM: boosters and their scikit-learn wrappers, read from the text in which LightGBM itself keeps a model.

LightGBM compares doubles, and its text holds every double in full. Three of its habits are easily missed: numbers of at
most 1e-35 count as zero; what is missing goes where the node says, or counts as zero, or goes with the zeros, as the
feature was in training; and the best iteration of early stopping is where a model ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from converters.trees import LEAF, Ensemble, Link, Tree
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import Array

# kZeroThreshold, a float32 that is compared as a double.
_ZERO = float(np.float32(1e-35))
_CATEGORICAL, _MISSING_LEFT = 1, 2  # bits of decision_type
_NEVER, _WITH_ZERO, _OWN_WAY = 0, 1, 2  # what is missing: its bits 2 and 3
_LINKS: dict[str, Link] = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multiclassova": "sigmoid",
    "cross_entropy": "sigmoid",
    "cross_entropy_lambda": "softplus",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
}
_IDENTITIES = ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg")
_UNSUPPORTED = "not supported: encode such columns as numbers, or by a OneHotEncoder in a Pipeline"
_CLASSIFIERS = ("binary", "multiclass", "multiclassova")


def load_file(path: Path) -> Any:
    """The booster in a file written by ``save_model``. Raises InvalidInput."""
    try:
        return lightgbm.Booster(model_file=path)
    except lightgbm.basic.LightGBMError as error:
        raise InvalidInput("model", f"{path.name}: {error}", "a model file of LightGBM") from error


def adapt(model: Any) -> Any:
    """*model* as a scikit-learn estimator: wrappers are that already, boosters are given what they lack."""
    if not isinstance(model, lightgbm.Booster):
        return model
    return _BoosterClassifier(model) if _objective(model) in _CLASSIFIERS else _BoosterRegressor(model)


def read(estimator: Any) -> Ensemble | None:
    """The trees of a fitted wrapper or adapted booster. Raises ConversionRefused for what no tree operator can hold."""
    booster = getattr(estimator, "booster_", None)
    if not isinstance(booster, lightgbm.Booster):
        return None
    if booster.pandas_categorical and any(booster.pandas_categorical):
        raise ConversionRefused(f"it takes columns of the type category, which is {_UNSUPPORTED}")
    head, sections = _sections(booster.model_to_string())
    objective = head.get("objective", "").split()
    targets = int(head["num_tree_per_iteration"])
    averaged = targets / len(sections) if "average_output" in head and sections else 1.0
    link, slope = _link(objective, estimator)
    trees = [
        _tree(section, slope * averaged, index % targets, f"tree {index}") for index, section in enumerate(sections)
    ]
    zeros, others = _missing_kinds(sections)
    if zeros & others:
        raise ConversionRefused(
            "its trees disagree on whether a zero counts as missing (zero_as_missing was changed while training went "
            "on), which no tree operator can hold"
        )
    return Ensemble(
        trees,
        np.zeros(targets),
        int(head["max_feature_idx"]) + 1,
        "BRANCH_LEQ",
        "float64",
        "float64",
        link,
        tuple(sorted(zeros)),
        _ZERO,
        averaged="average_output" in head,
    )


class _Adapted(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """What a booster lacks to be an estimator of scikit-learn."""

    described = "LightGBM Booster"

    def __init__(self, booster: Any) -> None:
        self.booster = self.booster_ = booster
        self.n_features_in_ = booster.num_feature()
        names = booster.feature_name()
        if names != [f"Column_{index}" for index in range(len(names))]:
            self.feature_names_in_ = np.array(names, dtype=object)

    def _answer(self, rows: Any) -> Array:
        answer: Array = np.asarray(self.booster_.predict(rows))
        return answer


class _BoosterRegressor(RegressorMixin, _Adapted):  # type: ignore[misc]
    def predict(self, rows: Any) -> Array:
        return self._answer(rows)


class _BoosterClassifier(ClassifierMixin, _Adapted):  # type: ignore[misc]
    """Its classes are the numbers that it was trained with."""

    def __init__(self, booster: Any) -> None:
        super().__init__(booster)
        self.classes_ = np.arange(max(2, booster.num_model_per_iteration()))

    def predict_proba(self, rows: Any) -> Array:
        answer = self._answer(rows)
        return answer if answer.ndim > 1 else np.stack([1 - answer, answer], axis=1)

    def predict(self, rows: Any) -> Array:
        labels: Array = self.classes_[self.predict_proba(rows).argmax(axis=1)]
        return labels


def _objective(booster: Any) -> str:
    head, _ = _sections(booster.model_to_string(num_iteration=1))
    return (head.get("objective", "").split() or [""])[0]


def _link(objective: list[str], estimator: Any) -> tuple[Link, float]:
    """How sums become answers, and what the sums are multiplied with before."""
    name, *settings = objective or [""]
    given = dict(setting.split(":", 1) for setting in settings if ":" in setting)
    if name in _LINKS:
        return _LINKS[name], float(given.get("sigmoid", 1.0)) if name in ("binary", "multiclassova") else 1.0
    if name == "regression" and "sqrt" in settings:
        return "square", 1.0
    if name in _IDENTITIES or (name in ("", "custom", "none") and not hasattr(estimator, "predict_proba")):
        return "identity", 1.0
    raise ConversionRefused(f"LightGBM's objective {name!r} is not known here, nor how its sums become answers")


def _sections(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The head of a model's text and its trees, each as names and values."""
    head, *rest = text.split("\nTree=")
    sections = [dict(_pairs(part.split("\nend of trees", 1)[0])) for part in rest]
    return dict(_pairs(head)), sections


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition("=")
        yield name, value


def _missing_kinds(sections: list[dict[str, str]]) -> tuple[set[int], set[int]]:
    """The features whose zeros are missing, and those whose zeros are not."""
    zeros: set[int] = set()
    others: set[int] = set()
    for section in sections:
        if int(section["num_leaves"]) > 1:
            kinds = _ints(section["decision_type"]) >> 2 & 3
            features = _ints(section["split_feature"])
            zeros.update(features[kinds == _WITH_ZERO].tolist())
            others.update(features[kinds != _WITH_ZERO].tolist())
    return zeros, others


def _tree(section: dict[str, str], scale: float, target: int, where: str) -> Tree:
    if section.get("is_linear", "0") != "0":
        raise ConversionRefused(f"{where} has linear models in its leaves (linear_tree), which no tree operator holds")
    leaves = np.array(section["leaf_value"].split(), dtype=np.float64)
    inner = len(leaves) - 1
    value = np.concatenate([np.zeros(inner), leaves * scale]).reshape(-1, 1)
    pad = np.zeros(len(leaves), dtype=np.int64)
    if inner == 0:
        return Tree(np.array([LEAF]), np.zeros(1), pad, pad, np.zeros(1, dtype=bool), value, target)
    kinds = _ints(section["decision_type"])
    if (kinds & _CATEGORICAL).any():
        column = int(_ints(section["split_feature"])[(kinds & _CATEGORICAL).astype(bool)][0])
        raise ConversionRefused(f"{where} splits feature {column} as categories, which is {_UNSUPPORTED}")
    threshold = _around_zero(np.array(section["threshold"].split(), dtype=np.float64))
    # A missing value that never came in training counts as zero.
    missing = np.where(kinds >> 2 & 3 == _NEVER, threshold >= 0, kinds & _MISSING_LEFT != 0)
    yes, no = (_children(section[name], inner) for name in ("left_child", "right_child"))
    return Tree(
        np.concatenate([_ints(section["split_feature"]), np.full(len(leaves), LEAF)]),
        np.concatenate([threshold, np.zeros(len(leaves))]),
        np.concatenate([yes, pad]),
        np.concatenate([no, pad]),
        np.concatenate([missing, pad.astype(bool)]),
        value,
        target,
    )


def _around_zero(threshold: Array) -> Array:
    """Thresholds which do for any number what the old ones do after numbers around zero were made zero."""
    above = (threshold >= 0) & (threshold < _ZERO)
    below = (threshold < 0) & (threshold >= -_ZERO)
    return np.where(above, _ZERO, np.where(below, np.nextafter(-_ZERO, -np.inf), threshold))


def _children(text: str, inner: int) -> Array:
    """Numbers of nodes; LightGBM counts leaves by themselves, from -1 downwards."""
    child = _ints(text)
    return np.where(child < 0, inner + ~child, child)


def _ints(text: str) -> Array:
    return np.array(text.split(), dtype=np.int64)
