"""int8 is kept where it is good and faster, and the decision says why it is not elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.demo_models import DemoModels
from converters.quantize import cpu
from gateway.models.manifest import Manifest, parse
from gateway.models.runtime import OnnxRuntime
from gateway.tensors import Array
from tests.converters.bench import cancer, converted


@pytest.fixture(scope="module")
def digits(demo: DemoModels) -> Manifest:
    return parse((demo.models / "digits" / "1" / "manifest.json").read_bytes(), where="digits")


@pytest.fixture(scope="module")
def digits_model(demo: DemoModels) -> OnnxRuntime:
    return OnnxRuntime((demo.models / "digits" / "1" / "model.onnx").read_bytes())


@pytest.fixture(scope="module")
def pixels(demo: DemoModels) -> Array:
    """The held-out rows, as the served model takes them."""
    return np.array(json.loads(demo.traffic["digits"].read_text())["rows"], np.float32)


def test_the_network_for_digits_is_served_as_int8_with_the_table_that_decided(digits: Manifest) -> None:
    decision = digits.quantization
    assert decision["chosen"].startswith("static int8")
    table = {candidate["method"]: candidate for candidate in decision["candidates"]}
    kept, whole = table[decision["chosen"]], table["float32"]
    assert (kept["verdict"], whole["verdict"]) == ("kept", "baseline")
    assert kept["flip_rate"] <= decision["gate"]["max_flip_rate"]
    assert kept["metric_drop_points"] <= decision["gate"]["max_metric_drop_points"]
    assert kept["size_bytes"] * 2 < whole["size_bytes"]
    assert kept["latency_us"]["32"] < whole["latency_us"]["32"]
    assert kept["batch_invariance"]["over_tolerance"] == 0
    assert set(table) == {"float32", "static int8", "static int8, last layer float32"}
    assert all(candidate["reason"] for candidate in table.values())
    assert decision["rows"] == digits.metrics["rows"] == 899
    assert decision["cpu"]["model"]


def test_the_int8_model_is_as_accurate_as_the_original(
    digits: Manifest, digits_model: OnnxRuntime, pixels: Array, demo: DemoModels
) -> None:
    truth = np.array(json.loads(demo.traffic["digits"].read_text())["labels"])
    accuracy = float((digits_model.run({"input": pixels})["label"] == truth).mean())
    assert accuracy == pytest.approx(digits.metrics["served"]["accuracy"])
    assert accuracy >= digits.metrics["original"]["accuracy"] - 0.005


@settings(deadline=None)
@given(st.data())
def test_an_int8_answer_does_not_depend_on_the_rows_beside_it(
    digits_model: OnnxRuntime, pixels: Array, data: st.DataObject
) -> None:
    indices = st.integers(0, len(pixels) - 1)
    row = data.draw(indices)
    company = data.draw(st.lists(indices, max_size=40))
    place = data.draw(st.integers(0, len(company)))
    alone = digits_model.run({"input": pixels[row : row + 1]})
    together = digits_model.run({"input": pixels[[*company[:place], row, *company[place:]]]})
    np.testing.assert_allclose(together["probabilities"][place], alone["probabilities"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (RandomForestClassifier(5, random_state=0), "not applicable: trees"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "not applicable: linear"),
    ],
    ids=["trees", "linear"],
)
def test_trees_and_linear_models_stay_as_they_are(estimator: Any, reason: str, tmp_path: Path) -> None:
    decision = converted(tmp_path, estimator, cancer()).manifest.quantization
    assert decision["chosen"] == "float32"
    assert decision["reason"].startswith(reason)
    assert decision["candidates"] == ()


def test_a_network_too_small_to_gain_is_left_alone_and_the_table_says_why(tmp_path: Path) -> None:
    network = make_pipeline(StandardScaler(), MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=0))
    decision = converted(tmp_path, network, cancer()).manifest.quantization
    assert decision["chosen"] == "float32"
    assert [candidate["verdict"] for candidate in decision["candidates"]] == ["baseline", "refused", "refused"]
    assert all(candidate["reason"] for candidate in decision["candidates"])


def test_quantization_can_be_switched_off_and_is_not_judged_on_few_rows(tmp_path: Path) -> None:
    rows = cancer()
    network = make_pipeline(StandardScaler(), MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=0))
    off = converted(tmp_path, network, rows, quantize="off").manifest.quantization
    assert off["reason"] == "switched off with --quantize off"
    few = type(rows)(rows.features.head(100), rows.truth.head(100))
    assert "100 rows cannot show" in converted(tmp_path, network, few, version="2").manifest.quantization["reason"]


def test_the_processor_is_told_by_name_and_the_flags_that_matter(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512_vnni\nprocessor\t: 1\n")
    assert cpu(told) == {"model": "Fast One", "cores": 2, "flags": ["avx2", "avx512_vnni"]}
    assert cpu(tmp_path / "none")["model"] == "unknown"
