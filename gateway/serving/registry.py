"""The versions that this worker holds: loading, warm, failed, quarantined, or kept only for their last requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from logging import getLogger
from typing import Literal

from gateway.codecs.codec import BoundCodec, Codec
from gateway.errors import Draining, GatewayError, VersionQuarantined
from gateway.marks import IDLE, LOADING, UNMARKED, Mark, Marks
from gateway.metrics import ServingMetrics
from gateway.models.runtime import OnnxRuntime
from gateway.models.source import ModelSource, Package
from gateway.quarantine import Key
from gateway.serving.batcher import Batcher
from gateway.serving.cache_policy import CachePolicy, NeverLook
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.loading import Loaded, load
from gateway.serving.runpool import RunPool
from gateway.serving.turns import Turns
from gateway.settings import BatchSettings

log = getLogger(__name__)

State = Literal["loading", "warm", "failed", "quarantined"]
# How often a failed version looks whether its package has changed.
_RETRY_S = 1.0
# Niceness, in the sense of nice(1), of the threads that load.
_LOAD_NICENESS = 10


class LiveVersion:
    """A warm version. holders counts the calls that still need it. cache_epoch rises when its answers are forgotten.

    mark_apart: for who runs it beside its batcher, in a run thread.
    """

    __slots__ = (
        "arrivals",
        "batcher",
        "bound",
        "cache_epoch",
        "cache_policy",
        "cost",
        "digest",
        "example",
        "holders",
        "mark_apart",
        "misdeclared",
        "model",
        "ranges",
        "redact",
        "row_bytes",
        "runtime",
        "signature",
        "version",
    )

    def __init__(
        self,
        model: str,
        version: str,
        loaded: Loaded,
        batcher: Batcher,
        codecs: Sequence[Codec],
        mark_apart: Mark = UNMARKED,
    ) -> None:
        self.mark_apart = mark_apart
        self.model = model
        self.version = version
        self.digest = loaded.digest
        self.signature = loaded.signature
        self.ranges = loaded.ranges
        self.redact = loaded.redact
        self.example = loaded.example
        self.misdeclared = loaded.misdeclared
        self.runtime = loaded.runtime
        self.cost = loaded.cost
        self.batcher = batcher
        self.bound: dict[str, BoundCodec] = {each.name: each.bind(model, version, loaded.signature) for each in codecs}
        # In a batch of some rows, as requests that are many enough for a cache to matter run.
        policy = CachePolicy(lambda: loaded.cost.expected_s(8) / 8)
        self.cache_policy: CachePolicy | NeverLook = policy if loaded.signature.cacheable else NeverLook()
        self.row_bytes = loaded.signature.inputs[0].row_bytes
        self.holders = 0
        self.cache_epoch = 0
        self.arrivals: list[Call] = []  # calls of this turn of the loop, not yet decoded


class _Slot:
    """One declared version, from its declaration to its dismissal. digest: of a package that is quarantined."""

    __slots__ = ("digest", "dismissed", "live", "mark", "reason", "runtime", "state")

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.state: State = "loading"
        self.reason = ""
        self.digest = ""
        self.live: LiveVersion | None = None
        self.runtime: OnnxRuntime | None = None  # while it loads
        self.dismissed = threading.Event()

    def abort(self) -> None:
        """End a load that still runs; its thread then ends by itself."""
        if self.live is None and self.runtime is not None:
            self.runtime.abort()

    def took(self, runtime: OnnxRuntime) -> None:
        """In the load's thread: its runtime is made and will now be run."""
        self.runtime = runtime
        if self.dismissed.is_set():
            runtime.abort()


class Registry:
    """Versions by (model, version). All methods are called on the event loop; loads run in threads of their own.

    A thread per load, not a pool: one package that hangs must not keep another from loading.
    """

    def __init__(
        self,
        source: ModelSource,
        codecs: Sequence[Codec],
        settings: BatchSettings,
        pool: RunPool,
        counts: Counts,
        metrics: ServingMetrics,
        *,
        on_change: Callable[[], None],
        on_drop: Callable[[LiveVersion], None],
        marks: Marks | None = None,
        probe: Callable[[Package], None] = lambda _package: None,
        suspects: Set[tuple[str, str]] = frozenset(),
    ) -> None:
        """suspects: versions that were in flight when a worker died; see `turns`."""
        self._source = source
        self._codecs = codecs
        self._settings = settings
        self._pool = pool
        self._counts = counts
        self._metrics = metrics
        self._on_change = on_change
        self._on_drop = on_drop
        self._slots: dict[tuple[str, str], _Slot] = {}
        self.warm: dict[tuple[str, str], LiveVersion] = {}  # by model and version; for looking up, not for changing
        self._draining: set[LiveVersion] = set()
        self._marks = marks if marks is not None else Marks(None)
        self._probe = probe
        self._turns = Turns(suspects, self._others_load)
        self._quarantined: Mapping[Key, str] = {}  # with the reasons; replaced as a whole, read by the loads
        self._loop = asyncio.get_running_loop()

    def reconcile(self, wanted: set[tuple[str, str]], defaults: Set[tuple[str, str]] = frozenset()) -> None:
        """Start loading what is wanted and not held; let go of what is held and not wanted.

        defaults: those that a route gives by default.
        """
        for key in [key for key in self._slots if key not in wanted]:
            self._dismiss(key)
        new = sorted(wanted - self._slots.keys())
        for key in new:
            self._slots[key] = _Slot(self._marks.take())
        for key, slot in self._slots.items():
            slot.mark.set_default(key in defaults)
            if slot.live is not None:
                slot.live.mark_apart.set_default(key in defaults)
        for key in new:
            self._start_load(*key, self._slots[key])

    def _start_load(self, model: str, version: str, slot: _Slot) -> None:
        arguments = (model, version, slot, slot.mark)
        threading.Thread(target=self._load, args=arguments, name=f"load-{model}-{version}", daemon=True).start()
        self._loop.call_later(self._settings.load_timeout_s, self._overdue, model, version, slot)

    def keep_out(self, quarantined: Mapping[Key, str]) -> list[LiveVersion]:
        """Load none of these packages from now on, and let go of those that are warm; returns them.

        quarantined: the whole list, with the reasons. What is not on it any more is loaded again.
        """
        self._quarantined = quarantined
        gone = []
        for (model, version), slot in self._slots.copy().items():  # who is told may declare and dismiss
            live = slot.live
            if live is not None and (model, version, live.digest) in quarantined:
                self._let_go_quarantined(model, version, slot, live)
                gone.append(live)
        return gone

    def _let_go_quarantined(self, model: str, version: str, slot: _Slot, live: LiveVersion) -> None:
        del self.warm[(model, version)]
        slot.live = slot.runtime = None
        slot.mark = self._marks.take()  # the old one belongs to the runs that are still going on
        self._seclude(model, version, slot, live.digest)
        self._let_go(live)
        self._start_load(model, version, slot)  # it waits until the package is another, or may be loaded again

    def find(self, model: str, version: str) -> LiveVersion | None:
        """The version, if it is warm."""
        return self.warm.get((model, version))

    def warm_versions(self, model: str) -> list[str]:
        """Warm versions of a model in the order of their loading."""
        return [version for (name, version), slot in self._slots.items() if name == model and slot.live is not None]

    def versions(self, model: str) -> list[LiveVersion]:
        """All versions of a model that may still answer: warm ones, and those that finish their last calls."""
        return [live for live in self.all() if live.model == model]

    def all(self) -> list[LiveVersion]:
        """All versions that may still answer."""
        return [*self.warm.values(), *self._draining]

    def release(self, live: LiveVersion, holders: int = 1) -> None:
        """Give back a version that was taken by raising its holders; the last one out turns off the light."""
        live.holders -= holders
        if live.holders == 0 and live in self._draining:
            self._draining.discard(live)
            self._drop(live)

    def describe(self, model: str) -> dict[str, dict[str, str]]:
        """State, reason and digest of each version of a model, for the status document."""
        told: dict[str, dict[str, str]] = {
            live.version: {"state": "draining", "reason": "", "digest": live.digest}
            for live in self._draining
            if live.model == model
        }
        for (name, version), slot in self._slots.items():
            if name == model:
                digest = slot.live.digest if slot.live is not None else slot.digest
                told[version] = {"state": slot.state, "reason": slot.reason, "digest": digest}
        return told

    def state(self, model: str, version: str) -> State | None:
        """Where a declared version stands; None if it is not declared."""
        slot = self._slots.get((model, version))
        return slot.state if slot is not None else None

    def close(self) -> None:
        """Let go of everything; what still waits is answered with Draining."""
        for key in list(self._slots):
            slot = self._slots.pop(key)
            self.warm.pop(key, None)
            slot.dismissed.set()
            slot.abort()
            if slot.live is not None:
                slot.live.batcher.close(Draining("the gateway is stopping"))
        for live in self._draining:
            live.batcher.close(Draining("the gateway is stopping"))
        self._pool.close()

    def _dismiss(self, key: tuple[str, str]) -> None:
        slot = self._slots.pop(key)
        self.warm.pop(key, None)
        slot.dismissed.set()
        slot.abort()
        if slot.live is not None:
            self._let_go(slot.live)

    def _let_go(self, live: LiveVersion) -> None:
        if live.holders:
            self._draining.add(live)
        else:
            self._drop(live)

    def _drop(self, live: LiveVersion) -> None:
        log.info("dropped", extra={"model": live.model, "version": live.version})
        self._on_drop(live)
        self._on_change()

    def _load(self, model: str, version: str, slot: _Slot, mark: Mark) -> None:
        """In the load's own thread: load; after a failure, or if the package changed meanwhile, once more."""
        # Lower than the threads that answer: a load or a first run that takes all it can get must not slow them.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOAD_NICENESS)
        while not slot.dismissed.is_set():
            stamp = self._source.stamp(model, version)
            secluded = ""
            try:
                with self._turns.turn((model, version), slot.dismissed):
                    loaded = self._load_once(model, version, slot, mark)
            except VersionQuarantined as error:
                secluded = error.digest
                self._tell(self._seclude, model, version, slot, secluded)
            except Exception as error:  # a package may break anything on its way; it must only fail itself
                reason = str(error) if isinstance(error, GatewayError) else f"unexpected: {error!r}"
                self._tell(self._failed, model, version, slot, reason)
            else:
                if self._source.stamp(model, version) == stamp:
                    self._tell(self._loaded, model, version, slot, loaded, mark)
                    return
            self._await_settled(model, version, slot, stamp, secluded)
            if secluded:
                self._tell(self._load_again, model, version, slot)

    def _load_once(self, model: str, version: str, slot: _Slot, mark: Mark) -> Loaded:
        try:
            return load(
                self._source,
                model,
                version,
                intra_op_threads=self._settings.intra_op_threads,
                max_batch_rows=self._settings.max_batch_rows,
                inline_budget_s=self._settings.inline_budget_s,
                on_package=partial(self._begin_load, mark),
                on_runtime=slot.took,
            )
        finally:
            mark.doing[mark.place] = IDLE

    def _begin_load(self, mark: Mark, package: Package) -> None:
        """In the load's thread: from here on, a crash of the process is this package's."""
        if (package.model, package.version, package.digest) in self._quarantined:
            raise VersionQuarantined(f"{package.model}/{package.version} is quarantined", digest=package.digest)
        self._probe(package)
        mark.name(package.model, package.version, package.digest)
        mark.doing[mark.place] = LOADING

    def _others_load(self) -> bool:
        slots = self._slots.copy().items()
        return any(slot.state == "loading" and not self._turns.is_suspect(key) for key, slot in slots)

    def _await_settled(self, model: str, version: str, slot: _Slot, stamp: object, secluded: str) -> None:
        """Wait until the package is another than at *stamp*, and the same at two looks: it may be on its way in.

        Whoever took model.onnx before its manifest has come would serve it as a bare package for good. secluded: the
        digest for which it was not loaded; if that is lifted, the wait is over.
        """
        before = stamp
        while not slot.dismissed.wait(_RETRY_S):
            if secluded and (model, version, secluded) not in self._quarantined:
                return
            now = self._source.stamp(model, version)
            if now == before and now != stamp:
                return
            before = now

    def _overdue(self, model: str, version: str, slot: _Slot) -> None:
        if slot.state == "loading" and not slot.dismissed.is_set():
            slot.abort()
            self._failed(model, version, slot, f"not warm after {self._settings.load_timeout_s:g} s")

    def _tell(self, method: Callable[..., None], *arguments: object) -> None:
        # RuntimeError: the loop is closed and the worker on its way out.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(method, *arguments)

    def _failed(self, model: str, version: str, slot: _Slot, reason: str) -> None:
        if slot.dismissed.is_set():
            return
        slot.state, slot.reason = "failed", reason
        self._metrics.load_failures.labels(model, version).inc()
        log.error("cannot serve this version", extra={"model": model, "version": version, "reason": reason})
        self._on_change()

    def _seclude(self, model: str, version: str, slot: _Slot, digest: str) -> None:
        if slot.dismissed.is_set():
            return
        reason = self._quarantined.get((model, version, digest), "quarantined")
        if (slot.state, slot.digest) != ("quarantined", digest):
            log.error("not loaded: quarantined", extra={"model": model, "version": version, "reason": reason})
        slot.state, slot.reason, slot.digest = "quarantined", reason, digest
        self._on_change()

    def _load_again(self, model: str, version: str, slot: _Slot) -> None:
        if not slot.dismissed.is_set():
            slot.state, slot.reason, slot.digest = "loading", "", ""
            self._loop.call_later(self._settings.load_timeout_s, self._overdue, model, version, slot)
            self._on_change()

    def _loaded(self, model: str, version: str, slot: _Slot, loaded: Loaded, mark: Mark) -> None:
        if slot.dismissed.is_set():
            return
        batcher = Batcher(
            loaded.runtime,
            loaded.signature,
            loaded.cost,
            self._settings,
            self._pool,
            best=loaded.best,
            mark=mark,
            on_run=self._counts.ran(model, version),
        )
        apart = self._marks.take()
        apart.name(model, version, loaded.digest)
        live = slot.live = LiveVersion(model, version, loaded, batcher, self._codecs, apart)
        self.warm[(model, version)] = live
        slot.state, slot.reason = "warm", ""
        if (model, version, loaded.digest) in self._quarantined:  # since the load began
            self._let_go_quarantined(model, version, slot, live)
            return
        log.info("warm", extra={"model": model, "version": version, "digest": loaded.digest[:12]})
        self._on_change()
