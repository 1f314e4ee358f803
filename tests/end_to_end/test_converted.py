"""What a client gets over HTTP for decimal numbers is what the original answers to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from onnx import TensorProto, helper
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, IsolationForest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer, StandardScaler

from converters.convert import Order, convert
from converters.original import Original
from converters.probes import boundary_rows
from converters.signature import signature_of
from tests.converters.bench import Rows, cancer, converted, mixed, narrow
from tests.live import LiveGateway

NOTES = ("round", "smooth edge", "large dark spot", "a small pale round thing")


def described() -> Rows:
    """Numbers of which some are missing, whole numbers, categories, and a text of several words."""
    rows, random = mixed(), np.random.default_rng(0)
    features = rows.features.assign(
        area=rows.features["area"].mask(random.random(len(rows.features)) < 0.1),
        visits=random.integers(0, 5, len(rows.features)),
        note=np.array(NOTES, dtype=object)[random.integers(0, len(NOTES), len(rows.features))],
    )
    return Rows(features, rows.truth)


def pipeline() -> Any:
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["area", "smoothness"]),
            ("as they are", "passthrough", ["visits"]),
            ("categories", OneHotEncoder(handle_unknown="ignore"), ["size", "code"]),
            ("words", TfidfVectorizer(), "note"),
        ]
    )
    return make_pipeline(columns, GradientBoostingClassifier(n_estimators=20, random_state=0))


def asked(gateway: LiveGateway, model: str, features: Any) -> Any:
    """The probabilities that the gateway gives for rows sent by the names of their columns."""
    records = features.astype(object).where(features.notna(), None).to_dict(orient="records")
    body = json.dumps({"rows": records})  # numbers with as many digits as they need
    reply = gateway.data.post(f"/predict/{model}", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    return np.array([list(answer["probabilities"].values()) for answer in reply.json()["predictions"]])


NUMBERS: dict[str, Any] = {
    "histograms": HistGradientBoostingClassifier(max_iter=20),
    "lightgbm": LGBMClassifier(n_estimators=20, n_jobs=1, verbosity=-1),
}
DESCRIBED = pipeline()
OUTLIERS = make_pipeline(StandardScaler(), IsolationForest(n_estimators=20, random_state=0))
GROUPS, SCALED = KMeans(3, n_init=1, random_state=0), PowerTransformer()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """Serves the estimators, fitted and converted here, and a model with state."""
    directory = tmp_path_factory.mktemp("converted")
    for name, estimator in NUMBERS.items():
        converted(directory, estimator, cancer(), name=name)
    converted(directory, DESCRIBED, described(), name="described")
    for name, estimator in (("outliers", OUTLIERS), ("groups", GROUPS), ("scaled", SCALED)):
        converted(directory, estimator, narrow(), name=name, target=None)
    convert(Order(recurrent(directory / "model.onnx"), "recurrent", "1", None, directory / "models"))
    with LiveGateway(directory / "models", directory / "state") as started:
        yield started


def recurrent(path: Path) -> Path:
    """An ONNX file whose caller hands ``hn`` back as ``h``."""
    made = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in names]
        for names in (("x", "h"), ("y", "hn"))
    ]
    nodes = [helper.make_node("Add", ["x", "h"], ["hn"]), helper.make_node("Identity", ["hn"], ["y"])]
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(helper.make_graph(nodes, "g", *made), opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_mixed_columns_sent_by_name_get_the_pipelines_probabilities(gateway: LiveGateway) -> None:
    features = described().features
    found = asked(gateway, "described", features)
    np.testing.assert_allclose(found, DESCRIBED.predict_proba(features), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
def test_decimals_and_doubles_on_thresholds_get_the_originals_probabilities(name: str, gateway: LiveGateway) -> None:
    features, original = cancer().features, Original(NUMBERS[name])
    on_thresholds = boundary_rows(original, signature_of(original, features), features, np.random.default_rng(0))
    rows = pd.concat([features, on_thresholds.sample(1000, random_state=0)], ignore_index=True)
    found = asked(gateway, name, rows)
    np.testing.assert_allclose(found, NUMBERS[name].predict_proba(rows), rtol=0, atol=1e-6)


def infer(gateway: LiveGateway, model: str, features: Any) -> dict[str, Any]:
    """The outputs by name, for rows sent as one tensor of decimals."""
    (given,) = gateway.data.get(f"/v2/models/{model}").json()["inputs"]
    tensor = {**given, "shape": list(features.shape), "data": features.to_numpy().ravel().tolist()}
    reply = gateway.data.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    assert reply.status_code == 200, reply.text
    return {each["name"]: np.reshape(each["data"], each["shape"]) for each in reply.json()["outputs"]}


def test_outlier_detectors_clusterers_and_transformers_are_served(gateway: LiveGateway) -> None:
    rows = narrow().features
    found = infer(gateway, "outliers", rows)
    assert set(found["label"].tolist()) == {-1, 1}
    np.testing.assert_array_equal(found["label"], OUTLIERS.predict(rows))
    np.testing.assert_allclose(found["score"].ravel(), OUTLIERS.decision_function(rows), rtol=0, atol=1e-6)
    found = infer(gateway, "groups", rows)
    np.testing.assert_array_equal(found["label"], GROUPS.predict(rows))
    np.testing.assert_allclose(found["value"], GROUPS.transform(rows), rtol=2e-5)
    np.testing.assert_allclose(infer(gateway, "scaled", rows)["value"], SCALED.transform(rows), rtol=2e-5, atol=2e-5)
    row = rows.head(1).to_dict("records")
    (answer,) = gateway.data.post("/predict/outliers", json={"rows": row}).json()["predictions"]
    assert answer["label"] == OUTLIERS.predict(rows.head(1))[0]


def test_a_model_that_carries_state_is_asked_each_time(gateway: LiveGateway) -> None:
    tensors = [{"name": name, "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]} for name in ("x", "h")]
    replies = [gateway.data.post("/v2/models/recurrent/infer", json={"inputs": tensors}) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200] * 3
    assert [reply.headers["x-cache"] for reply in replies] == ["bypass"] * 3
