"""The lock of the sample log: shared by those who read it, alone by who moves rows from one of its files to another.

It is the directory itself that is locked (flock), so nothing has to be written to read a log. Writers of segments need
no lock: they only add. On a file system without such locks everybody goes on without.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Until the end of this, no row moves to another file. Waits for a move to end, some milliseconds. Raises OSError
    if there is no such log.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


@contextmanager
def moving_rows(root: Path) -> Iterator[bool]:
    """Whether rows may be moved until the end of this: not while somebody reads. Never waits. Raises OSError if there
    is no such log.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # no locks here
            pass
        yield True
    finally:
        os.close(fd)
