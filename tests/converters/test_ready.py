"""Ready ONNX files: upgraded where the runtime needs it, recognised for what they are, or refused with a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.convert import Converted, Order, convert
from gateway.errors import ConversionRefused, InvalidInput, PackageInvalid
from gateway.models.manifest import parse
from gateway.models.source import DirectorySource
from gateway.serving.cache_policy import NeverLook
from gateway.serving.loading import Loaded, load
from tests.converters.bench import cancer

FLOAT = TensorProto.FLOAT
Value = tuple[str, int, Sequence[Any]]


def written(
    path: Path,
    nodes: list[Any],
    inputs: list[Value],
    outputs: list[Value],
    *,
    opset: int = 18,
    ir_version: int = 10,
    constants: Sequence[Any] = (),
) -> Path:
    """An ONNX file; values are names, element types and shapes."""
    made = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *made, constants),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)][: 1 + _is_foreign(nodes)],
        ir_version=ir_version,
    )
    path.write_bytes(model.SerializeToString())
    return path


def repacked(path: Path, *, version: str = "1", data: Path | None = None, **changes: Any) -> Converted:
    return convert(Order(path, "model", version, data, path.parent / "models", **changes))


def _is_foreign(nodes: list[Any]) -> bool:
    return any(node.domain == "com.example" for node in nodes)


def loaded(package: Converted) -> Loaded:
    source = DirectorySource(package.path.parent.parent)
    return load(source, "model", package.path.name, intra_op_threads=1, on_runtime=lambda _: None)


def doubling(path: Path, rows: Any = "rows", **versions: Any) -> Path:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return written(path, [node], [("x", FLOAT, [rows, 3])], [("y", FLOAT, [rows, 3])], **versions)


def test_a_file_becomes_a_package_with_golden_pairs_and_its_features_named_by_the_data(tmp_path: Path) -> None:
    path = doubling(tmp_path / "model.onnx")
    pd.DataFrame(np.eye(3), columns=["a", "b", "c"]).to_csv(tmp_path / "rows.csv", index=False)
    package = repacked(path, data=tmp_path / "rows.csv")
    assert [feature.name for feature in package.manifest.signature.features] == ["a", "b", "c"]
    assert sorted(file.name for file in package.path.iterdir()) == [
        *("card.md", "golden.json", "manifest.json", "model.onnx", "reference.parquet"),
    ]
    assert loaded(package).signature == package.manifest.signature
    assert package.manifest.signature.batchable
    assert package.manifest.framework["name"] == "ONNX"


def test_without_data_rows_are_drawn(tmp_path: Path) -> None:
    package = repacked(doubling(tmp_path / "model.onnx"))
    assert package.manifest.parity["drawn_at_random"]
    assert "golden.json" in package.manifest.files
    loaded(package)


def test_a_fixed_batch_dimension_is_detected(tmp_path: Path) -> None:
    package = repacked(doubling(tmp_path / "model.onnx", rows=1))
    assert not package.manifest.signature.batchable
    assert any("first dimension is fixed" in note for note in package.manifest.parity["notes"])
    assert not loaded(package).signature.batchable


def test_versions_are_upgraded_where_the_runtime_needs_it(tmp_path: Path) -> None:
    newer = repacked(doubling(tmp_path / "newer.onnx", ir_version=99))
    assert any("IR version 99" in note for note in newer.manifest.parity["notes"])
    node = helper.make_node("Add", ["x", "x"], ["y"], consumed_inputs=[0, 0])
    old = written(tmp_path / "old.onnx", [node], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 3])], opset=5, ir_version=3)
    older = convert(Order(old, "old", "1", None, tmp_path / "models"))
    assert any("operator set 5 became 18" in note for note in older.manifest.parity["notes"])


def test_old_slopes_per_channel_stay_per_channel_where_the_last_dimension_is_as_long(tmp_path: Path) -> None:
    slopes = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "slope")
    nodes = [helper.make_node("PRelu", ["x", "slope"], ["y"]), helper.make_node("PRelu", ["y", "slope"], ["z"])]
    values: list[Value] = [("x", FLOAT, ["rows", 3, 3])]
    path = written(tmp_path / "old.onnx", nodes, values, [("z", FLOAT, ["rows", 3, 3])], opset=6, constants=[slopes])
    found = loaded(repacked(path)).runtime.run({"x": np.full((1, 3, 3), -1, np.float32)})["z"]
    np.testing.assert_array_equal(found, np.repeat([[[-1], [-4], [-9]]], 3, axis=2))
    nodes[0].input[1] = "given"
    values.append(("given", FLOAT, [3]))
    path = written(tmp_path / "open.onnx", nodes, values, [("z", FLOAT, ["rows", 3, 3])], opset=6, constants=[slopes])
    with pytest.raises(ConversionRefused, match="slope per channel"):
        repacked(path, version="2")


def test_inputs_and_outputs_of_several_kinds(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["text"], ["same"]), helper.make_node("Cast", ["n"], ["m"], to=FLOAT)]
    inputs: list[Value] = [("text", TensorProto.STRING, ["rows", 1]), ("n", TensorProto.INT64, ["rows", 1])]
    outputs: list[Value] = [("same", TensorProto.STRING, ["rows", 1]), ("m", FLOAT, ["rows", 1])]
    path = written(tmp_path / "model.onnx", nodes, inputs, outputs)
    pd.DataFrame({"n": [1, 2], "text": ["a", "b"]}).to_csv(tmp_path / "rows.csv", index=False)
    package = repacked(path, data=tmp_path / "rows.csv")
    assert [spec.datatype for spec in package.manifest.signature.inputs] == ["BYTES", "INT64"]
    loaded(package)


def test_a_sequence_is_refused_with_a_reason(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["s"])
    output = helper.make_tensor_sequence_value_info("s", FLOAT, [1])
    given = helper.make_tensor_value_info("x", FLOAT, [1])
    model = helper.make_model(
        helper.make_graph([node], "g", [given], [output]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConversionRefused, match="output 's' is a sequence"):
        repacked(tmp_path / "model.onnx")


def test_a_dictionary_per_row_becomes_a_matrix(tmp_path: Path) -> None:
    rows = cancer()
    estimator = LogisticRegression(solver="newton-cholesky").fit(rows.features, rows.truth)
    proto = to_onnx(estimator, rows.features.to_numpy()[:1].astype(np.float32), target_opset=15)
    assert any(node.op_type == "ZipMap" for node in proto.graph.node)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    package = repacked(tmp_path / "model.onnx")
    signature = package.manifest.signature
    assert signature.classes == (0, 1)
    assert [spec.role for spec in signature.outputs] == ["label", "probabilities"]
    outputs = loaded(package).runtime.run({signature.inputs[0].name: rows.features.to_numpy(np.float32)})
    expected = estimator.predict_proba(rows.features)
    np.testing.assert_allclose(outputs[signature.outputs[1].name], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "back"),
    [("h", "hn"), ("past_key_values.0.key", "present.0.key"), ("state_in", "state_out"), ("hidden", "new_hidden")],
)
def test_a_model_that_carries_state_is_never_batched_nor_cached(given: str, back: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", given], [back]), helper.make_node("Identity", [back], ["y"])]
    shape = ["rows", 3]
    path = written(
        tmp_path / "model.onnx",
        nodes,
        [("x", FLOAT, shape), (given, FLOAT, shape)],
        [("y", FLOAT, shape), (back, FLOAT, shape)],
    )
    signature = repacked(path).manifest.signature
    assert not signature.batch_invariant
    assert not signature.cacheable


def test_names_that_only_look_alike_are_no_state(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["image_in", "image_in"], ["image_out"])
    shape = ["rows", 3]
    path = written(tmp_path / "model.onnx", [node], [("image_in", FLOAT, shape)], [("image_out", FLOAT, shape)])
    signature = repacked(path).manifest.signature
    assert signature.batch_invariant
    assert signature.cacheable
    raw = (tmp_path / "models" / "model" / "1" / "manifest.json").read_bytes()
    assert parse(raw, where="here").signature.cacheable


def test_a_model_that_draws_random_numbers_is_not_cached(tmp_path: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["y"])]
    shape = ["rows", 3]
    package = repacked(written(tmp_path / "model.onnx", nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)]))
    assert not package.manifest.signature.cacheable
    loaded(package)  # without golden pairs, which it could not give again
    assert not NeverLook().should_look(b"anything")


def test_a_module_of_pytorch_needs_trust_and_the_extra_that_reads_it(tmp_path: Path) -> None:
    for name in ("net.pt", "net.pt2"):
        (tmp_path / name).write_bytes(b"not read")
        with pytest.raises(ConversionRefused, match="--trust"):
            repacked(tmp_path / name)
        with pytest.raises(ConversionRefused, match=r"pip install 'sluicegate\[torch\]'"):
            repacked(tmp_path / name, trust=True)


def test_texts_need_no_locale_that_a_small_image_lacks(tmp_path: Path) -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="UPPER", locale="en_US.UTF-8")
    shape, text = [2], TensorProto.STRING
    package = repacked(written(tmp_path / "model.onnx", [node], [("x", text, shape)], [("y", text, shape)]))
    outputs = loaded(package).runtime.run({"x": np.array([b"monday", "\u00e4rger".encode()], dtype=object)})
    assert [value.decode() for value in outputs["y"]] == ["MONDAY", "\u00c4RGER"]


def test_a_single_number_without_dimensions_is_taken(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    package = repacked(written(tmp_path / "model.onnx", [node], [("x", FLOAT, [])], [("y", FLOAT, [])]))
    assert loaded(package).runtime.run({"x": np.array(2, np.float32)})["y"] == 4


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["FP16", "BF16"])
def test_halves_have_golden_pairs_that_a_worker_can_ask(element: int, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    inputs: list[Value] = [("x", element, ["rows", 3])]
    path = written(tmp_path / "model.onnx", [node], inputs, [("y", element, ["rows", 3])])
    rows = pd.DataFrame(np.linspace(-9, 9, 36).reshape(12, 3), columns=["a", "b", "c"])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    for version, data in (("1", None), ("2", tmp_path / "rows.csv")):
        package = repacked(path, version=version, data=data)
        assert loaded(package).example is not None, "the inputs of its first golden pair"
    golden = json.loads((package.path / "golden.json").read_bytes())
    golden["pairs"][-1]["response"]["outputs"][0]["data"][-1] += 0.5
    document = json.dumps(golden).encode()
    (package.path / "golden.json").write_bytes(document)
    files = {**package.manifest.files, "golden.json": hashlib.sha256(document).hexdigest()}
    (package.path / "manifest.json").write_bytes(dataclasses.replace(package.manifest, files=files).to_json())
    with pytest.raises(PackageInvalid, match="answers otherwise"):
        loaded(package)


def test_a_file_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    with pytest.raises(ConversionRefused, match="no inputs"):
        repacked(written(tmp_path / "model.onnx", [node], [], [("y", FLOAT, [3])]))


def test_answers_that_are_no_numbers_are_golden_too(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["x", "x"], ["zero"]), helper.make_node("Div", ["x", "zero"], ["y"])]
    package = repacked(written(tmp_path / "model.onnx", nodes, [("x", FLOAT, [3])], [("y", FLOAT, [3])]))
    golden = json.loads((package.path / "golden.json").read_bytes())
    assert {*golden["pairs"][0]["response"]["outputs"][0]["data"]} <= {"inf", "-inf", None}
    loaded(package)


def test_int8_with_scales_of_the_moment_is_known_to_depend_on_the_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    shape = ["rows", 3]
    package = repacked(written(tmp_path / "model.onnx", nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)]))
    assert not package.manifest.signature.batch_invariant
    loaded(package)  # its golden pairs are the answers that it gives to just these rows


def network_file(path: Path, rows: Any) -> Any:
    """A fitted network over *rows* as an ONNX file with two outputs; returns the network."""
    network = make_pipeline(StandardScaler(), MLPClassifier((512, 512), max_iter=5, random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(rows.features.to_numpy(), rows.truth)
    given = rows.features.to_numpy()[:1].astype(np.float32)
    path.write_bytes(to_onnx(network, given, target_opset=18, options={"zipmap": False}).SerializeToString())
    return network


def test_a_ready_network_with_rows_gets_variants_judged_by_its_own_answers(tmp_path: Path) -> None:
    rows = cancer()
    network = network_file(tmp_path / "model.onnx", rows)
    rows.features.assign(truth=rows.truth).to_parquet(tmp_path / "rows.parquet", index=False)
    gate = {"max_flip_rate": 0.05}
    package = repacked(
        tmp_path / "model.onnx", data=tmp_path / "rows.parquet", target="truth", quantize="static", gate=gate
    )
    manifest = package.manifest
    assert manifest.quantization["chosen"].startswith("static int8")
    assert manifest.metrics["original"]["accuracy"] == pytest.approx(
        network.score(rows.features.to_numpy(np.float32), rows.truth), abs=1e-6
    )
    assert manifest.metrics["served"]["accuracy"] >= manifest.metrics["original"]["accuracy"] - 0.005
    loaded(package)
    with pytest.raises(ConversionRefused, match="no rows to judge it by"):
        repacked(tmp_path / "model.onnx", version="2", quantize="static")
    with pytest.raises(InvalidInput, match="max-trees"):
        repacked(tmp_path / "model.onnx", version="2", max_trees=3)


def test_a_row_that_depends_on_its_batch_is_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "axes")
    made = [helper.make_tensor_value_info(name, FLOAT, ["rows", 3]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", made[:1], made[1:], [axes]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    package = repacked(tmp_path / "model.onnx")
    assert not package.manifest.signature.batch_invariant
    loaded(package)


def test_a_row_that_depends_on_its_batch_is_found_though_the_given_rows_hide_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Less", ["x", "zero"], ["below"]),
        helper.make_node("Where", ["below", "mean", "x"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "axes"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    made = [helper.make_tensor_value_info(name, FLOAT, ["rows", 3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", made[:1], made[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    pd.DataFrame(np.ones((4, 3)), columns=["a", "b", "c"]).to_csv(tmp_path / "rows.csv", index=False)
    package = repacked(tmp_path / "model.onnx", data=tmp_path / "rows.csv")
    assert not package.manifest.signature.batch_invariant


def test_what_is_no_onnx_file_and_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\xff\xff no")
    with pytest.raises(InvalidInput, match=r"broken\.onnx"):
        repacked(tmp_path / "broken.onnx")
    pd.DataFrame({"a": [1.0]}).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(InvalidInput, match="a column for each"):
        repacked(doubling(tmp_path / "model.onnx"), data=tmp_path / "rows.csv")


def test_weights_beside_the_file_come_into_the_package(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    made = [helper.make_tensor_value_info(name, FLOAT, ["rows", 3]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "g", made[:1], made[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded(repacked(tmp_path / "model.onnx"))


@pytest.mark.parametrize("place", ["../secret", "absolute", "link"])
def test_weights_outside_of_the_files_directory_are_not_read(place: str, tmp_path: Path) -> None:
    inside, secret = tmp_path / "inside", tmp_path / "secret"
    inside.mkdir()
    secret.write_bytes(np.ones(3, np.float32).tobytes())
    (inside / "link").symlink_to(secret)
    weight = onnx.TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=str(secret) if place == "absolute" else place)
    path = written(
        inside / "model.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [("x", FLOAT, ["rows", 3])],
        [("y", FLOAT, ["rows", 3])],
        constants=[weight],
    )
    with pytest.raises(InvalidInput, match="tensor name: w"):
        repacked(path)


def test_operators_of_ones_own_and_graphs_that_are_none_are_refused(tmp_path: Path) -> None:
    foreign = helper.make_node("Launder", ["x"], ["y"], domain="com.example")
    with pytest.raises(ConversionRefused, match=r"com\.example:Launder"):
        repacked(
            written(tmp_path / "foreign.onnx", [foreign], [("x", FLOAT, ["rows", 3])], [("y", FLOAT, ["rows", 3])])
        )
    dangling = helper.make_node("Add", ["x", "nowhere"], ["y"])
    with pytest.raises(ConversionRefused, match="not valid ONNX"):
        repacked(
            written(tmp_path / "dangling.onnx", [dangling], [("x", FLOAT, ["rows", 3])], [("y", FLOAT, ["rows", 3])])
        )
