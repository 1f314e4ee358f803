"""The demo's models: real rows, packages that serve, and traffic that looks like the reference."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp
from sklearn.datasets import load_breast_cancer

from converters.demo_models import DemoModels
from gateway.models.manifest import parse
from gateway.models.source import DirectorySource


def test_both_models_are_there_in_their_versions(demo: DemoModels) -> None:
    assert DirectorySource(demo.models).versions() == {"breast-cancer": ["1", "2"], "digits": ["1"]}
    assert set(demo.traffic) == {"breast-cancer", "digits"}


def test_the_versions_of_one_model_take_the_same_features_and_differ_in_their_answers(demo: DemoModels) -> None:
    one, two = (
        parse((demo.models / "breast-cancer" / version / "manifest.json").read_bytes(), where=version)
        for version in ("1", "2")
    )
    assert one.signature == two.signature
    assert one.framework["estimator"] != two.framework["estimator"]
    assert one.metrics["known_held_out"]
    assert one.metrics["served"]["accuracy"] > 0.95
    assert two.metrics["served"]["accuracy"] > 0.9


def test_traffic_is_real_rows_with_true_labels(demo: DemoModels) -> None:
    traffic = json.loads(demo.traffic["breast-cancer"].read_text())
    bunch = load_breast_cancer()
    assert traffic["features"] == bunch.feature_names.tolist()
    known = {tuple(row): label for row, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True)}
    assert len(traffic["rows"]) == 285
    assert all(known[tuple(row)] == label for row, label in zip(traffic["rows"], traffic["labels"], strict=True))


def test_traffic_does_not_look_like_drift(demo: DemoModels) -> None:
    for model, path in demo.traffic.items():
        traffic = json.loads(path.read_text())
        reference = pd.read_parquet(demo.models / model / "1" / "reference.parquet")
        sent = np.array(traffic["rows"], np.float32)
        distances = [ks_2samp(reference[name], sent[:, i]).statistic for i, name in enumerate(traffic["features"])]
        assert max(distances) < 0.05
