"""A process that stands still though no signal has told it to, as under a debugger."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from tests.live import is_running

_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_WAIT_ALL = 0x40000000  # of waitpid: also for those that are no children of ours


@contextlib.contextmanager
def held(pid: int) -> Iterator[int]:
    """Hold all threads of a process as a debugger does: it stands still, and no signal has told it to."""
    libc = ctypes.CDLL(None, use_errno=True)
    threads = [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    for thread in threads:
        if libc.ptrace(_PTRACE_ATTACH, thread, None, None):
            raise OSError(ctypes.get_errno(), "it cannot be held")
        os.waitpid(thread, _WAIT_ALL)
    try:
        yield pid
    finally:
        for thread in reversed(threads):  # the first one, whose number is that of the process, ends after all others
            if is_running(pid):
                libc.ptrace(_PTRACE_DETACH, thread, None, None)
            else:
                os.waitpid(thread, _WAIT_ALL)  # until then its death is the debugger's alone
