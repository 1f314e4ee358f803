"""The counts of a process in a mapped file whose pages the disk has given in advance: a full disk must end nobody."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

# As much as prometheus_client begins with.
_FIRST_BYTES = 1 << 16
# What an entry has beside its key: its length, padding, value and time.
_ENTRY_BYTES = 32

_log = logging.getLogger(__name__)


class ReservedDict(MmapedDict):
    """prometheus_client's dict of counts, which never writes to a page that is not on the disk yet.

    The kernel ends a process with SIGBUS that writes to a page of a mapped file for which there is no room. So room
    is taken first, and where there is none (the disk is full, or cannot be written), the counts go on in memory:
    what comes then is not on the page of metrics until the process is replaced. Used under prometheus_client's lock.
    """

    def __init__(self, path: str) -> None:
        try:
            reserve(path, _FIRST_BYTES)
        except OSError as error:
            _say(path, error)
            path = f"/proc/self/fd/{_memory()}"
        super().__init__(path)  # type: ignore[no-untyped-call]  # untyped there

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _ENTRY_BYTES > self._capacity:
            try:
                os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
            except OSError as error:
                _say(self._fname, error)
                self._move_to_memory()
        super()._init_value(key)  # type: ignore[no-untyped-call]  # untyped there

    def _move_to_memory(self) -> None:
        """Go on in memory with what has been counted so far; the file stays as it is."""
        file = open(_memory(), "r+b")  # noqa: SIM115 - open for as long as the process counts
        file.write(self._m[:])
        file.flush()
        self._m.close()
        self._f.close()
        self._f, self._m = file, mmap.mmap(file.fileno(), self._capacity)


def reserve(path: str, size_bytes: int) -> None:
    """Make a file of at least this size, all of it on the disk. Raises OSError, and then there is no new file."""
    is_new = not os.path.exists(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, max(size_bytes, os.fstat(descriptor).st_size))
    except OSError:
        if is_new:
            with contextlib.suppress(OSError):
                os.unlink(path)  # an empty one would spoil the page
        raise
    finally:
        os.close(descriptor)


def install() -> None:
    """From now on the metrics that this process makes are counted in such files."""
    values.MmapedDict = ReservedDict  # type: ignore[attr-defined, assignment]  # it is looked up there at each use


def _memory() -> int:
    return os.memfd_create("sluicegate-counts")


def _say(path: str, error: OSError) -> None:
    _log.error("counts go on in memory and are not on the page of metrics", extra={"file": path, "why": str(error)})
