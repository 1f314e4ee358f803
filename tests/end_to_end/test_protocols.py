"""Every protocol through both doors: documented calls, equal numbers and bytes, and no answer that two share."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gateway.models.manifest import MODEL_FILE
from tests.builders import IR_VERSION, OPSETS, classifier, regressor, write_mixed_package, write_package
from tests.end_to_end.flags import change
from tests.live import LiveGateway, eventually

IRIS = classifier("iris", "2", classes=("setosa", "versicolor", "virginica"))
HOUSE = regressor("house", "1")
ROW = [5.5, 3.25, 1.5, 0.25]
ROWS = [ROW, [6.5, 3.0, 5.25, 2.5]]


def write_half_plus(root: Path, model: str, constant: float, version: str = "123") -> None:
    """TensorFlow Serving's toy models: y = x / 2 + constant, a number per row."""
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["more"], value_float=constant),
        helper.make_node("Mul", ["x", "half"], ["product"]),
        helper.make_node("Add", ["product", "more"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]
    proto = helper.make_model(
        helper.make_graph(nodes, model, inputs, outputs), opset_imports=OPSETS, ir_version=IR_VERSION
    )
    target = root / model / version
    target.mkdir(parents=True)
    onnx.save(proto, target / MODEL_FILE)


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveGateway]]:
    root = tmp_path_factory.mktemp("protocols")
    models = root / "models"
    for linear in (classifier("iris", "1", classes=("setosa", "versicolor", "virginica")), IRIS, HOUSE):
        write_package(models, linear)
    write_mixed_package(models)
    write_half_plus(models, "half_plus_two", 2.0)
    write_half_plus(models, "half_plus_three", 3.0)
    with contextlib.ExitStack() as stack:
        yield {
            door: stack.enter_context(
                LiveGateway(models, root / door, settings={"server": {"door": door, "default_model": "iris"}})
            )
            for door in ("fast", "asgi")
        }


@pytest.fixture
def gateway(gateways: dict[str, LiveGateway]) -> LiveGateway:
    return gateways["fast"]


def curl(gateway: LiveGateway, path: str, data: str, content_type: str = "application/x-www-form-urlencoded") -> Any:
    """What ``curl -d data`` sends, and the JSON that comes back."""
    reply = gateway.data.post(path, content=data, headers={"content-type": content_type})
    assert reply.status_code == 200, reply.text
    return reply.json()


# -- TensorFlow Serving, as its documentation shows it ----------------------------------------------


def test_the_calls_of_tensorflow_servings_documentation_get_its_answers(gateway: LiveGateway) -> None:
    half = "/v1/models/half_plus_three"
    assert curl(gateway, f"{half}:predict", '{"instances": [1.0,2.0,5.0]}') == {"predictions": [3.5, 4.0, 5.5]}
    assert curl(gateway, f"{half}:predict", '{"inputs": [1.0,2.0,5.0]}') == {"outputs": [3.5, 4.0, 5.5]}
    examples = '{"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}'
    assert curl(gateway, f"{half}:regress", examples) == {"results": [3.5, 4.0]}
    two = curl(gateway, "/v1/models/half_plus_two/versions/123:predict", '{"instances": [1.0,2.0,5.0]}')
    assert two == {"predictions": [2.5, 3.0, 4.5]}
    status = gateway.data.get(half).json()
    ok = {"error_code": "OK", "error_message": ""}
    assert status["model_version_status"] == [{"version": "123", "state": "AVAILABLE", "status": ok}]
    missing = gateway.data.post("/v1/models/half:predict", content='{"instances": [1.0,5.0]}')
    assert missing.status_code == 404
    assert missing.json()["error"].startswith("Servable not found for request: ")


def test_metadata_is_a_signature_def(gateway: LiveGateway) -> None:
    told = gateway.data.get("/v1/models/half_plus_two/metadata").json()
    assert told["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    found = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert found["inputs"] == {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x:0"}}
    assert found["method_name"] == "tensorflow/serving/predict"
    pinned = gateway.data.get("/v1/models/iris/versions/2/metadata").json()
    assert pinned["model_spec"]["version"] == "2"
    assert gateway.data.get("/v1/models/iris/labels/nope/metadata").status_code == 404


def test_both_clients_find_their_keys_on_the_path_that_they_share(gateway: LiveGateway) -> None:
    told = gateway.data.get("/v1/models/iris").json()
    assert (told["name"], told["ready"], told["model_version_status"][0]["version"]) == ("iris", True, "2")
    assert "iris" in gateway.data.get("/v1/models").json()["models"]
    assert gateway.data.get("/").json() == {"status": "alive"}
    explained = gateway.data.post("/v1/models/iris:explain", json={"instances": [ROW]})
    assert (explained.status_code, list(explained.json())) == (501, ["error"])


def test_what_is_malformed_is_told_in_tensorflow_servings_words(gateway: LiveGateway) -> None:
    for path in ("/v1/models/iris:foo", "/v1/models/iris/version/1:predict"):
        reply = gateway.data.post(path, json={})
        assert (reply.status_code, reply.json()) == (400, {"error": f"Malformed request: POST {path}"})
    assert gateway.data.get("/v1/models/iris:predict").status_code == 405
    for path in ("/v1/models/iris", "/v1/models/iris/versions/1/metadata"):
        reply = gateway.data.put(path)
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
    for body, words in {
        b"": "JSON Parse error: The document is empty",
        b"{oops": "JSON Parse error: ",
        b'{"signature_name": 100}': "'signature_name' key must be a string value.",
        b'{"instances": [1], "inputs": [1]}': "exactly one of 'instances' and 'inputs'",
    }.items():
        reply = gateway.data.post("/v1/models/iris:predict", content=body)
        assert reply.status_code == 400
        assert words in reply.json()["error"]


def test_labels_are_the_variants_of_the_route(gateways: dict[str, LiveGateway]) -> None:
    body = {"instances": [ROW]}
    for gateway in gateways.values():
        change(gateway, "iris.route", {"variants": {"stable": "2", "canary": "1"}})

        def labelled(gateway: LiveGateway = gateway) -> bool:
            reply = gateway.data.post("/v1/models/iris/labels/canary:predict", json=body)
            return reply.status_code == 200 and reply.headers["x-model-version"] == "1"

        eventually(labelled, "the label pins the version of its variant")
        reply = gateway.data.post("/v1/models/iris/labels/stable:predict", json=body)
        assert (reply.headers["x-model-version"], reply.headers["x-model-variant"]) == ("2", "pinned")
        status = gateway.data.get("/v1/models/iris/labels/canary").json()
        assert [told["version"] for told in status["model_version_status"]] == ["1"]
        unknown = gateway.data.post("/v1/models/iris/labels/nope:predict", json=body)
        assert unknown.status_code == 404
        assert unknown.json()["error"].startswith("Unrecognized servable version label: ")


# -- MLflow, as its documentation shows it ----------------------------------------------------------


def test_the_calls_of_mlflows_documentation_are_answered(gateway: LiveGateway) -> None:
    columns = list(IRIS.features)
    split = {"dataframe_split": {"columns": columns, "data": ROWS}}
    records = {"dataframe_records": [dict(zip(columns, row, strict=True)) for row in ROWS]}
    expected = {"predictions": IRIS.answer(ROWS)["label"].tolist()}
    for document in (split, records, {"instances": ROWS}, {"inputs": ROWS}):
        assert curl(gateway, "/invocations", json.dumps(document), "application/json") == expected
        assert curl(gateway, "/models/iris/invocations", json.dumps(document), "application/json") == expected
    lines = [",".join(columns), *(",".join(map(str, row)) for row in ROWS)]
    assert curl(gateway, "/invocations", "\n".join(lines) + "\n", "text/csv") == expected
    asked = curl(gateway, "/invocations", json.dumps({**split, "params": {"outputs": ["probabilities"]}}))
    np.testing.assert_allclose(asked["predictions"], IRIS.answer(ROWS)["probabilities"], atol=1e-6)
    assert {gateway.data.get(path).status_code for path in ("/ping", "/health", "/version")} == {200}


def test_a_column_that_does_not_fit_the_signature_is_named(gateway: LiveGateway) -> None:
    body = {"dataframe_split": {"columns": ["size", "colour"], "data": [[1.5, "red"], ["wide", 3]]}}
    reply = gateway.data.post("/models/paint/invocations", json=body)
    assert (reply.status_code, reply.json()["error_code"]) == (400, "BAD_REQUEST")
    for words in ("column 'size', row 1", 'string "wide"', "column 'colour', row 1", "a number"):
        assert words in reply.json()["message"]
    right = {"dataframe_split": {"columns": ["id", "colour", "size"], "data": [[7, "red", 2]]}}
    assert gateway.data.post("/models/paint/invocations", json=right).json() == {"predictions": [32.0]}


def test_a_path_without_a_model_means_the_only_one_while_there_is_but_one(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_half_plus(models, "first", 1.0)
    with LiveGateway(models, tmp_path / "state") as gateway:
        assert gateway.data.post("/invocations", json={"inputs": [1.0]}).json() == {"predictions": [1.5]}
        write_half_plus(models, "second", 2.0)

        def is_refused() -> bool:
            return gateway.data.post("/invocations", json={"inputs": [1.0]}).status_code == 404

        eventually(is_refused, "nobody knows any more which model is meant")
        reply = gateway.data.post("/invocations", json={"inputs": [1.0]})
        assert reply.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
        assert "server.default_model" in reply.json()["message"]

        def is_served() -> bool:
            named = gateway.data.post("/models/second/invocations", json={"inputs": [1.0]})
            return bool(named.json() == {"predictions": [2.5]})

        eventually(is_served, "the other model answers by its name")


# -- TorchServe, as its documentation shows it ------------------------------------------------------


def test_the_calls_of_torchserves_documentation_are_answered(gateway: LiveGateway) -> None:
    assert gateway.data.get("/ping").json() == {"status": "Healthy"}
    described = gateway.data.options("/").json()
    assert described["openapi"] == "3.0.1"
    assert set(described["paths"]["/predictions/{model}"]) == {"post", "put"}
    raw = np.array(ROW, np.float32).tobytes()
    told = IRIS.answer([ROW])
    for reply in (
        gateway.data.put("/predictions/iris", content=raw),  # curl -T
        gateway.data.post("/predictions/iris/2", content=raw, headers={"content-type": "application/octet-stream"}),
        gateway.data.post("/predictions/iris", files={"data": raw}),  # curl -F data=@file
        gateway.data.post("/predictions/iris", files={"data": ("row.json", json.dumps(ROW), "application/json")}),
        gateway.data.post("/predictions/iris", json={"data": ROW}),
        gateway.data.post("/predictions/iris", json=dict(zip(IRIS.features, ROW, strict=True))),
    ):
        assert reply.status_code == 200, reply.text
        assert reply.json()["label"] == told["label"][0]
        np.testing.assert_allclose(reply.json()["probabilities"], told["probabilities"][0], atol=1e-6)
    several = gateway.data.post("/predictions/iris", json=ROWS).json()
    assert [answer["label"] for answer in several] == IRIS.answer(ROWS)["label"].tolist()


def test_torchserves_management_paths_describe_and_change_nothing(gateway: LiveGateway) -> None:
    (described,) = gateway.data.get("/models/iris").json()
    assert (described["modelName"], described["modelVersion"]) == ("iris", "2")
    assert described["workers"][0]["status"] == "READY"
    assert gateway.data.get("/models/iris/2").json()[0]["modelVersion"] == "2"
    assert {"2"} <= {told["modelVersion"] for told in gateway.data.get("/models/iris/all").json()}
    page = gateway.data.get("/models", params={"limit": 2}).json()
    assert [told["modelName"] for told in page["models"]] == ["half_plus_three", "half_plus_two"]
    rest = gateway.data.get("/models", params={"next_page_token": page["nextPageToken"]}).json()
    assert [told["modelName"] for told in rest["models"]] == ["house", "iris", "paint"]
    for method, path in (("DELETE", "/models/iris"), ("OPTIONS", "/models"), ("PUT", "/models/iris/2")):
        reply = gateway.data.request(method, path)
        assert (reply.status_code, reply.json()["type"]) == (405, "MethodNotAllowedException")
        assert reply.headers["allow"] == "GET"
    missing = gateway.data.post("/predictions/nope", json=ROW)
    assert (missing.status_code, missing.json()["code"], missing.json()["type"]) == (404, 404, "ModelNotFoundException")
    bad = gateway.data.post("/predictions/iris", json=[1, 2, 3])
    assert (bad.status_code, bad.json()["type"]) == (400, "BadRequestException")
    assert gateway.data.post("/explanations/iris", json=ROW).status_code == 501


# -- all of them ------------------------------------------------------------------------------------


def tensor(rows: list[list[float]]) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "shape": [len(rows), 2], "datatype": "FP32", "data": rows}]}


def asked(row: list[float]) -> dict[str, tuple[str, bytes, str, Any]]:
    """The same row by every protocol: path, body, content type, and where its number is in the answer."""
    named = dict(zip(HOUSE.features, row, strict=True))
    columns, text = list(HOUSE.features), "application/json"
    split = {"dataframe_split": {"columns": columns, "data": [row]}}
    table = (",".join(columns) + "\n" + ",".join(map(str, row)) + "\n").encode()
    return {
        "native": ("/predict/house", _json({"rows": [named]}), text, lambda told: told["predictions"][0]["value"]),
        "oip": ("/v2/models/house/infer", _json(tensor([row])), text, lambda told: told["outputs"][0]["data"][0]),
        "rows": ("/v1/models/house:predict", _json({"instances": [row]}), text, lambda t: t["predictions"][0][0]),
        "columns": ("/v1/models/house:predict", _json({"inputs": [row]}), text, lambda told: told["outputs"][0][0]),
        "version": ("/v1/models/house/versions/1:predict", _json({"instances": [row]}), text,
                    lambda told: told["predictions"][0][0]),
        "regress": ("/v1/models/house:regress", _json({"examples": [named]}), text, lambda told: told["results"][0]),
        "split": ("/models/house/invocations", _json(split), text, lambda told: told["predictions"][0]),
        "csv": ("/models/house/invocations", table, "text/csv", lambda told: told["predictions"][0]),
        "torchserve": ("/predictions/house", _json(row), text, lambda told: told),
        "raw": ("/predictions/house", np.array(row, np.float32).tobytes(), "application/octet-stream",
                lambda told: told),
    }  # fmt: skip


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def comparable(reply: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """An answer without what is drawn or told anew for each request."""
    kept = [(name, value) for name, value in reply.headers.items() if name not in ("date", "server", "x-prediction-id")]
    return reply.status_code, re.sub(rb'"prediction_id":"[0-9a-f]{32}"', b"", reply.content), kept


def test_the_same_row_is_the_same_number_by_every_protocol_and_the_same_bytes_by_both_doors(
    gateways: dict[str, LiveGateway],
) -> None:
    for row in ([3.5, 40.25], [4.0, 30.5]):
        expected = float(HOUSE.answer([row])["value"][0, 0])
        answers: dict[str, list[Any]] = {}
        for gateway in gateways.values():
            for name, (path, body, content_type, number) in asked(row).items():
                for turn in range(3):  # learned, read by its envelope, from the cache
                    headers = {"content-type": content_type, "x-request-id": f"{name}-{turn}"}
                    reply = gateway.data.post(path, content=body, headers=headers)
                    assert reply.status_code == 200, (name, reply.text)
                    assert number(reply.json()) == pytest.approx(expected, rel=1e-6), name
                    answers.setdefault(f"{name}-{turn}", []).append(comparable(reply))
        numbers = {json.dumps(pair[0][0]) for pair in answers.values()}
        assert numbers == {"200"}
        for name, (fast, asgi) in answers.items():
            assert fast == asgi, name


BAD: dict[str, tuple[str, bytes]] = {
    **{
        path: (path, b'{"instances": [[1, "x"]]}') for path in ("/v1/models/house:predict", "/models/house/invocations")
    },
    "regress": ("/v1/models/house:regress", b'{"examples": [{"rooms": 1}]}'),
    "classify": ("/v1/models/house:classify", b'{"examples": [{"rooms": 1, "age": 2}]}'),
    "label": ("/v1/models/house/labels/nope:predict", b'{"instances": [[1, 2]]}'),
    "torchserve": ("/predictions/house", b"[1, 2, 3]"),
    "no model": ("/predictions/nope", b"[1]"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals_are_the_same_bytes_by_both_doors(gateways: dict[str, LiveGateway], name: str) -> None:
    path, body = BAD[name]
    fast, asgi = (
        comparable(gateway.data.post(path, content=body, headers={"x-request-id": "r"}))
        for gateway in gateways.values()
    )
    assert fast == asgi
    assert 400 <= fast[0] < 500


def test_the_same_bytes_by_two_protocols_never_share_an_answer(gateway: LiveGateway) -> None:
    """One body that means something to several protocols: each gives its own answer, first and from the cache."""
    body = b'{"instances": [[2.5, 17.5]]}'
    other = b'{"examples": [{"rooms": 2.5, "age": 17.5}], "instances": [[1.0, 1.0]]}'
    ways = {
        "/v1/models/house:predict": (body, "predictions"),
        "/models/house/invocations": (body, "predictions"),
        "/v1/models/house:regress": (other, "results"),
    }
    answers: dict[str, set[bytes]] = {path: set() for path in ways}
    for _ in range(4):
        for path, (sent, key) in ways.items():
            reply = gateway.data.post(path, content=sent)
            assert list(reply.json()) == [key]
            answers[path].add(reply.content)
    assert reply.headers["x-cache"] == "hit"
    assert {path: len(found) for path, found in answers.items()} == dict.fromkeys(ways, 1)
    assert len(set.union(*answers.values())) == 3
    # The same bytes as CSV are no JSON, and as a raw tensor they are too many.
    assert gateway.data.post("/models/house/invocations", content=body, headers={"content-type": "text/csv"}).is_error
    raw = gateway.data.post("/predictions/house", content=b"[1.5,22]", headers={"content-type": "application/json"})
    as_bytes = {"content-type": "application/octet-stream"}
    tensor_of_8_bytes = gateway.data.post("/predictions/house", content=b"[1.5,22]", headers=as_bytes)
    assert (raw.status_code, tensor_of_8_bytes.status_code) == (200, 200)
    assert raw.json() != tensor_of_8_bytes.json()


def test_classify_gives_the_score_of_each_class(gateway: LiveGateway) -> None:
    example = dict(zip(IRIS.features, ROW, strict=True))
    context = {"sepal_length": example.pop("sepal_length")}
    told = curl(gateway, "/v1/models/iris:classify", json.dumps({"context": context, "examples": [example]}))
    (pairs,) = told["results"]
    assert [label for label, _ in pairs] == ["setosa", "versicolor", "virginica"]
    np.testing.assert_allclose([score for _, score in pairs], IRIS.answer([ROW])["probabilities"][0], atol=1e-6)


def test_texts_may_come_as_base64(gateway: LiveGateway) -> None:
    red = {"b64": base64.b64encode(b"red").decode()}
    rows = {"instances": [{"size": 2.5, "colour": red}, {"size": 1, "colour": "blue"}]}
    assert curl(gateway, "/v1/models/paint:predict", json.dumps(rows)) == {"predictions": [[32.5], [11.0]]}
    columns = {"inputs": {"size": [[2.5], [1.0]], "colour": [["red"], [{"b64": "Ymx1ZQ=="}]]}}
    assert curl(gateway, "/v1/models/paint:predict", json.dumps(columns)) == {"outputs": [[32.5], [11.0]]}
