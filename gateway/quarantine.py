"""The list of versions that no worker may load, since workers died of them: one small file in the state directory.

The supervisor adds to it, control takes off it what an operator lifts, each under a lock beside the file; workers read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import QuarantineUnavailable

SCHEMA = 1
# Whoever holds the lock is done in milliseconds, unless it was stopped or the disk hangs.
_LOCK_WAIT_S = 1.0
_RETRY_S = 0.01

Key = tuple[str, str, str]  # model, version, digest


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One package that is kept out. digest: only these bytes are meant. ts: when, UTC."""

    model: str
    version: str
    digest: str
    reason: str
    ts: str

    @property
    def key(self) -> Key:
        return self.model, self.version, self.digest

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def read(path: Path) -> list[Quarantined]:
    """What is quarantined; nothing if there is no file. Raises QuarantineUnavailable."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise QuarantineUnavailable(f"cannot read {path}: {error.strerror}") from error
    return _parse(raw, path)


def _parse(raw: bytes, path: Path) -> list[Quarantined]:
    fields = [field.name for field in dataclasses.fields(Quarantined)]
    try:
        document = json.loads(raw)
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r}")
        return [Quarantined(**{name: _text(entry[name]) for name in fields}) for entry in document["versions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise QuarantineUnavailable(
            f"{path} is no list of quarantined versions ({error!r}); mend it, or remove it to lift all"
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def add(path: Path, entries: Iterable[Quarantined]) -> None:
    """Put *entries* on the list, instead of older ones for the same packages. Blocks for a second at the most.

    A list that cannot be read is replaced: who crashes workers must get out of them. Without the lock in that time it
    goes on without it; what that may undo is a lift. Raises QuarantineUnavailable.
    """
    new = {entry.key: entry for entry in entries}
    with _locked(path):
        try:
            kept = [entry for entry in read(path) if entry.key not in new]
        except QuarantineUnavailable:
            kept = []
        _write(path, [*kept, *new.values()])


def lift(
    path: Path, model: str, version: str, *, announce: Callable[[list[Quarantined]], None] = lambda _lifted: None
) -> list[Quarantined]:
    """Take a version off the list, whatever its digest; returns what stood there. Raises QuarantineUnavailable.

    announce: is told before the list changes; if it raises, nothing is lifted.
    """
    with _locked(path) as is_ours:
        if not is_ours:
            raise QuarantineUnavailable(f"another process holds the lock of {path}; try again")
        before = read(path)
        lifted = [entry for entry in before if (entry.model, entry.version) == (model, version)]
        if lifted:
            announce(lifted)
            _write(path, [entry for entry in before if entry not in lifted])
        return lifted


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock beside *path*; gives False if it was not to be had in time."""
    try:
        fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise QuarantineUnavailable(f"cannot lock {path}: {error.strerror}") from error
    try:
        yield _try_lock(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    give_up_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(_RETRY_S)
        else:
            return True


def _write(path: Path, entries: list[Quarantined]) -> None:
    """Put the list in place so that a crash at any moment leaves the old one or the new one."""
    document = {"schema": SCHEMA, "versions": [entry.to_json() for entry in entries]}
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise QuarantineUnavailable(f"cannot write {path}: {error.strerror}") from error


class Follower:
    """Tells a worker when the list has changed; one look costs a call of stat."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = (0, 0, 0)  # as no file is: the first look always tells

    def news(self) -> list[Quarantined] | None:
        """The list, if it is another than at the last look, else None.

        Raises QuarantineUnavailable, once for each list that cannot be read.
        """
        try:
            found = os.stat(self._path)
        except OSError:  # most often there is none
            stamp = None
        else:
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp == self._seen:
            return None
        self._seen = stamp
        return read(self._path)
