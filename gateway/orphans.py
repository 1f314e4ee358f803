"""Who loses its parent: handed to us instead of to the system's first process, and its remains taken away."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Set

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> bool:
    """Make this process the parent of all that descend from it and lose theirs. Returns whether that could be done."""
    try:
        return int(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) == 0
    except (OSError, AttributeError):
        return False


def bury(ours: Set[int | None]) -> None:
    """Take the remains of strangers away, as nobody else does: we may be process 1 of a container, or have adopted."""
    with contextlib.suppress(ChildProcessError):  # there are no children at all
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in ours:
                return  # it died just now: the next step is its own
            os.waitpid(found.si_pid, 0)
