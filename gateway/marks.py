"""What a worker runs right now, noted where it can still be read when the worker has died of it.

The notes are bytes of a memory file that the supervisor makes and keeps: they outlive the worker, and writing one never
waits for a disk, as a page of a file on disk sometimes does. A version has one byte for what is done with it, since at
most one batch of it runs at a time, and a record that says which version it is. One byte is never torn, and a record is
complete before its byte says anything.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Doing = mmap.mmap | MutableSequence[int]

# What is done with a version, as its byte says it.
IDLE = 0
LOADING = 1  # made ready: its session, its golden requests, its first runs
ON_LOOP = 2  # a batch of it runs on the event loop
IN_THREAD = 3  # or in a run thread
_BUSY = bytes((LOADING, ON_LOOP, IN_THREAD))

# So many versions may be declared in the life of one worker; later ones go unmarked. Place 0 is nobody's.
PLACES = 16_384
RECORD_BYTES = 256
_DEFAULTS_AT = PLACES  # one byte for each place: 1 if a route gives the version by default
_RECORDS_AT = 2 * PLACES
SIZE_BYTES = _RECORDS_AT + PLACES * RECORD_BYTES  # of addresses; memory is taken only where something is written


@dataclass(frozen=True, slots=True)
class InFlight:
    """A version that a dead worker was busy with. doing: LOADING, ON_LOOP or IN_THREAD."""

    model: str
    version: str
    digest: str
    doing: int
    is_default: bool


class Mark:
    """The place of one version. To note what is done with it, write ``doing[place]``: some 40 ns each time."""

    __slots__ = ("_memory", "doing", "place")

    def __init__(self, doing: Doing, place: int, memory: mmap.mmap | None = None) -> None:
        self.doing = doing
        self.place = place
        self._memory = memory

    def name(self, model: str, version: str, digest: str) -> None:
        """Say whose place this is; only while nothing is done with the version."""
        record = json.dumps([model, version, digest]).encode()
        if self._memory is not None and len(record) < RECORD_BYTES:
            at = _RECORDS_AT + self.place * RECORD_BYTES
            self._memory[at : at + RECORD_BYTES] = record.ljust(RECORD_BYTES, b"\n")

    def set_default(self, is_default: bool) -> None:
        """Say whether a route gives the version by default."""
        if self._memory is not None:
            self._memory[_DEFAULTS_AT + self.place] = is_default


# For who runs a model and has nobody to tell.
UNMARKED = Mark(bytearray(1), 0)


class Marks:
    """The notes of one worker. fd: of the memory file, None if nobody will read them. Every method is thread-safe."""

    def __init__(self, fd: int | None) -> None:
        self._memory = None if fd is None else mmap.mmap(fd, SIZE_BYTES)
        self._taken = 0
        self._lock = threading.Lock()

    def take(self) -> Mark:
        """A place for a version. It is not used again: a run may outlast all that is known of its version."""
        if self._memory is None:
            return UNMARKED
        with self._lock:
            if self._taken + 1 >= PLACES:
                return UNMARKED
            self._taken += 1
            return Mark(self._memory, self._taken, self._memory)


def create(name: str) -> int:
    """An empty memory file for a worker's notes; returns its descriptor. Raises OSError."""
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, SIZE_BYTES)
    except OSError:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> tuple[InFlight, ...]:
    """What a worker that has died was busy with. Places that make no sense are passed over."""
    states = os.pread(fd, _RECORDS_AT, 0).ljust(_RECORDS_AT, b"\0")
    found = []
    for place in range(1, PLACES):
        if states[place] in _BUSY:
            record = os.pread(fd, RECORD_BYTES, _RECORDS_AT + place * RECORD_BYTES)
            try:
                model, version, digest = json.loads(record)
            except (ValueError, TypeError):
                continue
            if all(isinstance(word, str) and word for word in (model, version, digest)):
                is_default = states[_DEFAULTS_AT + place] == 1
                found.append(InFlight(model, version, digest, states[place], is_default))
    return tuple(found)
