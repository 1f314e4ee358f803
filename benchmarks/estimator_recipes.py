"""How estimators of scikit-learn are made and on which rows they are tried: what benchmarks/estimators.py goes by."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from skl2onnx._supported_operators import sklearn_operator_name_map
from sklearn.base import OutlierMixin
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_linnerud, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import all_estimators


@functools.cache
def _listed(kind: str | None = None) -> dict[str, type]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(all_estimators(kind))


def claimed() -> dict[str, type]:
    """The estimators that are in scikit-learn's list and in skl2onnx's, by name."""
    return {name: each for name, each in _listed().items() if each in sklearn_operator_name_map}


def unclaimed() -> dict[str, type]:
    """The classifiers, regressors, transformers and outlier detectors that are only in scikit-learn's list."""
    known = claimed()
    return {name: each for name, each in _listed().items() if name not in known and kind_of(each) != "other"}


def kind_of(each: type) -> str:
    """What an estimator is in scikit-learn's own lists."""
    for kind in ("classifier", "regressor", "transformer"):
        if each.__name__ in _listed(kind):
            return kind
    return "outlier detector" if issubclass(each, OutlierMixin) else "other"


# Data sets: features and what is to be answered.
def _set(load: Callable[..., Any]) -> Callable[[], tuple[Any, Any]]:
    def rows() -> tuple[Any, Any]:
        bunch = load(as_frame=True)
        return bunch.data, bunch.target

    return rows


def _mixed() -> tuple[Any, Any]:
    features, truth = _set(load_breast_cancer)()
    area = features["mean area"]
    size = np.where(area < 500, "small", np.where(area < 900, "middle", "large"))
    code = (features["mean texture"] // 10).astype(int).map("00{}".format)
    return pd.DataFrame({"size": size, "code": code}).astype(object), truth


def _sentences() -> tuple[Any, Any]:
    """What the descriptions of the data sets say, and of which set each line is."""
    lines: list[str] = []
    sets: list[int] = []
    for number, load in enumerate((load_breast_cancer, load_digits, load_diabetes, load_wine, load_iris)):
        found = [line for line in load().DESCR.splitlines() if len(line.split()) > 4]
        lines += found
        sets += [number] * len(found)
    return pd.DataFrame({"line": lines}).astype(object), pd.Series(sets)


def _holes() -> tuple[Any, Any]:
    features, truth = _set(load_wine)()
    return features.mask(np.random.default_rng(0).random(features.shape) < 0.1), truth


def _kernel() -> tuple[Any, Any]:
    """How alike each row is to each of those that are fitted on."""
    features, truth = _set(load_wine)()
    order = np.random.default_rng(1).permutation(len(features))
    return pd.DataFrame(rbf_kernel(features, features.iloc[order[: len(features) // 2]], 1e-5)), truth


SETS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "cancer": _set(load_breast_cancer),
    "wine": _set(load_wine),
    "digits": _set(load_digits),
    "diabetes": _set(load_diabetes),
    "linnerud": _set(load_linnerud),
    "texts": _mixed,
    "sentences": _sentences,
    "holes": _holes,
    "kernel": _kernel,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an estimator is made, and the data sets that it is tried on."""

    make: Callable[[type], Any]
    data: tuple[str, ...]


def _with(*data: str, **arguments: Any) -> Recipe:
    return Recipe(lambda each: each(**arguments), data)


_TREE, _LEAVES = DecisionTreeClassifier(max_depth=3, random_state=0), DecisionTreeRegressor(max_depth=3, random_state=0)
_LOGISTIC = LogisticRegression(max_iter=2000)
RECIPES: Mapping[str, Recipe] = {
    "CategoricalNB": _with("digits", min_categories=17),
    "MultiOutputClassifier": Recipe(lambda each: each(_LOGISTIC), ("digits",)),
    "MultiOutputRegressor": Recipe(lambda each: each(LinearRegression()), ("linnerud",)),
    "OneVsOneClassifier": Recipe(lambda each: each(_LOGISTIC), ("wine",)),
    "OneVsRestClassifier": Recipe(lambda each: each(_LOGISTIC), ("cancer", "wine")),
    "CalibratedClassifierCV": _with("cancer", "wine", estimator=_LOGISTIC, cv=3),
    "TunedThresholdClassifierCV": _with("cancer", estimator=_LOGISTIC, cv=3),
    "RadiusNeighborsClassifier": _with("cancer", "wine", radius=2000.0),
    "RadiusNeighborsRegressor": _with("diabetes", radius=0.3),
    "StackingClassifier": _with("cancer", "wine", estimators=[("a", _TREE), ("b", _LOGISTIC)]),
    "VotingClassifier": _with("cancer", "wine", estimators=[("a", _TREE), ("b", _LOGISTIC)], voting="soft"),
    "StackingRegressor": _with("diabetes", estimators=[("a", _LEAVES), ("b", LinearRegression())]),
    "VotingRegressor": _with("diabetes", estimators=[("a", _LEAVES), ("b", LinearRegression())]),
    "MultiTaskElasticNet": _with("linnerud"),
    "MultiTaskElasticNetCV": _with("linnerud", cv=2),
    "MultiTaskLasso": _with("linnerud"),
    "MultiTaskLassoCV": _with("linnerud", cv=2),
    "PLSRegression": _with("diabetes", "linnerud"),
    "ColumnTransformer": Recipe(
        lambda each: each([("scaled", StandardScaler(), ["alcohol", "proline"])], remainder="passthrough"), ("wine",)
    ),
    "FeatureUnion": Recipe(lambda each: each([("scaled", StandardScaler()), ("few", PCA(2))]), ("wine",)),
    "Pipeline": Recipe(lambda each: each([("scale", StandardScaler()), ("decide", _LOGISTIC)]), ("cancer", "wine")),
    "GridSearchCV": Recipe(lambda each: each(_LOGISTIC, {"C": [0.1, 1.0]}, cv=2), ("cancer", "wine")),
    "OneHotEncoder": _with("texts", "digits", handle_unknown="ignore"),
    "OrdinalEncoder": _with("texts", "digits", handle_unknown="use_encoded_value", unknown_value=-1),
    "TargetEncoder": _with("texts", "digits"),
    "CountVectorizer": _with("sentences"),
    "TfidfVectorizer": _with("sentences"),
    "DictVectorizer": _with("sentences"),
    "FeatureHasher": _with("texts", n_features=16, input_type="string"),
    "KBinsDiscretizer": _with("wine", "cancer", quantile_method="averaged_inverted_cdf"),
    "KNNImputer": _with("holes"),
    "SimpleImputer": _with("holes", "texts", strategy="most_frequent"),
    "RFE": _with("cancer", estimator=_LOGISTIC),
    "RFECV": _with("cancer", estimator=_LOGISTIC, cv=2, step=5),
    "SelectFromModel": _with("cancer", "wine", estimator=RandomForestClassifier(5, random_state=0)),
    "GaussianRandomProjection": _with("digits", "cancer", n_components=5, random_state=0),
    "TfidfTransformer": _with("digits"),
    "PowerTransformer": _with("wine", "diabetes"),
    "FunctionTransformer": _with("wine"),
    "TruncatedSVD": _with("digits", "wine"),
    "KMeans": _with("digits", "wine", n_clusters=3, n_init=1, random_state=0),
    "MiniBatchKMeans": _with("digits", "wine", n_clusters=3, n_init=1, random_state=0),
    "GaussianMixture": _with("wine", "diabetes", n_components=2, random_state=0),
    "BayesianGaussianMixture": _with("wine", "diabetes", n_components=2, random_state=0),
    "LocalOutlierFactor": _with("cancer", "wine", novelty=True),
    "IsolationForest": _with("cancer", "wine", n_estimators=20, random_state=0),
    "BernoulliNB": _with("digits", binarize=8.0),
    "ComplementNB": _with("digits", "wine"),
    "MultinomialNB": _with("digits", "wine"),
    "QuantileTransformer": _with("wine", n_quantiles=20),
    "PolynomialFeatures": _with("wine"),
    "QuadraticDiscriminantAnalysis": _with("wine", "cancer", reg_param=0.1),
    "OrthogonalMatchingPursuitCV": _with("diabetes"),
    "KernelPCA": _with("wine", "cancer", n_components=4),
    "LabelEncoder": _with("texts"),
    "LabelBinarizer": _with("texts"),
    "KernelCenterer": _with("kernel"),
    "GaussianProcessClassifier": _with("wine", "cancer"),
    "RandomTreesEmbedding": _with("wine", n_estimators=5, max_depth=3, random_state=0),
}
_FAST = {
    "n_estimators": 10,
    "max_iter": 200,
    "random_state": 0,
    "hidden_layer_sizes": (16,),
    "n_init": 1,
}
_BY_KIND: Mapping[str, tuple[str, ...]] = {
    "classifier": ("cancer", "wine"),
    "regressor": ("diabetes",),
    "outlier detector": ("cancer", "wine"),
    "transformer": ("wine", "cancer"),
    "other": ("wine",),
}


def recipe_of(name: str, each: type) -> Recipe:
    """The recipe by name, or what is usual. What skl2onnx does not claim only has to be refused: it is fitted fast."""
    if name in RECIPES:
        return RECIPES[name]
    known = inspect.signature(each).parameters
    usual = _FAST if name in claimed() else {**_FAST, "max_iter": 5}
    arguments = {key: value for key, value in usual.items() if key in known}
    data = _BY_KIND[kind_of(each)]
    return Recipe(lambda made: made(**arguments), data if name in claimed() else data[:1])
