"""Every estimator is converted to a package that answers as it does, or refused; never is one wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from converters.convert import Converted, convert
from gateway.errors import ConversionRefused
from tests.converters.bench import (
    TARGET,
    Rows,
    as_text,
    cancer,
    converted,
    diabetes,
    doubles,
    flowers,
    matrix,
    mixed,
    order,
    served,
    voting,
)

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


@pytest.mark.parametrize("inner", [IsolationForest(n_estimators=10, random_state=0), BaggingClassifier(random_state=0)])
def test_trees_that_another_estimator_holds_are_probed_and_what_scales_before_them_is_in_doubles(
    inner: Any, tmp_path: Path
) -> None:
    rows, pipeline = cancer(), make_pipeline(StandardScaler(), inner)
    is_classifier = isinstance(inner, BaggingClassifier)
    package = converted(tmp_path, pipeline, rows, target=TARGET if is_classifier else None)
    manifest = package.manifest
    assert manifest.signature.inputs[0].datatype == "FP64"
    assert manifest.parity["boundary_rows"]["rows"] > 500
    assert "the package takes FP64" in manifest.parity["notes"][-1]
    outputs = served(package, doubles(rows.features, "FP64"))
    assert as_text(outputs["label"]) == as_text(pipeline.predict(rows.features))
    if not is_classifier:
        assert manifest.signature.classes == (-1, 1)
        np.testing.assert_allclose(outputs["score"].ravel(), pipeline.decision_function(rows.features), atol=1e-6)


def test_a_row_of_one_text_is_one_input_and_texts_that_are_missing_are_filled(tmp_path: Path) -> None:
    rows = mixed()
    notes = pd.DataFrame({"note": rows.features["size"] + " and " + rows.features["code"]})
    words = make_pipeline(TfidfVectorizer(), LogisticRegression())
    package = convert(order(tmp_path, words.fit(notes["note"], rows.truth), Rows(notes, rows.truth), name="words"))
    texts = {"note": np.array([text.encode() for text in notes["note"]], object).reshape(-1, 1)}
    np.testing.assert_allclose(served(package, texts)["probabilities"], words.predict_proba(notes["note"]), atol=1e-6)
    holes = rows.features[["size", "code"]].replace("small", None)
    filled = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(), LogisticRegression())
    package = converted(tmp_path, filled, Rows(holes, rows.truth), name="holes")
    assert all(feature.missing_allowed for feature in package.manifest.signature.features)


def test_missing_values_that_onnx_takes_otherwise_are_refused(tmp_path: Path) -> None:
    rows = cancer()
    holes = rows.features.mask(np.random.default_rng(0).random(rows.features.shape) < 0.1)
    with pytest.raises(ConversionRefused, match="takes missing values otherwise"):
        converted(tmp_path, voting(RandomForestClassifier(10, random_state=0)), Rows(holes, rows.truth))
    assert not (tmp_path / "models").exists()
