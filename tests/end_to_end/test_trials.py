"""New packages tried in a child first: what eats memory, crashes or hangs there is refused, and no worker notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import PackageInvalid
from gateway.models.source import DirectorySource
from gateway.serving.probing import Prober
from gateway.settings import BatchSettings
from tests.builders import IR_VERSION, OPSETS, classifier, write_bare, write_package
from tests.live import LiveGateway, eventually

MEMORY_BYTES = 512 * 1024 * 1024


def write_glutton(models: Path) -> None:
    """A model of some hundred bytes that makes eight GiB of zeros for each run."""
    size = numpy_helper.from_array(np.array([2**31], np.int64), "size")
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        "glutton",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [size],
    )
    folder = models / "glutton" / "1"
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION), folder / "model.onnx")


def versions(gateway: LiveGateway) -> dict[str, Any]:
    """Model -> state and reason of its version 1 in the one worker."""
    (worker,) = gateway.control.get("/admin/v1/status").json()["workers"]
    return {
        model: (found["versions"]["1"]["state"], found["versions"]["1"]["reason"])
        for model, found in worker["models"].items()
    }


def test_a_model_that_eats_memory_is_refused_and_the_others_are_served(models: Path, state: Path) -> None:
    write_package(models, classifier())
    write_glutton(models)
    settings = {"batching": {"trial_memory_bytes": MEMORY_BYTES}}
    with LiveGateway(models, state, settings=settings) as gateway:
        pids = gateway.child_pids("worker")
        found = eventually(
            lambda: found if (found := versions(gateway)).get("glutton", ("",))[0] == "failed" else None, "it failed"
        )
        assert f"it takes more than the {MEMORY_BYTES} bytes of batching.trial_memory_bytes" in found["glutton"][1]
        eventually(lambda: versions(gateway)["iris"][0] == "warm", "the other one is warm")
        row = dict.fromkeys(classifier().features, 1.0)
        assert gateway.data.post("/predict/iris", json={"rows": [row]}).status_code == 200
        assert gateway.child_pids("worker") == pids
        (tried,) = [path for path in (state / "tried").iterdir() if path.read_bytes()]
        before = tried.stat().st_mtime_ns
        gateway.kill("worker")
        eventually(lambda: versions(gateway)["iris"][0] == "warm", "it is warm again")
        assert tried.stat().st_mtime_ns == before, "it was not tried again"


def prober(tmp_path: Path, **settings: Any) -> Prober:
    return Prober(BatchSettings(trial_memory_bytes=MEMORY_BYTES, **settings), tmp_path / "models", tmp_path / "tried")


def test_a_child_that_dies_or_hangs_is_told_by_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bare(tmp_path / "models", classifier())
    package = DirectorySource(tmp_path / "models").open("iris", "1")
    fake = tmp_path / "python"
    monkeypatch.setattr("sys.executable", str(fake))

    def refusal(script: str, **settings: Any) -> str:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o700)
        with pytest.raises(PackageInvalid) as caught:
            prober(tmp_path, **settings)(package)
        return str(caught.value)

    assert "the child ended by SIGSEGV" in refusal("kill -SEGV $$")
    assert "the child ended by exit code 3" in refusal("exit 3")
    assert "nothing that could be read" in refusal("echo; echo '[]'")
    assert "not done after 0.2 s" in refusal("exec sleep 60", load_timeout_s=0.2)
    monkeypatch.undo()
    prober(tmp_path)(package)  # none of these is remembered
    monkeypatch.setattr("sys.executable", "/nonexistent")
    prober(tmp_path)(package)  # this one is


def test_what_another_onnx_runtime_could_load_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bare(tmp_path / "models", classifier())
    package = DirectorySource(tmp_path / "models").open("iris", "1")
    (tmp_path / "tried").mkdir()
    (tmp_path / "tried" / package.digest).write_text("onnxruntime 0.0.1\n")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(PackageInvalid, match="exit code 1"):
        prober(tmp_path)(package)
