"""The original: a fitted estimator of any source, what it says of itself, and its answers in the shape of ours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from converters import sources
from converters.rows import bytes_array, is_text
from converters.steps import Task, classes_of, opened, steps, task_of, within
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import Array, Tensors

if TYPE_CHECKING:
    from converters.trees import Ensemble

Family = Literal["neural network", "trees", "linear", "other"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the original gives for some rows, named as the ONNX outputs are.

    outputs, by task. Classifier: ``label`` (int64 or bytes) and, if it has them, ``probabilities`` [rows, classes].
    Regressor and ranker: ``value`` [rows, values]. Outlier detector: ``label``, -1 for an outlier and 1 for others, and
    ``score`` [rows, 1], below 0 for outliers. Clusterer: ``label``, and if it has them ``probabilities``, or ``value``,
    the distances to all centres. Transformer: ``value`` [rows, columns], floats or bytes.
    margin: how far the best class is ahead of the second, per row; None if there is no label.
    """

    outputs: Tensors
    margin: Array | None


def load(path: Path, *, trust: bool) -> tuple[Original, list[str]]:
    """Load a model's file (`sources.load`). Returns the model and notes for the user."""
    model, notes = sources.load(path, trust=trust)
    return Original(model), notes


class Original:
    """A fitted estimator that answers rows: whatever its task is. The score of a ranker is a value.

    ensemble: its trees, if it decides by trees that can be read; head: what prepares their features, None if nothing
    does. wide: its ONNX form takes doubles, although the original needs none. Raises InvalidInput if it is no such
    model, or one that cannot be packaged.
    """

    def __init__(self, estimator: Any) -> None:
        # A search answers by the best of what it tried.
        estimator = opened(sources.adapt(getattr(estimator, "best_estimator_", estimator)))
        if not isinstance(estimator, BaseEstimator):
            raise InvalidInput(
                "model", f"a {type(estimator).__name__}", "a scikit-learn estimator or Pipeline, or a booster"
            )
        last = list(steps(estimator))[-1]
        self.task: Task = task_of(estimator, last)
        try:
            if hasattr(estimator, "fit"):  # what was adapted is fitted, and is never fitted again
                check_is_fitted(estimator)
        except NotFittedError as error:
            raise InvalidInput("model", f"an unfitted {type(estimator).__name__}", "one that was fitted") from error
        self.estimator = estimator
        self.has_probabilities = self.task in ("classifier", "clusterer") and hasattr(estimator, "predict_proba")
        self.feature_names = _names(estimator)
        width = getattr(estimator, "n_features_in_", None)
        self.width: int | None = None if width is None else int(width)
        if self.takes_one_text:
            self.width = 1
        self.classes = classes_of(estimator, last, self.task)
        self.head, self.ensemble = _trees(estimator)
        self.wide = False
        self.source = (sources.source_of(last) or sources.SOURCES["sklearn"]).name

    def without_trees(self) -> Original:
        """The same model, its trees left to whoever converts the rest."""
        other = copy.copy(self)
        other.head = other.ensemble = None
        return other

    def with_first(self, rounds: int) -> Original:
        """The same model with its first trees only, to be written; it still answers by all."""
        assert self.ensemble is not None
        other = copy.copy(self)
        other.ensemble = self.ensemble.first(rounds)
        return other

    def in_doubles(self) -> Original:
        """The same model, its trees left to whoever converts the rest, and all of it computed in doubles."""
        other = self.without_trees()
        other.wide = True
        return other

    def in_two(self) -> Original | None:
        """The same model, its features prepared in doubles and all else in float32; None if nothing prepares them.

        That is how trees are asked that another estimator holds: they round what they are given to float32.
        """
        *before, _ = steps(self.estimator)
        if not before:
            return None
        other = self.in_doubles()
        other.head = Pipeline([(str(index), step) for index, step in enumerate(before)])
        return other

    @property
    def takes_doubles(self) -> bool:
        """Whether the ONNX form takes doubles; for trees, because float32 would round what the original compares."""
        if self.ensemble is None:
            return self.wide
        return self.head is not None or self.ensemble.compares == "float64"

    @property
    def description(self) -> str:
        """``Pipeline(StandardScaler, LogisticRegression)``."""
        names = [_described(step) for step in steps(self.estimator)]
        name = _described(self.estimator)
        return f"{name}({', '.join(names)})" if isinstance(self.estimator, Pipeline) else name

    @property
    def family(self) -> Family:
        """What kind of model decides in the end, after all preparation."""
        if self.ensemble is not None:
            return "trees"
        last = list(steps(self.estimator))[-1]
        module = type(last).__module__
        if module.startswith("sklearn.neural_network") and type(last).__name__.startswith("MLP"):
            return "neural network"
        if module.startswith("sklearn.tree") or (
            module.startswith("sklearn.ensemble")
            and any(word in type(last).__name__ for word in ("Forest", "Trees", "Boost"))
        ):
            return "trees"
        is_linear = module.startswith("sklearn.linear_model") or type(last).__name__ in ("LinearSVC", "LinearSVR")
        return "linear" if is_linear else "other"

    @property
    def takes_one_text(self) -> bool:
        """Whether a row is one text, and no row of columns."""
        return isinstance(next(steps(self.estimator)), CountVectorizer)

    @property
    def holds_trees(self) -> bool:
        """Whether it, or an estimator that it holds, decides by trees of scikit-learn."""
        return any(hasattr(each, "tree_") or hasattr(each, "_predictors") for each in within(self.estimator))

    @property
    def selects_by_name(self) -> bool:
        """Whether its first step picks columns by name, so that it needs them one by one."""
        head = next(steps(self.estimator))
        return isinstance(head, ColumnTransformer) and any(
            isinstance(column, str) for _, _, columns in head.transformers_ for column in _listed(columns)
        )

    def text_categories(self) -> dict[str, tuple[str, ...]]:
        """The texts that its encoders know, by column; columns of numbers are left out."""
        head = next(steps(self.estimator))
        names = self.feature_names or ()
        branches = (
            [(step, columns) for _, step, columns in head.transformers_]
            if isinstance(head, ColumnTransformer)
            else [(head, names)]
        )
        found: dict[str, tuple[str, ...]] = {}
        for branch, columns in branches:
            own = [name if isinstance(name, str) else _at(names, name) for name in _listed(columns)]
            for step in steps(branch):
                categories = getattr(step, "categories_", None)
                if isinstance(categories, list) and len(categories) == len(own):
                    for name, known in zip(own, categories, strict=True):
                        if name is not None and any(isinstance(text, str) for text in known):
                            found[name] = tuple(text for text in known if isinstance(text, str))
        return found

    def answer(self, frame: Any) -> Answer:
        """Answer the rows of a DataFrame that holds the model's features.

        Raises ConversionRefused if the model itself fails on them.
        """
        if self.takes_one_text:
            rows = frame.iloc[:, 0].fillna("").to_numpy(dtype=object)
        else:
            rows = frame if self.feature_names is not None else _matrix(frame)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unseen categories and the like: asked for on purpose
            try:
                return self._answered(rows)
            except InvalidInput:
                raise
            except Exception as error:  # an estimator may raise anything on rows that it cannot read
                raise ConversionRefused(f"the original model fails on these rows: {sources.told(error)}") from error

    def _answered(self, rows: Any) -> Answer:
        if self.task == "transformer":
            return Answer({"value": _matrix_of(self.estimator.transform(rows))}, None)
        predicted = np.asarray(self.estimator.predict(rows))
        if self.task == "regressor":
            return Answer({"value": predicted.astype(np.float64).reshape(len(predicted), -1)}, None)
        if predicted.ndim > 1 and predicted.shape[1] != 1:
            raise InvalidInput("model", f"{predicted.shape[1]} outputs per row", "one label per row")
        assert self.classes is not None
        outputs: Tensors = {"label": as_labels(predicted.ravel(), self.classes)}
        if self.task == "outlier detector":
            score = np.asarray(self.estimator.decision_function(rows), dtype=np.float64).reshape(-1, 1)
            return Answer({**outputs, "score": score}, np.abs(score[:, 0]))
        scores = self._scores(rows)
        if self.has_probabilities:
            outputs["probabilities"] = scores
        elif self.task == "clusterer" and hasattr(self.estimator, "transform"):
            outputs["value"] = -scores
        threshold = getattr(list(steps(self.estimator))[-1], "best_threshold_", None)
        if threshold is not None and self.has_probabilities:
            return Answer(outputs, np.abs(scores[:, -1] - threshold))
        return Answer(outputs, _margin(scores))

    def _scores(self, rows: Any) -> Array:
        """The higher, the more likely is the label."""
        for ask, sign in (("predict_proba", 1.0), ("decision_function", 1.0), ("transform", -1.0)):
            if ask == "transform" and self.task != "clusterer":
                continue
            if hasattr(self.estimator, ask):
                return sign * np.asarray(getattr(self.estimator, ask)(rows), dtype=np.float64)
        return np.full((len(rows), 2), [1.0, 0.0])  # no scores: no row is a tie


def _matrix_of(transformed: Any) -> Array:
    """What a transformer gives, as [rows, columns] of float64 or of bytes."""
    found = np.asarray(transformed.toarray() if issparse(transformed) else transformed)
    if found.ndim != 2:
        raise InvalidInput("model", f"an array of {found.ndim} dimensions per answer", "rows of columns")
    if found.dtype.kind in "OUS":
        try:
            return found.astype(np.float64)
        except (TypeError, ValueError):
            return bytes_array(found.ravel()).reshape(found.shape)
    return found.astype(np.float64)


def _names(estimator: Any) -> tuple[str, ...] | None:
    """The names of the features that it was fitted with; None if it was given none."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return None
    found = tuple(str(name) for name in names)
    made_up = tuple(f"Column_{index}" for index in range(len(found)))  # by LightGBM, where there were none
    return None if found == made_up else found


def _trees(estimator: Any) -> tuple[Any, Ensemble | None]:
    """What prepares the features, and the trees that decide; the first is None without the second."""
    *before, last = steps(estimator)
    ensemble = sources.read(last)
    if ensemble is None or not before:
        return None, ensemble
    return Pipeline([(str(index), step) for index, step in enumerate(before)]), ensemble


def _described(step: Any) -> str:
    return getattr(step, "described", None) or type(step).__name__


def _matrix(frame: Any) -> Array:
    """A DataFrame as the array that an estimator fitted without names was given: float64 unless it holds texts."""
    texts = any(is_text(frame[name], name) for name in frame.columns)
    matrix: Array = frame.to_numpy(dtype=object if texts else np.float64)
    return matrix


def as_labels(values: Any, classes: Sequence[int | str]) -> Array:
    """Labels in the type of the classes: an int64 array, or an object array of bytes."""
    if isinstance(classes[0], str):
        return bytes_array(values)
    return np.asarray(values).astype(np.int64)


def _margin(scores: Array) -> Array:
    if scores.ndim == 1:  # a decision function of two classes: its sign decides
        return np.abs(scores)
    if scores.shape[1] < 2:
        return np.full(len(scores), np.inf)
    best = np.sort(scores, axis=1)
    margin: Array = best[:, -1] - best[:, -2]
    return margin


def _listed(columns: Any) -> list[Any]:
    """The columns of a branch of a fitted ColumnTransformer: names or positions."""
    if isinstance(columns, str | int | np.integer):
        return [columns]
    if isinstance(columns, slice):
        return [end for end in (columns.start, columns.stop) if isinstance(end, str)]
    listed = list(columns)
    if listed and all(isinstance(column, bool | np.bool_) for column in listed):
        return [index for index, chosen in enumerate(listed) if chosen]
    return listed


def _at(names: Sequence[str], position: Any) -> str | None:
    return names[int(position)] if -len(names) <= int(position) < len(names) else None
