"""The control process: all parts of the control room made, wired and run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from gateway import metrics
from gateway.control.alarms import Alarms
from gateway.control.approvals import Approvals
from gateway.control.audit_endpoints import AuditEndpoints
from gateway.control.auth import TokenStore
from gateway.control.beside import DriftReports
from gateway.control.change_endpoints import ChangeEndpoints
from gateway.control.changes import Desk
from gateway.control.checkpoints import CHECKPOINT_FILE, KEY_FILE, PUBLIC_KEY_FILE
from gateway.control.checks import FailedVersions, LastKnownGood, OpenBreakers, WholeTrail
from gateway.control.consent import Consent
from gateway.control.controller import Controller
from gateway.control.debug import DebugEndpoints
from gateway.control.disk_alarms import LostSamples
from gateway.control.drift_alarms import DriftAlarms
from gateway.control.endpoints import FlagEndpoints, TokenEndpoints
from gateway.control.events import source_of
from gateway.control.flagfile import FileFollower
from gateway.control.gate import Gate, NeverBack
from gateway.control.imports import ImportEndpoint
from gateway.control.key_endpoints import KeyEndpoints
from gateway.control.keys import KeyBook
from gateway.control.labelled import LabelCounts
from gateway.control.lookups import LookupLoop
from gateway.control.notary import Notary, Poster
from gateway.control.notify import Notifier
from gateway.control.ofrep import OfrepEndpoints
from gateway.control.problems import on_gateway_error, on_http_error, on_unexpected
from gateway.control.purge import PurgeEndpoint
from gateway.control.quarantine_endpoints import QuarantineEndpoints
from gateway.control.reach import Reach
from gateway.control.reads import ReadLog
from gateway.control.repository import RepositoryEndpoints
from gateway.control.retrain import RetrainAdvice
from gateway.control.review import Review
from gateway.control.rollout_endpoints import RolloutEndpoints
from gateway.control.rollouts import Rollouts
from gateway.control.seed import Seeder
from gateway.control.server import AdminServer
from gateway.control.stakes import stakes_are_high
from gateway.control.status import LIVE_WITHIN_S, WorkerStatus, read_workers, with_hosts
from gateway.control.views import Views
from gateway.control.webhook_endpoints import WebhookEndpoints
from gateway.control.webhooks import WebhookKey, WebhookList
from gateway.errors import GatewayError, StoreUnavailable
from gateway.flags.lease import Turn
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import FlagStore
from gateway.metrics import ControlMetrics, process_registry
from gateway.models.source import DirectorySource
from gateway.networks import parse_networks
from gateway.settings import Settings

_log = logging.getLogger(__name__)

BEAT_INTERVAL_S = 1.0


class Running(Protocol):
    """A part that does something by itself for as long as the process lives."""

    def run(self) -> Coroutine[Any, Any, None]: ...


@dataclass(frozen=True, slots=True)
class Control:
    """The parts of the control process."""

    store: FlagStore
    tokens: TokenStore
    desk: Desk
    seeder: Seeder
    review: Review
    reads: ReadLog
    notary: Notary
    poster: Poster
    follower: FileFollower | None
    running: tuple[Running, ...]  # while the process lives
    counts: ControlMetrics
    app: Starlette

    def close(self) -> None:
        self.store.close()
        self.tokens.close()


def build(settings: Settings, *, boot: str, run_dir: Path, clock: Callable[[], float] = time.time) -> Control:
    """Make the parts and wire them; nothing is opened or started."""

    def workers_here() -> list[WorkerStatus]:
        return read_workers(run_dir, clock())

    workers = workers_known = workers_here
    store: FlagStore
    if settings.flags.is_shared:
        store, workers, workers_known = _shared(settings.flags.store, workers_here)
    else:
        store = SqliteStore(settings.flag_store_path, clock=clock)
    tokens = TokenStore(settings.token_store_path, clock=clock)
    counts = metrics.AuditMetrics(metrics.process_registry())
    checkpoint_file = Path(settings.audit.checkpoint_file or settings.paths.state / CHECKPOINT_FILE).expanduser()
    notary = Notary(
        store,
        settings.audit,
        counts,
        key_path=settings.paths.state / KEY_FILE,
        public_path=settings.paths.state / PUBLIC_KEY_FILE,
        file=checkpoint_file,
        clock=clock,
    )
    poster = Poster(settings.audit.checkpoint_webhook, notary.unsent, counts)
    reads = ReadLog(store)
    source = DirectorySource(settings.paths.models)
    now = NeverBack(clock)
    approvals = Approvals(
        functools.partial(stakes_are_high, settings.paths.models),
        required=settings.approvals.required,
        lifetime_s=settings.approvals.expires_s,
    )
    gate = Gate(store, approvals, clock=now, count_break_glass=counts.break_glass.inc)
    import_file = settings.flags.import_file
    desk = Desk(
        store,
        last_known_good=settings.last_known_good_path,
        source=source,
        workers=workers,
        gate=gate,
        import_file=import_file,
    )
    follower = FileFollower(Path(import_file).expanduser(), desk, source, clock=clock) if import_file else None
    review = Review(store, desk, approvals, clock=now)
    consent = Consent(store, approvals, clock=now, count_break_glass=counts.break_glass.inc)
    rollouts = Rollouts(store, desk, consent, clock=clock)
    turn = Turn(store, "rollouts", f"{boot}-{os.getpid()}") if settings.flags.is_shared else None
    told = metrics.RolloutMetrics(metrics.process_registry())
    controller = Controller(
        rollouts,
        workers,
        metrics=told,
        turn=turn,
        labels=LabelCounts(settings.drift_path).of,
        drift=DriftReports(settings.drift_path).of,
    )
    views = Views(
        desk,
        tokens,
        source,
        workers_known,
        boot=boot,
        models_dir=settings.paths.models,
        drift_dir=settings.drift_path,
        metrics_dir=run_dir / "metrics",
        follower=follower,
        quarantine_path=settings.quarantine_path,
    )
    webhooks = WebhookList(store, WebhookKey(settings.webhook_key_path), clock=clock)
    named = source_of(settings.control.name or socket.gethostname())
    reach = Reach(parse_networks(settings.webhooks.allow_networks))
    told_of = ControlMetrics(process_registry())
    notifier = Notifier(store, webhooks, told_of, reach, source=named, clock=clock)
    alarms = Alarms(
        DriftAlarms(store, settings.drift_path),
        RetrainAdvice(store, settings.drift_path, cool_down_s=settings.control.retrain_cool_down_s, clock=clock),
        FailedVersions(store, workers, clock=clock),
        OpenBreakers(store, workers, clock=clock),
        LostSamples(store, workers, clock=clock),
        LastKnownGood(store, lambda: desk.last_known_good_trouble, clock=clock),
    )
    keys = KeyBook(store, clock=clock)
    app = Starlette(
        routes=[
            *views.routes(),
            *FlagEndpoints(desk, store, tokens).routes(),
            *ImportEndpoint(desk, tokens, source).routes(),
            *PurgeEndpoint(desk, tokens).routes(),
            *DebugEndpoints(tokens, run_dir, clock).routes(),
            *RepositoryEndpoints(desk, tokens, source, workers_known).routes(),
            *OfrepEndpoints(desk, tokens, keys).routes(),
            *AuditEndpoints(store, tokens, reads, settings.paths.state, checkpoint_file).routes(),
            *ChangeEndpoints(review, tokens).routes(),
            *TokenEndpoints(tokens, store).routes(),
            *KeyEndpoints(keys, tokens).routes(),
            *RolloutEndpoints(rollouts, tokens).routes(),
            *WebhookEndpoints(webhooks, notifier, reach, store, tokens).routes(),
            *QuarantineEndpoints(settings.quarantine_path, store, tokens).routes(),
        ],
        exception_handlers={
            GatewayError: on_gateway_error,
            HTTPException: on_http_error,
            Exception: on_unexpected,
        },
    )
    seeder = Seeder(source, desk, clock=clock)
    running: tuple[Running, ...] = (seeder, controller, review, notary, poster, reads, notifier, alarms)
    running = (*running, WholeTrail(store, clock=clock), *(() if follower is None else (follower,)))
    return Control(store, tokens, desk, seeder, review, reads, notary, poster, follower, running, told_of, app)


Workers = Callable[[], list[WorkerStatus]]


def _shared(url: str, workers_here: Workers) -> tuple[FlagStore, Workers, Workers]:
    """The store that many hosts share; all their workers; and, to look at, those of them that are known now.

    All: raises StoreUnavailable while some may be missing. A host that was not heard of by then counts as silent.
    """
    from gateway.flags.postgres import PostgresStore  # here and not above: most gateways have no database

    store = PostgresStore(url)

    def workers() -> list[WorkerStatus]:
        pushed, since_s = store.statuses()
        if since_s < LIVE_WITHIN_S:
            raise StoreUnavailable(
                "the database has only just begun to hear from the workers; more traffic is for versions that all of "
                "them have warmed: try again in some seconds",
                retry_after_s=LIVE_WITHIN_S,
            )
        return with_hosts(workers_here(), pushed)

    def workers_known() -> list[WorkerStatus]:
        try:
            return with_hosts(workers_here(), store.statuses()[0])
        except StoreUnavailable:
            return workers_here()

    return store, workers, workers_known


def run_control(
    settings: Settings,
    *,
    boot: str,
    run_dir: Path,
    listener: socket.socket,
    report: Callable[[str], None],
    lifeline_fd: int,
) -> None:
    """Serve the control plane on *listener* until SIGTERM, SIGINT or the end of the lifeline; then return.

    Runs in the main thread of the control process. report("ready") is called once the socket is served.
    """
    (run_dir / "metrics").mkdir(parents=True, exist_ok=True)
    control = build(settings, boot=boot, run_dir=run_dir)
    server = AdminServer(
        control.app,
        settings.control,
        on_started=lambda: report("ready"),
        on_refused=control.counts.refused_connections.inc,
    )
    # Before anything else, and kept to the very end: a signal must stop the server, never cut it short.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server takes it
    try:
        with asyncio.Runner(loop_factory=LookupLoop) as runner:
            runner.run(_serve(control, server, settings, listener, report, lifeline_fd))
    finally:
        control.close()
    _log.info("stopped")


async def _serve(
    control: Control,
    server: AdminServer,
    settings: Settings,
    listener: socket.socket,
    report: Callable[[str], None],
    lifeline_fd: int,
) -> None:
    loop = asyncio.get_running_loop()

    def supervisor_died() -> None:
        loop.remove_reader(lifeline_fd)  # an end of file stays readable for ever
        server.stop()

    loop.add_reader(lifeline_fd, supervisor_died)
    await asyncio.to_thread(_prepare, control, settings)
    async with _background(control, server, report):
        await server.serve(sockets=[listener])
        control.store.hurry()
    await asyncio.to_thread(_conclude, control)
    loop.remove_reader(lifeline_fd)


def _prepare(control: Control, settings: Settings) -> None:
    """What must be in place before the first request. A store that is down does not keep the process from saying so."""
    first_token = settings.admin_token_path
    for step in (lambda: control.tokens.create_first(first_token), control.desk.recover, control.notary.start):
        try:
            step()
        except StoreUnavailable as error:
            _log.error("control starts without a part of its state", extra={"why": str(error)})
    if control.follower is not None:
        control.follower.first_look()  # a route of the file must not find one that was seeded meanwhile
    control.seeder.scan()


def _conclude(control: Control) -> None:
    """What is written once no request can come any more: the last reads, and a checkpoint over all."""
    try:
        control.reads.flush(closing=True)
    except StoreUnavailable as error:
        _log.error("the last reads of the audit were not written down", extra={"why": str(error)})
    control.notary.finish()
    control.poster.finish()


@contextlib.asynccontextmanager
async def _background(control: Control, server: AdminServer, report: Callable[[str], None]) -> AsyncIterator[None]:
    """The process's own tasks. If one fails, the process stops with its error: the supervisor starts another."""
    tasks = [
        asyncio.create_task(life)
        for life in (*[part.run() for part in control.running], server.port.watch(), _beat(report))
    ]
    for task in tasks:
        task.add_done_callback(lambda done: None if done.cancelled() else server.stop())
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _beat(report: Callable[[str], None]) -> None:
    while True:
        report("beat")
        await asyncio.sleep(BEAT_INTERVAL_S)
