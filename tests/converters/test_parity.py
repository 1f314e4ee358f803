"""Every estimator is converted to a package that answers as it does, or refused; never is one wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from converters.convert import Converted
from gateway.errors import ConversionRefused
from tests.converters.bench import Rows, as_text, cancer, converted, diabetes, flowers, matrix, served, voting

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "logistic regression, unscaled": lambda: LogisticRegression(solver="newton-cholesky"),
    "a vote of forests": lambda: voting(RandomForestClassifier(5, random_state=0)),
    "boosting in a vote": lambda: voting(HistGradientBoostingClassifier(max_iter=10)),
    "nearest neighbours": lambda: make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
    "a search": lambda: GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {}, cv=2),
}
REGRESSORS: dict[str, Callable[[], Any]] = {
    "linear regression": LinearRegression,
    "ridge": lambda: make_pipeline(StandardScaler(), Ridge()),
    "network": lambda: make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", max_iter=5000, tol=0.1)
    ),
}
# These may meet a rounding that moves a row over a threshold; the others have no reason to be refused.
MAY_BE_REFUSED = {"boosting in a vote"}


def converted_or_refused(directory: Path, name: str, estimator: Any, rows: Rows) -> Converted | None:
    refusal: ConversionRefused | None = None
    try:
        return converted(directory, estimator, rows, quantize="off")
    except ConversionRefused as error:
        refusal = error
    assert name in MAY_BE_REFUSED, refusal
    assert refusal.report is not None
    assert not refusal.report["agrees"]
    assert not (directory / "models").exists()
    return None


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("rows", [cancer(), flowers()], ids=["cancer", "flowers"])
def test_a_classifier_answers_as_the_original_or_is_refused(name: str, rows: Rows, tmp_path: Path) -> None:
    estimator = CLASSIFIERS[name]()
    package = converted_or_refused(tmp_path, name, estimator, rows)
    if package is None:
        return
    outputs = served(package, matrix(rows.features))
    assert as_text(outputs["label"]) == as_text(estimator.predict(rows.features))
    np.testing.assert_allclose(outputs["probabilities"], estimator.predict_proba(rows.features), rtol=0, atol=1e-5)
    signature = package.manifest.signature
    assert signature.classes == tuple(estimator.classes_.tolist())
    assert [feature.name for feature in signature.features] == list(rows.features.columns)
    assert package.manifest.parity["raw_rows"]["rows"] == len(rows.features)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_answers_as_the_original_or_is_refused(name: str, tmp_path: Path) -> None:
    estimator, rows = REGRESSORS[name](), diabetes()
    package = converted_or_refused(tmp_path, name, estimator, rows)
    if package is None:
        return
    outputs = served(package, matrix(rows.features))
    assert outputs["value"].shape == (len(rows.features), 1)
    np.testing.assert_allclose(outputs["value"].ravel(), estimator.predict(rows.features), rtol=2e-5)


@pytest.mark.parametrize("estimator", [LinearSVC(), SVC()], ids=["linear", "kernel"])
def test_a_classifier_without_probabilities_gives_its_label_alone(estimator: Any, tmp_path: Path) -> None:
    rows = cancer()
    pipeline = make_pipeline(StandardScaler(), estimator)
    package = converted(tmp_path, pipeline, rows)
    outputs = served(package, matrix(rows.features))
    assert list(outputs) == ["label"]
    assert as_text(outputs["label"]) == as_text(pipeline.predict(rows.features))


def test_classes_of_booleans_and_whole_floats_are_numbers(tmp_path: Path) -> None:
    rows = cancer()
    for index, truth in enumerate([rows.truth == 1, rows.truth.astype(float)]):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression())
        package = converted(tmp_path, pipeline, Rows(rows.features, truth), version=str(index))
        assert package.manifest.signature.classes == (0, 1)
        assert package.manifest.signature.outputs[0].datatype == "INT64"


def test_a_model_that_disagrees_is_refused_with_a_report_and_nothing_is_written(tmp_path: Path) -> None:
    rows = cancer()
    with pytest.raises(ConversionRefused, match="use another estimator") as refused:
        converted(tmp_path, voting(HistGradientBoostingClassifier(max_iter=10)), rows)
    report = refused.value.report
    assert report is not None
    assert report["float32_rows"]["rows"] == len(rows.features)
    assert report["float32_rows"]["over_tolerance"] > 0
    assert report["float32_rows"]["first"][0].keys() == {"row", "difference", "original", "onnx"}
    assert not (tmp_path / "models").exists()


def test_missing_values_that_onnx_takes_otherwise_are_refused(tmp_path: Path) -> None:
    rows = cancer()
    holes = rows.features.mask(np.random.default_rng(0).random(rows.features.shape) < 0.1)
    with pytest.raises(ConversionRefused, match="takes missing values otherwise"):
        converted(tmp_path, voting(RandomForestClassifier(10, random_state=0)), Rows(holes, rows.truth))
    assert not (tmp_path / "models").exists()
