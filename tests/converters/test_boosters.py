"""What is special to one library: its own files, its objectives, what it calls missing, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from catboost import CatBoostClassifier, CatBoostRanker, CatBoostRegressor
from lightgbm import LGBMClassifier, LGBMRanker, LGBMRegressor
from xgboost import XGBClassifier, XGBRanker, XGBRegressor

from converters.convert import convert
from gateway.errors import ConversionRefused, InvalidInput
from tests.converters.bench import Rows, converted, diabetes, doubles, flowers, narrow, order, served

QUIET = {"iterations": 5, "thread_count": 1, "verbose": False, "allow_writing_files": False}
SMALL: dict[str, Any] = {"n_estimators": 5, "n_jobs": 1}
SILENT: dict[str, Any] = {**SMALL, "verbosity": -1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: LGBMRegressor(objective="poisson", **SILENT),
        lambda: LGBMRegressor(reg_sqrt=True, **SILENT),
        lambda: LGBMRegressor(objective="quantile", alpha=0.9, **SILENT),
        lambda: LGBMRegressor(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5, **SILENT),
        lambda: LGBMRegressor(boosting_type="dart", **SILENT),
        lambda: LGBMRegressor(zero_as_missing=True, **SILENT),
        lambda: LGBMRegressor(use_missing=False, **SILENT),
        lambda: XGBRegressor(objective="count:poisson", **SMALL),
        lambda: XGBRegressor(objective="reg:gamma", **SMALL),
        lambda: XGBRegressor(booster="dart", rate_drop=0.5, **SMALL),
        lambda: XGBRegressor(base_score=17.0, **SMALL),
        lambda: XGBRegressor(num_parallel_tree=3, subsample=0.5, **SMALL),
        lambda: CatBoostRegressor(loss_function="Poisson", **QUIET),
        lambda: CatBoostRegressor(grow_policy="Lossguide", **QUIET),
        lambda: CatBoostRegressor(grow_policy="Depthwise", **QUIET),
    ],
    ids=lambda make: "",
)
def test_objectives_and_ways_to_grow(make: Callable[[], Any], tmp_path: Path) -> None:
    rows, estimator = diabetes(), make()
    package = converted(tmp_path, estimator, rows)
    outputs = served(package, doubles(rows.features, package.manifest.signature.inputs[0].datatype))
    np.testing.assert_allclose(outputs["value"].ravel(), estimator.predict(rows.features), rtol=1e-6)


@pytest.mark.parametrize(
    "estimator",
    [
        LGBMClassifier(objective="multiclassova", **SILENT),
        XGBClassifier(objective="multi:softmax", **SMALL),
        CatBoostClassifier(loss_function="MultiClassOneVsAll", **QUIET),
    ],
    ids=["lightgbm", "xgboost", "catboost"],
)
def test_other_ways_to_tell_three_classes_apart(estimator: Any, tmp_path: Path) -> None:
    rows = flowers()
    rows = Rows(rows.features, rows.truth.astype("category").cat.codes)
    package = converted(tmp_path, estimator, rows)
    outputs = served(package, doubles(rows.features, package.manifest.signature.inputs[0].datatype))
    np.testing.assert_allclose(outputs["probabilities"], estimator.predict_proba(rows.features), rtol=0, atol=1e-6)


def test_early_stopping_is_respected(tmp_path: Path) -> None:
    rows = narrow()
    halves = {"eval_set": [(rows.features[::2], 1 - rows.truth[::2])]}  # gets worse at once
    light = LGBMClassifier(n_estimators=20, n_jobs=1, verbosity=-1)
    light.fit(
        rows.features,
        rows.truth,
        eval_X=rows.features[::2],
        eval_y=1 - rows.truth[::2],
        callbacks=[lightgbm.early_stopping(2, verbose=False)],
    )
    extreme = XGBClassifier(n_estimators=20, n_jobs=1, early_stopping_rounds=2)
    extreme.fit(rows.features, rows.truth, verbose=False, **halves)
    cat = CatBoostClassifier(**{**QUIET, "iterations": 20}, early_stopping_rounds=2)
    cat.fit(rows.features, rows.truth, **halves)
    for version, estimator in enumerate((light, extreme, extreme.get_booster(), cat)):
        package = convert(order(tmp_path, estimator, rows, version=str(version)))
        wrapper = extreme if estimator is extreme.get_booster() else estimator
        outputs = served(package, doubles(rows.features, package.manifest.signature.inputs[0].datatype))
        expected = wrapper.predict_proba(rows.features)
        np.testing.assert_allclose(outputs["probabilities"], expected, rtol=0, atol=1e-6)


def test_a_librarys_own_file_needs_no_trust(tmp_path: Path) -> None:
    rows = narrow()
    bare = rows.features.to_numpy()
    light = lightgbm.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1}, lightgbm.Dataset(bare, rows.truth), 5
    )
    light.save_model(tmp_path / "model.txt")
    extreme = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(rows.features, rows.truth), 5
    )
    for suffix in ("json", "ubj"):
        extreme.save_model(tmp_path / f"model.{suffix}")
    cat = CatBoostClassifier(**QUIET).fit(rows.features, rows.truth)
    cat.save_model(str(tmp_path / "model.cbm"))
    expected = {
        "model.txt": light.predict(bare),
        "model.json": extreme.predict(xgboost.DMatrix(rows.features)),
        "model.ubj": extreme.predict(xgboost.DMatrix(rows.features)),
        "model.cbm": cat.predict_proba(rows.features)[:, 1],
    }
    names = {"model.txt": "LightGBM", "model.json": "XGBoost", "model.ubj": "XGBoost", "model.cbm": "CatBoost"}
    for version, file in enumerate(expected):
        ordered = order(tmp_path, None, rows, version=str(version), model=tmp_path / file, trust=False)
        package = convert(ordered)
        assert package.manifest.framework["name"] == names[file]
        assert package.manifest.libraries[names[file].lower()]
        outputs = served(package, doubles(rows.features, package.manifest.signature.inputs[0].datatype))
        np.testing.assert_allclose(outputs["probabilities"][:, 1], expected[file], rtol=0, atol=1e-6)


def test_a_file_that_is_not_the_librarys_is_refused_by_name(tmp_path: Path) -> None:
    for suffix in ("txt", "json", "ubj", "cbm"):
        path = tmp_path / f"broken.{suffix}"
        path.write_text("{}")
        with pytest.raises(InvalidInput, match=rf"broken\.{suffix}"):
            convert(order(tmp_path, None, narrow(), model=path, trust=False))


def test_a_ranker_gives_its_score_as_a_value(tmp_path: Path) -> None:
    rows = diabetes()
    grades = pd.Series(pd.qcut(rows.truth, 4, labels=False))
    groups = np.repeat(np.arange(34), 13)
    light = LGBMRanker(**SILENT).fit(rows.features, grades, group=np.bincount(groups))
    extreme = XGBRanker(**SMALL).fit(rows.features, grades, qid=groups)
    cat = CatBoostRanker(**QUIET).fit(rows.features, grades, group_id=groups)
    for version, estimator in enumerate((light, extreme, cat)):
        package = convert(order(tmp_path, estimator, rows, version=str(version)))
        outputs = served(package, doubles(rows.features, package.manifest.signature.inputs[0].datatype))
        np.testing.assert_allclose(outputs["value"].ravel(), estimator.predict(rows.features), rtol=1e-6, atol=1e-6)


def test_numbers_around_zero_are_what_the_library_takes_them_for(tmp_path: Path) -> None:
    values = np.array([-1e-35, -1e-36, -0.0, 0.0, 1e-36, 1e-35, -2e-35, 2e-35, -1.0, 1.0])
    features = pd.DataFrame({"x": np.tile(values, 30), "y": np.repeat(values, 30)})
    truth = pd.Series((features["x"] > 0) * 2.0 + (features["y"] > 0))
    for version, zero_as_missing in enumerate((False, True)):
        estimator = LGBMRegressor(zero_as_missing=zero_as_missing, min_child_samples=1, **SILENT)
        package = converted(tmp_path, estimator, Rows(features, truth), version=str(version))
        outputs = served(package, doubles(features, "FP64"))
        np.testing.assert_allclose(outputs["value"].ravel(), estimator.predict(features), rtol=1e-6, atol=1e-7)


def with_categories() -> Rows:
    rows = narrow()
    sizes = pd.Series(np.where(rows.features["mean area"] < 500, "small", "large")).astype("category")
    return Rows(rows.features.iloc[:, :3].assign(size=sizes), rows.truth)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LGBMClassifier(**SILENT), "type category"),
        (lambda: XGBClassifier(enable_categorical=True, **SMALL), "enable_categorical"),
        (lambda: CatBoostClassifier(cat_features=["size"], **QUIET), "categorical features"),
    ],
    ids=["lightgbm", "xgboost", "catboost"],
)
def test_categories_of_a_library_are_refused_by_name(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionRefused, match=message):
        converted(tmp_path, make(), with_categories())


def test_categories_in_a_librarys_own_file_are_refused_too(tmp_path: Path) -> None:
    features = with_categories().features
    codes = features.assign(size=np.arange(len(features)) * 7 % 6)
    rows = Rows(codes.assign(size=codes["size"].astype("category")), codes["size"].isin([0, 3, 4]).astype(int))
    light = lightgbm.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1},
        lightgbm.Dataset(codes, rows.truth, categorical_feature=[3]),
        20,
    )
    light.save_model(tmp_path / "model.txt")
    XGBClassifier(enable_categorical=True, **SMALL).fit(rows.features, rows.truth).save_model(tmp_path / "model.json")
    CatBoostClassifier(cat_features=["size"], **QUIET).fit(rows.features, rows.truth).save_model(
        str(tmp_path / "model.cbm")
    )
    # Without the types of its columns a booster still knows which of its splits are sets.
    typeless = json.loads((tmp_path / "model.json").read_bytes())
    typeless["learner"]["feature_types"] = []
    (tmp_path / "typeless.json").write_text(json.dumps(typeless))
    for file in ("model.txt", "model.json", "typeless.json", "model.cbm"):
        with pytest.raises(ConversionRefused, match=r"categor"):
            convert(order(tmp_path, None, Rows(codes, rows.truth), model=tmp_path / file, trust=False))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LGBMRegressor(linear_tree=True, **SILENT), "linear models in its leaves"),
        (lambda: XGBRegressor(booster="gblinear", **SMALL), "no trees"),
        (lambda: XGBRegressor(missing=0.0, **SMALL), "missing=0.0"),
    ],
    ids=["linear tree", "gblinear", "missing"],
)
def test_what_no_tree_operator_holds_is_refused_by_name(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionRefused, match=message):
        converted(tmp_path, make(), diabetes())


def test_an_unfitted_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="fitted"):
        convert(order(tmp_path, catboost.CatBoostClassifier(), narrow()))
