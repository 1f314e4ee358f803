"""A shadow beside real workers: its answers are compared rightly, and whatever it does, no client sees any of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from gateway.cli import main
from gateway.models.runtime import OnnxRuntime
from gateway.tensors import Array
from tests.builders import Linear, classifier, regressor, write_package
from tests.converters import bench
from tests.end_to_end.flags import declare, workers_status
from tests.live import LiveGateway, eventually

HOUSE = regressor()
OFFSET = 0.75
STEADY = classifier("frail", "1")


class Frail(Linear):
    """Fails on a first feature of 1,000, gives NaN for a second of -100, and loops for as long as the third says."""

    def proto(self) -> Any:
        proto = super().proto()
        graph = proto.graph
        for node in graph.node:
            for place, name in enumerate(node.output):
                if name == "probabilities":
                    node.output[place] = "sound"
        constants = {
            **{f"column_{i}": np.array([i], np.int64) for i in range(3)},
            **{"hundred": np.array(100, np.float32), "nothing": np.zeros((1, 3), np.float32), "go": np.array(True)},
            **{"fifty": np.array(50, np.float32), "square": np.full((96, 96), 1 / 96, np.float32)},
        }
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        body = helper.make_graph(
            [
                helper.make_node("MatMul", ["state", "square"], ["next_state"]),
                helper.make_node("Identity", ["on"], ["still"]),
            ],
            "turn",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, []),
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, [96, 96]),
            ],
            [
                helper.make_tensor_value_info("still", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next_state", TensorProto.FLOAT, [96, 96]),
            ],
        )
        graph.node.extend(
            [
                *(helper.make_node("Gather", ["input", f"column_{i}"], [f"x{i}"], axis=1) for i in range(3)),
                helper.make_node("Div", ["x0", "hundred"], ["place"]),
                helper.make_node("Cast", ["place"], ["index"], to=TensorProto.INT64),
                helper.make_node("Gather", ["nothing", "index"], ["zeros"], axis=0),
                helper.make_node("ReduceMax", ["zeros"], ["zero_a"], keepdims=0),
                helper.make_node("Add", ["x1", "fifty"], ["shifted"]),
                helper.make_node("Log", ["shifted"], ["log"]),
                helper.make_node("Mul", ["log", "nothing"], ["zero_b"]),
                helper.make_node("Relu", ["x2"], ["positive"]),
                helper.make_node("ReduceMax", ["positive"], ["most"], keepdims=0),
                helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
                helper.make_node("Loop", ["turns", "go", "square"], ["spun"], body=body),
                helper.make_node("ReduceMax", ["spun"], ["spun_max"], keepdims=0),
                helper.make_node("Sub", ["spun_max", "spun_max"], ["zero_c"]),
                helper.make_node("Add", ["sound", "zero_a"], ["sum_a"]),
                helper.make_node("Add", ["sum_a", "zero_b"], ["sum_b"]),
                helper.make_node("Add", ["sum_b", "zero_c"], ["probabilities"]),
            ]
        )
        return proto


FAILS = [1000.0, 1.0, 0.0, 1.0]
GIVES_NAN = [1.0, -100.0, 0.0, 1.0]
HANGS = [1.0, 1.0, 1e9, 1.0]


def frail() -> Frail:
    return Frail("frail", "2", STEADY.features, STEADY.classes, STEADY.weights, STEADY.bias)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """Two workers that serve version 1 of all models, and hold versions 2 as their shadows."""
    root = tmp_path_factory.mktemp("shadow")

    def flowers(version: str, strength: float) -> None:
        estimator = LogisticRegression(C=strength, max_iter=1000)
        bench.converted(root, estimator, bench.flowers(), name="flowers", version=version)

    flowers("1", 1.0)
    for model in (HOUSE, STEADY):
        write_package(root / "models", model)
    # Other processes may keep the thread of copies, which lets all go first, from its processor for long.
    shadow: dict[str, float] = {"run_timeout_s": 3, "max_wait_s": 60, "max_in_flight": 1000}
    settings: dict[str, dict[str, float]] = {"shadow": shadow, "cache": {"max_bytes": 0}}
    with LiveGateway(root / "models", root / "state", workers=2, settings=settings) as live:
        flowers("2", 0.003)
        write_package(root / "models", replace(HOUSE, version="2", bias=HOUSE.bias + np.float32(OFFSET)))
        write_package(root / "models", frail())
        for name in ("flowers", "house", "frail"):
            declare(live, name, "shadow", "2")
        yield live


def command(gateway: LiveGateway, *arguments: str) -> int:
    token = str(gateway.state / "admin.token")
    return main([*arguments, "--url", gateway.control_url, "--token-file", token])


def shadow(gateway: LiveGateway, model: str, share: float) -> None:
    """Set the share with the command line, and wait until all workers follow it."""
    assert command(gateway, "flags", "set", f"{model}.shadow", str(share), "--reason", "a test") == 0

    def followed() -> bool:
        rates = [
            entry["rate"]
            for status in workers_status(gateway)
            for entry in status["shadow"]
            if entry["model"] == model and entry["state"] in ("on", "off")
        ]
        return rates == [share] * len(gateway.child_pids("worker"))

    eventually(followed, f"{model} is shadowed in all workers")


def ask(gateway: LiveGateway, model: str, rows: Array, *, per_request: int = 1, per_connection: int = 10) -> Array:
    """The float output that was answered for *rows*, asked over many connections, so that all workers get some."""
    data: list[Any] = []
    for start in range(0, len(rows), per_request * per_connection):
        with httpx.Client(base_url=gateway.data_url, timeout=30.0) as client:
            for first in range(start, min(start + per_request * per_connection, len(rows)), per_request):
                part = rows[first : first + per_request]
                tensor = {"name": "input", "shape": list(part.shape), "datatype": "FP32", "data": part.ravel().tolist()}
                reply = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
                assert reply.status_code == 200, reply.text
                assert reply.headers["x-model-version"] == "1"
                (output,) = (one for one in reply.json()["outputs"] if one["name"] in ("probabilities", "value"))
                data += np.array(output["data"]).reshape(len(part), -1).tolist()
    return np.array(data)


def report(gateway: LiveGateway, model: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.control.get(f"/admin/v1/models/{model}/shadow").raise_for_status().json()
    return found


def compared(gateway: LiveGateway, model: str, ended: int) -> dict[str, Any]:
    """The one comparison of the model, once so many copies have ended in any way."""

    def look() -> dict[str, Any] | None:
        comparisons = report(gateway, model)["comparisons"]
        assert len(comparisons) == 1, "a worker tells what it knows once a second"
        one = comparisons[0]
        count = one["copies"] + sum(one["failed"].values()) + sum(one["dropped"].values())
        assert count <= ended, one
        found: dict[str, Any] = one
        return found if count == ended else None

    return eventually(look, f"{ended} copies of {model} have ended")


def test_flips_of_a_classifier_are_those_of_the_two_models_themselves(
    gateway: LiveGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench.flowers().features.to_numpy().astype(np.float32)
    direct = [
        OnnxRuntime((gateway.models / "flowers" / version / "model.onnx").read_bytes()).run({"input": rows})
        for version in ("1", "2")
    ]
    flips = int((direct[0]["label"] != direct[1]["label"]).sum())
    assert 5 < flips < 100
    moved = np.abs(direct[0]["probabilities"].astype(float) - direct[1]["probabilities"].astype(float)).max(axis=1)
    shadow(gateway, "flowers", 1.0)
    answered = ask(gateway, "flowers", rows)
    np.testing.assert_allclose(answered, direct[0]["probabilities"], atol=1e-6)
    ask(gateway, "flowers", rows, per_request=50)
    one = compared(gateway, "flowers", 153)
    assert (one["copies"], one["rows"], one["workers"]) == (153, 300, 2)
    label, probabilities = one["outputs"]["label"], one["outputs"]["probabilities"]
    assert (label["kind"], label["flips"]) == ("label", 2 * flips)
    assert (probabilities["kind"], probabilities["flips"]) == ("probabilities", 2 * flips)
    assert label["flip_rate_low"] < flips / 150 < label["flip_rate_high"]
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        exact = np.quantile(moved, q, method="inverted_cdf")
        assert probabilities["change"][name] == pytest.approx(exact, rel=0.0255)
    assert one["timed"] >= 1
    capsys.readouterr()
    assert command(gateway, "shadow", "report", "flowers") == 0
    printed = capsys.readouterr().out
    assert "version 2 runs 100 % of what is answered" in printed
    assert f"{2 * flips} of 300 rows got another label in 'label'" in printed
    assert command(gateway, "shadow", "report", "flowers", "--json") == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["outputs"] == one["outputs"]
    assert command(gateway, "shadow", "report", "roses") == 1
    shadow(gateway, "flowers", 0.0)
    ask(gateway, "flowers", rows[:20])
    assert compared(gateway, "flowers", 153)["copies"] == 153, "what was found stays, and nothing is added"
    pairs = 'sluicegate_shadow_pairs_total{model="flowers",version="2"} 153.0'
    eventually(lambda: pairs in gateway.control.get("/metrics").text, "the pairs are in the metrics")
    assert 'variant="shadow"' not in gateway.control.get("/metrics").text


def test_a_known_offset_is_found_with_the_stated_error(gateway: LiveGateway) -> None:
    rows = np.random.default_rng(5).normal(size=(200, 2)).astype(np.float32)
    shadow(gateway, "house", 1.0)
    np.testing.assert_allclose(ask(gateway, "house", rows), HOUSE.answer(rows)["value"], atol=1e-5)
    one = compared(gateway, "house", 200)
    change = one["outputs"]["value"]["change"]
    assert one["copies"] == 200
    assert change["max"] == pytest.approx(OFFSET, abs=1e-5)
    for name in ("p50", "p90", "p99"):
        assert change[name] == pytest.approx(OFFSET, rel=change["relative_error"])
    assert one["outputs"]["value"]["mean_size"] == pytest.approx(np.abs(HOUSE.answer(rows)["value"]).mean(), rel=1e-4)
    shadow(gateway, "house", 0.0)


def test_a_shadow_that_fails_gives_nan_or_hangs_is_seen_by_no_client(gateway: LiveGateway) -> None:
    rows = np.random.default_rng(6).normal(size=(60, 4)).astype(np.float32)
    rows[:, 2] = 0.0
    for place, fault in ((10, FAILS), (20, GIVES_NAN), (21, GIVES_NAN), (40, FAILS)):
        rows[place] = fault
    expected = STEADY.answer(rows)["probabilities"]
    np.testing.assert_allclose(ask(gateway, "frail", rows), expected, atol=1e-6)
    shadow(gateway, "frail", 1.0)
    np.testing.assert_allclose(ask(gateway, "frail", rows), expected, atol=1e-6)
    one = compared(gateway, "frail", 60)
    assert (one["copies"], one["failed"]) == (56, {"error": 2, "invalid": 2})
    assert one["outputs"]["probabilities"]["flips"] == 0
    pids = gateway.child_pids("worker")
    hanging = np.array([HANGS], np.float32)
    np.testing.assert_allclose(ask(gateway, "frail", hanging), STEADY.answer(hanging)["probabilities"], atol=1e-6)
    rounds = 0

    def is_called_off() -> bool:
        nonlocal rounds
        rounds += 1
        np.testing.assert_allclose(ask(gateway, "frail", rows[:5]), expected[:5], atol=1e-6)
        (found,) = report(gateway, "frail")["comparisons"]
        return "timeout" in found["failed"]

    eventually(is_called_off, "the run that hangs is called off")
    assert "resting after a run that took too long" in report(gateway, "frail")["workers"].values()
    assert compared(gateway, "frail", 61 + 5 * rounds)["failed"]["error"] == 2
    page = gateway.control.get("/metrics").text
    assert 'sluicegate_shadow_failed_total{model="frail",reason="timeout",version="2"}' in page
    assert 'outcome="inference_failed"' not in page
    assert gateway.child_pids("worker") == pids


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_gateway_stops_though_a_shadow_run_hangs(models: Path, state: Path) -> None:
    write_package(models, STEADY)
    with LiveGateway(models, state, settings={"shadow": {"run_timeout_s": 3600}}) as live:
        write_package(models, frail())
        declare(live, "frail", "shadow", "2")
        shadow(live, "frail", 1.0)
        pid = live.child_pids("worker")[0]
        before_s = processor_s(pid)
        ask(live, "frail", np.array([HANGS], np.float32))
        eventually(lambda: processor_s(pid) > before_s + 0.5, "the run goes on and on")
        ask(live, "frail", np.zeros((20, 4), np.float32))
        live.stop()
        assert "Traceback" not in live.log
