"""What a worker does again and again beside answering: counts handed on, candidates looked after."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from logging import getLogger
from typing import TYPE_CHECKING

from gateway.serving.counts import FLUSH_INTERVAL_S

if TYPE_CHECKING:
    from gateway.serving.app import Worker

log = getLogger(__name__)

# How often it is looked whether a candidate's run leaves its callers too little time.
_LATE_S = 0.01


def end_process_if_failed(task: asyncio.Task[None]) -> None:
    """A worker that no longer follows the flags must not serve on: stop, and the supervisor starts another."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a task of the worker failed; the worker stops", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


async def flush(worker: Worker, connections: Callable[[], int]) -> None:
    """Hand the counts to the metrics, and sweep the cache once a second, for ever."""
    turns_per_sweep = round(1 / FLUSH_INTERVAL_S)
    turn = 0
    while True:
        await asyncio.sleep(FLUSH_INTERVAL_S)
        worker.counts.flush()
        for (model, version), live in worker.registry.warm.items():
            worker.counts.queue_limit(model, version, live.batcher.room.bound_rows)
        worker.guards.signals.flush()
        if worker.ring is not None:
            worker.ring.flush(worker.metrics)
        worker.metrics.in_flight.set(worker.admission.in_flight)
        worker.metrics.in_flight_bytes.set(worker.admission.in_flight_bytes)
        worker.metrics.open_connections.set(connections())
        worker.metrics.cache_bytes.set(worker.cache.size_bytes)
        worker.metrics.flag_store_age_s.set(worker.watch.store_age_s())
        turn += 1
        if turn % turns_per_sweep == 0:
            worker.cache.sweep()


async def divert_late(worker: Worker) -> None:
    """Take calls from candidates that keep them waiting too long, for ever."""
    while True:
        await asyncio.sleep(_LATE_S if worker.guards.has_candidates else FLUSH_INTERVAL_S)
        worker.pipeline.divert_late()
