"""Models that would read other files are not loaded, wherever in them that stands; all others are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import PackageInvalid
from gateway.models.closed import check_closed
from gateway.models.runtime import OnnxRuntime
from tests.builders import OPSETS, classifier

SECRET = b"a secret of 16 b"


def elsewhere(location: str, name: str = "w") -> Any:
    """A tensor whose bytes lie in the file *location*."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(nodes: list[Any], initializers: list[Any], **more: Any) -> Any:
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.UINT8, [16]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [None]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])]
    graph = helper.make_graph([*nodes, helper.make_node("Identity", ["x"], ["z"])], "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[*OPSETS, helper.make_opsetid("own", 1)], ir_version=10, **more)


def in_initializer(location: str) -> Any:
    return model_of([helper.make_node("Identity", ["w"], ["y"])], [elsewhere(location)])


def constant(location: str) -> Any:
    return helper.make_node("Constant", [], ["y"], value=elsewhere(location, ""))


def in_constant(location: str) -> Any:
    return model_of([constant(location)], [])


def in_branch(location: str) -> Any:
    branch = helper.make_graph(
        [constant(location)], "b", [], [helper.make_tensor_value_info("y", TensorProto.UINT8, [16])]
    )
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    return model_of([choice], [numpy_helper.from_array(np.array(True), "yes")])


def in_function(location: str) -> Any:
    function = helper.make_function("own", "Give", [], ["y"], [constant(location)], [helper.make_opsetid("", 17)])
    return model_of([helper.make_node("Give", [], ["y"], domain="own")], [], functions=[function])


PLACES: dict[str, Callable[[str], Any]] = {
    "initializer": in_initializer,
    "constant": in_constant,
    "branch": in_branch,
    "function": in_function,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["{name}", "../{folder}/{name}", "{path}", "*/_ORT_MEM_ADDR_/*"])
def test_a_model_that_reads_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, location: str
) -> None:
    secret = tmp_path / "admin.token"
    secret.write_bytes(SECRET)
    monkeypatch.chdir(tmp_path)
    named = location.format(name=secret.name, folder=tmp_path.name, path=secret)
    with pytest.raises(PackageInvalid, match="takes weights from other files"):
        OnnxRuntime(PLACES[place](named).SerializeToString())


def test_a_model_that_only_speaks_of_a_location_is_served() -> None:
    plain = model_of([helper.make_node("Identity", ["location"], ["y"])], [])
    plain.graph.initializer.append(numpy_helper.from_array(np.arange(16, dtype=np.uint8), "location"))
    plain.doc_string = "location"
    runtime = OnnxRuntime(plain.SerializeToString())
    assert runtime.run({"x": np.zeros(1, np.float32)})["y"].tolist() == list(range(16))
    proto = classifier().proto()
    proto.producer_name = "location"
    check_closed(proto.SerializeToString())


def test_a_key_that_is_written_in_a_longer_way_is_found_all_the_same() -> None:
    """A number of a protocol buffer may have more bytes than it needs."""
    raw = in_initializer("secret").SerializeToString()
    short = elsewhere("secret").SerializeToString()
    # data_location = 1 with a tag and a value of two bytes each, and no external_data but in the field before
    longer = short.replace(b"\x70\x01", b"\xf0\x00\x81\x00")
    assert longer != short
    graph = b"\x2a" + bytes([len(longer)]) + longer
    with pytest.raises(PackageInvalid):
        check_closed(b"\x3a" + bytes([len(graph)]) + graph)
    with pytest.raises(PackageInvalid):
        check_closed(raw)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_what_cannot_be_read_to_its_end_is_not_closed(cut: int) -> None:
    with pytest.raises(PackageInvalid):
        check_closed(in_initializer("x").SerializeToString()[:-cut] + b"location"[: cut // 20])


def test_the_format_of_onnx_runtime_is_not_served() -> None:
    with pytest.raises(PackageInvalid, match="only ONNX is served"):
        OnnxRuntime(b"\x00\x00\x00\x00ORTM" + b"\x00" * 100)


def test_the_numbers_of_a_large_tree_are_passed_over(tmp_path: Path) -> None:
    """And what comes behind them is not."""
    count = 200_000
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["t"], domain="ai.onnx.ml",
        nodes_values=[0.5] * count, nodes_truenodeids=list(range(count)), nodes_modes=["location"],
    )  # fmt: skip
    inside = helper.make_node("Own", [], ["u"], domain="own", weights=[0.25] * 1000, value=elsewhere("secret"))
    model = model_of([tree], [])
    begun_s = time.process_time()
    check_closed(model.SerializeToString())
    taken_s = time.process_time() - begun_s
    print(f"{count} nodes: {taken_s:.3f} s")
    for attribute in inside.attribute:
        attribute.floats.extend([1.0] * 10)
    model.graph.node.append(inside)
    with pytest.raises(PackageInvalid):
        check_closed(model.SerializeToString())
