"""The sample log on disk: segments of whole lines, written by one process each, followed by any number of readers.

    <log>/model=M/version=V/date=YYYY-MM-DD/hour=HH/<boot>-<pid>-<seq>.jsonl.open

is being written; without ``.open`` it is closed. Date and hour are UTC and those of the rows' ts_ns.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from gateway.samples.record import SCHEMA_FILE, json_schema

CLOSED = ".jsonl"
OPEN = ".jsonl.open"

_HOUR_NS = 3600 * 10**9
# Rows of an hour may be written a little after it, since they wait in a queue; after this long it is over.
LATE_ROWS_S = 900.0
_PIECES_PER_WRITE = 1024  # what Linux takes
_SEGMENT_NAME = re.compile(r"(?P<boot>.+)-(?P<pid>\d+)-(?P<seq>\d+)\.jsonl(\.open)?")


def partition_of(model: str, version: str, ts_ns: int) -> str:
    """The folder, relative to the log, of the rows of one version in one hour."""
    hour = time.strftime("date=%Y-%m-%d/hour=%H", time.gmtime(ts_ns // 10**9))
    return f"model={quote(model, safe='')}/version={quote(version, safe='')}/{hour}"


def version_in(partition: str) -> tuple[str, str]:
    """(model, version) of such a folder, or of what lies in it."""
    model, version, *_rest = partition.split("/")
    return unquote(model.removeprefix("model=")), unquote(version.removeprefix("version="))


@dataclass(slots=True)
class _Segment:
    path: Path  # ends in .open
    fd: int
    opened_at: float
    size_bytes: int = 0


@dataclass(slots=True)
class SegmentWriter:
    """Appends lines to the open segments of this process and closes them by size and age. Used by one thread.

    boot and pid name the files, so that no two processes ever write to the same one. Each open segment is locked
    (flock) for as long as its process lives, by which recovery tells a living writer from a dead one. partition: the
    folder of a version's rows of a time.
    """

    root: Path
    boot: str
    max_bytes: int
    max_age_s: float
    pid: int = field(default_factory=os.getpid)
    clock: Callable[[], float] = time.monotonic
    partition: Callable[[str, str, int], str] = partition_of
    _open: dict[tuple[str, str, int], _Segment] = field(default_factory=dict)
    _unsynced: set[tuple[str, str, int]] = field(default_factory=set)
    _seq: int = 0

    def write_schema(self) -> None:
        """Put the JSON Schema beside the data unless it is there already. Raises OSError."""
        self.root.mkdir(parents=True, exist_ok=True)
        path, wanted = self.root / SCHEMA_FILE, json_schema()
        with suppress(FileNotFoundError):
            if path.read_bytes() == wanted:
                return
        partial = path.with_name(f"{SCHEMA_FILE}.{self.pid}.tmp")
        partial.write_bytes(wanted)
        partial.replace(path)

    def write(self, model: str, version: str, ts_ns: int, lines: bytes | Sequence[bytes]) -> None:
        """Append whole *lines*, which may come in pieces, to the segment of their version and hour.

        Raises OSError, and then none of these lines is in the log.
        """
        pieces = [lines] if isinstance(lines, bytes) else lines
        key = (model, version, ts_ns // _HOUR_NS)
        segment = self._open.get(key)
        if segment is None:
            segment = self._open[key] = self._create(self.partition(model, version, ts_ns))
        try:
            written = _append(segment.fd, pieces)
        except OSError:
            try:
                os.ftruncate(segment.fd, segment.size_bytes)
            except OSError:
                self._abandon(key)  # recovery will cut its tail; what was whole stays whole
            raise
        segment.size_bytes += written
        self._unsynced.add(key)
        if segment.size_bytes >= self.max_bytes:
            self._close(key)

    @property
    def has_unsynced(self) -> bool:
        """Whether something was written that the disk has not confirmed."""
        return bool(self._unsynced)

    def sync(self) -> None:
        """Wait until the disk holds all that was written. Raises OSError; what failed is not tried again."""
        keys, self._unsynced = self._unsynced, set()
        for key in keys:
            os.fdatasync(self._open[key].fd)

    def close_old(self) -> None:
        """Close the segments that are older than max_age_s. Raises OSError."""
        limit = self.clock() - self.max_age_s
        for key in [key for key, segment in self._open.items() if segment.opened_at <= limit]:
            self._close(key)

    def close(self) -> None:
        """Close all segments. Raises the first OSError, after trying them all."""
        failure: OSError | None = None
        for key in list(self._open):
            try:
                self._close(key)
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _create(self, partition: str) -> _Segment:
        folder = self.root / partition
        folder.mkdir(parents=True, exist_ok=True)
        self._seq += 1
        path = folder / f"{self.boot}-{self.pid}-{self._seq:06d}{OPEN}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
        with suppress(OSError):  # a filesystem without locks: recovery then goes by boot and pid alone
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            for parent in (folder, *folder.parents[: len(Path(partition).parts)]):
                _sync_folder(parent)  # else a power cut could take the file, whose lines the disk has
        except OSError:
            os.close(fd)
            raise
        return _Segment(path, fd, self.clock())

    def _close(self, key: tuple[str, str, int]) -> None:
        segment = self._open.pop(key)
        self._unsynced.discard(key)
        try:
            os.fdatasync(segment.fd)
            with suppress(FileNotFoundError):  # somebody has cleared the folder, or taken us for dead
                segment.path.rename(closed_name(segment.path))
        finally:
            os.close(segment.fd)

    def _abandon(self, key: tuple[str, str, int]) -> None:
        segment = self._open.pop(key)
        self._unsynced.discard(key)
        with suppress(OSError):
            os.close(segment.fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _append(fd: int, pieces: Sequence[bytes]) -> int:
    """One write for all pieces, as far as the system takes so many; more only where it takes less than it was given.

    Returns how many bytes these are.
    """
    for at in range(0, len(pieces), _PIECES_PER_WRITE):
        some = pieces[at : at + _PIECES_PER_WRITE]
        written, size = os.writev(fd, some), sum(map(len, some))
        rest = memoryview(b"".join(some))[written:] if written < size else memoryview(b"")
        while rest:
            rest = rest[os.write(fd, rest) :]
    return sum(map(len, pieces))


def closed_name(path: Path) -> Path:
    """The name that an open segment gets when it is closed."""
    return path.with_name(path.name.removesuffix(OPEN) + CLOSED)


def recover(root: Path, *, boot: str, pattern: str = f"model=*/version=*/date=*/hour=*/*{OPEN}") -> int:
    """Close the open segments that dead processes have left: cut each after its last newline and rename it.

    A segment is left alone if it belongs to a living process of this *boot*, or if its writer still holds its lock.
    Empty ones are removed. Safe while others write and while other processes recover. Returns the number of segments
    closed; one that cannot be closed now is left for the next start.
    """
    closed = 0
    for path in root.glob(pattern):
        name = _SEGMENT_NAME.fullmatch(path.name)
        if name is None or (name["boot"] == boot and _is_alive(int(name["pid"]))):
            continue
        with suppress(OSError):
            closed += _close_stale(path)
    return closed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _close_stale(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its writer lives
        if os.fstat(fd).st_nlink == 0:
            return False  # another process was faster
        whole_bytes = _whole_lines_bytes(fd)
        if whole_bytes == 0:
            path.unlink()
            return True
        os.ftruncate(fd, whole_bytes)
        os.fdatasync(fd)
        path.rename(closed_name(path))
        return True
    finally:
        os.close(fd)


def _whole_lines_bytes(fd: int) -> int:
    """The length of the file up to and with its last newline."""
    end, step = os.fstat(fd).st_size, 1 << 16
    while end > 0:
        start = max(0, end - step)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


@dataclass(slots=True)
class Watermark:
    """How far a reader has come. As plain values it can be stored and read back.

    offsets: relative file, always without ``.open``, so that it survives the closing -> bytes read. finished:
    ``model=M/version=V`` -> the last folder ``date=.../hour=..`` of that version which, like all before it, is read to
    its end; offsets of files in there are forgotten, or the watermark would grow with the log.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Found:
    """One segment as a reader sees it."""

    relative: str
    path: Path
    is_open: bool


class SegmentReader:
    """Follows a log from a watermark: closed segments, and the complete lines of open ones. Used by one thread."""

    def __init__(
        self, root: Path, watermark: Watermark | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._clock = clock
        self._read_to_end: set[str] = set()  # closed segments that need not be looked at again
        self.watermark = watermark if watermark is not None else Watermark()
        self.has_more = False  # whether the last `read` stopped before the end of what there was

    def read(self, max_bytes: int) -> Iterator[tuple[str, bytes]]:
        """(relative file, whole lines) of what is new, oldest hour first, until about *max_bytes* were given.

        The watermark moves with each block that is given. A line longer than max_bytes is given whole. Raises OSError
        if a segment cannot be read; one that vanishes is passed over.
        """
        budget = max_bytes
        self.has_more = False
        for segment in self._segments():
            if budget <= 0:
                self.has_more = True
                return
            offset = self.watermark.offsets.get(segment.relative, 0)
            block, is_end = self._block(segment, offset, budget)
            self.has_more |= not is_end
            if is_end and not segment.is_open:
                self._read_to_end.add(segment.relative)
            self.watermark.offsets[segment.relative] = offset + len(block)
            if block:
                budget -= len(block)
                yield segment.relative, block
                if not is_end:  # the budget did not reach; what it has left is less than a line of this segment
                    return

    def has_read(self, relative: str) -> bool:
        """Whether a closed segment was read to its end."""
        return relative in self._read_to_end or self._is_finished(relative)

    def forget_finished(self) -> None:
        """Drop from the watermark what need not be remembered: hours that are over and read, files that are gone."""
        over = time.strftime("date=%Y-%m-%d/hour=%H", time.gmtime(self._clock() - 3600.0 - LATE_ROWS_S))
        waiting: set[str] = set()  # versions with an hour that is not finished; none after it can be
        for version, hour, folder in self._hours():
            inside = f"{version}/{hour}/"
            segments = list(_segments_in(folder, f"{version}/{hour}"))
            names = {segment.relative for segment in segments}
            names |= {name for name in self.watermark.offsets if name.startswith(inside) and self._exists(name)}
            is_read = not any(segment.is_open for segment in segments) and names <= self._read_to_end
            if hour <= over and version not in waiting and is_read:
                self.watermark.finished[version] = hour
                self._read_to_end -= names
            else:
                waiting.add(version)
        for name in list(self.watermark.offsets):
            if self._is_finished(name) or not self._exists(name):
                del self.watermark.offsets[name]
                self._read_to_end.discard(name)

    def _is_finished(self, relative: str) -> bool:
        model, version, date, hour, _name = relative.split("/")
        return f"{date}/{hour}" <= self.watermark.finished.get(f"{model}/{version}", "")

    def _exists(self, relative: str) -> bool:
        """Asked by name, open before closed: a listing may miss a file that is renamed meanwhile."""
        path = self._root / relative
        return path.with_name(path.name + ".open").exists() or path.exists()

    def _segments(self) -> list[_Found]:
        """The segments that may hold something new, by hour and then by name."""
        found = [
            (hour, segment)
            for version, hour, folder in self._hours()
            for segment in _segments_in(folder, f"{version}/{hour}")
            if segment.relative not in self._read_to_end
        ]
        found.sort(key=lambda entry: (entry[0], entry[1].relative))
        return [segment for _hour, segment in found]

    def _hours(self) -> Iterator[tuple[str, str, Path]]:
        """(version folder, hour folder, path) of the hours that are not finished, each version's in order."""
        for version in sorted(self._root.glob("model=*/version=*")):
            relative = version.relative_to(self._root).as_posix()
            finished = self.watermark.finished.get(relative, "")
            for date in sorted(version.glob("date=*")):
                if date.name < finished.partition("/")[0]:
                    continue
                for folder in sorted(date.glob("hour=*")):
                    hour = f"{date.name}/{folder.name}"
                    if hour > finished:
                        yield relative, hour, folder

    def _block(self, segment: _Found, offset: int, budget: int) -> tuple[bytes, bool]:
        """Whole lines from *offset* on, and whether no more of them can be there now."""
        try:
            file = segment.path.open("rb")
        except FileNotFoundError:
            try:
                file = closed_name(segment.path).open("rb")  # closed since we looked
            except FileNotFoundError:
                return b"", False
        with file:
            file.seek(offset)
            block = file.read(budget)
            whole = block.rfind(b"\n") + 1
            while not whole and len(block) == budget:  # a line longer than the budget
                budget *= 2
                block += file.read(budget - len(block))
                whole = block.rfind(b"\n") + 1
            return block[:whole], len(block) < budget


def _segments_in(folder: Path, relative: str) -> Iterator[_Found]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((OPEN, CLOSED)):
                name = entry.name.removesuffix(".open")
                yield _Found(f"{relative}/{name}", Path(entry.path), entry.name.endswith(OPEN))
