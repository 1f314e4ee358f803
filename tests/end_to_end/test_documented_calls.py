"""What the documentation of TensorFlow Serving, MLflow and TorchServe tells to ask with curl, asked with curl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import classifier, regressor, write_half_plus, write_mixed_package, write_package
from tests.live import LiveGateway, eventually

IRIS = classifier("iris", "2", classes=("setosa", "versicolor", "virginica"))
ROW = [5.5, 3.25, 1.5, 0.25]
ROWS = [ROW, [6.5, 3.0, 5.25, 2.5]]
JSON = ("-H", "Content-Type: application/json")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("documented")
    models = root / "models"
    for linear in (IRIS, regressor("house", "1")):
        write_package(models, linear)
    write_mixed_package(models)
    write_half_plus(models, "half_plus_two", 2.0)
    write_half_plus(models, "half_plus_three", 3.0)
    with LiveGateway(models, root / "state", settings={"server": {"default_model": "iris"}}) as live:
        yield live


def curl(gateway: LiveGateway, path: str, *options: str) -> tuple[int, Any]:
    """The status and the JSON that curl gets."""
    asked = ["curl", "-s", "-w", "\n%{http_code}", *options, f"{gateway.data_url}{path}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


# -- TensorFlow Serving, as its documentation shows it ----------------------------------------------


def test_the_calls_of_tensorflow_servings_documentation_get_its_answers(gateway: LiveGateway) -> None:
    two, three = "/v1/models/half_plus_two", "/v1/models/half_plus_three"
    numbers = '{"instances": [1.0,2.0,5.0]}'
    assert curl(gateway, f"{three}:predict", "-d", numbers, "-X", "POST") == (200, {"predictions": [3.5, 4.0, 5.5]})
    assert curl(gateway, f"{two}:predict", "-d", numbers, "-X", "POST") == (200, {"predictions": [2.5, 3.0, 4.5]})
    pinned = curl(gateway, f"{two}/versions/123:predict", "-d", numbers)
    assert pinned == (200, {"predictions": [2.5, 3.0, 4.5]})
    columns = curl(gateway, f"{three}:predict", "-d", '{"inputs": [1.0,2.0,5.0]}')
    assert columns == (200, {"outputs": [3.5, 4.0, 5.5]})
    examples = '{"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}'
    assert curl(gateway, f"{three}:regress", "-d", examples, "-X", "POST") == (200, {"results": [3.5, 4.0]})
    status, told = curl(gateway, three)
    for key in ("name", "ready"):  # of KServe V1, beside TensorFlow Serving's own
        del told[key]
    ok = {"error_code": "OK", "error_message": ""}
    assert (status, told) == (200, {"model_version_status": [{"version": "123", "state": "AVAILABLE", "status": ok}]})
    missing = curl(gateway, "/v1/models/half:predict", "-d", '{"instances": [1.0,5.0]}', "-X", "POST")
    assert missing == (404, {"error": "Servable not found for request: Latest(half)"})


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


# -- MLflow, as its documentation shows it ----------------------------------------------------------


def test_the_calls_of_mlflows_documentation_are_answered(gateway: LiveGateway) -> None:
    columns = list(IRIS.features)
    records = [dict(zip(columns, row, strict=True)) for row in ROWS]
    split = {"dataframe_split": {"columns": columns, "index": [0, 1], "data": ROWS}}
    expected = (200, {"predictions": IRIS.answer(ROWS)["label"].tolist()})
    for document in (split, {"dataframe_records": records}, {"instances": ROWS}, {"inputs": ROWS}, records):
        assert curl(gateway, "/invocations", *JSON, "--data", json.dumps(document)) == expected
        assert curl(gateway, "/models/iris/invocations", *JSON, "-d", json.dumps(document)) == expected
    lines = "\n".join([",".join(columns), *(",".join(map(str, row)) for row in ROWS)])
    for kind in ("text/csv", "application/csv", "text/csv; charset=utf-8"):
        assert curl(gateway, "/invocations", "-H", f"Content-Type: {kind}", "--data-binary", lines) == expected
    status, told = curl(gateway, "/invocations", "-H", "Content-Type: application/csv", "--data", "1,2,3,4")
    assert (status, told["error_code"]) == (400, "BAD_REQUEST")  # no line of names: which number is which?
    assert "a line of column names and at least one row" in told["message"]
    wanted = json.dumps({**split, "params": {"outputs": ["probabilities"]}})
    status, told = curl(gateway, "/invocations", *JSON, "-d", wanted)
    np.testing.assert_allclose(told["predictions"], IRIS.answer(ROWS)["probabilities"], atol=1e-6)
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


def test_the_calls_of_torchserves_documentation_are_answered(gateway: LiveGateway, tmp_path: Path) -> None:
    assert curl(gateway, "/ping") == (200, {"status": "Healthy"})
    _, described = curl(gateway, "", "-X", "OPTIONS")
    assert described["openapi"] == "3.0.1"
    assert set(described["paths"]["/predictions/{model}"]) == {"post", "put"}
    raw, row, rows = tmp_path / "row.bin", tmp_path / "row.json", tmp_path / "rows.json"
    raw.write_bytes(np.array(ROW, np.float32).tobytes())
    row.write_text(json.dumps({"data": ROW}))
    rows.write_text(json.dumps({"instances": ROWS}))
    expected = IRIS.answer([ROW])
    for options in (
        ("-T", str(raw)),
        ("-T", str(row)),
        ("-F", f"data=@{raw}"),
        ("-F", f"data=@{row}"),
        ("-F", f"body=@{row};type=application/json"),
        ("-H", "Content-Type: application/octet-stream", "--data-binary", f"@{raw}"),
        (*JSON, "-d", json.dumps(dict(zip(IRIS.features, ROW, strict=True)))),
    ):
        for path in ("/predictions/iris", "/predictions/iris/2"):
            status, told = curl(gateway, path, *options)
            assert (status, told.get("label")) == (200, expected["label"][0]), (options, told)
            np.testing.assert_allclose(told["probabilities"], expected["probabilities"][0], atol=1e-6)
    status, told = curl(gateway, "/predictions/iris", "-F", f"data=@{raw}", "-F", f"data=@{row}")
    assert (status, [each["label"] for each in told]) == (200, [expected["label"][0]] * 2)
    status, told = curl(gateway, "/v1/models/iris:predict", *JSON, "--data", f"@{rows}")
    assert [each["label"] for each in told["predictions"]] == IRIS.answer(ROWS)["label"].tolist()
    explained = curl(gateway, "/explanations/iris", "-T", str(raw))
    assert (explained[0], explained[1]["code"]) == (501, 501)


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
