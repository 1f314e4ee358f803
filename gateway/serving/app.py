"""A worker process: all parts of the serving room made, wired and run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence, Set
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from gateway import health
from gateway.errors import GatewayError
from gateway.marks import Marks
from gateway.metrics import ServingMetrics, process_registry
from gateway.models.source import DirectorySource, Package
from gateway.orders import ANNOUNCE, HURRY
from gateway.serving.admission import Admission, KeyedAdmission, SharedAdmission
from gateway.serving.answers import Answers
from gateway.serving.cache import PredictionCache
from gateway.serving.chores import divert_late, end_process_if_failed, flush
from gateway.serving.collector import calm
from gateway.serving.connections import Doors
from gateway.serving.counts import Counts
from gateway.serving.debug import Debug
from gateway.serving.docs import on_refusal
from gateway.serving.doorway import Doorway
from gateway.serving.endpoints import Questions, on_unknown_path
from gateway.serving.extensions import Extensions
from gateway.serving.feedback import FeedbackEndpoint
from gateway.serving.guards import Guards
from gateway.serving.keygate import KeyGate
from gateway.serving.keyring import KeyRing
from gateway.serving.label_writer import LabelWriter
from gateway.serving.packing import Packer
from gateway.serving.pipeline import Pipeline
from gateway.serving.protocols import codecs_of, prediction_paths
from gateway.serving.registry import Registry
from gateway.serving.router import Router
from gateway.serving.routes import all_routes
from gateway.serving.runpool import RunPool
from gateway.serving.sampler import Sampler
from gateway.serving.sampling_rules import RuleBudget
from gateway.serving.server import PublicApp, first_of, server_for
from gateway.serving.shadow import Shadow
from gateway.serving.statistics import Statistics
from gateway.serving.traced import TracedPipeline, traced_pipeline
from gateway.serving.watch import Watch, write_status
from gateway.settings import Settings

log = getLogger(__name__)

# How long a starting worker holds back from accepting connections; then it answers 503 for what is still not warm.
READY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Worker:
    """The parts of one worker. Made on its event loop."""

    admission: Admission
    registry: Registry
    cache: PredictionCache
    sampler: Sampler
    label_writer: LabelWriter
    shadow: Shadow
    counts: Counts
    metrics: ServingMetrics
    ring: KeyRing | None
    guards: Guards
    pipeline: Pipeline
    watch: Watch
    doors: Doors
    app: Starlette
    traced: TracedPipeline | None  # the pipeline, if it traces
    debug: Debug


def build(
    settings: Settings,
    *,
    boot: str,
    report: Callable[[str], None],
    marks: Marks | None = None,
    suspects: Set[tuple[str, str]] = frozenset(),
    complaints: Callable[[], list[str]] = list,
    metrics_dir: Path | None = None,
) -> Worker:
    """Make the parts of a worker and wire them; nothing is started. complaints: what is wrong with the gateway."""
    metrics = ServingMetrics(process_registry())
    metrics.run_threads.set(settings.batching.threads)
    counts = Counts(metrics)
    paths = prediction_paths()
    ring = KeyRing() if settings.server.api_keys == "required" else None
    most_bytes = settings.server.max_in_flight_bytes
    if ring is not None:
        admission: Admission = KeyedAdmission(settings.limits, ring, max_in_flight_bytes=most_bytes)
    else:
        told_apart = SharedAdmission if settings.limits.client_header else Admission
        admission = told_apart(settings.limits, max_in_flight_bytes=most_bytes)
    cache = PredictionCache(settings.cache)
    pool = RunPool(settings.batching.run_threads)
    registry = Registry(
        DirectorySource(settings.paths.models),
        codecs_of(paths),
        settings.batching,
        pool,
        counts,
        metrics,
        on_change=lambda: watch.on_change(),
        on_drop=lambda live: watch.on_drop(live),
        marks=marks,
        probe=_probe(settings),
        suspects=suspects,
    )
    guards = Guards(
        registry,
        counts,
        pool,
        on_change=lambda: watch.changed.set(),
        on_candidate=lambda live: watch.forget_answers(live),
    )
    router = Router(registry, guards)
    shadow = Shadow(registry, pool, settings.shadow, settings.batching, metrics, in_flight=lambda: admission.in_flight)
    watch = Watch(
        *(settings, router, registry, cache, shadow, metrics, guards),
        on_ready=lambda: report("ready"),
        ring=ring,
        on_models=lambda: doorway.forget_targets(),
    )
    sampler = Sampler(
        settings.sampling,
        settings.sample_log_path,
        boot=boot,
        metrics=metrics,
        redaction_key=settings.redaction_key_path,
    )
    budget = RuleBudget(settings.sampling.max_by_rules_per_s, metrics, clock=time.monotonic)
    answers = Answers(registry, cache, sampler, shadow, counts, budget, ttl_s=settings.cache.ttl_s)
    label_writer = LabelWriter(settings.labels, settings.sampling, settings.sample_log_path, boot=boot, metrics=metrics)
    traced = traced_pipeline(settings, boot, metrics, admission, router, cache, answers, guards)
    pipeline = traced or Pipeline(admission, router, cache, answers, guards)
    packer = Packer(settings.server.compress_min_bytes)
    default_model = settings.server.default_model
    doorway = Doorway(
        *(admission, pipeline, counts, paths, packer, ring, traced),
        lambda: default_model or router.only_model(),
    )
    gate = None if ring is None else KeyGate(ring, counts)
    doors = Doors(doorway, settings.server, fast=settings.server.door == "fast", clock=time.monotonic)
    debug = Debug(
        *(settings, admission, router, registry, cache, counts, pool),
        *(sampler, label_writer, shadow, watch, doors, traced),
    )
    questions = Questions(router, registry, watch.ready.is_set, doors, complaints)
    extensions = Extensions(router, registry, Statistics(metrics_dir), settings.batching.max_queue_rows)
    feedback = FeedbackEndpoint(label_writer, max_body_bytes=settings.labels.max_body_bytes, gate=gate)
    routes = all_routes(
        *(doorway, questions, extensions, feedback, router, registry, gate),
        max_batch_rows=settings.batching.max_batch_rows,
    )
    app = PublicApp(
        routes=routes,
        exception_handlers={
            GatewayError: on_refusal,
            HTTPException: on_unknown_path,
        },
    )
    app.state.doors = app.state.port = doors
    return Worker(
        *(admission, registry, cache, sampler, label_writer, shadow, counts, metrics, ring),
        *(guards, pipeline, watch, doors, app, traced, debug),
    )


def _probe(settings: Settings) -> Callable[[Package], None]:
    """What looks at a package before it is loaded here."""
    if not settings.batching.trial_memory_bytes:
        return lambda _package: None
    from gateway.serving.probing import Prober  # here and not above: what it needs would delay the start of all others

    return Prober(settings.batching, settings.paths.models, settings.paths.state / "tried")


@contextlib.asynccontextmanager
async def _background(
    worker: Worker,
    run_dir: Path,
    *,
    connections: Callable[[], int],
    phase: Callable[[], str],
    slot: int,
    boot: str,
    beat: Callable[[], None],
) -> AsyncIterator[None]:
    """The worker's own tasks: flags followed, status written, counts flushed; ended in order."""
    worker.sampler.start()
    worker.label_writer.start()
    if worker.traced is not None:
        worker.traced.tracer.start()
    status = run_dir / "status" / f"worker-{slot}-{os.getpid()}.json"
    status.parent.mkdir(parents=True, exist_ok=True)
    logs = {"samples": worker.sampler.losses, "labels": worker.label_writer.losses}
    writing = write_status(
        status,
        worker.watch,
        worker.counts,
        worker.guards,
        connections=connections,
        phase=phase,
        logs=logs,
        slot=slot,
        boot=boot,
        beat=beat,
    )
    tasks = [
        asyncio.create_task(worker.watch.follow()),
        asyncio.create_task(writing),
        asyncio.create_task(flush(worker, connections)),
        asyncio.create_task(divert_late(worker)),
        asyncio.create_task(worker.doors.watch()),
        asyncio.create_task(worker.shadow.run()),
        asyncio.create_task(worker.debug.follow(run_dir, slot, connections)),
    ]
    for task in tasks:
        task.add_done_callback(end_process_if_failed)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        worker.shadow.close()
        worker.guards.close()
        worker.counts.flush()
        await asyncio.to_thread(worker.label_writer.close, 5.0)
        await asyncio.to_thread(worker.sampler.close, 5.0)
        if worker.traced is not None:
            await asyncio.to_thread(worker.traced.tracer.close, 2.0)
        worker.registry.close()  # the models last: until here, an answer may still be on its way
        worker.counts.flush()
        if worker.ring is not None:
            worker.ring.flush(worker.metrics)
        worker.watch.close()


async def _serve(
    settings: Settings,
    *,
    slot: int,
    boot: str,
    run_dir: Path,
    listener: socket.socket,
    report: Callable[[str], None],
    lifeline_fd: int,
    marks: Marks,
    suspects: Set[tuple[str, str]],
    early: Sequence[int],
) -> None:
    loop = asyncio.get_running_loop()
    worker = build(
        settings,
        boot=boot,
        report=report,
        marks=marks,
        suspects=suspects,
        complaints=lambda: health.complaints(health.read(run_dir)),
        metrics_dir=run_dir / "metrics",
    )
    server = server_for(settings.server, worker.app, worker.doors)
    stopped = asyncio.Event()

    def stop() -> None:
        server.stop()
        stopped.set()

    def hurry() -> None:
        server.hurry()
        stopped.set()

    def announce() -> None:
        worker.doors.announce()
        worker.watch.changed.set()

    def supervisor_died() -> None:
        loop.remove_reader(lifeline_fd)  # an end of file stays readable for ever
        stop()

    loop.add_reader(lifeline_fd, supervisor_died)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(ANNOUNCE, announce)
    loop.add_signal_handler(HURRY, hurry)
    for came in early:  # before somebody listened
        (hurry if came == HURRY else announce if came == ANNOUNCE else stop)()
    connections = server.server_state.connections

    def phase() -> str:
        if server.should_exit or worker.doors.is_leaving:
            return "draining"
        return "serving" if server.started and worker.watch.ready.is_set() else "starting"

    server.on_start = worker.watch.changed.set
    async with _background(
        worker,
        run_dir,
        connections=lambda: len(connections),
        phase=phase,
        slot=slot,
        boot=boot,
        beat=lambda: report("beat"),
    ):
        # Connections wait in the kernel meanwhile: a worker that takes the place of a dead one refuses nobody.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                await first_of(worker.watch.ready, stopped)
        calm()
        if not stopped.is_set():
            await server.serve(sockets=[listener])
    loop.remove_reader(lifeline_fd)


def run_worker(
    settings: Settings,
    *,
    slot: int,
    boot: str,
    run_dir: Path,
    listener: socket.socket,
    report: Callable[[str], None],
    lifeline_fd: int,
    marks_fd: int | None = None,
    suspects: Set[tuple[str, str]] = frozenset(),
) -> None:
    """Serve predictions on *listener* until SIGTERM, SIGINT or the end of the lifeline; then finish and return.

    Runs in the main thread of the worker process. report("ready") is called once every model answers. marks_fd: a
    memory file of `marks`. suspects: see Registry.
    """
    import uvloop  # here and not above: importing it starts nothing, but only workers need it

    # Before the event loop takes the signals, and after: then they must not kill us.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, ANNOUNCE, HURRY):
        signal.signal(number, lambda came, _frame: early.append(came))
    started_s = time.monotonic()
    uvloop.run(
        _serve(
            settings,
            slot=slot,
            boot=boot,
            run_dir=run_dir,
            listener=listener,
            report=report,
            lifeline_fd=lifeline_fd,
            marks=Marks(marks_fd),
            suspects=suspects,
            early=early,
        )
    )
    log.info("stopped", extra={"served_s": round(time.monotonic() - started_s)})
