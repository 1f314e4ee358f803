"""Models over columns of numbers and texts: their inputs, and what may be missing or new in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.convert import convert
from gateway.errors import ConversionRefused, InvalidInput
from tests.converters.bench import (
    Rows,
    as_text,
    cancer,
    columns,
    converted,
    diabetes,
    matrix,
    mixed,
    mixed_pipeline,
    order,
    served,
    voting,
)


@pytest.mark.parametrize("file", ["rows.parquet", "rows.csv"])
def test_each_column_is_an_input_by_its_name_and_the_answers_are_the_pipelines(file: str, tmp_path: Path) -> None:
    rows, pipeline = mixed(), mixed_pipeline()
    package = converted(tmp_path, pipeline, rows, file=file)
    signature = package.manifest.signature
    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.inputs] == [
        ("area", "FP32", (-1, 1)),
        ("smoothness", "FP32", (-1, 1)),
        ("size", "BYTES", (-1, 1)),
        ("code", "BYTES", (-1, 1)),
    ]
    outputs = served(package, columns(rows.features))
    np.testing.assert_allclose(outputs["probabilities"], pipeline.predict_proba(rows.features), rtol=0, atol=1e-5)
    assert as_text(outputs["label"]) == as_text(pipeline.predict(rows.features))


def test_a_text_that_looks_like_a_number_stays_a_text_in_a_csv(tmp_path: Path) -> None:
    package = converted(tmp_path, mixed_pipeline(unseen="error"), mixed(), file="rows.csv")
    code = next(feature for feature in package.manifest.signature.features if feature.name == "code")
    assert code.categories is not None
    assert all(text.startswith("00") for text in code.categories)


def test_an_encoder_that_refuses_new_texts_closes_the_list_of_categories(tmp_path: Path) -> None:
    package = converted(tmp_path, mixed_pipeline(unseen="error"), mixed())
    features = {feature.name: feature for feature in package.manifest.signature.features}
    assert features["size"].categories == ("large", "middle", "small")
    assert not features["size"].missing_allowed
    assert features["area"].categories is None


def test_an_encoder_that_ignores_new_texts_leaves_the_list_open_and_onnx_agrees(tmp_path: Path) -> None:
    rows, pipeline = mixed(), mixed_pipeline(unseen="ignore")
    package = converted(tmp_path, pipeline, rows)
    features = {feature.name: feature for feature in package.manifest.signature.features}
    assert features["size"].categories is None
    new = rows.features.head(20).assign(size="gigantic")
    outputs = served(package, columns(new))
    np.testing.assert_allclose(outputs["probabilities"], pipeline.predict_proba(new), rtol=0, atol=1e-5)


def allowed(estimator: Any, rows: Rows, directory: Path) -> set[str]:
    """The features that may be missing once the estimator is converted."""
    package = converted(directory, estimator, rows)
    return {feature.name for feature in package.manifest.signature.features if feature.missing_allowed}


def test_numbers_may_be_missing_where_the_original_fills_them(tmp_path: Path) -> None:
    rows = cancer()
    pipeline = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    assert allowed(pipeline, rows, tmp_path) == set(rows.features.columns)


def test_numbers_may_be_missing_in_single_columns(tmp_path: Path) -> None:
    assert allowed(mixed_pipeline(unseen="error"), mixed(), tmp_path) == {"area", "smoothness"}


def test_numbers_may_not_be_missing_where_the_original_refuses_them(tmp_path: Path) -> None:
    assert not allowed(make_pipeline(StandardScaler(), LogisticRegression()), cancer(), tmp_path)


def test_numbers_may_not_be_missing_where_onnx_answers_otherwise(tmp_path: Path) -> None:
    rows = cancer()
    forest = voting(RandomForestClassifier(10, random_state=0))
    package = converted(tmp_path, forest, rows)
    assert not any(feature.missing_allowed for feature in package.manifest.signature.features)
    assert package.manifest.parity["missing_numbers"]["onnx_differs"]
    # The reason for the rule: the original takes such rows, and ONNX would give other answers.
    holes = rows.features.assign(**dict.fromkeys(rows.features.columns[:25], np.nan))
    given = served(package, matrix(holes))["probabilities"]
    assert np.abs(given - forest.predict_proba(holes)).max() > 0.01


def test_rows_that_miss_a_text_are_compared_too(tmp_path: Path) -> None:
    rows = mixed()
    holes = Rows(rows.features.mask(rows.features == "small"), rows.truth)
    with pytest.raises(ConversionRefused, match="takes missing values otherwise"):
        converted(tmp_path, mixed_pipeline(), holes)


def test_a_model_fitted_without_names_takes_the_columns_in_order(tmp_path: Path) -> None:
    rows = diabetes()
    estimator = make_pipeline(StandardScaler(), LogisticRegression())
    above = (rows.truth > rows.truth.median()).astype(int)
    bare = Rows(rows.features.to_numpy(), above)
    estimator.fit(bare.features, above)
    package = convert(order(tmp_path, estimator, Rows(rows.features, above)))
    assert [feature.name for feature in package.manifest.signature.features] == list(rows.features.columns)
    with pytest.raises(InvalidInput, match="--target"):
        convert(order(tmp_path, estimator, Rows(rows.features, above), target=None, version="2"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda table: table.drop(columns="area"), "'area'"),
        (lambda table: table.rename(columns={"truth": "verdict"}), "target"),
        (lambda table: table.assign(area=1e300), "data.area"),
        (lambda table: table.assign(area=pd.Timestamp(0)), "data.area"),
        (lambda table: table.assign(truth=7), "target"),
        (lambda table: table.head(0), "without rows"),
    ],
    ids=["missing feature", "missing target", "beyond float32", "dates", "unknown class", "no rows"],
)
def test_wrong_rows_are_refused_by_name(change: Any, field: str, tmp_path: Path) -> None:
    rows = mixed()
    ordered = order(tmp_path, mixed_pipeline().fit(rows.features, rows.truth), rows)
    change(pd.read_parquet(ordered.data)).to_parquet(ordered.data)
    with pytest.raises(InvalidInput, match=field):
        convert(ordered)


def test_a_feature_may_not_have_the_name_of_an_output(tmp_path: Path) -> None:
    rows = cancer()
    renamed = Rows(rows.features.rename(columns={"mean radius": "label"}), rows.truth)
    with pytest.raises(InvalidInput, match="'label'"):
        converted(tmp_path, LogisticRegression(solver="newton-cholesky"), renamed)
