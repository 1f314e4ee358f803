"""Purged answers: one version's or a whole model's are forgotten in every worker, the others stay hot."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.flags import declare, workers_status
from tests.live import LiveGateway, eventually
from tests.traffic import Client

WORKERS = 2
CONNECTIONS = 12  # enough to reach both workers; the tests check that they do
BODY = b'{"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("purge")
    for model in ("iris", "other"):
        write_package(root / "models", classifier(model, "1"))
    write_package(root / "models", classifier("slow", "1", iterations=40_000))  # a run takes near a second
    with LiveGateway(root / "models", root / "state", workers=WORKERS) as live:
        write_package(root / "models", classifier("iris", "2"))
        declare(live, "iris", "canary", "2")
        yield live


def purge(gateway: LiveGateway, body: dict[str, Any], model: str = "iris") -> int:
    """Purge, wait until every worker follows that revision, and return it."""
    headers = {"x-change-reason": "wrong answers"}
    reply = gateway.control.post(f"/admin/v1/models/{model}/cache:purge", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    revision: int = reply.json()["revision"]
    eventually(
        lambda: all(status["revision"] >= revision for status in workers_status(gateway)), f"{revision} is followed"
    )
    return revision


def results(gateway: LiveGateway, asked: list[str], between: Any) -> tuple[dict[str, Counter[str]], ...]:
    """x-cache of each path, asked on all connections, before and after *between*; they are heated up first."""

    async def one_round(clients: list[Client]) -> dict[str, Counter[str]]:
        found = {}
        for path in asked:
            answers = [await client.post(path, BODY) for client in clients]
            assert {answer.status for answer in answers} == {200}
            found[path] = Counter(answer.headers["x-cache"] for answer in answers)
        return found

    async def rounds() -> tuple[dict[str, Counter[str]], ...]:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(gateway.data_url)) for _ in range(CONNECTIONS)]
            await one_round(clients)
            before = await one_round(clients)
            await asyncio.to_thread(between)
            return before, await one_round(clients)

    return asyncio.run(rounds())


ONE, TWO, OTHER = "/v2/models/iris/versions/1/infer", "/v2/models/iris/versions/2/infer", "/v2/models/other/infer"
HOT = Counter(hit=CONNECTIONS)
COLD = Counter(hit=CONNECTIONS - WORKERS, miss=WORKERS)  # each worker runs it once more


def test_the_answers_of_one_version_are_forgotten_in_every_worker_and_no_others(gateway: LiveGateway) -> None:
    before, after = results(gateway, [ONE, TWO, OTHER], lambda: purge(gateway, {"version": "1"}))
    assert before == {ONE: HOT, TWO: HOT, OTHER: HOT}
    assert after == {ONE: COLD, TWO: HOT, OTHER: HOT}
    again = results(gateway, [ONE, TWO], lambda: purge(gateway, {"version": "1"}))
    assert again == ({ONE: HOT, TWO: HOT}, {ONE: COLD, TWO: HOT})


def test_the_answers_of_a_whole_model_are_forgotten_and_of_no_other(gateway: LiveGateway) -> None:
    before, after = results(gateway, [ONE, TWO, OTHER], lambda: purge(gateway, {}))
    assert before == {ONE: HOT, TWO: HOT, OTHER: HOT}
    assert after == {ONE: COLD, TWO: COLD, OTHER: HOT}


def test_a_purge_is_audited_and_stands_in_the_cache_flag(gateway: LiveGateway) -> None:
    revision = purge(gateway, {"version": "2"})
    flag = gateway.control.get("/admin/v1/flags/iris.cache").json()
    assert flag["state"] == "ENABLED"
    assert flag["variants"][flag["defaultVariant"]] == {"enabled": True}
    assert flag["metadata"]["purged.2"] == revision
    row = gateway.control.get("/admin/v1/flags/iris.cache/history").json()["rows"][0]
    assert (row["verb"], row["reason"], row["revision"]) == ("cache.purge", "wrong answers", revision)


def test_an_answer_that_was_on_its_way_at_the_purge_is_not_kept(gateway: LiveGateway) -> None:
    async def rounds() -> list[str]:
        async with Client(gateway.data_url) as client:
            flight = asyncio.create_task(client.post("/v2/models/slow/infer", BODY))

            def in_flight() -> bool:
                page = gateway.control.get("/metrics").text
                return "sluicegate_in_flight_requests 1.0" in page

            await asyncio.to_thread(eventually, in_flight, "the request is in flight")
            await asyncio.to_thread(purge, gateway, {}, "slow")
            assert not flight.done(), "the purge came while it ran"
            answers = [await flight, *[await client.post("/v2/models/slow/infer", BODY) for _ in range(2)]]
            assert {answer.status for answer in answers} == {200}
            return [answer.headers["x-cache"] for answer in answers]

    assert asyncio.run(rounds()) == ["miss", "miss", "hit"]


def test_a_version_that_the_route_no_longer_names_leaves_no_note(gateway: LiveGateway) -> None:
    def patch(key: str, change: dict[str, Any]) -> None:
        headers = {"if-match": "*", "x-change-reason": "test"}
        reply = gateway.control.patch(f"/admin/v1/flags/{key}", content=json.dumps(change), headers=headers)
        assert reply.status_code == 200, reply.text

    def notes() -> set[str]:
        found = gateway.control.get("/admin/v1/flags/iris.cache").json()["metadata"]
        return {name for name in found if name.startswith("purged.")}

    purge(gateway, {})
    assert notes() == set()
    patch("iris.route", {"variants": {"old": "0"}})
    for version in ("0", "1"):
        purge(gateway, {"version": version})
    assert notes() == {"purged.0", "purged.1"}
    patch("iris.route", {"variants": {"old": None}})
    purge(gateway, {"version": "2"})
    assert notes() == {"purged.1", "purged.2"}
