"""The end of a gateway: told first, then finished, then gone; by both doors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path

import httpx
import pytest

from tests.builders import Linear, classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually
from tests.traffic import Answer, Client

QUICK = classifier("quick")
SLOW = classifier("slow", iterations=20_000)  # some tenths of a second
BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
DOORS = ("fast", "asgi")


def served(root: Path, door: str, model: Linear = QUICK, **server: float) -> LiveGateway:
    write_package(root / "models", model)
    settings: SettingsTable = {
        "server": {"door": door, **server},
        "sampling": {"rate": 1},
        "cache": {"max_bytes": 0},
        "batching": {"max_batch_rows": 1},
        "limits": {"deadline_s": 60},
    }
    return LiveGateway(root / "models", root / "state", settings=settings)


def is_told(gateway: LiveGateway, path: str) -> bool:
    answer = httpx.get(f"{gateway.data_url}{path}", timeout=20)
    assert answer.status_code in (200, 503)
    return answer.status_code == 503 and answer.json()["detail"] == ["draining: the gateway is stopping"]


async def asked(connection: Client, path: str = "/v2/models/quick/infer", body: bytes = BODY) -> Answer:
    return await connection.post(path, body)


@pytest.mark.parametrize("door", DOORS)
def test_a_gateway_that_stops_is_unready_and_still_takes_connections_until_its_delay_is_over(
    tmp_path: Path, door: str
) -> None:
    with served(tmp_path, door, drain_delay_s=3600) as gateway:

        async def scenario() -> None:
            async with Client(gateway.data_url) as kept, Client(gateway.data_url) as looking:
                before = await asked(kept)
                assert (before.status, before.headers.get("connection")) == (200, None)
                gateway.signal(signal.SIGTERM)
                for path in ("/readyz", "/v2/health/ready"):
                    await asyncio.to_thread(eventually, lambda path=path: is_told(gateway, path), f"{path} says so")
                async with Client(gateway.data_url) as new:
                    for connection in (kept, new):
                        answer = await asked(connection)
                        assert (answer.status, answer.headers["connection"]) == (200, "close")
                        with pytest.raises(EOFError):
                            await connection.receive()
                live = await looking.get("/livez")
                assert (live.status, live.headers["connection"]) == (200, "close")

        asyncio.run(scenario())
        gateway.signal(signal.SIGTERM)  # long before the delay is over
        gateway.wait_stopped(exit_code=128 + signal.SIGTERM)


def test_nobody_who_comes_before_the_port_closes_is_turned_away_and_every_sample_is_on_disk(tmp_path: Path) -> None:
    with served(tmp_path, "fast", drain_delay_s=0.5) as gateway:
        answered = 0
        gateway.signal(signal.SIGTERM)
        with contextlib.suppress(httpx.ConnectError):
            while True:
                assert (
                    httpx.post(f"{gateway.data_url}/v2/models/quick/infer", content=BODY, timeout=20).status_code == 200
                )
                answered += 1
        gateway.wait_stopped()
        lines = [
            line for path in (gateway.state / "samples").rglob("*.jsonl") for line in path.read_text().splitlines()
        ]
        assert len(lines) == answered > 0


@pytest.mark.parametrize("end", ["a second signal", "the budget"])
@pytest.mark.parametrize("door", DOORS)
def test_what_cannot_be_finished_is_told_to_ask_elsewhere(tmp_path: Path, door: str, end: str) -> None:
    budget_s = 0.3 if end == "the budget" else 3600
    with served(tmp_path, door, SLOW, drain_timeout_s=budget_s) as gateway:

        def in_flight() -> bool:
            page = gateway.control.get("/metrics").text
            return any(f"sluicegate_in_flight_requests {count}.0" in page for count in (3, 4, 5))

        async def scenario() -> list[Answer]:
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(Client(gateway.data_url)) for _ in range(5)]
                tasks = [asyncio.create_task(asked(client, "/v2/models/slow/infer")) for client in clients]
                await asyncio.to_thread(eventually, in_flight, "the requests are in flight")
                gateway.signal(signal.SIGTERM)
                await asyncio.to_thread(eventually, lambda: "stopping on SIGTERM" in gateway.log, "the first is heard")
                if end == "a second signal":
                    gateway.signal(signal.SIGINT)
                return await asyncio.gather(*tasks)

        refused = [answer for answer in asyncio.run(scenario()) if answer.status != 200]
        answer = refused[-1]
        assert {answer.status for answer in refused} == {503}
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert answer.headers["retry-after"] in ("1", "2")
        assert "stopping" in answer.json()["error"]
        gateway.wait_stopped(exit_code=128 + signal.SIGINT if end == "a second signal" else 0)
