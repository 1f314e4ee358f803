"""scikit-learn's trees, forests and boosted trees, read node by node.

All but HistGradientBoosting round features to float32 themselves before they compare them with double thresholds; that
one compares doubles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from converters.trees import LEAF, Ensemble, Link, Tree
from gateway.tensors import Array

_TREES = (DecisionTreeClassifier, DecisionTreeRegressor)  # ExtraTree* are theirs too
_FORESTS = (RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor)
_BOOSTED = (GradientBoostingClassifier, GradientBoostingRegressor)
_BOOSTED_ON_HISTOGRAMS = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)


def read(estimator: Any) -> Ensemble | None:
    """The trees of a fitted estimator; None if it has none, or decides by more than numbers."""
    if getattr(estimator, "n_outputs_", 1) != 1:
        return None
    if isinstance(estimator, _BOOSTED_ON_HISTOGRAMS):
        return _boosted_on_histograms(estimator)
    if isinstance(estimator, _BOOSTED):
        return _boosted(estimator)
    if isinstance(estimator, _FORESTS):
        return _averaged(estimator, estimator.estimators_)
    if isinstance(estimator, _TREES):
        return _averaged(estimator, [estimator])
    return None


def _averaged(estimator: Any, members: Any) -> Ensemble:
    trees = [_tree(member.tree_, 1 / len(members)) for member in members]
    outputs = trees[0].value.shape[1]
    width = estimator.n_features_in_
    return Ensemble(trees, np.zeros(outputs), width, "BRANCH_LEQ", "float32", "float64", averaged=True)


def _boosted(estimator: Any) -> Ensemble | None:
    if not (estimator.init_ == "zero" or isinstance(estimator.init_, DummyClassifier | DummyRegressor)):
        return None  # begins with what another estimator answers
    link: Link = "identity"
    if isinstance(estimator, GradientBoostingClassifier):
        link = "sigmoid" if estimator.estimators_.shape[1] == 1 else "softmax"
    doubled = 2 if getattr(estimator, "loss", None) == "exponential" else 1  # that loss's own logistic function
    scale = estimator.learning_rate * doubled
    trees = [
        _tree(member.tree_, scale, target) for stage in estimator.estimators_ for target, member in enumerate(stage)
    ]
    base = _begun_with(estimator) * doubled
    return Ensemble(trees, base, estimator.n_features_in_, "BRANCH_LEQ", "float32", "float64", link)


def _begun_with(estimator: Any) -> Array:
    """What the sums begin with: the scores of some row less what the trees add to them."""
    row = np.zeros((1, estimator.n_features_in_), dtype=np.float32)
    if (names := getattr(estimator, "feature_names_in_", None)) is not None:
        scored: Any = pd.DataFrame(row, columns=names)
    else:
        scored = row
    is_classifier = isinstance(estimator, GradientBoostingClassifier)
    scores = (estimator.decision_function if is_classifier else estimator.predict)(scored)
    added = [
        [member.tree_.value[member.tree_.apply(row)[0], 0, 0] for member in stage] for stage in estimator.estimators_
    ]
    begun: Array = np.ravel(scores) - estimator.learning_rate * np.sum(added, axis=0)
    return begun


def _tree(tree: Any, scale: float, target: int = 0) -> Tree:
    feature = np.where(tree.children_left == -1, LEAF, tree.feature)
    value = tree.value[:, 0, :] * scale
    missing = np.asarray(tree.missing_go_to_left, dtype=bool)
    return Tree(feature, tree.threshold, tree.children_left, tree.children_right, missing, value, target)


def _boosted_on_histograms(estimator: Any) -> Ensemble | None:
    if estimator.is_categorical_ is not None:
        return None
    trees = [
        _histogram_tree(member.nodes, target) for stage in estimator._predictors for target, member in enumerate(stage)
    ]
    base = np.ravel(estimator._baseline_prediction).astype(np.float64)
    link: Link = "identity"
    if isinstance(estimator, HistGradientBoostingClassifier):
        link = "sigmoid" if len(base) == 1 else "softmax"
    elif estimator.loss in ("poisson", "gamma"):
        link = "exp"
    return Ensemble(trees, base, estimator.n_features_in_, "BRANCH_LEQ", "float64", "float64", link)


def _histogram_tree(nodes: Any, target: int) -> Tree:
    leaf = nodes["is_leaf"].astype(bool)
    return Tree(
        np.where(leaf, LEAF, nodes["feature_idx"].astype(np.int64)),
        nodes["num_threshold"].astype(np.float64),
        nodes["left"].astype(np.int64),
        nodes["right"].astype(np.int64),
        nodes["missing_go_to_left"].astype(bool),
        nodes["value"].astype(np.float64).reshape(-1, 1),
        target,
    )
