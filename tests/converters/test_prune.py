"""Fewer trees: what is served is what the library itself answers with its first trees, and auto keeps the quality."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier, XGBRFClassifier

from converters.convert import convert
from gateway.errors import ConversionRefused, InvalidInput
from gateway.models.source import DirectorySource
from gateway.serving.loading import load
from gateway.tensors import Array
from tests.converters.bench import Rows, cancer, converted, doubles, flowers, narrow, order, served

ROUNDS, KEPT = 12, 5
QUIET: dict[str, Any] = {"iterations": ROUNDS, "thread_count": 1, "verbose": False, "allow_writing_files": False}


def of_forest(forest: Any, rows: Any) -> Array:
    average: Array = np.mean([tree.predict_proba(rows.to_numpy()) for tree in forest.estimators_[:KEPT]], axis=0)
    return average


def of_stages(boosted: Any, rows: Any) -> Array:
    return np.asarray(list(boosted.staged_predict_proba(rows))[KEPT - 1])


# An estimator, and what its library answers by its first trees.
CASES: dict[str, tuple[Any, Callable[[Any, Any], Array]]] = {
    "forest": (RandomForestClassifier(ROUNDS, random_state=0), of_forest),
    "extra trees": (ExtraTreesClassifier(ROUNDS, random_state=0), of_forest),
    "boosted": (GradientBoostingClassifier(n_estimators=ROUNDS, random_state=0), of_stages),
    "histograms": (HistGradientBoostingClassifier(max_iter=ROUNDS), of_stages),
    "xgboost": (
        XGBClassifier(n_estimators=ROUNDS, n_jobs=1),
        lambda model, rows: model.predict_proba(rows, iteration_range=(0, KEPT)),
    ),
    "lightgbm": (
        LGBMClassifier(n_estimators=ROUNDS, n_jobs=1, verbosity=-1),
        lambda model, rows: model.predict_proba(rows, num_iteration=KEPT),
    ),
    "lightgbm's forest": (
        LGBMClassifier(
            n_estimators=ROUNDS, boosting_type="rf", bagging_freq=1, bagging_fraction=0.5, n_jobs=1, verbosity=-1
        ),
        lambda model, rows: model.predict_proba(rows, num_iteration=KEPT),
    ),
    "catboost": (CatBoostClassifier(**QUIET), lambda model, rows: model.predict_proba(rows, ntree_end=KEPT)),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_first_trees_answer_as_the_library_does_with_them(name: str, classes: int, tmp_path: Path) -> None:
    estimator, first = CASES[name]
    rows = narrow() if classes == 2 else Rows(flowers().features, flowers().truth.astype("category").cat.codes)
    package = converted(tmp_path, estimator, rows, max_trees=KEPT)
    assert package.manifest.quantization["chosen"] == f"first {KEPT} rounds"
    outputs = served(package, doubles(rows.features, package.manifest.signature.inputs[0].datatype))
    np.testing.assert_allclose(outputs["probabilities"], first(estimator, rows.features), rtol=0, atol=1e-6)
    load(DirectorySource(tmp_path / "models"), "model", "1", intra_op_threads=1, on_runtime=lambda _: None)


def halves(rows: Rows) -> tuple[Rows, Rows]:
    return Rows(rows.features[::2], rows.truth[::2]), Rows(rows.features[1::2], rows.truth[1::2])


def test_auto_keeps_the_fewest_trees_that_lose_no_more_than_the_gate_allows(tmp_path: Path) -> None:
    seen, held_out = halves(cancer())
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(40, random_state=0))
    forest.fit(seen.features, seen.truth)
    package = convert(order(tmp_path, forest, held_out, max_trees="auto", held_out=True))
    decision, metrics = package.manifest.quantization, package.manifest.metrics
    table = {each["method"]: each for each in decision["candidates"]}
    assert decision["chosen"] in table
    assert table["all 40 rounds"]["verdict"] == "baseline"
    fewer = list(table)[1 : list(table).index(decision["chosen"])]
    assert all(table[name]["metric_drop_points"] > 0.5 for name in fewer)
    assert metrics["served"]["accuracy"] >= metrics["original"]["accuracy"] - 0.005
    assert table[decision["chosen"]]["size_bytes"] < table["all 40 rounds"]["size_bytes"]


def test_auto_needs_rows_that_the_model_has_not_seen(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--held-out"):
        converted(tmp_path, RandomForestClassifier(5, random_state=0), cancer(), max_trees="auto")


def test_where_there_is_nothing_to_leave_out_it_is_said(tmp_path: Path) -> None:
    forest = XGBRFClassifier(n_estimators=5, n_jobs=1)  # one round of five trees
    decision = converted(tmp_path, forest, cancer(), max_trees=3).manifest.quantization
    assert decision["reason"] == "it has no more than 1 rounds of trees"
    with pytest.raises(ConversionRefused, match="not read one by one"):
        converted(tmp_path, AdaBoostClassifier(n_estimators=3), cancer(), version="2", max_trees=2)
