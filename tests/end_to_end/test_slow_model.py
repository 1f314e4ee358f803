"""A model that takes its time: deadlines, full queues, and equal requests whose first caller leaves."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.flags import declare, must_change, workers_status
from tests.live import LiveGateway, eventually
from tests.traffic import Answer, Client

# About 20 us a turn: a run takes near a second.
SLOW = classifier("slow", "1", iterations=40_000)
QUICK = classifier("quick", "1")
# Some 20 ms: quick enough for its cost to be known before it takes traffic.
STEADY = classifier("steady", "1", iterations=1000)


@pytest.fixture(scope="module")
def plain_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """Predictions through the ASGI app."""
    root = tmp_path_factory.mktemp("plain")
    write_package(root / "models", SLOW)
    with LiveGateway(root / "models", root / "state", options=("--door", "asgi")) as live:
        yield live


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("slow")
    for model in (SLOW, QUICK, STEADY):
        write_package(root / "models", model)
    settings = {"batching": {"max_queue_rows": 4, "max_batch_rows": 2}, "limits": {"max_in_flight": 40}}
    with LiveGateway(root / "models", root / "state", settings=settings) as live:
        yield live


def body(number: float, rows: int = 1) -> bytes:
    data = [[number, 2.0, 3.0, 4.0]] * rows
    tensor = {"name": "input", "shape": [rows, 4], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


async def ask(gateway: LiveGateway, content: bytes, model: str = "slow", **headers: str) -> Answer:
    async with Client(gateway.data_url) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post(f"/v2/models/{model}/infer", content, named)


def in_flight(gateway: LiveGateway) -> float:
    page = gateway.control.get("/metrics").text
    (line,) = [line for line in page.splitlines() if line.startswith("sluicegate_in_flight_requests ")]
    return float(line.split()[1])


def idle(gateway: LiveGateway) -> None:
    eventually(lambda: in_flight(gateway) == 0.0, "the worker is idle")


def test_a_deadline_is_kept_while_the_model_runs_on(gateway: LiveGateway) -> None:
    idle(gateway)
    answer = asyncio.run(ask(gateway, body(1), x_request_timeout_ms="50"))
    assert answer.status == 504
    assert "deadline" in answer.json()["error"]
    timed = json.dumps(json.loads(body(1.5)) | {"parameters": {"timeout": 50_000}}).encode()
    # While the first run goes on it is plain that this deadline cannot be met, and that is said at once.
    statuses = {503}

    def is_late() -> bool:
        statuses.add(asyncio.run(ask(gateway, timed)).status)
        return 504 in statuses

    eventually(is_late, "the deadline in the body passes while its own run goes on")
    assert statuses == {503, 504}


def test_the_asgi_door_keeps_a_deadline_that_the_body_asks_for(plain_gateway: LiveGateway) -> None:
    timed = json.loads(body(1.5)) | {"parameters": {"timeout": 50_000}}
    assert asyncio.run(ask(plain_gateway, json.dumps(timed).encode())).status == 504


def test_a_slow_model_does_not_hold_up_a_quick_one(gateway: LiveGateway) -> None:
    idle(gateway)

    async def both() -> None:
        slow = asyncio.create_task(ask(gateway, body(2)))
        await asyncio.sleep(0)
        for _ in range(20):
            answer = await ask(gateway, body(2), "quick", x_request_timeout_ms="5000")
            assert answer.status == 200
        assert (await slow).status == 200

    asyncio.run(both())


def test_a_full_queue_refuses_with_a_time_to_come_back(gateway: LiveGateway) -> None:
    idle(gateway)

    async def crowd() -> list[Answer]:
        return list(await asyncio.gather(*(ask(gateway, body(100 + number)) for number in range(16))))

    answers = asyncio.run(crowd())
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert "may be" in answer.json()["error"]
    idle(gateway)
    assert asyncio.run(ask(gateway, body(3))).status == 200


def test_who_would_be_answered_too_late_is_told_at_once_when_to_come_back(gateway: LiveGateway) -> None:
    """Others keep the queue filled; an answer in 30 ms is not to be had behind them, and an idle model may try."""
    idle(gateway)

    async def crowd(stop: asyncio.Event, number: int) -> None:
        async with Client(gateway.data_url) as client:
            while not stop.is_set():
                number += 100
                await client.post("/v2/models/steady/infer", body(number))

    async def scenario() -> Answer:
        stop = asyncio.Event()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group, Client(gateway.data_url) as client:
            for number in range(5):
                group.create_task(crowd(stop, number))
            refused, number = None, 0
            while refused is None:
                number += 1
                content = body(-number)
                answer = await client.post("/v2/models/steady/infer", content, {"x-request-timeout-ms": "30"})
                assert answer.status in (200, 503, 504)
                if answer.status == 503 and "after the deadline" in answer.json()["error"]:
                    refused = answer
            stop.set()
        return refused

    answer = asyncio.run(scenario())
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-model-version"] == "1"
    idle(gateway)
    assert asyncio.run(ask(gateway, body(0.25), "steady", x_request_timeout_ms="5000")).status == 200

    def is_counted() -> bool:
        page = gateway.control.get("/metrics").text
        reasons = set(re.findall(r'sluicegate_batches_total\{model="steady",reason="(\w+)",version="1"\}', page))
        return bool(reasons & {"drained", "full", "best_size"}) and 'outcome="deadline_unreachable"' in page

    eventually(is_counted, "the refusal and the reasons of the batches are in the metrics")


def test_too_many_requests_at_once_are_refused_before_their_bodies_are_read(gateway: LiveGateway) -> None:
    idle(gateway)

    async def crowd() -> list[int]:
        async with asyncio.timeout(30):
            # These send a head and no body: they are admitted and wait.
            waiting = [await Client(gateway.data_url).__aenter__() for _ in range(40)]
            for client in waiting:
                await client.send(b"POST /v2/models/quick/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
            await asyncio.to_thread(eventually, lambda: in_flight(gateway) == 40.0, "all heads are admitted")
            refused = await ask(gateway, body(1), "quick")
            for client in waiting:
                await client.send(b"{bad}")
            answers = [(await client.receive()).status for client in waiting]
            for client in waiting:
                await client.__aexit__(None, None, None)
            return [refused.status, *answers]

    statuses = asyncio.run(crowd())
    assert statuses[0] == 503
    assert set(statuses[1:]) == {400}


def test_who_waits_with_an_equal_request_is_answered_though_the_first_caller_leaves(gateway: LiveGateway) -> None:
    idle(gateway)

    async def scenario() -> Answer:
        async with asyncio.timeout(30):
            async with Client(gateway.data_url) as blocker, Client(gateway.data_url) as first:
                blocked = asyncio.create_task(blocker.post("/v2/models/slow/infer", body(5)))
                await asyncio.to_thread(eventually, lambda: in_flight(gateway) == 1.0, "the model is busy")
                content = body(6)
                head = f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
                await first.send(head.encode() + content)
                await asyncio.to_thread(eventually, lambda: in_flight(gateway) == 2.0, "the first caller waits")
                follower = asyncio.create_task(ask(gateway, content))
                await asyncio.to_thread(eventually, lambda: in_flight(gateway) == 3.0, "an equal request waits too")
                await first.__aexit__(None, None, None)
                await blocked
                return await follower

    answer = asyncio.run(scenario())
    assert answer.status == 200
    np.testing.assert_allclose(
        answer.json()["outputs"][1]["data"], SLOW.answer([[6.0, 2.0, 3.0, 4.0]])["probabilities"][0], atol=1e-6
    )


def test_a_request_of_more_rows_than_the_queue_holds_is_told_so(gateway: LiveGateway) -> None:
    idle(gateway)
    answer = asyncio.run(ask(gateway, body(1, rows=5)))
    assert answer.status == 400
    assert "at most 4 in one request" in answer.json()["error"]


def test_a_version_is_dropped_after_its_last_request_and_not_before(tmp_path: Path) -> None:
    write_package(tmp_path / "models", SLOW)
    with LiveGateway(tmp_path / "models", tmp_path / "state") as live:
        write_package(tmp_path / "models", classifier("slow", "2"))
        declare(live, "slow", "next", "2")
        for number in range(5):  # answered before: each must have let go of the version it used
            assert live.data.post("/v2/models/slow/versions/2/infer", content=body(number)).status_code == 200

        def state_of(version: str) -> str | None:
            (status,) = workers_status(live)
            found: str | None = status["models"]["slow"]["versions"].get(version, {}).get("state")
            return found

        async def scenario() -> Answer:
            async with asyncio.timeout(30):
                asked = asyncio.create_task(ask(live, body(7)))
                await asyncio.to_thread(eventually, lambda: in_flight(live) == 1.0, "the slow version is busy")
                flip = {"defaultVariant": "next", "variants": {"stable": None, "next": "2"}}
                await asyncio.to_thread(must_change, live, "slow.route", flip)
                await asyncio.to_thread(eventually, lambda: state_of("1") == "draining", "version 1 is let go")
                return await asked

        answer = asyncio.run(scenario())
        assert answer.status == 200
        assert answer.headers["x-model-version"] == "1"
        assert eventually(lambda: state_of("1") is None, "version 1 is dropped")
