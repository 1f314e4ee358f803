"""Following a file of flags: read once it has settled, refused whole if it is wrong, written as one revision."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.control.changes import Desk
from gateway.control.imports import import_flags
from gateway.control.requests import MAX_BODY_BYTES, MAX_BODY_DEPTH, is_deeper
from gateway.errors import ChangeRefused, InvalidFlag, RevisionConflict, StoreUnavailable
from gateway.flags.audit import Author
from gateway.flags.document import FlagDocument, parse
from gateway.models.source import ModelSource

_log = logging.getLogger(__name__)

SCAN_INTERVAL_S = 0.5
# A file that changed so recently may still be written to.
SETTLED_AFTER_S = 1.0
AUTHOR = Author("flags.import_file")

# What has become of the file, as the status tells it.
APPLIED, WAITING, REFUSED, MISSING = "applied", "waiting", "refused", "missing"
_Stamp = tuple[int, int, int]  # modification time in ns, size, inode


@dataclass(frozen=True, slots=True)
class _Read:
    """The file's content, once it could be read and parsed."""

    sha256: str
    document: FlagDocument


class FileFollower:
    """Takes the flags of one file to the desk. Its methods block on the disk; one caller at a time.

    A weight that may not rise yet is tried again at each scan, until every worker has warmed its version.
    """

    def __init__(self, path: Path, desk: Desk, source: ModelSource, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._desk = desk
        self._source = source
        self._clock = clock
        self._stamp: _Stamp | None = None  # of the last look
        self._taken: _Stamp | None = None  # of the content that was last read
        self._read: _Read | None = None
        self._revision = -1  # of the flags that were in force when the file was last applied
        self._state, self._why = "", ""
        self._logged: tuple[str, ...] = ()

    def first_look(self) -> None:
        """At start: look, and once more if the file has not settled, so that no model is seeded before it."""
        if not self.scan():
            time.sleep(SETTLED_AFTER_S)
            self.scan()

    def scan(self) -> bool:
        """One look; whether the file had settled."""
        try:
            stamp = self._look()
            if stamp is None:
                self._say(MISSING, f"there is no file {self._path}")
            elif stamp != self._taken and not self._take_in(stamp):
                return False
            if stamp is not None and self._read is not None:
                self._apply(self._read)
        except (OSError, StoreUnavailable) as error:
            self._say(REFUSED, str(error))
        except RevisionConflict:  # somebody pulled a kill switch meanwhile
            pass
        return True

    async def run(self) -> None:
        """Scan for ever, in a thread."""
        while True:
            await asyncio.to_thread(self.scan)
            await asyncio.sleep(SCAN_INTERVAL_S)

    def describe(self) -> dict[str, Any]:
        """For the status: the file, what has become of it, and why."""
        sha256 = self._read.sha256 if self._read is not None else None
        return {"file": str(self._path), "state": self._state, "why": self._why, "sha256": sha256}

    # -- reading ------------------------------------------------------------------------------

    def _look(self) -> _Stamp | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self._taken = None  # what comes back is read again
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _take_in(self, stamp: _Stamp) -> bool:
        """Read and parse the file if it has settled; whether it has. A file that is wrong leaves nothing to apply."""
        same, self._stamp = stamp == self._stamp, stamp
        if not same and self._clock() - stamp[0] / 1e9 < SETTLED_AFTER_S:
            return False
        content = self._path.read_bytes()
        if self._look() != stamp:  # it changed while we read
            return False
        self._taken = stamp
        sha256 = hashlib.sha256(content).hexdigest()
        if self._read is not None and self._read.sha256 == sha256:
            return True
        self._read, self._revision = None, -1
        try:
            self._read = _Read(sha256, _parsed(content))
        except InvalidFlag as error:
            self._say(REFUSED, str(error))
        return True

    # -- writing ------------------------------------------------------------------------------

    def _apply(self, read: _Read) -> None:
        document = self._desk.document()
        if self._state != WAITING and document.revision == self._revision:
            return
        self._revision = document.revision
        reason = f"{self._path}, sha256 {read.sha256[:16]}"
        try:
            outcome = import_flags(
                self._desk, self._source, read.document, author=AUTHOR, reason=reason, is_followed=True
            )
        except InvalidFlag as error:
            self._say(REFUSED, str(error))
            return
        except ChangeRefused as error:  # a worker has changed its mind
            self._say(WAITING, str(error))
            return
        self._revision = outcome.document.revision
        if outcome.blocked:
            why = "; ".join(f"{blocked.flag}: {blocked.error}" for blocked in outcome.blocked)
            self._say(WAITING, why, *(f"{blocked.flag}: {blocked.error.code}" for blocked in outcome.blocked))
        else:
            self._say(APPLIED, "")

    def _say(self, state: str, why: str, *kinds: str) -> None:
        """Note what has become of the file; logged when it changes in kind, not twice a second."""
        self._state, self._why = state, why
        logged = (state, *(kinds or (why,)))
        if logged == self._logged:
            return
        self._logged = logged
        more = {"file": str(self._path), "why": why}
        if state in (REFUSED, MISSING):
            _log.error("the flags file is not followed; the flags stay as they are", extra=more)
        elif state == WAITING:
            _log.warning("a part of the flags file waits", extra=more)
        else:
            _log.info("the flags are those of the file", extra={"file": str(self._path)})


def _parsed(content: bytes) -> FlagDocument:
    """Raises InvalidFlag."""
    if len(content) > MAX_BODY_BYTES:
        raise InvalidFlag("file", f"{len(content)} bytes", f"at most {MAX_BODY_BYTES}")
    try:
        plain = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidFlag("file", f"text that is not JSON ({error})", "flagd JSON") from error
    if is_deeper(plain, MAX_BODY_DEPTH):
        raise InvalidFlag("file", f"JSON nested more than {MAX_BODY_DEPTH} deep", "a flatter document")
    return parse(plain)
