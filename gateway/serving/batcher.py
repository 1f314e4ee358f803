"""One version's queue: entries wait while the model is busy, and leave together when it is free.

Greedy: a batch is pulled as soon as the runtime is free and takes what is queued; nothing waits for company. How many
rows it takes at the most, and who cannot be answered in time, is the business of `batch_policy`. The answer's way back
travels inside the entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gateway.errors import CallerLeft, DeadlineExceeded, DeadlineUnreachable, GatewayError
from gateway.marks import IDLE, IN_THREAD, ON_LOOP, UNMARKED, Mark
from gateway.models.runtime import Runtime
from gateway.serving.adaptive import BEGIN_ROWS, QueueLimit
from gateway.serving.batch_policy import LONG_RUN_S, MIN_RUNS, BestSize, Reason, RunCost, finish_s
from gateway.serving.entry import Away, Batch, Entry, Run, RunGuard, all_in_one, joined
from gateway.serving.execution import Execution, Results
from gateway.serving.room import QueueRoom
from gateway.serving.runpool import RunPool
from gateway.settings import BatchSettings
from gateway.tensors import Signature, Tensors

_FAR_S = float("inf")
# All of the first runs teach what a run costs; later one in some is enough, and learning costs as much as queueing.
_LEARN_ALL_RUNS = 256
_LEARN_ONE_IN = 4


class Batcher:
    """The queue and the runs of one version. All methods are called on the event loop.

    At most one batch of a version runs at a time: on the loop when its cost is known to be small, else in *pool*.
    """

    def __init__(
        self,
        runtime: Runtime,
        signature: Signature,
        cost: RunCost,
        settings: BatchSettings,
        pool: RunPool,
        *,
        on_run: Callable[[Run], None],
        best: BestSize | None = None,
        mark: Mark = UNMARKED,
        clock: Callable[[], float] = time.monotonic,
        cost_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.execution = Execution(runtime, signature)
        self._cost = cost
        self._best = best if best is not None else BestSize()
        self._settings = settings
        self._pool = pool
        self._doing, self._place = mark.doing, mark.place  # no method: written before and after each run
        self._on_run, self._clock = on_run, clock
        # The cost of a run in the pool is its thread's processor time: on the wall clock it also waits for the
        # interpreter, which keeps short runs in the pool for ever. On the loop the wall clock says the same, cheaper.
        self._cost_clock = cost_clock if settings.intra_op_threads == 1 else clock
        self._shares = signature.batchable and signature.batch_invariant
        self._variable = [spec.name for spec in signature.inputs if -1 in spec.shape[1:]]
        self._queue: deque[Entry] = deque()
        most = settings.max_queue_rows
        is_adaptive, target_s = settings.adaptive == "on", settings.target_wait_s
        self._best.wait_at_most(target_s if is_adaptive else 0.0)
        self.room = QueueRoom(most, QueueLimit(target_s, min(most, BEGIN_ROWS), clock()) if is_adaptive else None)
        self._pull_planned = self._running = self._stands_in_line = False
        self._running_until_s = 0.0  # when the run in the pool is expected to end
        self._enabled = True
        # _shares: rows of several entries may run together at all; _mixes: and just now.
        self._mixes = self._shares and not self._variable
        self._max_batch_rows = settings.max_batch_rows
        self._runs = self.queued_rows = 0
        self.guard: RunGuard | None = None  # of a candidate
        self.away: Away | None = None
        self.blocks_since_s = 0.0  # a run of a candidate holds the event loop since then; 0: none does

    def set_limits(self, *, enabled: bool, max_batch_rows: int) -> None:
        """Follow the flag <model>.batching: whether requests may share a run, and how many rows a run may have."""
        self._enabled = enabled
        self._mixes = enabled and self._shares and not self._variable
        self._max_batch_rows = max_batch_rows

    def describe(self, now_s: float) -> dict[str, Any]:
        """What waits, since when, and what bounds it, for who looks into the worker."""
        oldest_s = now_s - self._queue[0].queued_s if self._queue else 0.0
        waits = {"rows": self.queued_rows, "requests": len(self._queue), "oldest_s": oldest_s, "runs": self._running}
        bounds = {"bound_rows": self.room.bound_rows, "batching": self._enabled, "batch_rows": self._max_batch_rows}
        return {**waits, **bounds, "cost": self._cost.describe(), **self._best.describe(self._max_batch_rows)}

    # -- the way in ---------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a request that comes now has to wait for others."""
        return self._running or self.queued_rows > 0

    def check_in_time(self, deadline_s: float, now_s: float, rows: int = 1) -> None:
        """Refuse a request whose deadline cannot be met: DeadlineUnreachable. rows: one, while they are not known."""
        if now_s + self._finish_s(rows, now_s) > deadline_s:
            raise DeadlineUnreachable(
                f"behind what runs and {self.queued_rows} queued rows an answer would come after the deadline",
                retry_after_s=self.room.retry_after_s(self.queued_rows),
            )

    def _finish_s(self, rows: int, now_s: float) -> float:
        """Seconds until *rows* rows that come now will be answered."""
        running_s = max(0.0, self._running_until_s - now_s) if self._running else 0.0
        if self._shares and self._enabled:
            return running_s + finish_s(self._cost, self.queued_rows, rows, self._best.best_rows(self._max_batch_rows))
        each = max(1, self.queued_rows // max(1, len(self._queue)))  # of those that wait, each for itself
        return running_s + finish_s(self._cost, self.queued_rows, 0, each) + finish_s(self._cost, 0, rows, rows)

    def submit(self, entries: Sequence[Entry]) -> None:
        """Queue entries of callers who are there, and run what can run now. Who finds no room is told so."""
        now_s = self._clock()
        room = self.room
        queue = self._queue
        if not queue and not self._running:
            room.busy_since_s = now_s
            if self._mixes and entries and self._run_at_once(entries, now_s):
                return
        for entry in entries:
            rows = entry.rows
            if self.queued_rows + rows > room.easy_rows:
                error = room.refusal(entry, self.queued_rows)
                if error is not None:
                    entry.owner.finish(entry, error, None)
                    continue
            entry.queued_s = now_s
            self.queued_rows += rows
            queue.append(entry)
        if not self._pull_planned:
            self._pull()

    def _run_at_once(self, entries: Sequence[Entry], now_s: float) -> bool:
        """Run entries that came to an empty queue here and now, if they fit into one batch. False: nothing is done."""
        if len(entries) == 1:
            rows, run_by_s = entries[0].rows, entries[0].run_by_s
        else:
            rows, run_by_s = sum([entry.rows for entry in entries]), min([entry.run_by_s for entry in entries])
        limit = self._max_batch_rows
        if rows > 1:
            limit = self._best.next_rows(limit)
        expected_s = self._cost.expected_s(rows)
        if not self._is_for_the_loop(expected_s) or rows > limit or run_by_s <= now_s + expected_s:
            return False
        batch = Batch(Reason.DRAINED)
        batch.entries, batch.rows, batch.last_stop = list(entries), rows, entries[-1].rows
        self._run_here(batch, 0.0)
        return True

    def _is_for_the_loop(self, expected_s: float) -> bool:
        """Whether a run surely costs less than a hop to a thread, and no thread is worth waiting for."""
        return (
            expected_s <= self._settings.inline_budget_s
            and self._cost.is_sure
            and not self._variable  # then rows alone do not tell what a run costs
            and (self._pool.has_free or not self._pool.is_worth_waiting_for(expected_s))
        )

    # -- the run ------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Pull in the next turn of the loop, so that requests that have come meanwhile share the batch."""
        if not self._pull_planned and not self._running:
            self._pull_planned = True
            asyncio.get_running_loop().call_soon(self._planned_pull)

    def _planned_pull(self) -> None:
        self._pull_planned = False
        self._pull()

    def _pull(self) -> None:
        if self._running or self._stands_in_line or not self._queue:
            return
        if self._shares:
            rows = min(self.queued_rows, self._best.best_rows(self._max_batch_rows))
        else:
            rows = self._queue[0].rows
        if self._is_for_the_loop(self._cost.expected_s(rows)):
            batch = self._next_batch()
            if batch.entries:
                self._run_here(batch, self._clock() - batch.entries[0].queued_s)
        else:
            self._stands_in_line = True
            self._pool.ask(self._use_thread)

    def _run_here(self, batch: Batch, oldest_wait_s: float) -> None:
        run = Run(batch.rows, len(batch.entries), batch.reason, oldest_wait_s)
        self._doing[self._place] = ON_LOOP
        if self.guard is None:
            results = self.execution.run(batch, run, self._clock, self._clock)
        else:
            self.blocks_since_s = self._clock()
            results = self.execution.run(batch, run, self._clock, self._clock, self.guard.patience)
            self.blocks_since_s = 0.0
        self._doing[self._place] = IDLE
        self._finish(batch, run, results)

    def _use_thread(self) -> None:
        """A thread is reserved: form the batch now, so that it takes all that has come meanwhile."""
        self._stands_in_line = False
        batch = self._next_batch()
        if not batch.entries:
            self._pool.give_back()
            return
        begun_s = self._clock()
        run = Run(batch.rows, len(batch.entries), batch.reason, begun_s - batch.entries[0].queued_s)
        expected_s = self._cost.expected_s(batch.rows)
        self._running = True
        self._running_until_s = begun_s + expected_s if self._cost.runs else begun_s
        self.away = Away(batch, run, begun_s)
        patience = None if self.guard is None else self.guard.patience
        loop = asyncio.get_running_loop()
        # run_in_executor would make a future and a callback chain; one hop back is all that is needed.
        self._pool.run(partial(self._run_away, loop, batch, run, patience), batch, expected_s)

    def _run_away(self, loop: asyncio.AbstractEventLoop, batch: Batch, run: Run, patience: int | None) -> None:
        """In a thread of the pool."""
        self._doing[self._place] = IN_THREAD
        results = self.execution.run(batch, run, self._clock, self._cost_clock, patience)
        self._doing[self._place] = IDLE
        # RuntimeError: the loop was closed while the model ran; the worker is gone and nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._finish_away, batch, run, results)

    def _finish_away(self, batch: Batch, run: Run, results: Results) -> None:
        self._running = False
        self.away = None
        self._pool.give_back(batch)
        self._finish(batch, run, results)

    def _next_batch(self) -> Batch:
        """Take the rows of the next batch from the queue; entries that nobody needs any more leave it here."""
        batch = Batch(Reason.DRAINED)
        most = self._max_batch_rows
        best = self._best.next_rows if self._enabled and self._shares else self._best.best_rows  # alone none is tried
        limit = best(most) if self.queued_rows > 1 else most
        now_s = self._clock()
        # A deadline before this may bound the batch.
        tight_s = now_s + self._cost.expected_s(limit) if self._cost.runs >= MIN_RUNS else 0.0
        earliest_s = _FAR_S
        shapes: Any = None
        queue, entries = self._queue, batch.entries
        while queue:
            entry = queue[0]
            if entry.gone or (entry.taken == 0 and entry.run_by_s <= now_s):
                self._drop(entry)
                continue
            if not self._shares:
                if not entries:
                    self._take(batch, entry, entry.rows)
                batch.reason = Reason.ALONE
                break
            if self._variable:
                own = [entry.request.inputs[name].shape[1:] for name in self._variable]
                if entries and own != shapes:
                    batch.reason = Reason.SHAPE
                    break
                shapes = own
            if batch.rows >= limit:
                batch.reason = Reason.FULL if limit >= most else Reason.BEST_SIZE
                break
            earliest_s = min(earliest_s, entry.run_by_s)
            if earliest_s < tight_s and entries:  # the first one goes in any case: alone it is as fast as it can be
                rows = batch.rows + min(entry.rows - entry.taken, limit - batch.rows)
                if now_s + self._cost.expected_s(rows) > earliest_s:
                    batch.reason = Reason.DEADLINE
                    break
            self._take(batch, entry, limit - batch.rows)
            if not self._enabled:
                batch.reason = Reason.ALONE
                break
        return batch

    def _take(self, batch: Batch, entry: Entry, room: int) -> None:
        start, rows = entry.taken, entry.rows
        if start == 0 and rows <= room:
            taken = stop = rows
        else:
            stop = min(rows, start + room)
            taken = stop - start
            if start:
                batch.first_start = start
        entry.taken = stop
        self.queued_rows -= taken
        if stop == rows:
            self._queue.popleft()
        batch.entries.append(entry)
        batch.rows += taken
        batch.last_stop = stop

    def _drop(self, entry: Entry) -> None:
        self._queue.popleft()
        self.queued_rows -= entry.rows - entry.taken
        if entry.gone:
            entry.owner.finish(entry, CallerLeft("the caller left before the run"), None)
        else:
            late = DeadlineExceeded("the deadline passed while the request waited for a run")
            entry.owner.finish(entry, late, None)

    # -- the way back -------------------------------------------------------------------------------

    def _finish(self, batch: Batch, run: Run, results: Results) -> None:
        best_rows = self._best.best_rows(self._max_batch_rows)
        if self._queue or run.oldest_wait_s:
            self.room.ran(run, self.queued_rows, best_rows, self._clock())
        if not run.failed:
            self._runs += 1
            is_probe = run.rows > best_rows or (run.rows < best_rows and run.reason is Reason.BEST_SIZE)
            is_telling = is_probe or run.cost_s > LONG_RUN_S
            if self._runs < _LEARN_ALL_RUNS or self._runs % _LEARN_ONE_IN == 0 or is_telling:
                self._cost.observe(run.rows, run.cost_s)
                self._best.observe(run.rows, run.cost_s)
        self._on_run(run)
        if run.bad_rows:
            batch.mark_invalid(run.bad_rows)
        if self.guard is not None:
            self.guard.ran(batch, run)
        if self._queue:
            self._plan()
        entries = batch.entries
        if isinstance(results, list):
            for part, result in zip(batch.parts(), results, strict=True):
                self._finish_part(part, run, result)
        elif batch.is_whole:
            entries[0].owner.finish_batch(entries, results, run)
        else:
            at = 0
            for part in batch.parts():
                rows = part[2] - part[1]
                self._finish_part(part, run, {name: array[at : at + rows] for name, array in results.items()})
                at += rows

    def _finish_part(self, part: tuple[Entry, int, int], run: Run, result: Tensors | GatewayError) -> None:
        entry, start, stop = part
        if entry.taken < 0:
            return  # an earlier part failed and the entry is answered
        if isinstance(result, GatewayError):
            self._forget_rest(entry)
            entry.owner.finish(entry, result, run)
        elif stop - start == entry.rows:
            entry.owner.finish(entry, result, run)
        else:
            entry.parts = entry.parts or []
            entry.parts.append((run, result))
            if stop == entry.rows:
                entry.owner.finish(entry, joined(entry.parts), all_in_one([run for run, _ in entry.parts]))

    def _forget_rest(self, entry: Entry) -> None:
        """Take the rows of a failed entry that still wait out of the queue."""
        if entry.taken < entry.rows and self._queue and self._queue[0] is entry:
            self._queue.popleft()
            self.queued_rows -= entry.rows - entry.taken
        entry.taken = -1

    # -- a candidate that is not well -----------------------------------------------------------------

    def expected_s(self, rows: int) -> float:
        """What a run of *rows* rows is expected to take; 0 while that is not known."""
        return self._cost.expected_s(rows) if self._cost.runs else 0.0

    def send_away(self, error: GatewayError, which: Callable[[Any], bool] | None = None) -> list[float]:
        """Give waiting entries that another version may answer back, with *error*; returns when they were queued."""
        going: list[Entry] = []
        for _ in range(len(self._queue)):
            entry = self._queue.popleft()
            if entry.falls_back and entry.taken == 0 and (which is None or which(entry)):
                going.append(entry)
            else:
                self._queue.append(entry)
        since_s = [entry.queued_s for entry in going]
        for entry in going:
            self.queued_rows -= entry.rows
            entry.owner.finish(entry, error, None)
        return since_s

    def replace(self, place: int, stand_in: Entry) -> None:
        """Put *stand_in* where an entry of the batch that is away was, and where its rows wait that are not running."""
        assert self.away is not None
        entries = self.away.batch.entries
        if self._queue and self._queue[0] is entries[place]:
            self._queue[0] = stand_in
        entries[place] = stand_in

    def close(self, error: GatewayError) -> None:
        """Answer everything that still waits with *error*."""
        while self._queue:
            entry = self._queue.popleft()
            self.queued_rows -= entry.rows - entry.taken
            if entry.taken >= 0:
                entry.taken = -1
                entry.owner.finish(entry, error, None)
