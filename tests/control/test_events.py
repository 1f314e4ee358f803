"""Events and signatures by the letter of their specifications, and lookups that hang."""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.control.events import signature, source_of, wanted
from gateway.control.lookups import MAX_LOOKUPS, LookupLoop
from gateway.control.webhooks import origin

OPERATE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text()


def test_the_signature_is_that_of_the_specification() -> None:
    # The vector that the Standard Webhooks libraries share.
    signed = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("pattern", "takes"),
    [
        ("*", True),
        ("rollout.*", True),
        ("rollout.pause", True),
        ("dev.sluicegate.rollout.paus?", True),
        ("rollout", False),
        ("pause", False),
        ("ROLLOUT.*", False),
        ("rollout.paused", False),
    ],
)
def test_a_pattern_takes_types_with_and_without_their_prefix(pattern: str, takes: bool) -> None:
    assert wanted("dev.sluicegate.rollout.pause", [pattern]) is takes


def test_the_source_is_a_uri_reference_whatever_the_gateway_is_called() -> None:
    assert source_of("prod-1.example") == "/sluicegate/prod-1.example"
    assert source_of("my/gate way ü") == "/sluicegate/my%2Fgate%20way%20%C3%BC"


def test_an_origin_shows_nothing_that_may_be_a_capability() -> None:
    assert origin("https://hooks.example.com:8443/services/T0/B0/xyz?a=b") == "https://hooks.example.com:8443/..."
    assert origin("http://host?token=1") == "http://host/..."
    assert origin("http://host/") == "http://host/"


def test_lookups_that_hang_hold_up_neither_work_in_threads_nor_the_end() -> None:
    released = threading.Event()

    def hang(host: str, *_: Any) -> list[Any]:
        if host == "dead":
            released.wait()
        return [host]

    async def scenario() -> list[Any]:
        loop = asyncio.get_running_loop()
        hanging = [asyncio.create_task(loop.getaddrinfo("dead", 80)) for _ in range(MAX_LOOKUPS - 1)]
        await asyncio.sleep(0)
        found: list[Any] = await loop.getaddrinfo("alive", 80)
        assert await asyncio.to_thread(lambda: 7) == 7
        hanging.append(asyncio.create_task(loop.getaddrinfo("dead", 80)))
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="hang already"):
            await loop.getaddrinfo("alive", 80)
        for task in hanging:
            task.cancel()
        return found

    with asyncio.Runner(loop_factory=lambda: LookupLoop(hang)) as runner:
        assert runner.run(scenario()) == ["alive"]
    released.set()  # only now, after the loop's end


def test_a_lookup_that_fails_does_so_for_the_asker() -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match=r"known|resolution|address"):
            await asyncio.get_running_loop().getaddrinfo("no-such-host.invalid", 80)

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        runner.run(scenario())


def test_the_manual_shows_receivers_a_check_that_works() -> None:
    found = re.search(r"<!-- receiver -->\n```python\n(.*?)```", OPERATE, re.DOTALL)
    assert found
    names: dict[str, Any] = {"base64": base64, "hmac": hmac, "time": time, "Mapping": Mapping}
    exec(found.group(1), names)
    secret, body, now_s = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"a": 1}', int(time.time())
    headers = {"webhook-id": "1", "webhook-timestamp": str(now_s), "webhook-signature": ""}
    signed = {**headers, "webhook-signature": signature(secret, "1", now_s, body)}
    assert names["is_ours"](secret, signed, body)
    assert not names["is_ours"](secret, signed, b'{"a": 2}')
    assert not names["is_ours"](secret, {**signed, "webhook-id": "2"}, body)
    old = {**signed, "webhook-timestamp": "1614265330", "webhook-signature": signature(secret, "1", 1614265330, body)}
    assert not names["is_ours"](secret, old, body)
