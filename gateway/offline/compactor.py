"""The compactor: makes Parquet files of the closed segments of the sample log, some segments of one hour at a time.

At any moment, also after a kill, each row is there once for those who read by the rules of `parts`: a part appears
whole, by one rename, and its footer says which segments it stands for; these are removed after that. A part that is not
large yet is replaced by one that has its rows and further ones, under the same name: to those who look at Parquet files
alone, a row is never there twice either.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gateway.errors import PackageInvalid
from gateway.models.manifest import MANIFEST_FILE, parse
from gateway.offline.columns import (
    KindMismatch,
    Kinds,
    declared_kinds,
    kinds_in,
    kinds_of,
    read_lines,
    together,
    values_by_name,
)
from gateway.offline.part_writer import (
    Abandoned,
    GoOn,
    partial_of_rejected,
    read_segment,
    rejected_path,
    write_part,
)
from gateway.offline.parts import PartDamaged, part_path, parts_in, read_part, version_of
from gateway.samples.lock import moving_rows
from gateway.samples.segments import CLOSED, Watermark

log = logging.getLogger(__name__)

LOCK_FILE = ".compactor.lock"
DAMAGED = ".damaged"

# Segments of one hour that hold so much need not wait until they are old enough.
_ENOUGH_BYTES = 32 * 1024 * 1024
# What one step takes in (at least one segment), and from which size on a part is left as it is.
_STEP_BYTES = 64 * 1024 * 1024
_FULL_BYTES = 64 * 1024 * 1024
_LOOK_BYTES = 1 << 20
_FIRST_LINES = 256
# An hour whose files make trouble, or that somebody reads, is left alone for so long.
_REST_S = 30.0


@dataclass(slots=True)
class Compaction:
    """What one step did: segments that are Parquet now, rows in them, lines in them that were no samples."""

    segments: int = 0
    rows: int = 0
    rejected_lines: int = 0


@dataclass(slots=True)
class _Segment:
    """One closed segment. relative: as in a watermark."""

    path: Path
    relative: str
    size_bytes: int
    written_s: float


class Compactor:
    """Compacts one sample log. Used by one thread; of all processes that want to, one does it."""

    def __init__(self, root: Path, models: Path, *, after_s: float, clock: Callable[[], float] = time.time) -> None:
        """root: the log. models: where packages are, whose manifests say what type a column without values has.
        after_s: how long a closed segment waits for company.
        """
        self._root = root
        self._models = models
        self._after_s = after_s
        self._clock = clock
        self._rests_until: dict[Path, float] = {}
        self._lock_fd: int | None = None

    def step(
        self, read: Watermark, go_on: GoOn, *, also_read: Watermark | None = None, min_age_s: float = 0.0
    ) -> Compaction | None:
        """Compact some segments of the oldest hour where that is due; None if none is.

        read: only segments that it says were read, and are remembered as read, are touched; also_read: the same of
        another reader. min_age_s: younger segments are left alone, since a reader may yet begin with them. go_on: asked
        every some thousand rows; when it says no, all is left as it was. Raises OSError where the log itself cannot be
        listed.
        """
        if not self._is_the_one():
            return None
        now = self._clock()
        reads = (read,) if also_read is None else (read, also_read)
        self._rests_until = {folder: until for folder, until in self._rests_until.items() if until > now}
        for folder in sorted(self._root.glob("model=*/version=*/date=*/hour=*"), key=lambda path: path.parts[-2:]):
            if folder in self._rests_until:
                continue
            try:
                done = self._compact_hour(folder, reads, now - min_age_s, go_on)
            except Abandoned:
                return None
            except (OSError, ValueError) as error:
                self._rests_until[folder] = now + _REST_S
                log.warning("cannot compact", extra={"folder": str(folder), "error": str(error)})
                continue
            if done is not None:
                return done
        return None

    def close(self) -> None:
        """Let another process do it."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _is_the_one(self) -> bool:
        """Whether this process is the one that compacts: of two, each would replace a part without the other's rows."""
        if self._lock_fd is None and self._root.is_dir():
            fd = os.open(self._root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                return False
            self._lock_fd = fd
        return self._lock_fd is not None

    # -- which segments ------------------------------------------------------------------------------

    def _compact_hour(
        self, folder: Path, reads: Sequence[Watermark], before_s: float, go_on: GoOn
    ) -> Compaction | None:
        segments = self._segments(folder)
        if not segments:
            return None
        segments = self._end_earlier(folder, segments)
        due = [
            segment
            for segment in segments
            if segment.written_s <= before_s and all(_is_read(segment, read) for read in reads)
        ]
        total_bytes = sum(segment.size_bytes for segment in due)
        oldest_s = min((segment.written_s for segment in due), default=0.0)
        if not due or (total_bytes < _ENOUGH_BYTES and oldest_s > self._clock() - self._after_s):
            return None
        taken: list[_Segment] = []
        while due and (not taken or sum(segment.size_bytes for segment in taken) + due[0].size_bytes <= _STEP_BYTES):
            taken.append(due.pop(0))
        return self._compact(folder, taken, go_on)

    def _segments(self, folder: Path) -> list[_Segment]:
        """The closed segments of an hour by name."""
        found: list[_Segment] = []
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(CLOSED):
                    stat = entry.stat()
                    relative = (folder / entry.name).relative_to(self._root).as_posix()
                    found.append(_Segment(folder / entry.name, relative, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda segment: segment.relative)

    def _end_earlier(self, folder: Path, segments: list[_Segment]) -> list[_Segment]:
        """Do what a killed process had left to do: remove partial files, and segments whose rows a part has.

        A part that cannot be read is put aside. Returns the segments that are left.
        """
        for partial in folder.glob(".*.tmp"):
            partial.unlink(missing_ok=True)
        taken: set[str] = set()
        for path in parts_in(folder):
            try:
                taken |= read_part(path).sources.keys()
            except PartDamaged as error:
                path.rename(path.with_name(path.name + DAMAGED))
                log.error(
                    "a damaged file of the sample log is put aside", extra={"file": str(path), "error": str(error)}
                )
        left = [segment for segment in segments if segment.path.name not in taken]
        for segment in segments:
            if segment.path.name in taken:
                segment.path.unlink(missing_ok=True)
        return left

    # -- one part ------------------------------------------------------------------------------------

    def _compact(self, folder: Path, segments: list[_Segment], go_on: GoOn) -> Compaction | None:
        """Put the rows of *segments* into the newest part of their hour, or a new one."""
        model, version = version_of(folder)
        kinds = self._kinds([_first_records(segments, model, version)], model, version)
        is_complete = False
        while True:
            try:
                return self._put(folder, segments, kinds, go_on)
            except KindMismatch as mismatch:
                # What the first rows are like does not hold for all of them: look at all, which is seldom needed.
                if is_complete:
                    kinds[mismatch.name] = "json"
                else:
                    every = (
                        read_lines(lines, model, version)[0]
                        for segment in segments
                        for lines, _torn in read_segment(segment.path)
                    )
                    kinds, is_complete = self._kinds(every, model, version), True

    def _kinds(self, batches: Iterable[list[dict[str, Any]]], model: str, version: str) -> Kinds:
        kinds: Kinds = {}
        for records in batches:
            kinds = together(kinds, kinds_of(values_by_name(records)))
        if "none" in kinds.values():
            declared: Kinds = {}
            with suppress(OSError, PackageInvalid):
                path = self._models / model / version / MANIFEST_FILE
                declared = declared_kinds(parse(path.read_bytes(), where=MANIFEST_FILE).signature)
            kinds = {name: declared.get(name, "none") if kind == "none" else kind for name, kind in kinds.items()}
        return kinds

    def _put(self, folder: Path, segments: list[_Segment], kinds: Kinds, go_on: GoOn) -> Compaction | None:
        earlier = parts_in(folder)
        last = read_part(earlier[-1]) if earlier else None
        target = part_path(folder, last.number if last is not None else 1)
        if last is not None:
            # Its columns must stay what they are, or its values would be changed.
            of_last = kinds_in(last.schema)
            both = together(of_last, kinds)
            if last.size_bytes < _FULL_BYTES and all(both[name] == kind for name, kind in of_last.items()):
                kinds = both
            else:
                target, last = part_path(folder, last.number + 1), None
        partial = folder / f".{target.name}.tmp"
        try:
            written = write_part(partial, kinds, last, [segment.path for segment in segments], go_on)
            sources = {**(last.sources if last is not None else {}), **written.rows}
            if read_part(partial).rows != sum(sources.values()):
                raise ValueError(f"{target.name} would not have the rows that it should have")
            has_rows = any(written.rows.values())
            if not self._swap(partial if has_rows else None, target, segments):
                self._rests_until[folder] = self._clock() + _REST_S
                return None
        finally:
            partial.unlink(missing_ok=True)
            for segment in segments:
                partial_of_rejected(segment.path).unlink(missing_ok=True)
        return Compaction(len(segments), sum(written.rows.values()), sum(written.rejected.values()))

    def _swap(self, partial: Path | None, target: Path, segments: list[_Segment]) -> bool:
        """Let the part, if there is one, take the place of the segments; False if somebody reads the log now."""
        with moving_rows(self._root) as may_move:
            if not may_move:
                return False
            for segment in segments:
                with suppress(FileNotFoundError):
                    partial_of_rejected(segment.path).replace(rejected_path(segment.path))
            if partial is not None:
                partial.replace(target)
            _sync_folder(target.parent)
            for segment in segments:
                segment.path.unlink(missing_ok=True)
        return True


def _is_read(segment: _Segment, read: Watermark) -> bool:
    """Whether all whole lines of the segment were read."""
    offset = read.offsets.get(segment.relative)
    if offset is None:
        model, version, date, hour, _name = segment.relative.split("/")
        return f"{date}/{hour}" <= read.finished.get(f"{model}/{version}", "")
    with suppress(FileNotFoundError), segment.path.open("rb") as file:
        file.seek(offset)
        while block := file.read(_LOOK_BYTES):
            if b"\n" in block:
                return False
    return True


def _first_records(segments: list[_Segment], model: str, version: str) -> list[dict[str, Any]]:
    """Some rows, from which the types of the columns are guessed."""
    for segment in segments:
        with segment.path.open("rb") as file:
            records, _rejected = read_lines(islice(file, _FIRST_LINES), model, version)
        if records:
            return records
    return []


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
