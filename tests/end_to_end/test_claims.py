"""Who may claim that a request is critical: whose API key says so, through both doors and by all protocols."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.builders import write_package
from tests.end_to_end.test_api_keys import KEYS, make, settled
from tests.end_to_end.test_overload import DOORS, PATIENT, SLOW, metric, wait_in_flight
from tests.end_to_end.wires import ROW, body, post, wire
from tests.live import LiveGateway, SettingsTable, eventually

OIP = "/v2/models/slow/infer"
# Path -> a body of one row.
ONE_ROW: dict[str, Any] = {
    "/predict/slow": {"rows": [dict(zip(SLOW.features, ROW, strict=True))]},
    OIP: json.loads(body(ROW)),
    "/v1/models/slow:predict": {"instances": [ROW]},
    "/models/slow/invocations": {"inputs": [ROW]},
    "/predictions/slow": ROW,
}
CRITICAL = "x-request-priority: critical\r\n"


@pytest.fixture(scope="module", params=DOORS)
def gateway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LiveGateway]:
    """A queue of fifty rows, 45 for normal requests, behind a model that takes its time; and a key for each client."""
    root = tmp_path_factory.mktemp("claims")
    write_package(root / "models", SLOW)
    settings: SettingsTable = {
        "server": {"door": request.param, "api_keys": "required"},
        "cache": {"max_bytes": 0},
        "batching": {"max_queue_rows": 50},
    }
    with LiveGateway(root / "models", root / "state", settings=settings) as live:
        yield live


def test_only_a_key_that_may_claims_what_is_critical(gateway: LiveGateway) -> None:
    usual, critical = make(gateway, "usual"), make(gateway, "critical", priority="critical")
    settled(gateway, critical)

    def asks(key: dict[str, Any], content: Any, *, path: str = OIP, extra: str = "") -> bytes:
        extra += PATIENT + f"x-api-key: {key['key']}\r\n"
        return post(json.dumps(content).encode(), path=path, extra=extra)

    def rows(count: int, priority: int | None = None) -> dict[str, Any]:
        parameters = {} if priority is None else {"parameters": {"priority": priority}}
        return {**json.loads(body(*[ROW] * count)), **parameters}

    async def scenario() -> tuple[list[bytes], list[bytes], list[bytes]]:
        async with contextlib.AsyncExitStack() as stack:
            waiting = []

            async def wait(request: bytes) -> None:
                waiting.append(await stack.enter_async_context(wire(gateway)))
                await waiting[-1].send(request)
                await asyncio.to_thread(wait_in_flight, gateway, len(waiting))

            async def answer(request: bytes) -> bytes:
                async with wire(gateway) as connection:
                    await connection.send(request)
                    return await connection.answer()

            for key, count in ((usual, 1), (usual, 15), (critical, 15)):
                await wait(asks(key, rows(count)))
            # Of the room of normal requests 15 rows are left, of which each of the two has too much to get 14.
            claims = [asks(usual, rows(14, priority=1)), asks(critical, rows(14))]
            over_share = [await answer(claim) for claim in claims]
            for content, extra in ((rows(14, priority=1), ""), (rows(1), CRITICAL)):
                await wait(asks(critical, content, extra=extra))
            # Now none of that room is left.
            shed = [await answer(asks(usual, content, path=path, extra=CRITICAL)) for path, content in ONE_ROW.items()]
            for path, content in ONE_ROW.items():
                await wait(asks(critical, content, path=path, extra=CRITICAL))
            return over_share, shed, [await connection.answer() for connection in waiting]

    over_share, shed, answered = asyncio.run(scenario())
    for answer in over_share:
        assert answer[9:12] == b"503"
        assert b"30 rows are queued, one may join up to 45, and this client has" in answer
    for answer in shed:
        assert answer[9:12] == b"503"
        assert b"45 rows are queued, and with priority normal one may join up to 45" in answer
    assert [answer[9:12] for answer in answered] == [b"200"] * 10
    lowered = 'sluicegate_lowered_priorities_total{key="%s"}'
    eventually(lambda: metric(gateway, lowered % usual["id"]) == 6, "what was lowered is counted")
    assert metric(gateway, lowered % critical["id"]) == 0


def test_the_priority_of_a_key_is_shown_and_kept_at_rotation(gateway: LiveGateway) -> None:
    for name, asked, is_told in (("plain", {}, "normal"), ("high", {"priority": "critical"}, "critical")):
        made = make(gateway, name, **asked)
        rotated = gateway.control.post(f"{KEYS}/{made['id']}:rotate", json={"grace_s": 3600}).json()
        listed = {key["id"]: key["priority"] for key in gateway.control.get(KEYS).json()["keys"]}
        assert (made["priority"], rotated["priority"]) == (is_told, is_told)
        assert (listed[made["id"]], listed[rotated["id"]]) == (is_told, is_told)
