"""Every protocol through both doors: equal numbers and bytes, labels, and no answer that two share."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.builders import classifier, regressor, write_mixed_package, write_package
from tests.end_to_end.flags import change
from tests.live import LiveGateway, eventually

IRIS = classifier("iris", "2", classes=("setosa", "versicolor", "virginica"))
HOUSE = regressor("house", "1")
ROW = [5.5, 3.25, 1.5, 0.25]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveGateway]]:
    root = tmp_path_factory.mktemp("protocols")
    models = root / "models"
    for linear in (classifier("iris", "1", classes=("setosa", "versicolor", "virginica")), IRIS, HOUSE):
        write_package(models, linear)
    write_mixed_package(models)
    with contextlib.ExitStack() as stack:
        yield {
            door: stack.enter_context(
                LiveGateway(models, root / door, settings={"server": {"door": door, "default_model": "house"}})
            )
            for door in ("fast", "asgi")
        }


@pytest.fixture
def gateway(gateways: dict[str, LiveGateway]) -> LiveGateway:
    return gateways["fast"]


def answer(gateway: LiveGateway, path: str, document: Any) -> Any:
    reply = gateway.data.post(path, json=document)
    assert reply.status_code == 200, reply.text
    return reply.json()


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
        "native columns": ("/predict/house", _json({"columns": columns[::-1], "rows": [row[::-1]]}), text,
                           lambda told: told["predictions"][0]["value"]),
        "oip version": ("/v2/models/house/versions/stable/infer", _json(tensor([row])), text,
                        lambda told: told["outputs"][0]["data"][0]),
        "label": ("/v1/models/house/labels/stable:regress", _json({"examples": [named]}), text,
                  lambda told: told["results"][0]),
        "rows": ("/v1/models/house:predict", _json({"instances": [row]}), text, lambda t: t["predictions"][0][0]),
        "columns": ("/v1/models/house:predict", _json({"inputs": [row]}), text, lambda told: told["outputs"][0][0]),
        "version": ("/v1/models/house/versions/1:predict", _json({"instances": [row]}), text,
                    lambda told: told["predictions"][0][0]),
        "regress": ("/v1/models/house:regress", _json({"examples": [named]}), text, lambda told: told["results"][0]),
        "split": ("/models/house/invocations", _json(split), text, lambda told: told["predictions"][0]),
        "records": ("/invocations", _json({"dataframe_records": [named]}), text, lambda told: told["predictions"][0]),
        "tensors": ("/invocations", _json({"inputs": [row]}), text, lambda told: told["predictions"][0]),
        "csv": ("/models/house/invocations", table, "text/csv", lambda told: told["predictions"][0]),
        "torchserve": ("/predictions/house", _json(row), text, lambda told: told),
        "features": ("/predictions/house/1", _json(named), text, lambda told: told),
        "form": ("/predictions/house", b'--B\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + _json(row)
                 + b"\r\n--B--\r\n", "multipart/form-data; boundary=B", lambda told: told),
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


def test_of_every_two_protocols_that_take_one_body_each_answers_for_itself(gateways: dict[str, LiveGateway]) -> None:
    """Bodies that mean something, and something else, to several protocols: whoever is asked first, from both doors."""
    features = {"rooms": 1.5, "age": 20.25}
    tensors = [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [4.5, 60.0]}]
    bodies = {
        "rows": {**features, "examples": [{"rooms": 2.5, "age": 30.5}], "instances": [[3.5, 40.75]]},
        "columns": {**features, "examples": [{"rooms": 2.75, "age": 31.5}], "inputs": [[3.75, 41.75]]},
        "tensors": {**features, "examples": [{"rooms": 2.25, "age": 32.5}], "inputs": tensors},
        "records": {**features, "examples": [{"rooms": 2.125, "age": 33.5}], "dataframe_records": [features]},
    }
    paths = {
        "oip": "/v2/models/house/infer",
        "tfs": "/v1/models/house:predict",
        "tfs_regress": "/v1/models/house:regress",
        "mlflow": "/models/house/invocations",
        "torchserve": "/predictions/house",
    }
    for gateway in gateways.values():
        pairs: set[frozenset[str]] = set()
        for number, body in enumerate(bodies.values()):
            sent = _json({**body, "id": f"{number}"})
            takers: dict[str, bytes] = {}
            for _turn in range(4):
                for name, path in (*paths.items(), *reversed(paths.items())):
                    reply = gateway.data.post(path, content=sent)
                    if reply.status_code == 200:
                        assert takers.setdefault(name, reply.content) == reply.content, name
                    else:
                        assert name not in takers
            assert len(set(takers.values())) == len(takers)
            pairs |= {frozenset(pair) for pair in itertools.combinations(takers, 2)}
        told = {frozenset(pair) for pair in itertools.combinations(paths, 2)}
        # What is right as OIP's inputs is wrong as the others'.
        assert told - pairs == {frozenset({"oip", "tfs"}), frozenset({"oip", "mlflow"})}


def test_classify_gives_the_score_of_each_class(gateway: LiveGateway) -> None:
    example = dict(zip(IRIS.features, ROW, strict=True))
    context = {"sepal_length": example.pop("sepal_length")}
    told = answer(gateway, "/v1/models/iris:classify", {"context": context, "examples": [example]})
    (pairs,) = told["results"]
    assert [label for label, _ in pairs] == ["setosa", "versicolor", "virginica"]
    np.testing.assert_allclose([score for _, score in pairs], IRIS.answer([ROW])["probabilities"][0], atol=1e-6)


def test_texts_may_come_as_base64(gateway: LiveGateway) -> None:
    red = {"b64": base64.b64encode(b"red").decode()}
    rows = {"instances": [{"size": 2.5, "colour": red}, {"size": 1, "colour": "blue"}]}
    assert answer(gateway, "/v1/models/paint:predict", rows) == {"predictions": [[32.5], [11.0]]}
    columns = {"inputs": {"size": [[2.5], [1.0]], "colour": [["red"], [{"b64": "Ymx1ZQ=="}]]}}
    assert answer(gateway, "/v1/models/paint:predict", columns) == {"outputs": [[32.5], [11.0]]}


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
