"""Every REST call of tritonclient, in its plain and its asyncio form, against a gateway with two workers."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.builders import classifier, write_package
from tests.live import LiveGateway, eventually

IRIS = classifier("iris", "1", classes=("setosa", "versicolor", "virginica"))
NEXT = classifier("iris", "2", classes=("setosa", "versicolor", "virginica"))
ROWS = np.random.default_rng(3).normal(size=(600, 4)).astype(np.float32)
CODINGS = ["gzip", "deflate"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("triton")
    for model in (IRIS, classifier("counted", "1")):
        write_package(root / "models", model)
    with LiveGateway(root / "models", root / "state", workers=2) as live:
        yield live


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[Any]:
    with triton.InferenceServerClient(gateway.data_url.removeprefix("http://")) as found:
        yield found


def sent(rows: Any = ROWS) -> list[Any]:
    tensor = triton.InferInput("input", list(rows.shape), "FP32")
    return [tensor.set_data_from_numpy(rows)]


def check(result: Any, rows: Any = ROWS, model: Any = IRIS) -> None:
    expected = model.answer(rows)
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected["probabilities"], atol=1e-6)
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]
    assert labels == expected["label"].tolist()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("coding", CODINGS)
def test_both_ways_compressed(client: Any, coding: str, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "label")]
    result = client.infer(
        "iris", sent(), outputs=wanted, request_compression_algorithm=coding, response_compression_algorithm=coding
    )
    check(result)


def test_requests_in_flight_side_by_side(gateway: LiveGateway) -> None:
    address = gateway.data_url.removeprefix("http://")
    with triton.InferenceServerClient(address, concurrency=4) as client:
        asked = [client.async_infer("iris", sent(ROWS[start : start + 3]), timeout=2_000_000) for start in range(8)]
        for start, request in enumerate(asked):
            check(request.get_result(), ROWS[start : start + 3])


@pytest.mark.parametrize(("priority", "status"), [(0, None), (1, None), (2, None), (7, None), (-1, "400")])
def test_priorities_and_ids_are_taken(client: Any, priority: int, status: str | None) -> None:
    if status is None:
        result = client.infer("iris", sent(ROWS[:2]), request_id="r-7", priority=priority, timeout=3_000_000)
        assert result.get_response()["id"] == "r-7"
        return
    with pytest.raises(InferenceServerException, match=r"parameters\.priority"):
        client.infer("iris", sent(ROWS[:2]), priority=priority)


def test_classes_with_their_labels(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
    found = client.infer("iris", sent(ROWS[:1]), outputs=wanted).as_numpy("probabilities")
    (value, place, label) = found[0, 0].decode().split(":")
    expected = IRIS.answer(ROWS[:1])["probabilities"][0]
    assert (int(place), label) == (int(expected.argmax()), IRIS.answer(ROWS[:1])["label"][0])
    assert float(value) == pytest.approx(float(expected.max()), abs=1e-6)
    assert found.shape == (1, 2)


def test_a_version_goes_by_the_name_of_its_variant_too(client: Any) -> None:
    result = client.infer("iris", sent(ROWS[:2]), model_version="stable")
    assert result.get_response()["model_version"] == "1"
    assert client.is_model_ready("iris", "stable")
    assert client.get_model_metadata("iris", "stable")["versions"] == ["1"]
    with pytest.raises(InferenceServerException, match="'canary' of model 'iris' is not loaded here; loaded: 1"):
        client.infer("iris", sent(ROWS[:2]), model_version="canary")


def test_the_configuration_of_a_model(client: Any) -> None:
    config = client.get_model_config("iris")
    assert config == client.get_model_config("iris", "1")
    assert (config["platform"], config["backend"], config["max_batch_size"]) == (
        "onnxruntime_onnx",
        "onnxruntime",
        16384,
    )
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": [4]}]
    assert config["output"][0] == {
        "name": "label", "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []},
    }  # fmt: skip
    with pytest.raises(InferenceServerException, match="'nope' is not served here"):
        client.get_model_config("nope")


def counted(client: Any, *of: str) -> tuple[int, ...]:
    (entry,) = client.get_inference_statistics(*of)["model_stats"]
    told = entry["inference_stats"]
    return (
        *(told[name]["count"] for name in ("success", "fail", "cache_hit", "cache_miss")),
        entry["inference_count"], entry["execution_count"], told["compute_infer"]["count"],
    )  # fmt: skip


def test_statistics_count_what_all_workers_did_also_one_that_has_died(client: Any, gateway: LiveGateway) -> None:
    since_ms = time.time() * 1e3
    bodies = [{"inputs": [{"name": "input", "shape": [2, 4], "datatype": "FP32", "data": [[1, 2, 3, n]] * 2}]}
              for n in range(12)]  # fmt: skip
    for body in bodies:
        with httpx.Client(base_url=gateway.data_url) as each:  # a connection of its own: it may be either worker
            assert each.post("/v2/models/counted/infer", json=body).status_code == 200
            assert each.post("/v2/models/counted/infer", json=body).headers["x-cache"] == "hit"
    with pytest.raises(InferenceServerException):
        client.infer("counted", sent(ROWS[:, :3]))
    expected = (24, 1, 12, 12, 24, 12, 12)
    eventually(lambda: counted(client, "counted") == expected, "both workers have counted")
    gateway.kill("worker", 0)
    eventually(lambda: counted(client, "counted", "1") == expected, "the dead worker's counts are there")
    first, second = client.get_inference_statistics()["model_stats"]
    assert [(each["name"], each["version"]) for each in (first, second)] == [("counted", "1"), ("iris", "1")]
    told = first["inference_stats"]
    assert min(told[name]["ns"] for name in ("success", "fail", "compute_input", "compute_infer", "cache_hit")) > 0
    assert told["compute_infer"]["ns"] + told["cache_hit"]["ns"] < told["success"]["ns"]
    assert since_ms - 1000 <= first["last_inference"] <= time.time() * 1e3
    with pytest.raises(InferenceServerException, match="version '9' of model 'iris' is not loaded"):
        client.get_inference_statistics("iris", "9")


def test_the_repository_on_the_data_port_is_looked_at_and_not_changed(client: Any, gateway: LiveGateway) -> None:
    ready = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("counted", "iris")]
    assert client.get_model_repository_index() == ready
    assert gateway.data.post("/v2/repository/index", json={"ready": True}).json() == ready
    assert gateway.data.post("/v2/repository/index", content=b"{").status_code == 400
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="on the admin port, with a token of the scope operator"):
            change("iris")


def test_models_are_loaded_and_unloaded_on_the_admin_port_with_a_token(client: Any, gateway: LiveGateway) -> None:
    token = {"Authorization": f"Bearer {gateway.admin_token}"}
    write_package(gateway.models, NEXT)
    with triton.InferenceServerClient(gateway.control_url.removeprefix("http://")) as admin:
        with pytest.raises(InferenceServerException, match="token"):
            admin.load_model("iris")
        index = admin.get_model_repository_index(headers=token)[1:]
        assert [(entry["version"], entry["state"]) for entry in index] == [("1", "READY"), ("2", "UNAVAILABLE")]
        admin.load_model("iris", headers=token)
        check(client.infer("iris", sent(ROWS[:2]), model_version="2"), ROWS[:2], NEXT)
        check(client.infer("iris", sent(ROWS[:2])), ROWS[:2], IRIS)
        admin.load_model("iris", headers=token)  # nothing more to do
        assert [entry["state"] for entry in client.get_model_repository_index()] == ["READY"] * 3
        admin.unload_model("iris", headers=token)
        eventually(lambda: len(client.get_model_repository_index()) == 2, "version 2 is gone")
        with pytest.raises(InferenceServerException, match="is not loaded here"):
            client.infer("iris", sent(ROWS[:2]), model_version="2")
        with pytest.raises(InferenceServerException, match="answer requests"):
            admin.unload_model("iris", headers=token)
        with pytest.raises(InferenceServerException, match="no package of a model 'nope'"):
            admin.load_model("nope", headers=token)
        with pytest.raises(InferenceServerException, match=r"parameters\.config"):
            admin.load_model("iris", headers=token, config="{}")
    rows = gateway.control.get("/admin/v1/audit").json()["rows"]
    verbs = [row["verb"] for row in rows if row["verb"].startswith("repository.")]
    assert sorted(verbs) == ["repository.load", "repository.unload"]


def is_iris(result: Any, rows: Any) -> bool:
    check(result, rows)
    return True


def body_of(client: Any) -> tuple[bytes, dict[str, str]]:
    """A request as the client writes it for others to send."""
    body, length = client.generate_request_body(sent(ROWS[:2]))
    return body, {"inference-header-content-length": str(length)}


# Every call that asks for something, by its name, and whether its answer is right.
OFFERED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bool]]] = {
    "is_server_live": (lambda client: client.is_server_live(), bool),
    "is_server_ready": (lambda client: client.is_server_ready(), bool),
    "is_model_ready": (lambda client: client.is_model_ready("iris", "1"), bool),
    "get_server_metadata": (lambda client: client.get_server_metadata(), lambda told: told["name"] == "sluicegate"),
    "get_model_metadata": (lambda client: client.get_model_metadata("iris"), lambda told: told["versions"] == ["1"]),
    "get_model_config": (lambda client: client.get_model_config("iris"), lambda told: told["name"] == "iris"),
    "get_inference_statistics": (
        lambda client: client.get_inference_statistics("iris"),
        lambda told: told["model_stats"][0]["version"] == "1",
    ),
    "get_model_repository_index": (
        lambda client: client.get_model_repository_index(),
        lambda told: told[0]["state"] == "READY",
    ),
    "infer": (lambda client: client.infer("iris", sent(ROWS[:2])), lambda told: is_iris(told, ROWS[:2])),
}
ADMIN, NO_PATH = "on the admin port, with a token of the scope operator", "no such path"
# Changes, and what is not among the extensions that the server names: the words in which it is refused.
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "load_model": (lambda client: client.load_model("iris"), ADMIN),
    "unload_model": (lambda client: client.unload_model("iris"), ADMIN),
    "get_trace_settings": (lambda client: client.get_trace_settings(), NO_PATH),
    "update_trace_settings": (lambda client: client.update_trace_settings("iris", {}), NO_PATH),
    "get_log_settings": (lambda client: client.get_log_settings(), NO_PATH),
    "update_log_settings": (lambda client: client.update_log_settings({}), NO_PATH),
    "get_system_shared_memory_status": (lambda client: client.get_system_shared_memory_status(), NO_PATH),
    "register_system_shared_memory": (lambda client: client.register_system_shared_memory("r", "/r", 8), NO_PATH),
    "unregister_system_shared_memory": (lambda client: client.unregister_system_shared_memory(), NO_PATH),
    "get_cuda_shared_memory_status": (lambda client: client.get_cuda_shared_memory_status(), NO_PATH),
    "register_cuda_shared_memory": (lambda client: client.register_cuda_shared_memory("r", b"", 0, 8), NO_PATH),
    "unregister_cuda_shared_memory": (lambda client: client.unregister_cuda_shared_memory(), NO_PATH),
}
# These ask nothing; async_infer has a test of its own.
OTHERS = {"close", "plugin", "register_plugin", "unregister_plugin", "generate_request_body", "parse_response_body"}


@pytest.mark.parametrize("kind", [triton, triton_aio], ids=["plain", "asyncio"])
def test_every_call_of_both_clients_is_answered_or_refused_in_words_that_they_read(
    gateway: LiveGateway, kind: Any
) -> None:
    """As both clients have the same calls, one table is asked by both."""
    calls = {name for name, _ in inspect.getmembers(kind.InferenceServerClient, callable) if not name.startswith("_")}
    assert calls - {"async_infer"} == {*OFFERED, *REFUSED, *OTHERS}

    async def scenario() -> None:
        async def told(call: Any) -> Any:
            return await call if inspect.isawaitable(call) else call

        client = kind.InferenceServerClient(gateway.data_url.removeprefix("http://"))
        try:
            for name, (ask, is_right) in OFFERED.items():
                assert is_right(await told(ask(client))), name
            offered = (await told(client.get_server_metadata()))["extensions"]
            assert not [name for name in offered if "shared_memory" in name or name in ("trace", "logging")]
            for ask, words in REFUSED.values():
                with pytest.raises(InferenceServerException, match=words):
                    await told(ask(client))
            body, headers = body_of(client)
            reply = gateway.data.post("/v2/models/iris/infer", content=body, headers=headers)
            length = int(reply.headers["inference-header-content-length"])
            check(client.parse_response_body(reply.content, header_length=length), ROWS[:2])
        finally:
            await told(client.close())

    asyncio.run(scenario())


def test_the_asyncio_client_with_every_coding_and_many_at_once(gateway: LiveGateway) -> None:
    async def scenario() -> None:
        address = gateway.data_url.removeprefix("http://")
        async with triton_aio.InferenceServerClient(address) as client:
            for coding in (None, *CODINGS):
                check(
                    await client.infer(
                        "iris", sent(), request_compression_algorithm=coding, response_compression_algorithm=coding
                    )
                )
            answers = await asyncio.gather(*(client.infer("iris", sent(ROWS[n : n + 1])) for n in range(10)))
            for number, answer in enumerate(answers):
                check(answer, ROWS[number : number + 1])

    asyncio.run(scenario())


def test_the_answer_names_its_coding_only_where_it_is_large(gateway: LiveGateway) -> None:
    def ask(rows: Any) -> httpx.Response:
        tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
        return gateway.data.post(
            "/v2/models/iris/infer", content=json.dumps({"inputs": [tensor]}), headers={"accept-encoding": "gzip"}
        )

    assert "content-encoding" not in ask(ROWS[:10]).headers
    large = ask(ROWS)
    assert (large.headers["content-encoding"], large.headers["vary"]) == ("gzip", "accept-encoding")
    assert len(large.json()["outputs"][0]["data"]) == 600
