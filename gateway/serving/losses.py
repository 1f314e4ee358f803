"""What one log could not write: counted by reason for the status document, so that somebody is told."""

from __future__ import annotations

import errno
from typing import Any

DISK_FULL, WRITE_ERROR = "disk_full", "write_error"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def reason_of(error: OSError) -> str:
    """Under which reason an error of the disk is counted."""
    return DISK_FULL if error.errno in _DISK_FULL else WRITE_ERROR


class Losses:
    """Counted by the thread that writes the log, read by any. trouble: why it cannot be written, empty if it can."""

    def __init__(self) -> None:
        self._lost = {DISK_FULL: 0, WRITE_ERROR: 0}  # no key is ever added, so it may be read meanwhile
        self.trouble = ""

    def add(self, reason: str, count: int = 1) -> None:
        self._lost[reason] += count

    def to_json(self) -> dict[str, Any]:
        return {"lost": dict(self._lost), "trouble": self.trouble}
