"""What a worker looks like inside, told when control asks; and its stacks, also when it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import orjson

from gateway import debugging
from gateway.models.runtime import OnnxRuntime
from gateway.serving.admission import Admission
from gateway.serving.cache import PredictionCache
from gateway.serving.connections import Doors
from gateway.serving.counts import Counts
from gateway.serving.label_writer import LabelWriter
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.router import Adopted, Router
from gateway.serving.runpool import RunPool
from gateway.serving.sampler import Sampler
from gateway.serving.shadow import Shadow
from gateway.serving.traced import TracedPipeline
from gateway.serving.watch import Watch
from gateway.settings import Settings

log = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Debug:
    """The parts that are looked into. Everything runs on the event loop; nothing is measured for it in a request."""

    settings: Settings
    admission: Admission
    router: Router
    registry: Registry
    cache: PredictionCache
    counts: Counts
    pool: RunPool
    sampler: Sampler
    label_writer: LabelWriter
    shadow: Shadow
    watch: Watch
    doors: Doors
    traced: TracedPipeline | None

    async def follow(self, run_dir: Path, slot: int, connections: Callable[[], int]) -> None:
        """Answer whenever control asks, for ever. connections: how many are open now."""
        path = debugging.document_path(run_dir, slot, os.getpid())
        answered_ns = -1  # so that the names of the threads are known of a worker that hangs later on
        with _stacks_on_signal(debugging.stacks_path(run_dir, slot, os.getpid())):
            while True:
                asked_ns = debugging.asked_ns(run_dir)
                if asked_ns != answered_ns:
                    answered_ns = asked_ns
                    try:
                        document = {"asked_ns": asked_ns, **self.describe(), "connections": connections()}
                        await asyncio.to_thread(_write, path, orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS))
                    except Exception:  # who only looks must not end who serves
                        log.exception("cannot tell what this worker looks like inside")
                await asyncio.sleep(debugging.POLL_S)

    def describe(self) -> dict[str, Any]:
        """All of it. Ages and times in seconds."""
        now_s = time.monotonic()
        limits, server = self.settings.limits, self.settings.server
        return {
            "limits": {
                "max_in_flight": limits.max_in_flight,
                "max_in_flight_bytes": server.max_in_flight_bytes,
                "max_body_bytes": self.admission.max_body_bytes,
                "max_connections": server.max_connections,
                "deadline_s": limits.deadline_s,
                "max_deadline_s": limits.max_deadline_s,
                "max_queue_rows": self.settings.batching.max_queue_rows,
            },
            "in_flight": {"requests": self.admission.in_flight, "bytes": self.admission.in_flight_bytes},
            "flags": {
                **self.watch.in_force(),
                "models": {model: _route(adopted) for model, adopted in sorted(self.router.adopted.items())},
            },
            "cache": self.cache.describe(),
            "versions": [self._version(live, now_s) for live in self.registry.all()],
            "run_pool": self.pool.describe(),
            "waiting": {
                "samples": self.sampler.waiting,
                "sample_bytes": self.sampler.waiting_bytes,
                "label_bytes": self.label_writer.waiting_bytes,
                "shadow_copies": self.shadow.waiting,
                "traces": self.traced.tracer.waiting if self.traced is not None else 0,
            },
            "memory_bytes": {
                "resident": _resident_bytes(),
                "most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
            "threads": [
                {"name": thread.name, "id": thread.native_id, "ident": thread.ident, "daemon": thread.daemon}
                for thread in threading.enumerate()
            ],
        }

    def _version(self, live: LiveVersion, now_s: float) -> dict[str, Any]:
        runtime = live.runtime
        return {
            "model": live.model,
            "version": live.version,
            "digest": live.digest,
            "state": "warm" if self.registry.find(live.model, live.version) is live else "draining",
            "model_bytes": runtime.size_bytes if isinstance(runtime, OnnxRuntime) else None,
            "requests": live.holders,
            "queue": live.batcher.describe(now_s),
            "cache": {
                "bypasses_new": live.cache_policy.is_wary,
                "results": self.counts.cache_results(live.model, live.version),
            },
        }


def _route(adopted: Adopted) -> dict[str, Any]:
    route, options = adopted.route, adopted.options
    return {
        "revision": route.revision,
        "default": {"variant": route.default.variant, "version": route.default_version},
        "weights": dict(route.weights),
        "shadow": {"version": route.shadow_version, "rate": options.shadow_rate},
        "cache_enabled": options.cache_enabled,
        "cache_ttl_s": options.cache_ttl_s,
        "batching_enabled": options.batching_enabled,
        "max_batch_rows": options.max_batch_rows,
        "sampling_rate": options.sampling_rate,
    }


@contextlib.contextmanager
def _stacks_on_signal(path: Path) -> Iterator[None]:
    """Have the stacks of all threads written to a file whenever the signal for it comes."""
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("ab")  # at its end, wherever that is by then: control cuts it
    except OSError as error:
        log.warning("this worker cannot tell its stacks", extra={"why": str(error)})
        yield
        return
    with file:
        faulthandler.register(debugging.STACKS, file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(debugging.STACKS)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
