"""Trees of every library: no row on a threshold, and no decimal row, is answered otherwise than by the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from catboost import CatBoostClassifier, CatBoostRegressor
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier, XGBRegressor

from converters.original import Original
from converters.probes import boundary_rows, probe
from converters.signature import signature_of
from converters.verify import TOLERANCE, OnnxModel
from converters.write import to_onnx
from tests.converters.bench import Rows, as_text, converted, diabetes, doubles, flowers, narrow, served

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "decision tree": lambda: DecisionTreeClassifier(random_state=0),
    "random forest": lambda: RandomForestClassifier(5, random_state=0),
    "extra trees": lambda: ExtraTreesClassifier(5, random_state=0),
    "gradient boosting": lambda: GradientBoostingClassifier(n_estimators=5, random_state=0),
    "gradient boosting, scaled": lambda: make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=5)),
    "histogram gradient boosting": lambda: HistGradientBoostingClassifier(max_iter=5),
    "xgboost": lambda: XGBClassifier(n_estimators=5, n_jobs=1),
    "lightgbm": lambda: LGBMClassifier(n_estimators=5, n_jobs=1, verbosity=-1),
    "catboost": lambda: CatBoostClassifier(
        iterations=5, depth=4, thread_count=1, verbose=False, allow_writing_files=False
    ),
}
REGRESSORS: dict[str, Callable[[], Any]] = {
    "random forest": lambda: RandomForestRegressor(5, random_state=0),
    "gradient boosting": lambda: GradientBoostingRegressor(n_estimators=5, random_state=0),
    "gradient boosting, scaled": lambda: make_pipeline(StandardScaler(), GradientBoostingRegressor(n_estimators=5)),
    "histogram gradient boosting": lambda: HistGradientBoostingRegressor(max_iter=5),
    "xgboost": lambda: XGBRegressor(n_estimators=5, n_jobs=1),
    "lightgbm": lambda: LGBMRegressor(n_estimators=5, n_jobs=1, verbosity=-1),
    "catboost": lambda: CatBoostRegressor(
        iterations=5, depth=4, thread_count=1, verbose=False, allow_writing_files=False
    ),
}
COMPARE_DOUBLES = {"histogram gradient boosting", "lightgbm", "gradient boosting, scaled"}


def coded(rows: Rows) -> Rows:
    """Texts as classes become numbers, which is all that XGBoost takes."""
    return Rows(rows.features, rows.truth.astype("category").cat.codes)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("rows", [narrow(), flowers()], ids=["two classes", "three classes"])
def test_a_classifier_of_trees_is_right_on_every_threshold(name: str, rows: Rows, tmp_path: Path) -> None:
    if name == "xgboost":
        rows = coded(rows)
    estimator = CLASSIFIERS[name]()
    package = converted(tmp_path, estimator, rows)
    parity = package.manifest.parity
    assert parity["boundary_rows"]["rows"] > 20
    for key in ("boundary_rows", "edge_rows", "float32_rows", "raw_rows"):
        assert (parity[key]["mismatches"], parity[key]["over_tolerance"]) == (0, 0)
    takes = package.manifest.signature.inputs[0].datatype
    assert takes == ("FP64" if name in COMPARE_DOUBLES else "FP32")
    outputs = served(package, doubles(rows.features, takes))
    assert as_text(outputs["label"]) == as_text(np.ravel(estimator.predict(rows.features)))
    np.testing.assert_allclose(outputs["probabilities"], estimator.predict_proba(rows.features), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_of_trees_is_right_on_every_threshold(name: str, tmp_path: Path) -> None:
    rows, estimator = diabetes(), REGRESSORS[name]()
    package = converted(tmp_path, estimator, rows)
    parity = package.manifest.parity
    assert parity["boundary_rows"]["rows"] > 20
    for key in ("boundary_rows", "edge_rows", "float32_rows", "raw_rows"):
        assert parity[key]["over_tolerance"] == 0
    outputs = served(package, doubles(rows.features, package.manifest.signature.inputs[0].datatype))
    np.testing.assert_allclose(outputs["value"].ravel(), estimator.predict(rows.features), rtol=1e-6)


def test_probes_find_what_rounded_thresholds_do(tmp_path: Path) -> None:
    rows = narrow()
    estimator = HistGradientBoostingClassifier(max_iter=20).fit(rows.features, rows.truth)
    original = Original(estimator)
    random = np.random.default_rng(0)
    probed = []
    for way in (original, original.without_trees()):  # the second goes by float32 thresholds
        signature = signature_of(way, rows.features)
        model = OnnxModel(to_onnx(way, signature), signature)
        single = rows.features.astype(np.float32).astype(np.float64)
        # The same rows for both.
        probes = boundary_rows(original, signature_of(original.without_trees(), rows.features), single, random)
        assert len(probes) > 300
        probed.append(probe(original, model, signature, single, TOLERANCE, random))
    doubled, rounded = probed
    assert doubled.agrees
    assert rounded.boundary_rows is not None
    assert rounded.boundary_rows.over_tolerance > 0
    assert not rounded.agrees


def test_thresholds_behind_a_scaler_are_put_back_through_it() -> None:
    rows = narrow()
    pipeline = make_pipeline(StandardScaler(), DecisionTreeClassifier(random_state=0)).fit(rows.features, rows.truth)
    original = Original(pipeline)
    found = boundary_rows(original, signature_of(original, rows.features), rows.features, np.random.default_rng(0))
    answers = pipeline[0].transform(found)
    tree = pipeline[1].tree_
    inner = tree.children_left != -1
    for feature, threshold in zip(tree.feature[inner], tree.threshold[inner], strict=True):
        assert np.abs(answers[:, feature] - threshold).min() < 1e-6


def test_missing_values_go_where_the_original_sends_them(tmp_path: Path) -> None:
    rows = narrow()
    holes = Rows(rows.features.mask(np.random.default_rng(0).random(rows.features.shape) < 0.1), rows.truth)
    for version, name in enumerate(("random forest", "histogram gradient boosting", "xgboost", "lightgbm", "catboost")):
        estimator = CLASSIFIERS[name]()
        package = converted(tmp_path, estimator, holes, version=str(version))
        assert all(feature.missing_allowed for feature in package.manifest.signature.features), name
        outputs = served(package, doubles(holes.features, package.manifest.signature.inputs[0].datatype))
        expected = estimator.predict_proba(holes.features)
        np.testing.assert_allclose(outputs["probabilities"], expected, rtol=0, atol=1e-6, err_msg=name)


def test_a_model_whose_trees_are_all_leaves_answers_its_base(tmp_path: Path) -> None:
    rows = narrow()
    package = converted(tmp_path, LGBMClassifier(n_estimators=2, min_child_samples=10_000, verbosity=-1), rows)
    outputs = served(package, doubles(rows.features, "FP64"))
    np.testing.assert_allclose(outputs["probabilities"][:, 1], rows.truth.mean(), atol=1e-6)


def test_a_class_that_no_tree_votes_for_keeps_its_base(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features = pd.DataFrame({"x": random.random(200), "y": random.random(200)})
    # Nothing tells the third class from the others; its trees are leaves.
    truth = pd.Series((features["x"] > 0.5).astype(int).mask(features.index % 5 == 0, 2))
    estimator = GradientBoostingClassifier(n_estimators=3, max_leaf_nodes=2, min_impurity_decrease=0.2, random_state=0)
    package = converted(tmp_path, estimator, Rows(features, truth))
    assert any(tree.tree_.node_count == 1 for stage in estimator.estimators_ for tree in stage[2:])
    outputs = served(package, doubles(features, "FP32"))
    np.testing.assert_allclose(outputs["probabilities"], estimator.predict_proba(features), rtol=0, atol=1e-6)
