"""Looking into workers: what they tell of themselves on the admin port, and the stacks of one that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.flags import must_change
from tests.holding import held
from tests.live import LiveGateway, eventually

IRIS = classifier()
ROW = dict.fromkeys(IRIS.features, 1.0)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("debug")
    write_package(root / "models", IRIS)
    with LiveGateway(root / "models", root / "state", workers=2, settings={"limits": {"max_in_flight": 77}}) as live:
        yield live


def workers(gateway: LiveGateway) -> list[dict[str, Any]]:
    answer = gateway.control.get("/debug/workers")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["workers"]
    return found


def token(gateway: LiveGateway, scope: str) -> dict[str, str]:
    made = gateway.control.post("/admin/v1/tokens", json={"name": f"a-{scope}", "scope": scope})
    assert made.status_code == 201, made.text
    return {"authorization": f"Bearer {made.json()['token']}"}


def test_each_worker_tells_what_it_looks_like_inside(gateway: LiveGateway) -> None:
    for _ in range(3):
        assert gateway.data.post("/predict/iris", json={"rows": [ROW]}).status_code == 200

    def counted() -> list[dict[str, Any]] | None:
        found = workers(gateway)
        asked = [sum(one["versions"][0]["cache"]["results"].values()) for one in found]
        return found if sum(asked) == 3 else None

    found = eventually(counted, "both workers have told, and counted what was asked")
    assert {one["worker"]: one["pid"] for one in found} == gateway.child_pids("worker")
    status = gateway.control.get("/admin/v1/status").json()
    for one in found:
        assert (one["answers"], one["phase"]) == (True, "serving")
        assert one["limits"]["max_in_flight"] == 77
        assert one["in_flight"] == {"requests": 0, "bytes": 0}
        assert one["connections"] >= 0
        assert one["flags"]["revision"] == status["revision"]
        assert one["flags"]["models"]["iris"]["default"] == {"variant": "stable", "version": "1"}
        (version,) = one["versions"]
        assert (version["model"], version["version"], version["state"]) == ("iris", "1", "warm")
        assert version["model_bytes"] == (gateway.models / "iris" / "1" / "model.onnx").stat().st_size
        assert version["queue"]["rows"] == version["queue"]["oldest_s"] == 0
        assert version["queue"]["cost"]["runs"] > 0
        assert version["queue"]["cost"]["base_s"] >= 0
        assert one["memory_bytes"]["resident"] > 10_000_000
        assert {"MainThread", "sampler", "labels"} <= {thread["name"] for thread in one["threads"]}
    assert len({one["flags"]["digest"] for one in found}) == 1
    assert sum(one["cache"]["entries"] for one in found) >= 1
    names = {Path(f"/proc/{one['pid']}/comm").read_text().strip() for one in found}
    assert names == {"worker-0", "worker-1"}


def test_what_is_told_is_of_now(gateway: LiveGateway) -> None:
    before = workers(gateway)[0]["flags"]
    revision = must_change(gateway, "iris.route", {"variants": {"twin": "1"}})
    after = eventually(lambda: (now := workers(gateway)[0]["flags"])["digest"] != before["digest"] and now, "adopted")
    assert after["revision"] == revision


def test_the_stacks_of_a_worker_are_told_with_the_names_of_its_threads(gateway: LiveGateway) -> None:
    for _ in range(2):  # the second time is not longer
        told = gateway.control.get("/debug/stacks", params={"worker": 1}).json()
        assert told["pid"] == gateway.child_pids("worker")[1]
        stacks = {thread["name"]: thread["stack"] for thread in told["threads"]}
        assert any("run_worker" in line for line in stacks["MainThread"])
        assert any("sampler.py" in line for line in stacks["sampler"])
        assert len(told["threads"]) == len(stacks)
    assert gateway.data.post("/predict/iris", json={"rows": [ROW]}).status_code == 200


def test_a_worker_that_stands_still_is_told_of_as_it_was(gateway: LiveGateway) -> None:
    workers(gateway)
    with held(gateway.child_pids("worker")[0]):
        found = {one["worker"]: one for one in workers(gateway)}
        assert (found[0]["answers"], found[1]["answers"]) == (False, True)
        assert found[0]["threads"]
        assert gateway.control.get("/debug/stacks", params={"worker": 0}).json()["threads"] == []
    eventually(lambda: all(one["answers"] for one in workers(gateway)), "it goes on")


def test_it_is_on_the_admin_port_alone_and_for_those_who_may(gateway: LiveGateway) -> None:
    for path in ("/debug/workers", "/debug/stacks?worker=0"):
        assert gateway.data.get(path).status_code == 404
        assert httpx.get(gateway.control_url + path).status_code == 401
    viewer, metrics = token(gateway, "viewer"), token(gateway, "metrics")
    assert gateway.control.get("/debug/workers", headers=viewer).status_code == 200
    assert gateway.control.get("/debug/workers", headers=metrics).status_code == 403
    assert gateway.control.get("/debug/stacks", params={"worker": 0}, headers=viewer).status_code == 403


@pytest.mark.parametrize("came", ["7", "", "../0"])
def test_a_worker_that_is_not_there_is_refused_with_those_that_are(gateway: LiveGateway, came: str) -> None:
    answer = gateway.control.get("/debug/stacks", params={"worker": came})
    assert answer.status_code == 400
    assert answer.json()["field"] == "worker"
    assert "0, 1" in answer.json()["expected"]
