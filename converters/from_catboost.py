"""CatBoost: models of numbers, read from the JSON in which CatBoost itself keeps a model.

CatBoost rounds features to float32 and asks of them whether they are above a border. A level of a symmetric tree asks
one question in all its nodes, and the answers are the bits of the leaf's number.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import catboost
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from converters.trees import LEAF, Ensemble, Link, Tree
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import Array

_CLASSIFIERS: dict[str, Link] = {
    "Logloss": "sigmoid",
    "CrossEntropy": "sigmoid",
    "MultiClass": "softmax",
    "MultiClassOneVsAll": "sigmoid",
}
_EXPONENTS = ("Poisson", "Tweedie")


def load_file(path: Path) -> Any:
    """The model in a .cbm file written by ``save_model``. Raises InvalidInput."""
    model = catboost.CatBoost()
    try:
        model.load_model(str(path))
    except catboost.CatBoostError as error:
        raise InvalidInput("model", f"{path.name}: {str(error)[:300]}", "a model file of CatBoost") from error
    return model


def adapt(model: Any) -> Any:
    """*model* as a scikit-learn estimator, which CatBoost's own classes are not in every release."""
    if not isinstance(model, catboost.CatBoost):
        return model
    if not model.is_fitted():
        raise InvalidInput("model", f"an unfitted {type(model).__name__}", "one that was fitted")
    return (_CatboostClassifier if _loss(model) in _CLASSIFIERS else _CatboostRegressor)(model)


def read(estimator: Any) -> Ensemble | None:
    """The trees of a fitted or adapted model. Raises ConversionRefused for what no tree operator can hold."""
    estimator = adapt(estimator)  # in a Pipeline it is as CatBoost made it
    if not isinstance(estimator, _Adapted):
        return None
    plain = _plain(estimator.model)
    features = plain["features_info"]
    others = [kind for kind in features if kind.endswith("_features") and kind != "float_features" and features[kind]]
    if others:
        raise ConversionRefused(
            f"it has {', '.join(others).replace('_', ' ')}, which CatBoost turns to numbers by tables of its own: not "
            "supported; encode such columns as numbers"
        )
    scale, bias = plain["scale_and_bias"]
    base = np.array(bias, dtype=np.float64).reshape(-1)
    columns = [feature["flat_feature_index"] for feature in features["float_features"]]
    missing_above = [feature.get("nan_value_treatment") == "AsTrue" for feature in features["float_features"]]
    trees = [_symmetric(tree, scale, columns, missing_above) for tree in plain.get("oblivious_trees", ())]
    trees += [_grown(tree, scale, columns, missing_above) for tree in plain.get("trees", ())]
    targets = trees[0].value.shape[1] if trees else len(base)
    if len(base) != targets:
        base = np.broadcast_to(base, (targets,)) if len(base) == 1 else np.zeros(targets)
    loss = _loss(estimator.model)
    link = _CLASSIFIERS.get(loss, "exp" if loss in _EXPONENTS else "identity")
    return Ensemble(trees, base, estimator.n_features_in_, "BRANCH_LEQ", "float32", "float64", link)


class _Adapted(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A CatBoost model in the shape of a scikit-learn estimator."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.described = type(model).__name__
        names = model.feature_names_
        self.n_features_in_ = len(names)
        if names != [str(index) for index in range(len(names))]:
            self.feature_names_in_ = np.array(names, dtype=object)

    def _answer(self, rows: Any, kind: str) -> Array:
        answer: Array = np.asarray(catboost.CatBoost.predict(self.model, rows, prediction_type=kind))
        return answer


class _CatboostRegressor(RegressorMixin, _Adapted):  # type: ignore[misc]
    def predict(self, rows: Any) -> Array:
        return self._answer(rows, "Exponent" if _loss(self.model) in _EXPONENTS else "RawFormulaVal")


class _CatboostClassifier(ClassifierMixin, _Adapted):  # type: ignore[misc]
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.classes_ = np.asarray(model.classes_)

    def predict_proba(self, rows: Any) -> Array:
        return self._answer(rows, "Probability")

    def predict(self, rows: Any) -> Array:
        return self._answer(rows, "Class").ravel()


def _loss(model: Any) -> str:
    return str(model.get_all_params().get("loss_function", "")).split(":", 1)[0]


def _plain(model: Any) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.json"
        model.save_model(str(path), format="json")
        plain: Mapping[str, Any] = json.loads(path.read_bytes())
        return plain


def _symmetric(plain: Mapping[str, Any], scale: float, columns: list[int], missing_above: list[bool]) -> Tree:
    """A tree all of whose nodes of one level ask the same question; its first question is the leaf number's lowest bit.

    As a binary tree its root asks the last question, so that the leaves stand in the order of their numbers.
    """
    splits = plain["splits"] or []
    depth = len(splits)
    leaves = np.array(plain["leaf_values"], dtype=np.float64).reshape(2**depth, -1) * scale
    inner = 2**depth - 1
    level = np.repeat(np.arange(depth), 2 ** np.arange(depth))
    asked = [splits[depth - 1 - each] for each in range(depth)]
    which = np.array([split["float_feature_index"] for split in asked], dtype=np.int64)
    node = np.arange(inner)
    pad = np.zeros(2**depth, dtype=np.int64)
    return Tree(
        np.concatenate([np.array(columns)[which][level] if depth else pad[:0], pad + LEAF]),
        np.concatenate([_borders(asked)[level], pad]),
        np.concatenate([2 * node + 1, pad]),
        np.concatenate([2 * node + 2, pad]),
        np.concatenate([~np.array(missing_above, dtype=bool)[which][level] if depth else pad[:0], pad]).astype(bool),
        np.concatenate([np.zeros((inner, leaves.shape[1])), leaves]),
    )


def _grown(plain: Mapping[str, Any], scale: float, columns: list[int], missing_above: list[bool]) -> Tree:
    """A tree that was grown leaf by leaf or level by level: nested, the right side is above the border."""
    nodes: list[tuple[int, float, int, int, bool, Any]] = []
    width = 1

    def walk(node: Mapping[str, Any]) -> int:
        nonlocal width
        place = len(nodes)
        nodes.append((LEAF, 0.0, 0, 0, False, 0.0))
        if "split" in node:
            which = node["split"]["float_feature_index"]
            border = float(_borders([node["split"]])[0])
            left, right = walk(node["left"]), walk(node["right"])
            nodes[place] = (columns[which], border, left, right, not missing_above[which], 0.0)
        else:
            value = np.atleast_1d(np.array(node["value"], dtype=np.float64)) * scale
            width = len(value)
            nodes[place] = (LEAF, 0.0, 0, 0, False, value)
        return place

    walk(plain)
    feature, threshold, yes, no, missing, value = zip(*nodes, strict=True)
    return Tree(
        np.array(feature),
        np.array(threshold),
        np.array(yes),
        np.array(no),
        np.array(missing),
        np.stack([np.broadcast_to(np.asarray(each, dtype=np.float64), (width,)) for each in value]),
    )


def _borders(splits: list[Mapping[str, Any]]) -> Array:
    return np.array([split["border"] for split in splits], dtype=np.float32).astype(np.float64)
