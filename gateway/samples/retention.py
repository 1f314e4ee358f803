"""What of the sample log is removed: what is too old, and the oldest of what is too much, but nothing in use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from gateway.samples.segments import CLOSED, LATE_ROWS_S, OPEN

_PARQUET = ".parquet"
_LABELS = "labels"


@dataclass(frozen=True, slots=True)
class _Stored:
    """One file of the log. ended_s: Unix time of the end of the hour (of labels, the day) that it is of."""

    path: Path
    relative: str
    ended_s: float
    size_bytes: int


@dataclass(slots=True)
class Removed:
    """What a look at the log has done. files: how many were removed by reason: "age", "bytes", or "unread", those for
    whose bytes there was no room though a reader has not come to their end. log_bytes: what is left."""

    files: dict[str, int] = field(default_factory=lambda: {"age": 0, "bytes": 0, "unread": 0})
    log_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """Bounds of one log.

    keep_s: how long after its hour a file stays; max_bytes: of all files together; 0: no bound.
    """

    root: Path
    keep_s: float
    max_bytes: int
    clock: Callable[[], float] = time.time

    def apply(self, is_read: Callable[[str], bool]) -> Removed:
        """Remove what the bounds do not allow, oldest first. Raises OSError.

        is_read: whether the reader has read a closed segment, given relative to the log, to its end. A segment that is
        being written is never removed, and one that is not read only for its bytes.
        """
        removed = Removed()
        files = sorted(self._files(), key=lambda file: (file.ended_s, file.relative))
        removed.log_bytes = sum(file.size_bytes for file in files)
        too_old_s = self.clock() - self.keep_s - LATE_ROWS_S if self.keep_s else float("-inf")
        for file in files:
            if file.relative.endswith(OPEN):
                continue
            is_unread = file.path.name.endswith(CLOSED) and not self._is_label(file) and not is_read(file.relative)
            if self.max_bytes and removed.log_bytes > self.max_bytes:
                reason = "unread" if is_unread else "bytes"
            elif file.ended_s <= too_old_s and not is_unread:
                reason = "age"
            else:
                continue
            file.path.unlink(missing_ok=True)
            removed.files[reason] += 1
            removed.log_bytes -= file.size_bytes
            self._remove_empty(file)
        return removed

    def _is_label(self, file: _Stored) -> bool:
        return file.relative.startswith(f"{_LABELS}/")

    def _remove_empty(self, file: _Stored) -> None:
        """Remove the folders that a file leaves empty, unless a writer may be about to put one there."""
        if self.clock() < file.ended_s + LATE_ROWS_S:
            return
        for folder in file.path.relative_to(self.root).parents:
            if not folder.name.startswith(("date=", "hour=")):
                return
            with suppress(OSError):  # it is not empty, or somebody else was faster
                (self.root / folder).rmdir()

    def _files(self) -> Iterator[_Stored]:
        for pattern in ("model=*/version=*/date=*/hour=*", f"{_LABELS}/date=*"):
            for folder in self.root.glob(pattern):
                ended_s = _end_of(folder)
                if ended_s is None:
                    continue
                with suppress(FileNotFoundError), os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.endswith((CLOSED, OPEN, _PARQUET)) and not entry.name.startswith("."):
                            path = Path(entry.path)
                            with suppress(FileNotFoundError):
                                size_bytes = entry.stat().st_size
                                yield _Stored(path, path.relative_to(self.root).as_posix(), ended_s, size_bytes)


def _end_of(folder: Path) -> float | None:
    """When the hour or the day of a folder was over; None if it is a stranger's."""
    is_hour = folder.name.startswith("hour=")
    text = f"{folder.parent.name} {folder.name}" if is_hour else folder.name
    try:
        begin = datetime.strptime(text, "date=%Y-%m-%d hour=%H" if is_hour else "date=%Y-%m-%d")
    except ValueError:
        return None
    return begin.replace(tzinfo=UTC).timestamp() + (3600.0 if is_hour else 86_400.0)
