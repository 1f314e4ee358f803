"""The metric files of one boot: merged into a page, and those of a dead process added to the sums of all dead ones."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import operator
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from gateway import metric_pages

# Files whose values outlive their process, and how two of one name become one.
_KEPT: dict[str, Callable[[float, float], float]] = {
    "counter": operator.add,
    "histogram": operator.add,
    "gauge_max": max,
}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(directory: Path) -> bytes:
    """The merged metrics of all processes that write to *directory*, in Prometheus text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]  # untyped there
    with _files_lock(directory, fcntl.LOCK_SH):
        return generate_latest(registry)


def counted(directory: Path, names: Collection[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """What all processes, dead ones too, have of some counters, histograms and highest values, each by itself.

    As (sample, labels, value), where one sample with the same labels comes once per process; a bucket of a histogram
    holds its own count alone. Costs a fraction of `render`, since nothing else is parsed.
    """
    beginnings = tuple(f'["{name}"' for name in names)
    with _files_lock(directory, fcntl.LOCK_SH):
        for kind in _KEPT:
            for path in glob.glob(str(directory / f"{kind}_*.db")):
                for key, value, _timestamp, _position in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]  # untyped there
                    if key.startswith(beginnings):
                        _, sample, labels, *_ = json.loads(key)
                        yield sample, labels, value


def fold(directory: Path, pid: int) -> None:
    """Add what the dead process *pid* counted to the files of "pid 0", then remove the files of *pid*,
    which prometheus_client would keep for ever.

    Called by the supervisor, which is the only one to touch files of the dead. Gauges of the dead are dropped, but for
    highest values. Files that make no sense (a process may be killed in mid-write) are removed too, and then ValueError
    is raised. Raises OSError, with all files as they were, if the disk has no room for the sums: they stay on the page
    all the same.
    """
    unreadable: ValueError | None = None
    with _files_lock(directory, fcntl.LOCK_EX):
        for kind in _KEPT:
            _make_room(str(directory / f"{kind}_{pid}.db"), str(directory / f"{kind}_0.db"))
        for path in glob.glob(str(directory / f"*_{pid}.db")):
            kind = os.path.basename(path).rpartition("_")[0]
            if kind in _KEPT:
                try:
                    _add_up(path, str(directory / f"{kind}_0.db"), _KEPT[kind])
                except (ValueError, struct.error) as error:
                    unreadable = ValueError(f"the counts in {path} are lost: {error}")
            os.remove(path)
    if unreadable is not None:
        raise unreadable


@contextlib.contextmanager
def _files_lock(directory: Path, kind: int) -> Iterator[None]:
    """Without it a page could count a dead process twice, or not at all, and Prometheus would see a counter reset.

    The directory itself is locked: a page must be had of a disk that is full or read-only, too.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


def _make_room(source: str, target: str) -> None:
    """Have pages for all that may be added: a disk without room would end this process with SIGBUS. Raises OSError."""
    if used_bytes := _used_bytes(source):
        metric_pages.reserve(target, used_bytes + _used_bytes(target))


def _used_bytes(path: str) -> int:
    """How much of a file is in use; 0 if it is not there. No more than its size, should it be torn."""
    try:
        with open(path, "rb") as file:
            (used,) = struct.unpack("i", file.read(4))
            return int(min(used, os.fstat(file.fileno()).st_size))
    except (FileNotFoundError, struct.error):
        return 0


def _add_up(source: str, target: str, both: Callable[[float, float], float]) -> None:
    sums: dict[str, float] = defaultdict(float)
    for key, value, _timestamp, _position in MmapedDict.read_all_values_from_file(source):  # type: ignore[no-untyped-call]  # untyped there
        json.loads(key)  # a torn key would spoil the page: raise before anything is added
        sums[key] = both(sums[key], value)
    store = MmapedDict(target)  # type: ignore[no-untyped-call]  # untyped there
    try:
        for key, value in sums.items():
            before, _timestamp = store.read_value(key)  # type: ignore[no-untyped-call]  # untyped there
            store.write_value(key, both(before, value), 0.0)  # type: ignore[no-untyped-call]  # untyped there
    finally:
        store.close()  # type: ignore[no-untyped-call]  # untyped there
