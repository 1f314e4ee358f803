"""The prediction cache as operators and clients meet it: emptied by flag, and never one version for another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.flags import declare, must_change, split
from tests.live import LiveGateway, eventually

BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}
).encode()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    for model, version in (("iris", "1"), ("other", "1")):
        write_package(tmp_path / "models", classifier(model, version))
    with LiveGateway(tmp_path / "models", tmp_path / "state") as live:
        yield live


def ask(gateway: LiveGateway, model: str = "iris") -> httpx.Response:
    reply = gateway.data.post(f"/v2/models/{model}/infer", content=BODY)
    assert reply.status_code == 200, reply.text
    return reply


def cache(gateway: LiveGateway, model: str = "iris") -> str:
    return ask(gateway, model).headers["x-cache"]


def put_cache_flag(gateway: LiveGateway, *, enabled: bool) -> None:
    flag = {"state": "ENABLED", "variants": {"on": {"enabled": enabled}}, "defaultVariant": "on"}
    headers = {"if-match": "*", "x-change-reason": "test"}
    if gateway.control.get("/admin/v1/flags/iris.cache").status_code == 404:
        headers = {"if-none-match": "*", "x-change-reason": "test"}
    reply = gateway.control.put("/admin/v1/flags/iris.cache", json=flag, headers=headers)
    assert reply.status_code in (200, 201), reply.text


def test_switching_the_cache_of_a_model_off_forgets_its_answers_and_no_others(gateway: LiveGateway) -> None:
    assert [cache(gateway), cache(gateway)] == ["miss", "hit"]
    assert [cache(gateway, "other"), cache(gateway, "other")] == ["miss", "hit"]
    put_cache_flag(gateway, enabled=False)
    eventually(lambda: cache(gateway) == "bypass", "the cache of iris is off")
    put_cache_flag(gateway, enabled=True)
    seen: list[str] = []

    def on_again() -> bool:
        seen.append(cache(gateway))
        return seen[-1] != "bypass"

    eventually(on_again, "the cache of iris is on")
    assert seen[-1] == "miss"
    assert cache(gateway, "other") == "hit"


def test_an_answer_of_one_version_is_never_given_for_another(gateway: LiveGateway) -> None:
    before = [ask(gateway).json() for _ in range(2)][1]
    write_package(gateway.models, classifier("iris", "2"))
    declare(gateway, "iris", "canary", "2")
    must_change(gateway, "iris.route", {"targeting": split(100)})
    eventually(lambda: ask(gateway).headers["x-model-version"] == "2", "version 2 answers")
    after = ask(gateway).json()
    assert after["model_version"] == "2"
    assert after["outputs"][1]["data"] != before["outputs"][1]["data"]
