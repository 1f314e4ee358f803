"""int8 is kept where it is good and faster, and the decision says why it is not elsewhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.convert import convert
from converters.demo_models import DemoModels
from converters.quantize import Choice, cpu
from converters.variants import BUILDS
from gateway.errors import ConversionRefused, PackageInvalid
from gateway.models.manifest import Manifest, parse, sha256_of
from gateway.models.runtime import OnnxRuntime
from gateway.models.source import DirectorySource
from gateway.serving.loading import load
from gateway.tensors import Array
from tests.converters.bench import Rows, cancer, converted, order


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
    assert list(table) == ["float32", *BUILDS]
    assert table["dynamic int8"]["verdict"] == "refused"
    assert "depends on its batch" in table["dynamic int8"]["reason"]
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
    package = converted(tmp_path, estimator, cancer())
    decision = package.manifest.quantization
    assert decision["chosen"] == "float32"
    assert decision["reason"].startswith(reason)
    assert decision["candidates"] == ()
    with pytest.raises(ConversionRefused, match=f"--quantize fp16 is {reason}"):
        convert(order(tmp_path, estimator, cancer(), version="2", quantize="fp16"))


def test_a_network_too_small_to_gain_is_left_alone_and_the_table_says_why(tmp_path: Path) -> None:
    network = make_pipeline(StandardScaler(), MLPClassifier((4,), solver="lbfgs", max_iter=2000, random_state=0))
    decision = converted(tmp_path, network, cancer()).manifest.quantization
    assert decision["chosen"] == "float32"
    assert [candidate["verdict"] for candidate in decision["candidates"]] == ["baseline", *["refused"] * 4]
    assert all(candidate["reason"] for candidate in decision["candidates"])


def blinded() -> Rows:
    """A number that decides beside one that is sixty times as large, so that int8 hardly sees the first."""
    random = np.random.default_rng(0)
    features = pd.DataFrame({"large": random.uniform(0, 60, 1000), "small": random.uniform(0, 1, 1000)})
    return Rows(features, (features["small"] > 0.5).astype(int))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # stopped early on purpose
def test_a_network_that_int8_would_harm_is_left_alone(tmp_path: Path) -> None:
    rows, network = blinded(), MLPClassifier((256, 256), max_iter=60, random_state=0)
    decision = converted(tmp_path, network, rows).manifest.quantization
    assert decision["chosen"] == "float32"
    for method in ("static int8", "static int8, last layer float32"):
        refused = next(each for each in decision["candidates"] if each["method"] == method)
        assert "labels flip" in refused["reason"]
        assert refused["flip_rate"] > 0.01
    ordered = order(tmp_path, network, rows, version="2", quantize="static")
    with pytest.raises(ConversionRefused, match=r"--quantize static cannot be had .*labels flip"):
        convert(ordered)
    allowed = {"max_flip_rate": 1.0, "max_metric_drop_points": 100.0}
    assert convert(dataclasses.replace(ordered, gate=allowed)).manifest.quantization["chosen"].startswith("static int8")


@pytest.fixture(scope="module")
def network() -> Any:
    """A small network over the tumours, fitted."""
    rows = cancer()
    small = make_pipeline(StandardScaler(), MLPClassifier((64, 32), solver="lbfgs", max_iter=2000, random_state=0))
    return small.fit(rows.features, rows.truth)


@pytest.mark.parametrize(("choice", "invariant"), [("static", True), ("fp16", True), ("dynamic", False)])
def test_a_method_asked_for_by_name_is_served_though_it_is_not_faster(
    choice: Choice, invariant: bool, network: Any, tmp_path: Path
) -> None:
    gate = {"max_flip_rate": 0.02}
    package = convert(order(tmp_path, network, cancer(), quantize=choice, gate=gate))
    decision, signature = package.manifest.quantization, package.manifest.signature
    assert decision["chosen"].startswith({"static": "static int8", "fp16": "fp16", "dynamic": "dynamic int8"}[choice])
    assert signature.batch_invariant == invariant
    # The golden pairs hold also where an answer depends on its batch.
    load(DirectorySource(tmp_path / "models"), "model", "1", intra_op_threads=1, on_runtime=lambda _: None)


def test_a_processor_that_answers_otherwise_refuses_the_package_and_says_where_it_was_judged(
    network: Any, tmp_path: Path
) -> None:
    package = convert(order(tmp_path, network, cancer(), quantize="static", gate={"max_flip_rate": 0.02}))
    golden = json.loads((package.path / "golden.json").read_bytes())
    golden["pairs"][0]["response"]["outputs"][1]["data"][0] += 0.001
    (package.path / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((package.path / "manifest.json").read_bytes())
    manifest["files"]["golden.json"] = sha256_of(package.path / "golden.json")
    (package.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageInvalid, match=r"this machine answers otherwise.*static int8.*judged on"):
        load(DirectorySource(tmp_path / "models"), "model", "1", intra_op_threads=1, on_runtime=lambda _: None)


def test_convolutions_are_int8_with_fixed_scales_only() -> None:
    draw = np.random.default_rng(0)
    weights = {"w": draw.normal(size=(4, 1, 3)), "m": draw.normal(size=(24, 3))}
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["u"]),
        helper.make_node("Conv", ["u", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1]), "axis"))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])]
        for name, width in (("x", 8), ("y", 3))
    )
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    rows = {"x": draw.normal(size=(600, 8)).astype(np.float32)}
    kinds = {name: {node.op_type for node in onnx.load_from_string(build(content, rows)).graph.node}
             for name, build in BUILDS.items()}  # fmt: skip
    assert "MatMulInteger" in kinds["dynamic int8"]
    assert "Conv" in kinds["dynamic int8"]
    assert "ConvInteger" not in kinds["dynamic int8"]
    assert "QuantizeLinear" in kinds["static int8"]


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
