"""How long a thread has been at work: on a processor, or kept waiting for one by others."""

from __future__ import annotations

import time
from pathlib import Path

# Of the thread that reads it: nanoseconds on a processor, nanoseconds ready and waiting for one, number of turns.
_SCHEDULER = Path("/proc/thread-self/schedstat")


def busy_s() -> float:
    """Seconds that the calling thread has run or was ready to run, since its start.

    Time on a processor alone would make a thread look idle that gets none, on a machine where all are taken. Kernels
    without that statistic give the processor time.
    """
    try:
        ran_ns, waited_ns, _ = _SCHEDULER.read_bytes().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(ran_ns) + int(waited_ns)) / 1e9 if ran_ns != b"0" else time.thread_time()
