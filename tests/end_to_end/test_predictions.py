"""Predictions through the door: both protocols, a client that we did not write, and every kind of bad input."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.builders import classifier, regressor, write_bare, write_mixed_package, write_package
from tests.live import LiveGateway, eventually
from tests.traffic import Client

IRIS = classifier("iris", "2")
HOUSE = regressor("house", "1")
WORDS = classifier("words", "1", classes=("no", "yes"))
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3], [5.9, 3.0, 4.2, 1.5]]


def named(rows: Any = ROWS) -> dict[str, Any]:
    return {"rows": [dict(zip(IRIS.features, row, strict=True)) for row in rows]}


def oip(rows: Any = ROWS, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "input", "shape": [len(rows), 4], "datatype": "FP32", "data": rows, **changes}
    return {"inputs": [tensor]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("predictions")
    models = root / "models"
    write_package(models, classifier("iris", "1"), golden=True)
    write_package(models, IRIS, golden=True)
    write_package(models, WORDS, golden=True)
    write_bare(models, HOUSE)
    write_mixed_package(models)
    shutil.copytree(models / "house", models / "twin")
    with LiveGateway(models, root / "state") as live:
        yield live


def test_equal_files_under_two_names_do_not_share_answers(gateway: LiveGateway) -> None:
    for name in ("twin", "house"):
        body = {"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [4.0, 30.0]}]}
        for _ in range(2):  # the second from the cache
            reply = gateway.data.post(f"/v2/models/{name}/infer", json=body)
            assert (reply.status_code, reply.json()["model_name"]) == (200, name), reply.text
        assert reply.headers["x-cache"] == "hit"


def test_named_rows_get_labels_and_probabilities_by_name(gateway: LiveGateway) -> None:
    reply = gateway.data.post("/predict/iris", json=named())
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    expected = IRIS.answer(ROWS)
    assert answer["model"] == "iris"
    assert answer["model_version"] == "2"  # the highest version is what a model without a flag starts with
    assert answer["variant"] == "stable"
    assert answer["prediction_id"] == reply.headers["x-prediction-id"]
    assert [p["label"] for p in answer["predictions"]] == expected["label"].tolist()
    for prediction, probabilities in zip(answer["predictions"], expected["probabilities"], strict=True):
        assert list(prediction["probabilities"]) == ["0", "1", "2"]
        np.testing.assert_allclose(list(prediction["probabilities"].values()), probabilities, atol=1e-6)


def test_the_columnar_form_gives_the_same_numbers(gateway: LiveGateway) -> None:
    columns = list(reversed(IRIS.features))
    reply = gateway.data.post("/predict/iris", json={"columns": columns, "rows": [row[::-1] for row in ROWS]})
    assert reply.json()["predictions"] == gateway.data.post("/predict/iris", json=named()).json()["predictions"]


def test_a_mixed_package_takes_numbers_and_texts(gateway: LiveGateway) -> None:
    body = {"rows": [{"size": 2.5, "colour": "red"}, {"size": 1, "colour": "unseen"}]}
    reply = gateway.data.post("/predict/paint", json=body)
    assert reply.json()["predictions"] == [{"value": 32.5}, {"value": 1.0}]


def test_text_labels_come_back_as_text(gateway: LiveGateway) -> None:
    reply = gateway.data.post("/predict/words", json=named())
    assert [p["label"] for p in reply.json()["predictions"]] == WORDS.answer(ROWS)["label"].tolist()


def test_a_bare_onnx_file_is_served_with_features_named_by_position(gateway: LiveGateway) -> None:
    body = {"rows": [{"input[0]": 3, "input[1]": 40}]}
    reply = gateway.data.post("/predict/house", json=body)
    expected = float(HOUSE.answer([[3, 40]])["value"][0, 0])
    assert reply.json()["predictions"][0]["value"] == pytest.approx(expected, rel=1e-5)


def test_reply_headers_stand_in_the_order_of_the_contract(gateway: LiveGateway) -> None:
    reply = gateway.data.post("/predict/iris", json=named(), headers={"x-request-id": "mine-7"})
    names = [name for name in reply.headers if name.startswith("x-")]
    assert names == [
        "x-request-id",
        "x-prediction-id",
        "x-model-version",
        "x-model-variant",
        "x-flag-revision",
        "x-cache",
    ]
    assert reply.headers["x-request-id"] == "mine-7"
    other = gateway.data.post("/predict/iris", json=named(), headers={"x-request-id": "tab\tinside"})
    assert other.headers["x-request-id"] != "tab\tinside"
    assert other.headers["x-prediction-id"] != reply.headers["x-prediction-id"]


def test_an_equal_question_is_answered_from_the_cache_by_either_protocol(gateway: LiveGateway) -> None:
    rows = [[1.25, 2.5, 3.75, 5.0]]
    first = gateway.data.post("/predict/iris", json=named(rows))
    again = gateway.data.post("/predict/iris", json=named(rows))
    other = gateway.data.post("/v2/models/iris/infer", json=oip(rows))
    assert [r.headers["x-cache"] for r in (first, again, other)] == ["miss", "hit", "hit"]
    assert first.json()["predictions"] == again.json()["predictions"]
    assert first.json()["prediction_id"] != again.json()["prediction_id"]


def test_equal_questions_at_the_same_time_share_one_run(gateway: LiveGateway) -> None:
    body = json.dumps(named([[9.5, 8.5, 7.5, 6.5]])).encode()

    async def burst() -> list[str]:
        async with asyncio.timeout(20):
            clients = [await Client(gateway.data_url).__aenter__() for _ in range(20)]
            answers = await asyncio.gather(*(client.post("/predict/iris", body) for client in clients))
            for client in clients:
                await client.__aexit__(None, None, None)
        assert {answer.status for answer in answers} == {200}
        assert len({json.dumps(answer.json()["predictions"]) for answer in answers}) == 1
        return [answer.headers["x-cache"] for answer in answers]

    caches = asyncio.run(burst())
    assert caches.count("miss") == 1
    assert set(caches) <= {"miss", "shared", "hit"}


def test_a_version_can_be_asked_for_by_number_if_it_is_loaded(gateway: LiveGateway) -> None:
    reply = gateway.data.post("/v2/models/iris/versions/2/infer", json=oip())
    assert reply.status_code == 200
    assert reply.headers["x-model-variant"] == "pinned"
    missing = gateway.data.post("/v2/models/iris/versions/1/infer", json=oip())
    assert missing.status_code == 404
    assert "loaded: 2" in missing.json()["error"]


def test_health_and_metadata(gateway: LiveGateway) -> None:
    assert gateway.data.get("/livez").json() == {"live": True}
    assert gateway.data.get("/readyz").status_code == 200
    assert gateway.data.get("/v2").json()["name"] == "sluicegate"
    assert gateway.data.get("/v2/models").json() == {"models": ["house", "iris", "paint", "twin", "words"]}
    assert gateway.data.get("/v2/models/iris/versions/9").status_code == 404
    assert gateway.data.get("/v2/models/nope/ready").status_code == 404
    assert gateway.data.get("/v2/models/iris/versions/2/ready").json() == {"name": "iris", "ready": True}


# -- a client that we did not write -----------------------------------------------------------------


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[Any]:
    with triton.InferenceServerClient(gateway.data_url.removeprefix("http://")) as found:
        yield found


def test_tritonclient_asks_for_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "2")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "sluicegate"
    metadata = client.get_model_metadata("iris")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert [output["name"] for output in metadata["outputs"]] == ["label", "probabilities"]


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary-in", "json-in"])
@pytest.mark.parametrize("binary_out", [True, False, None], ids=["binary-out", "json-out", "default-out"])
def test_tritonclient_infers(client: Any, binary_in: bool, binary_out: bool | None) -> None:
    sent = triton.InferInput("input", [3, 4], "FP32")
    sent.set_data_from_numpy(np.array(ROWS, np.float32), binary_data=binary_in)
    wanted = (
        None
        if binary_out is None
        else [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "label")]
    )
    result = client.infer("iris", [sent], outputs=wanted, request_id="r-1")
    assert result.get_response()["id"] == "r-1"
    expected = IRIS.answer(ROWS)
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected["probabilities"], atol=1e-6)
    np.testing.assert_array_equal(result.as_numpy("label"), expected["label"])


def test_tritonclient_reads_our_errors(client: Any) -> None:
    sent = triton.InferInput("input", [1, 3], "FP32")
    sent.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(InferenceServerException, match=r"inputs\.input\.shape.*\[-1, 4\]"):
        client.infer("iris", [sent])
    with pytest.raises(InferenceServerException, match="'nope' is not served here"):
        client.infer("nope", [sent])


# -- bad input --------------------------------------------------------------------------------------

GOOD = dict(zip(IRIS.features, ROWS[0], strict=True))
BAD_NATIVE: dict[str, tuple[bytes, str]] = {
    "bad JSON": (b"{oops", "body"),
    "not an object": (b"[1, 2]", "body"),
    "null": (json.dumps({"rows": [{**GOOD, "petal_width": None}]}).encode(), "petal_width"),
    "a string for a number": (json.dumps({"rows": [{**GOOD, "petal_width": "0.2"}]}).encode(), "petal_width"),
    "unknown name": (json.dumps({"rows": [{**GOOD, "petal_size": 1}]}).encode(), "petal_size"),
    "missing feature": (json.dumps({"rows": [{"petal_width": 1}]}).encode(), "sepal_length"),
    "wrong type": (json.dumps({"rows": [{**GOOD, "petal_width": [1]}]}).encode(), "petal_width"),
    "NaN": (json.dumps({"rows": [{**GOOD, "petal_width": float("nan")}]}).encode(), "petal_width"),
}


@pytest.mark.parametrize("kind", BAD_NATIVE)
def test_a_bad_native_body_is_refused_by_field(gateway: LiveGateway, kind: str) -> None:
    body, field = BAD_NATIVE[kind]
    reply = gateway.data.post("/predict/iris", content=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["code"] == "invalid_input"
    assert field in error["field"]
    assert error["came"]
    assert error["expected"]


BAD_OIP: dict[str, tuple[bytes, str]] = {
    "bad JSON": (b"", "body"),
    "wrong shape": (json.dumps(oip(shape=[3, 5])).encode(), "inputs.input.shape"),
    "wrong type": (json.dumps(oip(datatype="INT64")).encode(), "inputs.input.datatype"),
    "null": (json.dumps(oip([[1, 2, 3, None]])).encode(), "inputs.input.data[3]"),
    "unknown name": (json.dumps(oip(name="x")).encode(), "inputs[0].name"),
    "NaN": (json.dumps(oip([[1, 2, 3, float("nan")]])).encode(), "petal_width"),
}


@pytest.mark.parametrize("kind", BAD_OIP)
def test_a_bad_oip_body_is_refused_by_field(gateway: LiveGateway, kind: str) -> None:
    body, field = BAD_OIP[kind]
    reply = gateway.data.post("/v2/models/iris/infer", content=body)
    assert reply.status_code == 400
    assert field in reply.json()["error"]


@pytest.mark.parametrize("path", ["/predict/iris", "/v2/models/iris/infer"])
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_a_body_of_100_megabytes_is_refused(gateway: LiveGateway, path: str, chunked: bool) -> None:
    chunk = b"x" * 1_000_000
    content: Any = (chunk for _ in range(100)) if chunked else chunk * 100
    reply = gateway.data.post(path, content=content)
    assert reply.status_code == 413
    assert "16777216 bytes" in reply.text
    assert gateway.data.post("/predict/iris", json=named()).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/predict/nope", 404),
        ("POST", "/v2/models/nope/infer", 404),
        ("GET", "/predict/iris", 405),
        ("GET", "/nothing/here", 404),
        ("POST", "/predict/..%2f..%2fetc", 404),
    ],
)
def test_unknown_models_and_paths(gateway: LiveGateway, method: str, path: str, status: int) -> None:
    reply = gateway.data.request(method, path, content=b"{}" if method == "POST" else None)
    assert reply.status_code == status
    assert "error" in reply.json()


@pytest.mark.parametrize("value", ["soon", "0", "-5", "nan"])
def test_a_deadline_that_is_no_time_is_refused(gateway: LiveGateway, value: str) -> None:
    reply = gateway.data.post("/predict/iris", json=named(), headers={"x-request-timeout-ms": value})
    assert reply.status_code == 400
    assert reply.json()["error"]["field"] == "header x-request-timeout-ms"


def test_an_encoding_that_is_not_read_is_refused(gateway: LiveGateway) -> None:
    reply = gateway.data.post("/predict/iris", content=b"x", headers={"content-encoding": "br"})
    assert reply.status_code == 415


def test_bad_requests_harm_no_neighbour_in_the_same_batch(gateway: LiveGateway) -> None:
    """Good and bad requests at once, many times over: each good one gets its own numbers."""
    bad = [body for body, _ in BAD_NATIVE.values()]

    async def client(number: int) -> None:
        async with Client(gateway.data_url) as connection:
            for turn in range(25):
                if number % 2:
                    answer = await connection.post("/predict/iris", bad[(number + turn) % len(bad)])
                    assert answer.status == 400
                else:
                    row = [float(number), float(turn), 0.5, 1.5]
                    answer = await connection.post("/predict/iris", json.dumps(named([row])).encode())
                    assert answer.status == 200, answer.body
                    probabilities = list(answer.json()["predictions"][0]["probabilities"].values())
                    np.testing.assert_allclose(probabilities, IRIS.answer([row])["probabilities"][0], atol=1e-6)

    async def all_clients() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*(client(number) for number in range(40)))

    asyncio.run(all_clients())


def test_what_was_refused_is_counted_by_its_code(gateway: LiveGateway) -> None:
    gateway.data.post("/predict/nope", content=b"{}")

    def counted() -> bool:
        page = gateway.control.get("/metrics").text
        return 'sluicegate_refused_total{code="unknown_model"}' in page

    assert eventually(counted, "the refusal is on the metrics page")


def test_a_client_that_leaves_harms_nobody(gateway: LiveGateway, tmp_path: Path) -> None:
    async def leave_and_stay() -> int:
        body = json.dumps(named([[4.0, 4.5, 4.25, 4.75]])).encode()
        leaving = [await Client(gateway.data_url).__aenter__() for _ in range(10)]
        for client in leaving:
            head = f"POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            await client.send(head + body)
            await client.__aexit__(None, None, None)
        async with Client(gateway.data_url) as staying:
            return (await staying.post("/predict/iris", body)).status

    assert asyncio.run(leave_and_stay()) == 200

    def nothing_in_flight() -> bool:
        return "sluicegate_in_flight_requests 0.0" in gateway.control.get("/metrics").text

    assert eventually(nothing_in_flight, "all requests have left the worker")


def test_httpx_keeps_its_connection(gateway: LiveGateway) -> None:
    with httpx.Client(base_url=gateway.data_url) as client:
        assert {client.post("/predict/iris", json=named()).status_code for _ in range(5)} == {200}
