"""Signs a checkpoint of the audit trail every so many rows, in the background, and takes it to its file and webhook."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from gateway.control.checkpoints import Checkpoint, Signer, append, open_signer, read_checkpoints
from gateway.control.trail import TrailCheck
from gateway.errors import AuditBroken, StoreUnavailable
from gateway.flags.audit import GENESIS, SYSTEM, AuditRow, Head
from gateway.flags.store import FlagStore, Note, note
from gateway.metrics import AuditMetrics
from gateway.settings import AuditSettings

_log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
_RETRY_MAX_S = 60.0
_CHUNK_ROWS = 500
_MAX_UNSENT = 1000  # a later checkpoint fixes all rows of those before it, so that the oldest may be let go
_POST_TIMEOUT_S = 5.0
_LAST_POST_TIMEOUT_S = 1.0  # at the stop nobody waits longer for a webhook


class Notary:
    """Follows the trail and signs its head.

    A checkpoint is due after *checkpoint_rows* new rows, or *checkpoint_s* after the last one if there are any; what
    was written before this process began is signed at once. Only rows that follow the last checkpoint without a break
    are signed silently: a break is logged and written into the trail as ``alarm.audit_broken``, and what comes after it
    is signed again.

    clock: unix seconds, for what people read. monotonic: for what is due, so that a clock set back delays nothing.
    `step` and `finish` block on the disk and may be called from any thread.
    """

    def __init__(
        self,
        store: FlagStore,
        settings: AuditSettings,
        metrics: AuditMetrics,
        *,
        key_path: Path,
        public_path: Path,
        file: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._key_path = key_path
        self._public_path = public_path
        self._file = file
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._signer: Signer | None = None
        self._covered = GENESIS
        self._covered_at_s: float | None = None  # monotonic; None: what is not signed yet is to be signed at once
        self._newest: AuditRow | None = None  # as far as the trail was followed and checked
        self._pause_s = 0.0
        self._not_before_s = 0.0
        self._trouble = ""
        self.unsent: deque[Checkpoint] = deque(maxlen=_MAX_UNSENT)

    def start(self) -> None:
        """Read or make the key, and see how far the file goes. Raises StoreUnavailable."""
        with self._lock:
            self._open()

    def step(self) -> None:
        """Sign a checkpoint if one is due. What goes wrong is logged, and tried again later."""
        with self._lock:
            if self._monotonic() >= self._not_before_s:
                self._try(closing=False)

    def finish(self) -> None:
        """The last checkpoint of this process, over all that it wrote."""
        with self._lock:
            self._try(closing=True)

    async def run(self) -> None:
        """Step for ever, in a thread."""
        while True:
            await asyncio.to_thread(self.step)
            await asyncio.sleep(LOOK_INTERVAL_S)

    # -- one step -------------------------------------------------------------------------------

    def _try(self, *, closing: bool) -> None:
        try:
            self._open()
            self._sign_if_due(closing=closing)
        except (StoreUnavailable, OSError) as error:
            self._metrics.failures.labels("file").inc()
            self._pause_s = min(max(LOOK_INTERVAL_S, 2 * self._pause_s), _RETRY_MAX_S)
            self._not_before_s = self._monotonic() + self._pause_s
            if str(error) != self._trouble:  # said once, not at each try
                _log.error("no checkpoint of the audit can be written; it is tried again", extra={"why": str(error)})
            self._trouble = str(error)
        else:
            self._pause_s, self._trouble = 0.0, ""

    def _open(self) -> None:
        if self._signer is not None:
            return
        signer, is_new = open_signer(self._key_path, self._public_path)
        if is_new:
            _log.info("a key for checkpoints of the audit was made", extra={"key_id": signer.key_id})
            made = Note("audit.key", f"key:{signer.key_id}", after={"public_file": self._public_path.name})
            note(self._store, made, author=SYSTEM, reason="a new key signs the checkpoints from here on")
        last = self._last_in_file()
        if last is not None:
            self._covered = last.head
            self._show(last)
            self.unsent.append(last)  # whether it was sent before the last stop is not known
        self._signer = signer

    def _last_in_file(self) -> Checkpoint | None:
        try:
            found = read_checkpoints(self._file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"{self._file} cannot be read: {error}") from error
        except AuditBroken as error:
            self._alarm(f"the file of checkpoints was changed: {error}")
            return None
        return found[-1] if found else None

    def _sign_if_due(self, *, closing: bool) -> None:
        broken = self._follow()
        if broken:
            self._alarm(broken)
            self._newest = self._store.history(limit=1, newest_first=True)[0]  # the alarm itself
            self._covered_at_s = None  # it is signed at once
        row = self._newest
        if row is None or self._signer is None:
            return
        self._metrics.seq.set(row.seq)
        if (row.seq, row.hash) == (self._covered.seq, self._covered.hash):
            if self._covered_at_s is None:
                self._covered_at_s = self._monotonic()
            return
        if not closing and not self._is_due(row.seq):
            return
        signed_at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds")
        checkpoint = self._signer.sign(
            Head(row.seq, row.hash), revision=row.revision, ts=signed_at.replace("+00:00", "Z")
        )
        append(self._file, checkpoint)
        self._covered, self._covered_at_s = checkpoint.head, self._monotonic()
        self.unsent.append(checkpoint)
        self._show(checkpoint)

    def _follow(self) -> str:
        """Read and check the rows that are new; returns what is wrong with them, empty if nothing is.

        The row that was the newest at the last look is read again: it must still be there.
        """
        known = self._covered if self._newest is None else Head(self._newest.seq, self._newest.hash)
        try:
            if known.seq:
                found = self._store.history(after=known.seq - 1, limit=1)
                if [(row.seq, row.hash) for row in found] != [(known.seq, known.hash)]:
                    return f"row {known.seq} with the hash {known.hash} is gone"
                self._newest = found[0]
            check = TrailCheck(start=known)
            while rows := self._store.history(after=check.head.seq, limit=_CHUNK_ROWS):
                check.add(rows)
                self._newest = rows[-1]
        except AuditBroken as error:
            return str(error)
        return ""

    def _is_due(self, seq: int) -> bool:
        if self._covered_at_s is None or seq - self._covered.seq >= self._settings.checkpoint_rows:
            return True
        return self._monotonic() - self._covered_at_s >= self._settings.checkpoint_s

    def _alarm(self, why: str) -> None:
        _log.error("the audit trail was tampered with, or its store was lost", extra={"why": why})
        self._metrics.breaks.inc()
        alarm = Note("alarm.audit_broken", "audit:trail", after={"why": why})
        note(self._store, alarm, author=SYSTEM, reason="found while signing a checkpoint")

    def _show(self, checkpoint: Checkpoint) -> None:
        self._metrics.checkpoint_seq.set(checkpoint.seq)
        self._metrics.checkpoint_timestamp_s.set(datetime.fromisoformat(checkpoint.ts).timestamp())


class Poster:
    """Posts each checkpoint to the webhook, oldest first; what cannot be delivered waits and is tried again.

    After a start the last one in the file is posted once more: a receiver may see one twice, but never misses the
    newest. Blocks on the network, in a thread of its own.
    """

    def __init__(self, url: str, unsent: deque[Checkpoint], metrics: AuditMetrics) -> None:
        self._url = url
        self._unsent = unsent
        self._metrics = metrics
        self._trouble = ""

    async def run(self) -> None:
        """Post for ever."""
        pause_s = LOOK_INTERVAL_S
        while True:
            done = not self._unsent or await asyncio.to_thread(self.post_all)
            pause_s = LOOK_INTERVAL_S if done else min(2 * pause_s, _RETRY_MAX_S)
            await asyncio.sleep(pause_s)

    def finish(self) -> None:
        """One last try."""
        self.post_all(timeout_s=_LAST_POST_TIMEOUT_S)

    def post_all(self, *, timeout_s: float = _POST_TIMEOUT_S) -> bool:
        """Post what waits; returns whether all went."""
        while self._url and self._unsent:
            checkpoint = self._unsent[0]
            why = _post(self._url, checkpoint, timeout_s)
            if why:
                self._metrics.failures.labels("webhook").inc()
                if why != self._trouble:  # the address stays out of the log: it may hold a secret
                    _log.error("a checkpoint could not be posted; it is tried again", extra={"why": why})
                self._trouble = why
                return False
            self._trouble = ""
            if self._unsent and self._unsent[0] is checkpoint:  # a full queue may have let it go meanwhile
                self._unsent.popleft()
        return True


def _post(url: str, checkpoint: Checkpoint, timeout_s: float) -> str:
    """Why it was not taken; empty if it was."""
    import httpx  # here and not above: most gateways have no webhook

    try:
        reply = httpx.post(url, json=checkpoint.to_json(), timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return type(error).__name__
    return "" if reply.is_success else f"answered {reply.status_code}"
