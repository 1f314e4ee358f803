"""Who read the audit trail: a row in the trail itself, before the answer leaves, and one more per minute at most."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import StoreUnavailable
from gateway.flags.audit import AuditRow, Author
from gateway.flags.store import FlagStore, Note, note

_log = logging.getLogger(__name__)

WINDOW_S = 60.0
LOOK_INTERVAL_S = 5.0
_MAX_NAMED = 20  # flags that a row names; it counts the others

_Key = tuple[str, str, str]  # token id, address, what was read


@dataclass(slots=True)
class _Window:
    """Reads that the last row does not tell of yet."""

    author: Author
    began_s: float
    requests: int = 0
    rows: int = 0
    first: int = 0
    last: int = 0
    flags: dict[str, None] = field(default_factory=dict)

    def add(self, rows: list[AuditRow], flag: str) -> None:
        self.requests += 1
        self.rows += len(rows)
        for row in rows:
            self.first = min(self.first or row.seq, row.seq)
            self.last = max(self.last, row.seq)
        if flag:
            self.flags[flag] = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"requests": self.requests, "rows": self.rows, "first": self.first, "last": self.last}
        if self.flags:
            found["flags"] = [*self.flags][:_MAX_NAMED]
            found["flags_in_all"] = len(self.flags)
        return found


class ReadLog:
    """Writes ``audit.read`` rows.

    The first read of a token, an address and a kind of read is written down before it is answered. Those of the
    following minute are counted, and told together: in the row of the next read after that minute, or else in one of
    their own. So a trail that is read page by page does not grow page by page, and reading to its end ends.

    Methods block on the disk, from any thread. clock: monotonic seconds.
    """

    def __init__(self, store: FlagStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[_Key, _Window] = {}

    def note(self, what: str, author: Author, rows: list[AuditRow], *, flag: str = "") -> None:
        """Somebody is about to get *rows*. what: rows, history, verify, checkpoints. Raises StoreUnavailable."""
        key = (author.token_id, author.ip, what)
        with self._lock:
            now_s = self._clock()
            window = self._windows.get(key)
            if window is not None and now_s - window.began_s < WINDOW_S:
                window.add(rows, flag)
                return
            this = _Window(author, now_s)
            this.add(rows, flag)
            after = {"what": what, **this.to_json()}
            if window is not None and window.requests:
                after["before_that"] = window.to_json()
            note(self._store, Note("audit.read", "audit:trail", after=after), author=author, reason="")
            self._windows[key] = _Window(author, now_s)

    def flush(self, *, closing: bool = False) -> None:
        """Tell of reads whose minute is over; closing: of all. Raises StoreUnavailable; they are kept then."""
        with self._lock:
            now_s = self._clock()
            for key, window in [*self._windows.items()]:
                if not closing and now_s - window.began_s < WINDOW_S:
                    continue
                if window.requests:
                    after = {"what": key[2], **window.to_json()}
                    author = dataclasses.replace(window.author, request_id="")
                    note(self._store, Note("audit.read", "audit:trail", after=after), author=author, reason="")
                del self._windows[key]

    async def run(self) -> None:
        """Flush for ever, in a thread."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                await asyncio.to_thread(self.flush)
            except StoreUnavailable as error:
                _log.error("reads of the audit wait to be written down", extra={"why": str(error)})
