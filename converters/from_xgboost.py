"""XGBoost: boosters and their scikit-learn wrappers, read from the JSON in which XGBoost itself keeps a model.

XGBoost rounds features to float32 and compares them with float32 thresholds by "below". Its base score is kept as it is
answered, not as it is added; since 3.1 it is a list, one number per class or one for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from converters.trees import LEAF, Ensemble, Link, Tree
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import Array

_LINKS: dict[str, Link] = {
    "binary:logistic": "sigmoid",
    "reg:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
    "survival:cox": "exp",
    "survival:aft": "exp",
    "reg:squarederror": "identity",
    "reg:squaredlogerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:absoluteerror": "identity",
    "reg:quantileerror": "identity",
    "rank:ndcg": "identity",
    "rank:map": "identity",
    "rank:pairwise": "identity",
}
_UNSUPPORTED = "not supported: encode such columns as numbers, or by a OneHotEncoder in a Pipeline"
_CLASSIFIERS = ("binary:logistic", "multi:softprob", "multi:softmax")


def load_file(path: Path) -> Any:
    """The booster in a .json or .ubj file written by ``save_model``. Raises InvalidInput."""
    booster = xgboost.Booster()
    try:
        booster.load_model(path)
    except xgboost.core.XGBoostError as error:
        told = str(error).strip().splitlines()[-1][:300]
        raise InvalidInput("model", f"{path.name}: {told}", "a model file of XGBoost") from error
    return booster


def adapt(model: Any) -> Any:
    """*model* as a scikit-learn estimator: wrappers are that already, boosters are given what they lack."""
    if not isinstance(model, xgboost.Booster):
        return model
    is_classifier = _learner(model)["objective"]["name"] in _CLASSIFIERS
    return _BoosterClassifier(model) if is_classifier else _BoosterRegressor(model)


def read(estimator: Any) -> Ensemble | None:
    """The trees of a fitted wrapper or adapted booster. Raises ConversionRefused for what no tree operator can hold."""
    if isinstance(estimator, _Adapted):
        booster = estimator.booster
    elif isinstance(estimator, xgboost.XGBModel):
        booster = estimator.get_booster()
        if not np.isnan(estimator.missing):
            raise ConversionRefused(f"missing={estimator.missing} is not supported: train with NaN for what is missing")
    else:
        return None
    if "c" in (booster.feature_types or ()):
        raise ConversionRefused(f"it takes columns of the type category (enable_categorical), which is {_UNSUPPORTED}")
    learner = _learner(booster)
    objective = learner["objective"]["name"]
    if objective not in _LINKS:
        raise ConversionRefused(f"XGBoost's objective {objective!r} is not known here, nor how its sums become answers")
    link = _LINKS[objective]
    model, weights = _grown(learner)
    end = _end(booster, model)
    base = _base(learner, link)
    trees = []
    for index in range(end):
        weight = 1.0 if weights is None else float(weights[index])
        trees.append(_tree(model["trees"][index], weight, int(model["tree_info"][index]), f"tree {index}"))
    parallel = int(model["gbtree_model_param"].get("num_parallel_tree", 1))
    return Ensemble(trees, base, booster.num_features(), "BRANCH_LT", "float32", "float64", link, parallel=parallel)


class _Adapted(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """What a booster lacks to be an estimator of scikit-learn. It answers by the best iteration of early stopping."""

    described = "XGBoost Booster"

    def __init__(self, booster: Any) -> None:
        self.booster = booster
        self.n_features_in_ = booster.num_features()
        if booster.feature_names is not None:
            self.feature_names_in_ = np.array(booster.feature_names, dtype=object)
        self._classes = int(_learner(booster)["learner_model_param"]["num_class"])

    def _answer(self, rows: Any, *, sums: bool = False) -> Array:
        names = self.booster.feature_names
        matrix = xgboost.DMatrix(np.asarray(rows, dtype=np.float64), feature_names=names)
        end = _iterations(self.booster)
        answer: Array = np.asarray(self.booster.predict(matrix, iteration_range=(0, end), output_margin=sums))
        return answer


class _BoosterRegressor(RegressorMixin, _Adapted):  # type: ignore[misc]
    def predict(self, rows: Any) -> Array:
        return self._answer(rows)


class _BoosterClassifier(ClassifierMixin, _Adapted):  # type: ignore[misc]
    """Its classes are the numbers that it was trained with."""

    def __init__(self, booster: Any) -> None:
        super().__init__(booster)
        self.classes_ = np.arange(max(2, self._classes))

    def predict_proba(self, rows: Any) -> Array:
        if self._classes < 2:
            answer = self._answer(rows)
            return np.stack([1 - answer, answer], axis=1)
        sums = self._answer(rows, sums=True).astype(np.float64)  # multi:softmax itself gives labels alone
        powers = np.exp(sums - sums.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def predict(self, rows: Any) -> Array:
        labels: Array = self.classes_[self.predict_proba(rows).argmax(axis=1)]
        return labels


def _learner(booster: Any) -> Mapping[str, Any]:
    learner: Mapping[str, Any] = json.loads(bytes(booster.save_raw("json")))["learner"]
    return learner


def _grown(learner: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """The part that holds the trees, and the weight of each if they were dropped in training (dart)."""
    grown = learner["gradient_booster"]
    if grown["name"] == "dart":
        return grown["gbtree"]["model"], grown["weight_drop"]
    if grown["name"] != "gbtree":
        raise ConversionRefused(f"booster={grown['name']} has no trees, which is not supported: use gbtree or dart")
    return grown["model"], None


def _iterations(booster: Any) -> int:
    """How many iterations count: up to the best one if training was stopped early; 0 stands for all."""
    best = booster.attr("best_iteration")
    return 0 if best is None else int(best) + 1


def _end(booster: Any, model: Mapping[str, Any]) -> int:
    """How many trees count."""
    iterations = _iterations(booster)
    return len(model["trees"]) if iterations == 0 else int(model["iteration_indptr"][iterations])


def _base(learner: Mapping[str, Any], link: Link) -> Array:
    """What the sums begin with: kept as an answer, hence back through the link."""
    parameters = learner["learner_model_param"]
    kept = json.loads(parameters["base_score"])
    targets = max(1, int(parameters["num_class"]), int(parameters.get("num_target", 1)))
    answers = np.broadcast_to(np.asarray(kept, dtype=np.float32), (targets,)).astype(np.float64)
    if link == "sigmoid":
        return -np.log(1 / answers - 1)
    return np.log(answers) if link == "exp" else answers


def _tree(plain: Mapping[str, Any], weight: float, target: int, where: str) -> Tree:
    if int(plain["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ConversionRefused(f"{where} has several numbers per leaf (multi_output_tree), which is not supported")
    if any(plain.get("split_type", ())):
        raise ConversionRefused(f"{where} splits a feature as categories, which is {_UNSUPPORTED}")
    left = np.array(plain["left_children"], dtype=np.int64)
    numbers = np.array(plain["split_conditions"], dtype=np.float32).astype(np.float64)
    leaf = left == -1
    return Tree(
        np.where(leaf, LEAF, np.array(plain["split_indices"], dtype=np.int64)),
        np.where(leaf, 0.0, numbers),
        left,
        np.array(plain["right_children"], dtype=np.int64),
        np.array(plain["default_left"], dtype=bool),
        np.where(leaf, numbers * weight, 0.0).reshape(-1, 1),
        target,
    )
