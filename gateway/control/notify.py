"""Notifications: each webhook follows the audit trail at its own pace and is told of what it asked for, in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.control import outbox
from gateway.control.deliver import (
    DELIVERED,
    GIVE_UP_AFTER_S,
    GIVE_UP_REFUSED_AFTER_S,
    GONE,
    REFUSALS,
    Attempt,
    Sender,
    backoff_s,
)
from gateway.control.events import Event, encode, envelope, event_of, wanted
from gateway.control.reach import Reach
from gateway.control.webhooks import CURSOR, Webhook, WebhookList
from gateway.errors import RevisionConflict, StoreUnavailable
from gateway.flags.audit import SYSTEM, AuditRow, Author
from gateway.flags.store import FlagStore, Note, RecordWrite
from gateway.metrics import ControlMetrics

_log = logging.getLogger(__name__)

POLL_S = 0.2
SAVE_S = 1.0  # after a kill, what was delivered in so much time may be delivered again
STORE_RETRY_S = 1.0
CRASH_PAUSE_S = 60.0
GIVEN_UP = "given_up"
UNSIGNED = "unsigned"

Pause = Callable[[asyncio.Event, float], Awaitable[None]]


async def pause(event: asyncio.Event, longest_s: float) -> None:
    """Wait until *event* is set, or so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(longest_s):  # wait_for of Python 3.11 may swallow a cancellation
            await event.wait()


@dataclass(slots=True)
class Progress:
    """How far a webhook has been told, and how that goes. Kept in its cursor record.

    seq: of the last row that was delivered, given up or not wanted. failures: attempts in a row that failed, since
    failing_since_s. given_up: events that were never delivered. Moments in unix seconds.
    """

    seq: int
    last_success_s: float | None = None
    failures: int = 0
    failing_since_s: float | None = None
    last_error: str = ""
    given_up: int = 0


class Notifier:
    """Follows the trail for all webhooks. Everything runs on one event loop; the store is asked in threads.

    reach: where receivers may be. source: of the events. clock: unix seconds. wait: how the time between attempts
    passes.
    """

    def __init__(
        self,
        store: FlagStore,
        webhooks: WebhookList,
        metrics: ControlMetrics,
        reach: Reach,
        *,
        source: str,
        clock: Callable[[], float] = time.time,
        wait: Pause = pause,
    ) -> None:
        self._store = store
        self._webhooks = webhooks
        self._metrics = metrics
        self._source = source
        self._clock = clock
        self._wait = wait
        self._sender = Sender(reach, clock=clock)
        self._followers: dict[Webhook, tuple[Follower, asyncio.Task[None]]] = {}
        self._head = 0
        self._changed = asyncio.Event()
        self._trouble = ""

    async def run(self) -> None:
        """For ever; what was delivered is saved at the end."""
        try:
            while True:
                await self._look()
                self._changed.clear()
                await pause(self._changed, POLL_S)
        finally:
            await self._stop(list(self._followers))
            await self._sender.close()

    def refresh(self) -> None:
        """Look at the webhooks now: they were changed."""
        self._changed.set()

    async def test(self, webhook: Webhook, author: Author) -> Attempt:
        """Send a test event past the queue. Raises StoreUnavailable.

        If it is delivered, a disabled webhook is enabled again, and one whose attempts rest goes on at once.
        """
        secret = await asyncio.to_thread(self._webhooks.secret, webhook)
        event_id, verb = f"test-{secrets.token_hex(8)}", "webhook.test"
        now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        body = envelope(
            event_id, verb, self._source, subject=webhook.target, time=now, data={"description": webhook.description}
        )
        event = Event(event_id, body["type"], webhook.target, encode(body))
        attempt = await self._sender.send(webhook, secret, event)
        if attempt.outcome == DELIVERED:
            if webhook.disabled:
                await asyncio.to_thread(self._webhooks.enable, webhook, author=author)
                self.refresh()
            elif webhook in self._followers:
                self._followers[webhook][0].hurry()
        return attempt

    def describe(self, webhook: Webhook, kept: dict[str, Any] | None, head: int) -> dict[str, Any]:
        """Progress of one webhook. kept: its cursor record, if it is not followed. head: the newest row's seq."""
        followed = self._followers.get(webhook)
        if followed is not None and followed[0].loaded:
            progress = followed[0].progress
        else:
            progress = Progress(**(kept or {"seq": head}))
        return {**asdict(progress), "lag_rows": max(0, head - progress.seq)}

    async def _look(self) -> None:
        """See which webhooks there are and whether the trail went on."""
        try:
            found = {webhook for webhook in await asyncio.to_thread(self._webhooks.all) if not webhook.disabled}
            self._head = await asyncio.to_thread(outbox.newest_seq, self._store, self._head)
            self._trouble = ""
        except StoreUnavailable as error:
            if str(error) != self._trouble:  # said once, not five times a second
                _log.error("cannot look for what to notify of", extra={"why": str(error)})
            self._trouble = str(error)
            return
        # One that has ended was disabled; if it is enabled by now, it begins anew at the next look, not by an old list.
        ended = [webhook for webhook, (_, task) in self._followers.items() if webhook not in found or task.done()]
        await self._stop(ended)
        for webhook in found.difference(ended, self._followers):
            follower = Follower(
                webhook, self._store, self._webhooks, self._sender, self._metrics,
                source=self._source, clock=self._clock, wait=self._wait,
            )  # fmt: skip
            self._followers[webhook] = (follower, asyncio.create_task(follower.run()))
        for follower, _ in self._followers.values():
            follower.wake(self._head)
        lags = [self._head - follower.progress.seq for follower, _ in self._followers.values() if follower.loaded]
        self._metrics.webhook_lag_rows.set(max([0, *lags]))

    async def _stop(self, webhooks: list[Webhook]) -> None:
        stopping = [self._followers.pop(webhook) for webhook in webhooks]
        for _, task in stopping:
            task.cancel()
        await asyncio.gather(*(task for _, task in stopping), return_exceptions=True)
        for follower, _ in stopping:
            with contextlib.suppress(StoreUnavailable):  # then some events come twice
                follower.save()


class Follower:
    """One webhook's way along the trail."""

    def __init__(
        self,
        webhook: Webhook,
        store: FlagStore,
        webhooks: WebhookList,
        sender: Sender,
        metrics: ControlMetrics,
        *,
        source: str,
        clock: Callable[[], float],
        wait: Pause,
    ) -> None:
        self._webhook = webhook
        self._store = store
        self._webhooks = webhooks
        self._sender = sender
        self._metrics = metrics
        self._source = source
        self._clock = clock
        self._wait = wait
        self.progress = Progress(0)
        self.loaded = False
        self._revision = 0  # of the cursor record
        self._saved = asdict(self.progress)
        self._save_at_s = 0.0
        self._news = asyncio.Event()
        self._hurried = asyncio.Event()
        self._down = False  # the last attempt of this process failed
        self._gave_up = False  # and it was said that events are lost

    def wake(self, head: int) -> None:
        """The trail goes up to *head*."""
        if head != self.progress.seq:
            self._news.set()

    def hurry(self) -> None:
        """End the wait after a failed attempt: the receiver is there again."""
        self._down = False
        self._hurried.set()

    def save(self) -> None:
        """Keep the progress; blocks on the disk. Raises StoreUnavailable."""
        plain = asdict(self.progress)
        if not self.loaded or plain == self._saved:
            return
        write = RecordWrite(CURSOR, self._webhook.target, plain, expected_revision=self._revision)
        try:
            self._store.commit(author=SYSTEM, verb="cursor", reason="", records=[write])
            self._revision += 1
            self._saved = plain
        except RevisionConflict as conflict:  # removed; or the commit before was one, though it did not look so
            self.loaded = conflict.current_revision > 0
            self._revision = conflict.current_revision

    async def run(self) -> None:
        """Until the receiver is gone; otherwise for ever. Whatever goes wrong here is nobody else's trouble."""
        trouble = ""
        while True:
            try:
                await self._follow()
                return
            except StoreUnavailable as error:
                if str(error) != trouble:
                    _log.error("a webhook cannot go on", extra={"webhook": self._webhook.id, "why": str(error)})
                trouble = str(error)
                await self._wait(self._hurried, STORE_RETRY_S)
            except Exception:
                _log.exception("a webhook stumbled over a defect", extra={"webhook": self._webhook.id})
                await self._wait(self._hurried, CRASH_PAUSE_S)

    async def _follow(self) -> None:
        if not self.loaded:
            await asyncio.to_thread(self._load)
        while True:
            self._news.clear()
            rows, read_to = await asyncio.to_thread(outbox.read, self._store, self.progress.seq)
            for row in rows:
                if not await self._pass_on(row):
                    await asyncio.to_thread(self.save)
                    return
                self.progress.seq = row.seq
                await self._save_if_due()
            if read_to == self.progress.seq and not rows:
                await self._rest()
            self.progress.seq = read_to

    def _load(self) -> None:
        record = self._store.record(CURSOR, self._webhook.target)
        if record is not None:
            self.progress = Progress(**record.body)
            self._saved = asdict(self.progress)
            self._revision = record.revision
        self.loaded = True

    async def _rest(self) -> None:
        """Until the trail goes on; what is not saved by then is saved in between."""
        while not self._news.is_set():
            await self._save_if_due()
            unsaved = asdict(self.progress) != self._saved
            if unsaved:
                await pause(self._news, min(max(0.01, self._save_at_s - self._clock()), SAVE_S))
            else:
                await self._news.wait()

    async def _save_if_due(self) -> None:
        now_s = self._clock()
        if asdict(self.progress) != self._saved and not now_s < self._save_at_s <= now_s + SAVE_S:
            self._save_at_s = now_s + SAVE_S
            await asyncio.to_thread(self.save)

    # -- one event ------------------------------------------------------------------------------

    async def _pass_on(self, row: AuditRow) -> bool:
        """Deliver what the row says, or give it up; False if the receiver wants nothing more."""
        event = event_of(row, self._source)
        if event is None or not self._wants(event):
            return True
        happened_s = datetime.fromisoformat(row.ts).timestamp()
        refused_since_s: float | None = None
        while not (self._down and self._clock() - happened_s > GIVE_UP_AFTER_S):
            attempt = await self._attempt(event)
            self._metrics.webhook_deliveries.labels(attempt.outcome).inc()
            if attempt.outcome == DELIVERED:
                self._succeeded()
                return True
            self._failed(attempt)
            if attempt.outcome == GONE:
                await asyncio.to_thread(self._webhooks.disable, self._webhook, attempt.why)
                return False
            if attempt.status in REFUSALS:
                refused_since_s = refused_since_s or self._clock()
                if self._clock() - refused_since_s >= GIVE_UP_REFUSED_AFTER_S:
                    break
            else:
                refused_since_s = None
            if self._clock() - happened_s <= GIVE_UP_AFTER_S:
                await self._save_if_due()
                self._hurried.clear()
                resting_s = max(backoff_s(self.progress.failures, random.random), attempt.retry_after_s)
                await self._wait(self._hurried, resting_s)
        await self._give_up(event)
        return True

    def _wants(self, event: Event) -> bool:
        # A receiver is not told of its own trouble: it would be one more event to fail.
        own_trouble = event.about == self._webhook.target and ".alarm." in event.type
        return wanted(event.type, self._webhook.events) and not own_trouble

    async def _attempt(self, event: Event) -> Attempt:
        try:
            secret = await asyncio.to_thread(self._webhooks.secret, self._webhook)
        except StoreUnavailable as error:
            return Attempt(UNSIGNED, why=str(error))
        return await self._sender.send(self._webhook, secret, event)

    def _succeeded(self) -> None:
        progress = self.progress
        if progress.failures:
            _log.info("a webhook is told again", extra={"webhook": self._webhook.id, "failures": progress.failures})
        progress.last_success_s = self._clock()
        progress.failures, progress.failing_since_s, progress.last_error = 0, None, ""
        self._down = self._gave_up = False

    def _failed(self, attempt: Attempt) -> None:
        progress = self.progress
        if not self._down:
            _log.warning(
                "a webhook cannot be told",
                extra={"webhook": self._webhook.id, "receiver": self._webhook.place, "why": attempt.why},
            )
        progress.failures += 1
        progress.failing_since_s = progress.failing_since_s or self._clock()
        progress.last_error = attempt.why
        self._down = True

    async def _give_up(self, event: Event) -> None:
        self._metrics.webhook_deliveries.labels(GIVEN_UP).inc()
        self.progress.given_up += 1
        _log.error("an event is given up", extra={"webhook": self._webhook.id, "event": event.id, "type": event.type})
        if not self._gave_up:  # once for a whole outage
            self._gave_up = True
            why = self.progress.last_error
            after = {"url": self._webhook.place, "first_event": event.id, "type": event.type, "why": why}
            noted = Note("alarm.webhook_gave_up", self._webhook.target, after=after)
            reason = f"the receiver at {self._webhook.place} misses events: {why}"
            await asyncio.to_thread(
                lambda: self._store.commit(author=SYSTEM, verb=noted.verb, reason=reason, notes=[noted])
            )
