"""Following the flags: every change is loaded for, adopted when its versions are warm, and reported.

Adoption is per model. A route is adopted once every version that it could now give to a request is warm in this
worker; until then the route before stays in force, and a newer revision supersedes the one that still waits. A route
back to warm versions (kill switch, rollback) therefore never waits for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import InvalidFlag, QuarantineUnavailable, StoreUnavailable
from gateway.flags.compile import ModelOptions, Route, compile_options, compile_route
from gateway.flags.document import FlagDocument, dump
from gateway.flags.keys import read_key
from gateway.flags.lastgood import read_last_known_good
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import KEYS
from gateway.metrics import ServingMetrics
from gateway.quarantine import Follower
from gateway.samples.record import sampling_limit
from gateway.serving.cache import PredictionCache
from gateway.serving.counts import Counts
from gateway.serving.guards import Guards
from gateway.serving.keyring import KeyRing
from gateway.serving.losses import Losses
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.router import Adopted, Router
from gateway.serving.shadow import Shadow
from gateway.settings import Settings

log = getLogger(__name__)

STATUS_INTERVAL_S = 1.0
STATUS_SCHEMA = 1


class Watch:
    """Takes the flag document from the store to the router. Everything runs on the event loop of one worker."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        registry: Registry,
        cache: PredictionCache,
        shadow: Shadow,
        metrics: ServingMetrics,
        guards: Guards,
        *,
        on_ready: Callable[[], None],
        ring: KeyRing | None = None,
        on_models: Callable[[], None] = lambda: None,
    ) -> None:
        """on_models: is called when other models are released than before."""
        self._settings = settings
        self._router = router
        self._registry = registry
        self._cache = cache
        self._shadow = shadow
        self._metrics = metrics
        self._guards = guards
        self._on_ready = on_ready
        self._ring = ring
        self._on_models = on_models
        self._keys_are_due = False
        self._store = SqliteStore(settings.flag_store_path, read_only=True)
        self._quarantine = Follower(settings.quarantine_path)
        self._document: FlagDocument | None = None
        self._pending: dict[str, Route] = {}
        self._refused: dict[str, str] = {}  # models whose newest flags this worker cannot read, with the reason
        self._store_failed = False
        self._polled_s = self._started_s = time.monotonic()  # polled: when the store could last be read
        self.changed = asyncio.Event()  # something that the status document tells has changed
        self.ready = asyncio.Event()

    async def follow(self) -> None:
        """Poll the store for ever; the poll costs some microseconds."""
        self._poll_quarantine()  # before anything is loaded
        self._poll()
        if self._document is None:
            self._read_last_known_good()
        if self._document is None:
            log.warning("no flags yet: this worker is not ready until control has written some")
        while True:
            self._poll_quarantine()
            self._poll()
            await asyncio.sleep(self._settings.flags.poll_s)

    def _poll_quarantine(self) -> None:
        try:
            listed = self._quarantine.news()
        except QuarantineUnavailable as error:
            log.error("the quarantine list cannot be read; going on with the one at hand", extra={"why": str(error)})
            return
        if listed is None:
            return
        for live in self._registry.keep_out({entry.key: entry.reason for entry in listed}):
            adopted = self._router.adopted.get(live.model)
            if adopted is not None:
                adopted.lives.pop(live.version, None)
        self._metrics.quarantined_versions.set(len(listed))
        self._settle()

    def _poll(self) -> None:
        try:
            if self._store.changed():
                document = self._store.load()
                self._keys_are_due = self._ring is not None and document is not None
                if document is not None and document != self._document:
                    self._take(document)
            if self._keys_are_due:
                self._take_keys()
            if self._store_failed:
                log.info("the flag store can be read again")
            self._store_failed = False
            self._polled_s = time.monotonic()
        except StoreUnavailable as error:
            if not self._store_failed:
                log.error("the flag store cannot be read; serving on with the flags at hand", extra={"why": str(error)})
            self._store_failed = True

    def _take_keys(self) -> None:
        """Let in who has a key now. Until this was done once, nobody is let in."""
        if self._ring is not None:
            self._ring.take(map(read_key, self._store.records(KEYS)))
        self._keys_are_due = False

    def _read_last_known_good(self) -> None:
        """Start from the file that control left, so that a start without a readable store still serves."""
        try:
            document = read_last_known_good(self._settings.last_known_good_path)
        except (StoreUnavailable, InvalidFlag) as error:
            log.error("the last-known-good flags cannot be read", extra={"why": str(error)})
            return
        if document is not None:
            self._take(document)

    def _take(self, document: FlagDocument) -> None:
        """Compile what has changed, start the loads that it needs, adopt what is warm already."""
        # A store that was restored gives out its revisions a second time: none of those at hand means anything then.
        went_back = self._document is not None and document.revision <= self._document.revision
        self._document = document
        routes = document.routes()
        for model in self._router.known - routes.keys():
            self._router.adopted.pop(model, None)
            self._shadow.forget(model)
            self._guards.forget(model)
            self._pending.pop(model, None)
            self._refused.pop(model, None)
        if self._router.known != routes.keys():
            self._router.known = set(routes)
            self._on_models()
        for model, flag in routes.items():
            try:
                options = compile_options(document, model)
                route = compile_route(model, flag, document.bucketing)
            except InvalidFlag as error:  # control validates; this is a document from elsewhere
                log.error("cannot follow the flags of this model", extra={"model": model, "why": str(error)})
                self._refused[model] = str(error)
                self._pending.pop(model, None)  # its options cannot be read any more; what is adopted stays
                continue
            self._refused.pop(model, None)
            adopted = self._router.adopted.get(model)
            if adopted is not None and adopted.route.revision == route.revision and not went_back:
                self._pending.pop(model, None)
                self._adopt(model, adopted.route, options)
            else:
                self._pending[model] = route
                if adopted is not None:  # options wait for no version
                    self._adopt(model, adopted.route, options)
        self._settle()
        self._metrics.flag_revision.set(document.revision)

    def on_change(self) -> None:
        """A version became warm, failed or was dropped."""
        self._settle()
        self._metrics.versions_loaded.set(sum(len(self._registry.warm_versions(m)) for m in self._router.known))

    def on_drop(self, live: LiveVersion) -> None:
        """A version is gone: forget its answers."""
        self.forget_answers(live)

    def forget_answers(self, live: LiveVersion) -> None:
        """What is kept of a version's answers is not given any more."""
        live.cache_epoch += 1  # what is on its way is not kept either
        self._cache.purge(live.digest)

    def _settle(self) -> None:
        """Load what is named, adopt what is warm."""
        self._registry.reconcile(self._wanted(), self._defaults())
        for model, route in list(self._pending.items()):
            if self._can_adopt(model, route):
                assert self._document is not None
                del self._pending[model]
                self._adopt(model, route, compile_options(self._document, model))
        for model, adopted in list(self._router.adopted.items()):
            if self._guards.lacks_one(adopted.route):  # a version that was quarantined is warm after all
                self._adopt(model, adopted.route, adopted.options)
        self._registry.reconcile(self._wanted(), self._defaults())
        self._set_batching()
        if not self.ready.is_set() and self._is_ready():
            self.ready.set()
            self._on_ready()
        self.changed.set()

    def _can_adopt(self, model: str, route: Route) -> bool:
        """Whether all that the route can give is warm. Nothing waits for what is quarantined, and a route by whose
        default version nobody would be answered replaces no other."""
        if model in self._router.adopted and self._registry.find(model, route.default_version) is None:
            return False
        return all(self._registry.state(model, version) in ("warm", "quarantined") for version in route.reachable)

    def _wanted(self) -> set[tuple[str, str]]:
        """All versions that the routes in force or waiting name."""
        wanted = {
            (model, version) for model, adopted in self._router.adopted.items() for version in adopted.route.named
        }
        # While a route waits, the versions that only the old one names stay: they are answering.
        return wanted | {(model, version) for model, route in self._pending.items() for version in route.named}

    def _defaults(self) -> set[tuple[str, str]]:
        """The versions that the routes in force or waiting give by default."""
        adopted = {(model, adopted.route.default_version) for model, adopted in self._router.adopted.items()}
        return adopted | {(model, route.default_version) for model, route in self._pending.items()}

    def _adopt(self, model: str, route: Route, options: ModelOptions) -> None:
        before = self._router.adopted.get(model)
        rate = self._settings.sampling.rate if options.sampling_rate is None else options.sampling_rate
        arms = self._guards.watch(route)
        is_watched = bool(arms.split or arms.ruled)
        options = replace(options, sampling_rate=rate)
        rules = options.sampling_rules
        looked_at = sampling_limit(1 if rules is not None and rules.looks_at_answers else rate)
        self._router.adopted[model] = Adopted(route, options, looked_at, arms=arms, is_watched=is_watched)
        self._shadow.follow(model, route.shadow_version, options.shadow_rate)
        if before is not None:
            for live in self._registry.versions(model):
                if _is_cache_begun_anew(before.options, options, live.version):
                    self.forget_answers(live)
        if before is None or before.route.revision != route.revision:
            log.info("adopted", extra={"model": model, "revision": route.revision})

    def _set_batching(self) -> None:
        """Hand the batching flags to the batchers of all warm versions."""
        for model, adopted in self._router.adopted.items():
            options = adopted.options
            rows = options.max_batch_rows or self._settings.batching.max_batch_rows
            for version in adopted.route.named:
                live = self._registry.find(model, version)
                if live is not None:
                    live.batcher.set_limits(enabled=options.batching_enabled, max_batch_rows=rows)

    def _is_ready(self) -> bool:
        """Ready once every model answers, or cannot and will not: a failed package must not keep the others out."""
        if self._document is None:
            return False
        for model, route in self._pending.items():
            states = [self._registry.state(model, version) for version in route.reachable]
            is_stuck = "failed" in states or self._registry.state(model, route.default_version) == "quarantined"
            if not is_stuck and model not in self._refused:
                return False
        return True

    def describe(self) -> dict[str, Any]:
        """The models' part of the status document."""
        models: dict[str, Any] = {}
        for model in sorted(self._router.known):
            adopted = self._router.adopted.get(model)
            pending = self._pending.get(model)
            revision = adopted.route.revision if adopted is not None else None
            models[model] = {
                "adopted_revision": revision,
                "pending_revision": pending.revision if pending is not None else None,
                "refused": self._refused.get(model),
                "versions": self._registry.describe(model),
            }
        revision = self._document.revision if self._document is not None else None
        return {"revision": revision, "models": models, "shadow": self._shadow.describe()}

    def in_force(self) -> dict[str, Any]:
        """The flags as read last: revision, and the digest of the whole document."""
        document = self._document if self._document is not None else FlagDocument()
        digest = hashlib.sha256(orjson.dumps(dump(document), option=orjson.OPT_SORT_KEYS)).hexdigest()
        return {"revision": document.revision, "digest": digest, "store_age_s": self.store_age_s()}

    def store_age_s(self) -> float:
        """Time since the store said what it holds: to this worker, or to the follower of a shared one."""
        if not self._settings.flags.is_shared:
            return time.monotonic() - self._polled_s
        with contextlib.suppress(OSError):
            return max(0.0, time.time() - self._settings.last_known_good_path.stat().st_mtime)
        return time.monotonic() - self._started_s  # this host has never heard of it

    def close(self) -> None:
        """Close the store's connection."""
        self._store.close()


def _is_cache_begun_anew(before: ModelOptions, after: ModelOptions, version: str) -> bool:
    """Whether the answers of *version* that were kept under *before* are not to be given any more."""
    if (before.cache_enabled, before.cache_ttl_s) != (after.cache_enabled, after.cache_ttl_s):
        return True
    # A purge that is no longer on record was obeyed long ago.
    return any(after.cache_purges.get(of, 0) not in (0, before.cache_purges.get(of, 0)) for of in ("", version))


async def write_status(
    path: Path,
    watch: Watch,
    counts: Counts,
    guards: Guards,
    *,
    connections: Callable[[], int],
    phase: Callable[[], str],
    logs: Mapping[str, Losses],
    slot: int,
    boot: str,
    beat: Callable[[], None],
) -> None:
    """Write the status document at once after each change, and each second as the sign of life; for ever.

    connections: how many are open now. phase: starting, serving or draining. logs: what those that
    this worker writes could not take.
    """
    while True:
        watch.changed.clear()
        document = {
            "schema": STATUS_SCHEMA,
            "slot": slot,
            "pid": os.getpid(),
            "boot": boot,
            "written_at": time.time(),
            "open_connections": connections(),
            "phase": phase(),
            **watch.describe(),
            "counts": [
                {"model": m, "version": v, "variant": a, "answered": t[0], "failed": t[1], "latency_sum_s": t[2]}
                for (m, v, a), t in counts.totals.items()
            ],
            "logs": {name: losses.to_json() for name, losses in logs.items()},
            **guards.to_json(),
        }
        beat()
        # In a thread: a slow or full disk must not hold the event loop.
        await asyncio.to_thread(_replace, path, orjson.dumps(document))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_INTERVAL_S):  # wait_for of Python 3.11 may swallow a cancellation
                await watch.changed.wait()


def _replace(path: Path, content: bytes) -> None:
    """Put *content* in place at once; readers see the old or the new document. A full disk keeps the old one."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        log.warning("cannot write the status document", extra={"why": str(error)})
