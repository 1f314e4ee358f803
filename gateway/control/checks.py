"""Failed checks as alarms: versions that fail, breakers that open, a file left behind, a trail that was touched."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gateway.control.alarms import Said
from gateway.control.status import FAILED, QUARANTINED, WARM, WorkerStatus
from gateway.errors import AuditBroken, StoreUnavailable
from gateway.flags.audit import GENESIS, AuditRow, check_ending, verify
from gateway.flags.document import FlagDocument
from gateway.flags.store import VERIFY_CHUNK_ROWS, FlagStore, Note

_log = logging.getLogger(__name__)

# State of a version in a worker -> the alarm that it is.
_BROKEN = {FAILED: "alarm.version_failed", QUARANTINED: "alarm.quarantine"}
CLOSED = "closed"
SAY_AGAIN_S = 3600.0  # a version that fails for another reason, a file that is behind again
FORGET_S = 60.0  # a version that no worker speaks of any more; less would be a restart

TRAIL_CHECK_S = 3600.0
TRAIL_START_S = 3.0  # the notary looks first at what is new
TRAIL_RETRY_S = 60.0
TRAIL_SAY_AGAIN_S = 24 * 3600.0
_TRAIL = ("alarm.audit_broken", "audit:trail")
_NEWEST_ROWS = 100
_REST = 10  # the check of the trail rests so many times what it costs


class FailedVersions:
    """Says once that a version fails to load or is quarantined, whatever number of workers tried and however often.

    workers: reads the status documents. clock: unix seconds.
    """

    def __init__(
        self, store: FlagStore, workers: Callable[[], list[WorkerStatus]], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._said = Said(store, "failed_versions")
        self._workers = workers
        self._clock = clock
        self._unmentioned_since: dict[str, float] = {}

    def look(self) -> None:
        """See what workers say. Raises StoreUnavailable."""
        live = [worker for worker in self._workers() if worker.live]
        states: dict[tuple[str, str], dict[int, tuple[str, str]]] = defaultdict(dict)
        for worker in live:
            for model, told in worker.document.get("models", {}).items():
                for version in told.get("versions", {}):
                    states[model, version][worker.slot] = worker.version(model, version)
        now_s = self._clock()
        known = self._said.read()
        after, notes = dict(known), []
        for (model, version), by_slot in states.items():
            key = f"{model}@{version}"
            self._unmentioned_since.pop(key, None)
            failing = {slot: found for slot, found in by_slot.items() if found[0] in _BROKEN}
            if failing:
                state, why = failing[min(failing)]
                if key not in known or (known[key]["why"] != why and now_s - known[key]["said_s"] >= SAY_AGAIN_S):
                    notes.append(_failed(model, version, state, why, sorted(failing)))
                    after[key] = {"why": why, "said_s": now_s}
            elif any(state == WARM for state, _ in by_slot.values()):
                after.pop(key, None)
        for key in self._forgotten(known, states, now_s) if live else ():
            after.pop(key, None)
        if after != known:
            self._said.write(after, notes, "; ".join(str(note.after["why"]) for note in notes))

    def _forgotten(self, known: dict[str, Any], states: dict[tuple[str, str], Any], now_s: float) -> list[str]:
        mentioned = {f"{model}@{version}" for model, version in states}
        return [
            key
            for key in known.keys() - mentioned
            if now_s - self._unmentioned_since.setdefault(key, now_s) >= FORGET_S
        ]


class OpenBreakers:
    """Says once that a variant's breaker opened, on whichever worker came first; again only after a minute closed.

    workers: reads the status documents. clock: unix seconds.
    """

    def __init__(
        self, store: FlagStore, workers: Callable[[], list[WorkerStatus]], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._said = Said(store, "open_breakers")
        self._workers = workers
        self._clock = clock
        self._closed_since: dict[str, float] = {}

    def look(self) -> None:
        """See what workers say. Raises StoreUnavailable."""
        live = [worker for worker in self._workers() if worker.live]
        open_now: dict[str, Note] = {}
        for worker in live:
            for breaker in worker.document.get("breakers", []):
                if breaker.get("state") != CLOSED:
                    note = _opened(breaker, worker.slot)
                    open_now.setdefault(f"{note.target}/{note.after['version']}", note)
        now_s = self._clock()
        known = self._said.read()
        after = dict(known)
        notes = [note for key, note in open_now.items() if key not in known]
        for key in open_now:
            self._closed_since.pop(key, None)
            after.setdefault(key, now_s)
        for key in known.keys() - open_now.keys() if live else ():
            if now_s - self._closed_since.setdefault(key, now_s) >= FORGET_S:
                after.pop(key)
        if after != known:
            self._said.write(after, notes, "; ".join(str(note.after["why"]) for note in notes))


class LastKnownGood:
    """Says that the file which a start without a readable store needs is behind the flags. trouble: why, or empty."""

    def __init__(self, store: FlagStore, trouble: Callable[[], str], *, clock: Callable[[], float] = time.time) -> None:
        self._said = Said(store, "last_known_good")
        self._trouble = trouble
        self._clock = clock
        self._is_said = False

    def look(self) -> None:
        """Ask for trouble. Raises StoreUnavailable."""
        why = self._trouble()
        if why and not self._is_said:
            now_s = self._clock()
            if now_s - self._said.read().get("said_s", -SAY_AGAIN_S) >= SAY_AGAIN_S:
                noted = Note("alarm.last_known_good", "file:flags.lkg.json", after={"why": why})
                self._said.write({"said_s": now_s}, [noted], "the last known good file is behind the flag store")
        self._is_said = bool(why)


class WholeTrail:
    """Verifies the whole audit trail, now and again, and says if it is not what was written.

    The notary only reads what is newer than its last checkpoint; what it has said already is not said again.
    """

    def __init__(self, store: FlagStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._said = Said(store, "audit_broken")
        self._clock = clock

    async def run(self) -> None:
        """For ever, in short pieces with rests in between, so that it holds up nothing and may be ended at any time."""
        await asyncio.sleep(TRAIL_START_S)
        while True:
            try:
                await self._say(await self._find())
                await asyncio.sleep(TRAIL_CHECK_S)
            except StoreUnavailable as error:
                _log.warning("the audit trail could not be checked", extra={"why": str(error)})
                await asyncio.sleep(TRAIL_RETRY_S)

    async def _find(self) -> str:
        """What is wrong with the trail; empty if nothing is."""
        head = GENESIS
        written: dict[str, AuditRow] = {}
        try:
            while True:
                began_s = time.monotonic()
                rows = await asyncio.to_thread(self._store.history, after=head.seq, limit=VERIFY_CHUNK_ROWS)
                if not rows:
                    document = await asyncio.to_thread(self._store.load) or FlagDocument()
                    if not await asyncio.to_thread(self._store.history, after=head.seq, limit=1):
                        check_ending(written.values(), document)
                        return ""
                head = await asyncio.to_thread(verify, rows, head)
                written |= {row.target: row for row in rows}
                await asyncio.sleep(_REST * (time.monotonic() - began_s))
        except AuditBroken as error:
            return str(error)

    async def _say(self, why: str) -> None:
        said = await asyncio.to_thread(self._said.read)
        now_s = self._clock()
        if why and (said.get("why") != why or now_s - said["said_s"] >= TRAIL_SAY_AGAIN_S):
            notes = [] if await asyncio.to_thread(self._was_said, why) else [Note(*_TRAIL, after={"why": why})]
            if notes:
                _log.error("the audit trail is not what was written", extra={"why": why})
            await asyncio.to_thread(self._said.write, {"why": why, "said_s": now_s}, notes, why)
        elif said and not why:
            await asyncio.to_thread(self._said.write, {})

    def _was_said(self, why: str) -> bool:
        verb, target = _TRAIL
        try:
            newest = self._store.history(target, limit=_NEWEST_ROWS, newest_first=True)
        except AuditBroken:
            return False
        return any(row.verb == verb and row.after["why"] == why for row in newest)


def _failed(model: str, version: str, state: str, why: str, workers: list[int]) -> Note:
    how = "is quarantined" if state == "quarantined" else "fails to load"
    after = {"model": model, "version": version, "workers": workers, "why": f"{model} {version} {how}: {why}"}
    return Note(_BROKEN[state], f"version:{model}@{version}", after=after)


def _opened(breaker: dict[str, Any], slot: int) -> Note:
    model, variant, version = (str(breaker.get(name, "")) for name in ("model", "variant", "version"))
    why = f"the breaker of {variant} ({model} {version}) is open on worker {slot}: {breaker.get('reason', '')}"
    after = {"model": model, "variant": variant, "version": version, "worker": slot, "why": why}
    return Note("alarm.breaker", f"breaker:{model}/{variant}", after=after)
