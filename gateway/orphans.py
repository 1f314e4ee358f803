"""Who loses its parent: handed to us or told of it by the system, and its remains taken away."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Set

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> bool:
    """Make this process the parent of all that descend from it and lose theirs. Returns whether that could be done."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def at_death_of_parent(number: signal.Signals) -> bool:
    """Have the system send this process *number* when its parent ends; what it forks gets nothing. Whether it will.

    A process that a signal has stopped sees no end of a pipe: SIGCONT lets it see it, and SIGKILL needs nobody to see.
    """
    return _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> bool:
    try:
        return int(ctypes.CDLL(None).prctl(option, value, 0, 0, 0)) == 0
    except (OSError, AttributeError):
        return False


def bury(ours: Set[int | None]) -> None:
    """Take the remains of strangers away, as nobody else does: we may be process 1 of a container, or have adopted."""
    with contextlib.suppress(ChildProcessError):  # there are no children at all
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in ours:
                return  # it died just now: the next step is its own
            os.waitpid(found.si_pid, 0)
