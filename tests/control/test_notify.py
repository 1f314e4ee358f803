"""What takes hours, with a clock that jumps: waiting, giving up, and what is told of it. Receivers are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from gateway.control.deliver import BACKOFF_MAX_S, backoff_s
from gateway.control.notify import Notifier
from gateway.control.reach import Reach
from gateway.control.webhooks import Webhook, WebhookKey, WebhookList
from gateway.flags.audit import AuditRow, Author
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import Note, note
from gateway.metrics import ControlMetrics, process_registry
from gateway.networks import parse_networks
from tests.receiver import OK, Receiver, Reply, free_port

HOUR_S = 3600.0
NOW_S = 1_800_000_000.0
ADA = Author("ada")


class Rig:
    """A notifier on a real store, in a time that passes only while it waits after a failed attempt."""

    def __init__(self, directory: Path) -> None:
        self.now_s = NOW_S
        self.waits_s: list[float] = []
        self.haste = 1  # how much more time passes than is waited for
        self.store = SqliteStore(directory / "flags.sqlite", clock=self.clock)
        self.webhooks = WebhookList(self.store, WebhookKey(directory / "webhook.key"), clock=self.clock)
        self.registry = process_registry()
        self.notifier = Notifier(
            self.store,
            self.webhooks,
            ControlMetrics(self.registry),
            Reach(parse_networks("127.0.0.0/8")),
            source="/sluicegate/test",
            clock=self.clock,
            wait=self._wait,
        )

    def clock(self) -> float:
        return self.now_s

    async def _wait(self, _event: asyncio.Event, longest_s: float) -> None:
        self.waits_s.append(longest_s)
        self.now_s += longest_s * self.haste
        await asyncio.sleep(0)

    def add(self, url: str, *events: str) -> Webhook:
        webhook, _ = self.webhooks.add({"url": url, "events": [*events]}, author=ADA, reason="a test")
        return webhook

    def happen(self, verb: str, **after: Any) -> None:
        note(self.store, Note(verb, "thing:1", after=after), author=ADA, reason="a test")

    def rows(self, verb: str) -> list[AuditRow]:
        return [row for row in self.store.history(limit=1000) if row.verb == verb]

    def deliveries(self, outcome: str) -> float:
        return self.registry.get_sample_value("sluicegate_webhook_deliveries_total", {"outcome": outcome}) or 0.0

    def lag_rows(self, webhook: Webhook, head: int) -> int:
        return int(self.notifier.describe(webhook, {"seq": 0}, head)["lag_rows"])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.notifier.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not check():
                await asyncio.sleep(0.005)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.store.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


async def run(rig: Rig, until: Callable[[], bool]) -> None:
    async with rig.running():
        await rig.until(until)


def test_waits_double_up_to_a_bound_and_chance_takes_up_to_half_of_them() -> None:
    longest = [backoff_s(failures, lambda: 1.0) for failures in range(1, 12)]
    assert longest == [1, 2, 4, 8, 16, 32, 64, 128, 256, BACKOFF_MAX_S, BACKOFF_MAX_S]
    assert [backoff_s(failures, lambda: 0.0) for failures in range(1, 12)] == [wait_s / 2 for wait_s in longest]
    assert backoff_s(10**9, lambda: 1.0) == BACKOFF_MAX_S


@pytest.mark.parametrize(
    ("given", "least_s", "most_s"),
    [
        ("120", 120, 120),
        (formatdate(NOW_S + 500, usegmt=True), 500, 500),
        ("99999999999999999999", 24 * HOUR_S, 24 * HOUR_S),
        (formatdate(NOW_S - 500, usegmt=True), 0.5, 1),
        ("Mon, 99 Foo 2026", 0.5, 1),
        ("-7", 0.5, 1),
        ("", 0.5, 1),
    ],
)
def test_retry_after_is_honoured_within_reason(
    rig: Rig, receiver: Receiver, given: str, least_s: float, most_s: float
) -> None:
    answers = iter([(429, {"retry-after": given}, b"")])
    receiver.answer = lambda _: next(answers, OK)
    rig.add(receiver.url, "thing.*")
    rig.happen("thing.done")
    # a receiver that asks for a day's patience gets it, and then events are too old
    asyncio.run(run(rig, lambda: len(receiver.taken) == 1 or rig.deliveries("given_up") == 1))
    assert least_s <= rig.waits_s[0] <= most_s


def test_after_a_day_without_success_events_are_given_up_and_that_is_told_once_and_to_others(
    rig: Rig, receiver: Receiver
) -> None:
    dead = rig.add(f"http://127.0.0.1:{free_port()}/", "*")
    rig.add(receiver.url, "alarm.*")
    for number in range(10):
        rig.happen("thing.done", number=number)
    asyncio.run(run(rig, lambda: len(receiver.taken) == 1))
    assert 24 * HOUR_S < rig.now_s - NOW_S < 25 * HOUR_S
    assert 280 < len(rig.waits_s) < 700  # about every 150 to 300 s
    (row,) = rig.rows("alarm.webhook_gave_up")
    assert row.target == dead.target
    assert "ConnectError" in row.after["why"]
    assert receiver.types == ["alarm.webhook_gave_up"]


def test_a_day_of_silence_here_gives_nothing_up_that_can_still_be_delivered(rig: Rig, receiver: Receiver) -> None:
    rig.add(receiver.url, "thing.*")
    for number in range(5):
        rig.happen("thing.done", number=number)
    rig.now_s += 72 * HOUR_S  # control was stopped
    asyncio.run(run(rig, lambda: len(receiver.taken) == 5))
    assert [arrival.event["data"]["after"]["number"] for arrival in receiver.taken] == [0, 1, 2, 3, 4]
    assert rig.deliveries("given_up") == 0


def test_an_event_that_the_receiver_refuses_for_an_hour_is_given_up_and_lets_the_others_through(
    rig: Rig, receiver: Receiver
) -> None:
    def answer(arrival: Any) -> Reply:
        return (422, {}, b"") if arrival.event["data"]["after"].get("number") == 1 else OK

    receiver.answer = answer
    webhook = rig.add(receiver.url, "thing.*", "alarm.*")
    for number in range(3):
        rig.happen("thing.done", number=number)
    asyncio.run(run(rig, lambda: rig.lag_rows(webhook, len(rig.store.history())) == 0))
    # and that it was given up is for others to know
    assert [arrival.event["data"]["after"].get("number") for arrival in receiver.taken] == [0, 2]
    assert HOUR_S < rig.now_s - NOW_S < 2 * HOUR_S
    kept = rig.store.record("cursor", webhook.target)
    assert kept is not None
    assert (kept.body["given_up"], kept.body["failures"]) == (1, 0)
    assert len(rig.rows("alarm.webhook_gave_up")) == 1


def test_two_dead_receivers_do_not_tell_each_other_of_it_for_ever(rig: Rig) -> None:
    dead = [rig.add(f"http://127.0.0.1:{free_port()}/", "*") for _ in range(2)]
    rig.happen("thing.done")
    rig.haste = 100
    rig.now_s += 25 * HOUR_S  # it is given up at once, and that is new to the other one

    def is_over() -> bool:
        head = rig.store.history(limit=1, newest_first=True)[0].seq
        return len(rig.rows("alarm.webhook_gave_up")) > 1 and not any(rig.lag_rows(each, head) for each in dead)

    asyncio.run(run(rig, is_over))
    assert len(rig.rows("alarm.webhook_gave_up")) == 2


def test_who_reads_the_trail_on_each_event_does_not_do_so_for_ever(rig: Rig, receiver: Receiver) -> None:
    rig.add(receiver.url, "*")
    rig.happen("audit.read")
    rig.happen("thing.done")
    asyncio.run(run(rig, lambda: "thing.done" in receiver.types))
    assert "audit.read" not in receiver.types


def test_an_event_that_would_be_too_large_says_so_and_leaves_out_what_is_large(rig: Rig, receiver: Receiver) -> None:
    rig.add(receiver.url, "thing.*")
    rig.happen("thing.large", text="x" * 70_000)
    rig.happen("thing.odd", model="iris", number=2**70, text="é \U0001f600")
    asyncio.run(run(rig, lambda: len(receiver.taken) == 2))
    large, odd = (arrival.event for arrival in receiver.taken)
    assert large["data"]["truncated"] is True
    assert large["data"]["after"] is None
    assert large["data"]["reason"] == "a test"
    assert odd["subject"] == "iris"
    assert odd["data"]["after"]["text"] == "é \U0001f600"


def test_a_store_that_is_away_for_a_while_delays_and_loses_nothing(
    rig: Rig, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig.add(receiver.url, "thing.*")

    rig.happen("thing.done")
    rig.store.close()
    path, away = tmp_path / "flags.sqlite", tmp_path / "away.sqlite"
    path.rename(away)
    path.write_bytes(b"no database " * 1000)

    async def scenario() -> None:
        async with rig.running():
            await rig.until(lambda: "cannot look" in caplog.text)
            away.replace(path)
            await rig.until(lambda: len(receiver.taken) == 1)

    asyncio.run(scenario())
