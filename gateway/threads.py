"""Threads that run models, and what to lower when there are fewer processors than that."""

from __future__ import annotations

import logging
import math

from gateway.settings import Settings

_log = logging.getLogger(__name__)


def advice(settings: Settings, processors: int) -> str | None:
    """What to lower so that no more threads run models at once than there are processors; None if all is well.

    Threads inside of a run are given up first: they help one request and cost all others. Workers come last.
    """
    now = {
        "batching.intra_op_threads": settings.batching.intra_op_threads,
        "batching.run_threads": settings.batching.run_threads,
        "server.workers": settings.server.workers,
    }
    lowered = dict(now)
    for name in now:
        others = math.prod(lowered.values()) // lowered[name]
        lowered[name] = min(now[name], max(1, processors // others))
    changes = [f"{name} to {value}" for name, value in lowered.items() if value != now[name]]
    return f"lower {' and '.join(changes)}" if changes else None


def warn(settings: Settings, processors: int) -> None:
    """Log the advice, if there is any."""
    told = advice(settings, processors)
    if told is not None:
        _log.warning(
            "more threads may run models at once than there are processors, so that they wait for each other: %s",
            told,
            extra={"threads": settings.batching.threads * settings.server.workers, "processors": processors},
        )
