"""What an estimator is: its steps, what it holds, and what it does with a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin, is_classifier, is_outlier_detector, is_regressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_selection import RFE
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelBinarizer, LabelEncoder, MultiLabelBinarizer

from gateway.errors import InvalidInput

Task = Literal["classifier", "regressor", "outlier detector", "clusterer", "transformer"]
_NOT_OF_ROWS = (LabelEncoder, LabelBinarizer, MultiLabelBinarizer, DictVectorizer)


def opened(estimator: Any) -> Any:
    """An estimator that selects features and then decides is a step that selects and one that decides."""
    if isinstance(estimator, Pipeline) and isinstance(estimator.steps[-1][1], RFE):
        *before, (_, last) = estimator.steps
    elif isinstance(estimator, RFE):
        before, last = [], estimator
    else:
        return estimator
    if not (hasattr(last, "estimator_") and (is_classifier(last) or is_regressor(last))):
        return estimator
    return Pipeline([*before, ("select", last), ("decide", last.estimator_)])


def task_of(estimator: Any, last: Any) -> Task:
    """What it does with a row. Raises InvalidInput if that is nothing that can be served."""
    if isinstance(last, _NOT_OF_ROWS):
        raise InvalidInput(
            "model", f"a {type(last).__name__}", "one that takes rows of columns: no labels, no dictionaries"
        )
    if is_classifier(estimator):
        return "classifier"
    if is_regressor(estimator) or type(last).__name__.endswith("Ranker"):
        return "regressor"
    if is_outlier_detector(estimator):
        if hasattr(estimator, "predict"):
            return "outlier detector"
        raise InvalidInput("model", f"a {type(last).__name__} that judges only its own rows", "one with novelty=True")
    if isinstance(last, ClusterMixin | DensityMixin) and hasattr(estimator, "predict"):
        return "clusterer"
    if hasattr(estimator, "transform"):
        return "transformer"
    raise InvalidInput(
        "model",
        f"a {type(last).__name__}, which neither predicts nor transforms new rows",
        "a classifier, a regressor, a ranker, an outlier detector, a clusterer or a transformer",
    )


def classes_of(estimator: Any, last: Any, task: Task) -> tuple[int | str, ...] | None:
    if task == "outlier detector":
        return -1, 1
    if task == "clusterer":
        return tuple(range(int(last.n_clusters if hasattr(last, "n_clusters") else last.n_components)))
    if task != "classifier":
        return None
    found = estimator.classes_
    if isinstance(found, list):
        raise InvalidInput("model", f"{len(found)} outputs per row", "one label per row")
    kind = np.asarray(found).dtype.kind
    if kind in "iub" or (kind == "f" and all(float(label).is_integer() for label in found)):
        return tuple(int(label) for label in found)
    if all(isinstance(label, str) for label in found):
        return tuple(str(label) for label in found)
    raise InvalidInput("model", f"classes {list(found)[:5]}", "whole numbers or texts")


def steps(estimator: Any) -> Iterator[Any]:
    """The steps of a Pipeline and of the pipelines inside it, in order; an estimator by itself is one step."""
    if isinstance(estimator, Pipeline):
        for _, step in estimator.steps:
            if step is not None and not isinstance(step, str):  # 'passthrough'
                yield from steps(step)
    else:
        yield estimator


def within(thing: Any) -> Iterator[Any]:
    """An estimator and all fitted estimators that it holds, at any depth."""
    if isinstance(thing, BaseEstimator):
        yield thing
        for value in vars(thing).values():
            yield from within(value)
    elif isinstance(thing, dict):
        yield from within(list(thing.values()))
    elif isinstance(thing, list | tuple) or (isinstance(thing, np.ndarray) and thing.dtype == object):
        for each in thing:
            yield from within(each)
    elif type(thing).__name__ == "_CalibratedClassifier":  # CalibratedClassifierCV's, which is no BaseEstimator
        yield from within(list(vars(thing).values()))
