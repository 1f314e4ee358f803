"""The flags as the store last held them: in memory, and in the last-known-good file that follows them."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import StoreUnavailable
from gateway.flags.document import FlagDocument
from gateway.flags.lastgood import read_last_known_good, write_last_known_good
from gateway.flags.store import FlagStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AtHand:
    """Flags to look at. stale_s: how old they are if the store cannot be read now; None if they are those in force."""

    document: FlagDocument
    stale_s: float | None = None


class LastSeen:
    """Called from any thread. lock: held by whoever writes to the store from this process."""

    def __init__(self, store: FlagStore, path: Path, lock: threading.RLock) -> None:
        self._store = store
        self._path = path
        self._lock = lock
        self._seen: tuple[FlagDocument, float] | None = None  # and when, on the monotonic clock
        self._written: FlagDocument | None = None  # what the file was last told
        self.trouble = ""  # why the file is behind; empty while it is not

    def look(self, document: FlagDocument) -> None:
        """This is what the store holds. The file follows it also where another control has written."""
        self._seen = (document, time.monotonic())
        if self._written is None or document == self._written:
            return
        with self._lock:
            newest = self._store.load()  # once more: no change of our own may come between
            if newest is None or newest == self._written:
                return
            if newest.revision <= self._written.revision:
                _log.error(
                    "the flag store went back: it was restored, or a server took over that had not got all changes",
                    extra={"from_revision": self._written.revision, "to_revision": newest.revision},
                )
            self.keep(newest)

    def keep(self, document: FlagDocument) -> None:
        """Write the file. That it cannot be written is no more than logged: the change itself is durable."""
        self._seen = (document, time.monotonic())
        self._written = document
        try:
            write_last_known_good(self._path, document)
            self.trouble = ""
        except StoreUnavailable as error:
            self.trouble = str(error)
            _log.error("the last known good file is behind the flag store", extra={"why": str(error)})

    def at_hand(self) -> AtHand | None:
        """What was seen last, or else what the file says; None if there is neither. Raises StoreUnavailable."""
        if self._seen is not None:
            document, seen_s = self._seen
            return AtHand(document, time.monotonic() - seen_s)
        kept = read_last_known_good(self._path)
        if kept is None:
            return None
        try:
            return AtHand(kept, max(0.0, time.time() - self._path.stat().st_mtime))
        except OSError:
            return None
