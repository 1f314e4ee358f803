"""Deadlines before which the clocks would not have looked at a connection are seen at the fast door, too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.builders import classifier, write_package
from tests.end_to_end.wires import BODY, Wire, body, post, wire
from tests.live import LiveGateway, SettingsTable

# With these a connection is looked at after a minute, if nothing is due before.
BOUNDS: SettingsTable = {
    "server": {"keep_alive_s": 600, "request_timeout_s": 600, "write_timeout_s": 600},
    "limits": {"deadline_s": 60},
    "cache": {"max_bytes": 0},
}
SHORT = "x-request-timeout-ms: 100\r\n"
LONG = "x-request-timeout-ms: 60000\r\n"
PARSED = "accept: a\r\nexpect: 100-continue\r\n"


def hurried() -> bytes:
    """A body that asks for the deadline itself, in microseconds."""
    document = json.loads(body([1.5, 2.0, 3.0, 4.0]))
    return json.dumps({**document, "parameters": {"timeout": 100_000}}).encode()


REQUESTS = {
    "by its head": (SHORT, BODY, len(BODY)),
    "by a head that the parser reads": (SHORT + PARSED, BODY, len(BODY)),
    "by its body": (LONG, hurried(), len(hurried())),
    "with its body to come": (SHORT, BODY, 10),
    "with its body to come, parsed": (SHORT + PARSED, BODY, 10),
}
# One for each: nobody is refused at once while it is not known what a run costs.
MODELS = {asks: classifier(f"slow-{number}", "1", iterations=60_000) for number, asks in enumerate(REQUESTS)}


async def _final(connection: Wire) -> bytes:
    """The answer behind the interim one, if there is one."""
    start = await connection.reader.readexactly(12)
    if start == b"HTTP/1.1 100":
        await connection.reader.readuntil(b"\r\n\r\n")
        start = await connection.reader.readexactly(12)
    return start + await connection.answer()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("clocks")
    for model in MODELS.values():
        write_package(root / "models", model)
    with LiveGateway(root / "models", root / "state", settings=BOUNDS) as live:
        yield live


@pytest.mark.parametrize("asks", REQUESTS)
def test_a_deadline_is_seen_before_the_run_that_it_waits_for_has_ended(gateway: LiveGateway, asks: str) -> None:
    path = f"/v2/models/{MODELS[asks].model}/infer"
    extra, content, comes = REQUESTS[asks]
    hurries = post(content, path=path, extra=extra)

    async def scenario() -> tuple[bytes, bytes]:
        async with wire(gateway) as busy, wire(gateway) as hasty:
            await busy.send(post(path=path, extra=LONG))
            runs = asyncio.create_task(busy.answer())
            await hasty.send(hurries[: len(hurries) - len(content) + comes])
            ends = asyncio.create_task(_final(hasty))
            first, _ = await asyncio.wait([runs, ends], return_when=asyncio.FIRST_COMPLETED)
            assert first == {ends}
            return await ends, await runs

    late, answered = asyncio.run(scenario())
    assert late[9:12] in (b"408", b"504")
    assert b"deadline" in late
    assert answered[9:12] == b"200"
