"""Shadow traffic: a share of the answered requests is run by another version too, when the worker has nothing to do.

Nobody waits for it. Copies wait in bounds, run in a thread of their own at low priority, and are dropped and counted
whenever the worker is busy; what the shadow version answers is compared with what went out, and never goes out itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from logging import getLogger
from typing import Any

from gateway.errors import Draining
from gateway.metrics import ServingMetrics
from gateway.samples.pairs import PairSums
from gateway.samples.record import sampling_limit
from gateway.serving.batcher import Batcher
from gateway.serving.call import Call
from gateway.serving.copies import Comparison, Copy, Round, Runner, Shadowed, compare_all, time_both
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.runpool import RunPool
from gateway.serving.thread_time import busy_s
from gateway.settings import BatchSettings, ShadowSettings
from gateway.tensors import Tensors

log = getLogger(__name__)

# How often the queues are looked at. Between two looks copies gather, so that many share a hop to the thread.
TICK_S = 0.05
# An event loop that was at work for more than this share of the time since the last look has no time for copies.
_MAX_LOOP_SHARE = 0.7
# After a run that took too long, the version rests for this many times as long as that run was given.
_REST = 10.0
# Niceness, in the sense of nice(1), of the thread that runs copies; that of loads. At the lowest priority it could be
# kept off the processor by others while it holds the interpreter, for which the event loop would have to wait.
_NICENESS = 10
_MAX_BATCH_ROWS = 64
# In one round of so many, a batch is run once more by both versions to compare what it costs.
_TIME_ONE_IN = 16
_NO_BOUND_ROWS = 2**40  # the queue of copies has bounds of its own


class Shadow:
    """Chooses, runs and compares copies. Everything but the runs and comparisons happens on the worker's event loop.

    limits: by model, the `sample_hash` below which an answered request is offered; empty while nothing is shadowed.
    pool: the run threads of the worker. in_flight: how many requests are in the worker now.
    """

    def __init__(
        self,
        registry: Registry,
        pool: RunPool,
        settings: ShadowSettings,
        batching: BatchSettings,
        metrics: ServingMetrics,
        *,
        in_flight: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        loop_clock: Callable[[], float] = busy_s,
        cost_clock: Callable[[], float] = time.thread_time,
        wall_clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
    ) -> None:
        self.limits: dict[str, float] = {}
        self._registry = registry
        self._pool = pool
        self._settings = settings
        # Never on the event loop: a run that was quick a thousand times may hang the next time.
        rows = min(_MAX_BATCH_ROWS, batching.max_batch_rows)
        self._batching = replace(
            batching, inline_budget_s=-1.0, max_batch_rows=rows, max_queue_rows=_NO_BOUND_ROWS, run_threads=1
        )
        self._metrics = metrics
        self._in_flight = in_flight
        self._clock = clock
        self._loop_clock = loop_clock
        self._cost_clock = cost_clock
        self._wall_clock = wall_clock
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=_step_back)
        self._own_pool = RunPool(1, clock=clock, executor=self._executor)
        self._shadowed: dict[str, Shadowed] = {}
        self._round: Round | None = None
        self._wanted = asyncio.Event()
        self._closed = False
        self._looked_s, self._loop_s, self._loop_share = clock(), loop_clock(), 0.0
        self._pairs: dict[tuple[str, str], int] = defaultdict(int)
        self._dropped: dict[tuple[str, str], int] = defaultdict(int)
        self._failed: dict[tuple[str, str, str], int] = defaultdict(int)
        self._runs_s: dict[tuple[str, str], list[float]] = defaultdict(list)

    # -- what the flags say -------------------------------------------------------------------------

    def follow(self, model: str, version: str | None, rate: float) -> None:
        """From now on *version* runs a share *rate* of what *model* answers; None or 0: none does.

        What was counted stays until another version shadows the model.
        """
        shadowed = self._shadowed.get(model)
        if shadowed is not None and (shadowed.version != version or not rate):
            self._stop(shadowed)
        if version is None or not rate or self._closed:
            return
        if shadowed is None or shadowed.version != version:
            shadowed = self._shadowed[model] = Shadowed(model, version)
        shadowed.rate = rate
        self.limits[model] = sampling_limit(rate)
        self._wanted.set()

    def forget(self, model: str) -> None:
        """The flags name the model no more."""
        shadowed = self._shadowed.pop(model, None)
        if shadowed is not None:
            self._stop(shadowed)

    def _stop(self, shadowed: Shadowed) -> None:
        self.limits.pop(shadowed.model, None)
        shadowed.rate = 0.0
        shadowed.runner = None
        while shadowed.queue:
            self._drop(shadowed, shadowed.take().comparison, "stopped")

    # -- the way in ---------------------------------------------------------------------------------

    def offer(self, base: LiveVersion, asked: Call, outputs: Tensors, start: int | None) -> None:
        """Take references to what *base* was asked and has answered; never blocks, never raises.

        outputs: of *asked* alone, or from row *start* on.
        """
        try:
            self._offer(base, asked, outputs, start)
        except Exception:  # the answer is out, and those beside it must get out too
            log.exception("a copy could not be taken", extra=asked.ids)
            self._dropped[(base.model, "error")] += 1

    def _offer(self, base: LiveVersion, asked: Call, outputs: Tensors, start: int | None) -> None:
        shadowed = self._shadowed.get(base.model)
        if shadowed is None or not shadowed.rate or shadowed.version == base.version or not asked.rows:
            return
        if len(shadowed.queue) >= self._settings.max_queue_copies:  # under load the usual case: it must cost little
            self._drop(shadowed, shadowed.comparisons.get(base.version), "queue_full")
            return
        live = self._registry.find(base.model, shadowed.version)
        if live is None:
            self._drop(shadowed, None, "not_warm")
            return
        comparison = shadowed.comparison(base, live, self._wall_clock)
        if comparison.refusal:
            self._drop(shadowed, comparison, "inputs_differ")
            return
        now_s = self._clock()
        if now_s < shadowed.rests_until_s:
            self._drop(shadowed, comparison, "resting")
            return
        taken = Copy(asked, outputs, start, comparison, now_s)
        if shadowed.queued_bytes + taken.size_bytes > self._settings.max_queue_bytes:
            self._drop(shadowed, comparison, "queue_full")
            return
        shadowed.put(taken)

    def _drop(self, shadowed: Shadowed, comparison: Comparison | None, reason: str) -> None:
        self._dropped[(shadowed.model, reason)] += 1
        if comparison is not None:
            dropped = comparison.sums.dropped
            dropped[reason] = dropped.get(reason, 0) + 1

    # -- rounds -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after the queues for ever; while no model is shadowed this does nothing at all."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(TICK_S)
            try:
                self.tick()
            except Exception:  # the worker must answer on, whatever becomes of copies
                log.exception("copies could not be looked after")

    def tick(self) -> None:
        """Call off what takes too long, drop what has waited too long, run what there is room for, flush the counts."""
        now_s = self._look()
        current = self._round
        if current is not None and now_s - current.progress_s > self._settings.run_timeout_s:
            current.is_overdue = True
            current.runner.runtime.abort()
        for shadowed in self._shadowed.values():
            for old in shadowed.take_old(now_s - self._settings.max_wait_s):
                self._drop(shadowed, old.comparison, "busy")
        self._start_round()
        self._flush()
        if not self.limits and self._round is None:
            self._wanted.clear()

    def _look(self) -> float:
        """Find out how busy the event loop has been since the last look."""
        now_s, loop_s = self._clock(), self._loop_clock()
        if now_s > self._looked_s:
            self._loop_share = (loop_s - self._loop_s) / (now_s - self._looked_s)
        self._looked_s, self._loop_s = now_s, loop_s
        return now_s

    def _is_busy(self) -> bool:
        """Whether the worker is needed for those who wait for their answers."""
        return (
            not self._pool.has_free
            or self._loop_share > _MAX_LOOP_SHARE
            or self._in_flight() > self._settings.max_in_flight
        )

    def _start_round(self) -> None:
        """Let the copies of one model run, if there is room; models take turns.

        One round between two looks at the most: that bounds what all copies together may cost the worker.
        """
        waiting = [shadowed for shadowed in self._shadowed.values() if shadowed.queue]
        if self._round is not None or not waiting or self._closed or self._is_busy():
            return
        shadowed = min(waiting, key=lambda one: one.latest_round_s)
        shadowed.latest_round_s = self._clock()
        live = self._registry.find(shadowed.model, shadowed.version)
        copies: list[Copy] = []
        if live is not None:
            runner = self._runner(shadowed, live)
            for taken in shadowed.take_round(runner.cost):
                if taken.comparison.digest == live.digest:
                    copies.append(taken)
                else:
                    self._drop(shadowed, taken.comparison, "not_warm")
        else:
            while shadowed.queue:
                self._drop(shadowed, shadowed.take().comparison, "not_warm")
        if live is not None and copies:
            live.holders += 1
            self._round = Round(shadowed, runner, copies, self._clock, self._have_run)
            shadowed.rounds += 1
            base = self._registry.find(shadowed.model, copies[0].comparison.base)
            if base is not None and shadowed.rounds % _TIME_ONE_IN == 1:
                base.holders += 1
                self._round.base = base
            runner.batcher.submit(copies)

    def _runner(self, shadowed: Shadowed, live: LiveVersion) -> Runner:
        if shadowed.runner is None or shadowed.runner.live is not live:
            runtime, cost = live.runtime.apart(), copy.copy(live.cost)
            runs_s = self._runs_s[(live.model, live.version)]
            batcher = Batcher(
                runtime,
                live.signature,
                cost,
                self._batching,
                self._own_pool,
                on_run=lambda run: runs_s.append(run.run_s),
                mark=live.mark_apart,
                clock=self._clock,
                cost_clock=self._cost_clock,
            )
            shadowed.runner = Runner(live, runtime, cost, batcher)
        return shadowed.runner

    def _have_run(self, current: Round) -> None:
        """All copies of a round have run: count those that failed, have the others compared in the thread."""
        shadowed = current.shadowed
        reason = "timeout" if current.is_overdue else "error"
        for failed in current.failed:
            self._count_failed(shadowed, failed.comparison, reason, 1)
        if current.batches and not self._closed:
            loop = asyncio.get_running_loop()
            self._executor.submit(self._compare, loop, current)
        else:
            self._end_round(current, [])

    def _compare(self, loop: asyncio.AbstractEventLoop, current: Round) -> None:
        """In the thread."""
        found: list[tuple[Comparison, PairSums]] | Exception
        try:
            found = compare_all(current.batches)
            found += self._timed(current)
        except Exception as error:  # outputs that no signature has foreseen
            found = error
        # RuntimeError: the loop was closed meanwhile; the worker is gone.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._end_round, current, found)

    def _timed(self, current: Round) -> list[tuple[Comparison, PairSums]]:
        """In the thread: what a batch costs both versions, if it is this round's turn.

        Their own runs cannot be compared: copies gather into larger batches than the requests that they copy.
        """
        copies, _ = current.batches[0]
        comparison, base = copies[0].comparison, current.base
        if base is None or base.digest != comparison.base_digest or current.is_overdue:
            return []
        if sum(one.rows for one in copies) > _MAX_BATCH_ROWS:
            return []
        is_even = current.shadowed.rounds // _TIME_ONE_IN % 2 == 0
        runtime = current.runner.runtime
        try:
            times = time_both(copies, base.runtime.apart(), runtime, base_first=is_even, clock=self._cost_clock)
        except Exception:  # it was called off, or has failed this time: what was compared stands
            return []
        return [(comparison, times)]

    def _end_round(self, current: Round, found: list[tuple[Comparison, PairSums]] | Exception) -> None:
        shadowed = current.shadowed
        key = (shadowed.model, shadowed.version)
        if isinstance(found, Exception):
            log.error("pairs of answers cannot be compared", extra={"model": shadowed.model}, exc_info=found)
            for failed in current.done:
                self._count_failed(shadowed, failed.comparison, "error", 1)
        else:
            for comparison, sums in found:
                comparison.sums.merge(sums)
                self._pairs[key] += sums.copies
                for reason, count in sums.failed.items():
                    self._failed[(*key, reason)] += count
        if current.is_overdue:
            log.warning(
                "a shadow run was called off",
                extra={"model": shadowed.model, "version": shadowed.version, "after_s": self._settings.run_timeout_s},
            )
            shadowed.runner = None  # its session refuses all further runs
            shadowed.rests_until_s = self._clock() + _REST * self._settings.run_timeout_s
        for held in (current.runner.live, current.base):
            if held is not None:
                self._registry.release(held)
        self._round = None

    def _count_failed(self, shadowed: Shadowed, comparison: Comparison, reason: str, count: int) -> None:
        self._failed[(shadowed.model, shadowed.version, reason)] += count
        failed = comparison.sums.failed
        failed[reason] = failed.get(reason, 0) + count

    # -- what is told -------------------------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        """The shadow's part of the status document."""
        now_s = self._clock()
        return [
            shadowed.to_json(now_s, is_warm=self._registry.find(model, shadowed.version) is not None)
            for model, shadowed in self._shadowed.items()
        ]

    @property
    def waiting(self) -> dict[str, int]:
        """Copies that wait for a run, by model."""
        return {model: len(shadowed.queue) for model, shadowed in self._shadowed.items()}

    def _flush(self) -> None:
        metrics = self._metrics
        for metric, counts in (
            (metrics.shadow_pairs, self._pairs),
            (metrics.shadow_dropped, self._dropped),
            (metrics.shadow_failed, self._failed),
        ):
            for labels, count in counts.items():
                metric.labels(*labels).inc(count)
            counts.clear()
        for version, runs_s in self._runs_s.items():
            if runs_s:
                metrics.shadow_run_s.observe_many(metrics.shadow_run_s.labels(*version), runs_s)
                runs_s.clear()

    def close(self) -> None:
        """Take no more copies and call off what runs; what waits is dropped."""
        self._closed = True
        for shadowed in self._shadowed.values():
            self._stop(shadowed)
        if self._round is not None:
            self._round.runner.runtime.abort()
            self._round.runner.batcher.close(Draining("the gateway is stopping"))
        self._own_pool.close()
        self._flush()


def _step_back() -> None:
    """In the thread: let all others go first."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
