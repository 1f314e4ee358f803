"""One version's queue: entries wait while the model is busy, and leave together when it is free.

Greedy: a batch is pulled as soon as the runtime is free and takes all that is queued up to the row limit; nothing
waits for company. The answer's way back travels inside the entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol

import numpy as np

from gateway.codecs.codec import Request
from gateway.errors import CallerLeft, DeadlineExceeded, GatewayError, InferenceFailed, InvalidInput, QueueFull
from gateway.models.runtime import Runtime
from gateway.serving.batch_policy import RunCost
from gateway.settings import BatchSettings
from gateway.tensors import Signature, Tensors


class Owner(Protocol):
    """Who gets the outcome of an entry: exactly one of the two is called, once, on the event loop."""

    def finish(self, entry: Entry, result: Tensors | GatewayError) -> None:
        """The outputs of one entry, or why there are none."""
        ...

    def finish_batch(self, entries: list[Entry], outputs: Tensors) -> None:
        """The outputs of a run, uncut: the rows of the entries one after the other; of one entry, just its outputs."""
        ...


class Entry:
    """Rows that wait for a run, with the callers who wait for them and the way back.

    calls: who waits; the owner's business. key: by which equal requests find this entry; None if they shall not.
    deadline_s may grow while the entry waits (another caller joins); gone: nobody waits any more.
    """

    gone: bool = False
    taken: int = 0  # rows that are running or done; -1: an error was told
    queued_s: float = 0.0  # when it came; then how long it waited
    run_s: float = 0.0
    batch_rows: int = 0
    parts: list[Tensors] | None = None  # outputs of the rows that are done, if it is split

    def __init__(
        self, request: Request, deadline_s: float, owner: Owner, *, key: object = None, calls: list[Any] | None = None
    ) -> None:
        self.request = request
        self.rows = request.rows
        self.deadline_s = deadline_s
        self.owner = owner
        self.key = key
        self.calls = calls if calls is not None else []


class _Part(NamedTuple):
    """Rows start..stop of an entry, as they run in one batch."""

    entry: Entry
    start: int
    stop: int

    def inputs(self) -> Tensors:
        inputs = self.entry.request.inputs
        if self.stop - self.start == self.entry.rows:
            return inputs
        return {name: array[self.start : self.stop] for name, array in inputs.items()}


class Run:
    """What one batch did, for the metrics."""

    __slots__ = ("cost_s", "failed", "oldest_wait_s", "requests", "rows", "run_s")

    def __init__(self, rows: int, requests: int, oldest_wait_s: float) -> None:
        self.rows = rows
        self.requests = requests
        self.oldest_wait_s = oldest_wait_s
        self.run_s = 0.0
        self.cost_s = 0.0
        self.failed = False


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
        pool: Executor,
        *,
        on_run: Callable[[Run], None],
        clock: Callable[[], float] = time.monotonic,
        cost_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._runtime = runtime
        self._cost = cost
        self._settings = settings
        self._pool = pool
        self._on_run = on_run
        self._clock = clock
        # What a run in the pool costs is told by the processor time of its thread: on the wall clock it also waits for
        # the interpreter, which under load makes a short run look long and keeps it in the pool for ever. On the loop
        # there is nothing to wait for, and the wall clock is far cheaper to read.
        self._cost_clock = cost_clock if settings.intra_op_threads == 1 else clock
        self._batchable = signature.batchable
        self._shares = signature.batchable and signature.batch_invariant
        self._first = signature.inputs[0]
        self._variable = [spec.name for spec in signature.inputs if -1 in spec.shape[1:]]
        self._queue: deque[Entry] = deque()
        self._pull_planned = False
        self._running = False
        self._enabled = True
        self._max_batch_rows = settings.max_batch_rows
        self.queued_rows = 0

    def set_limits(self, *, enabled: bool, max_batch_rows: int) -> None:
        """Follow the flag <model>.batching: whether requests may share a run, and how many rows a run may have."""
        self._enabled = enabled
        self._max_batch_rows = max_batch_rows

    def submit(self, entry: Entry) -> None:
        """Queue an entry. Raises QueueFull if its rows find no room, InvalidInput if they never could."""
        room = self._settings.max_queue_rows
        if entry.rows > room:
            raise InvalidInput("rows", f"{entry.rows} rows", f"at most {room} in one request")
        if self.queued_rows + entry.rows > room:
            wait_s = self.queued_rows * self._cost.expected_s(self._max_batch_rows) / max(1, self._max_batch_rows)
            raise QueueFull(
                f"{self.queued_rows} rows are queued and {room} may be", retry_after_s=min(60.0, max(1.0, wait_s))
            )
        entry.queued_s = self._clock()
        self.queued_rows += entry.rows
        self._queue.append(entry)
        self._plan()

    def _plan(self) -> None:
        """Pull once in the next turn of the loop, so that all requests of this turn share the batch."""
        if not self._pull_planned and not self._running:
            self._pull_planned = True
            asyncio.get_running_loop().call_soon(self._pull)

    def _pull(self) -> None:
        self._pull_planned = False
        parts = self._next_batch()
        if not parts:
            return
        rows = sum(part.stop - part.start for part in parts)
        run = Run(rows, len(parts), self._clock() - parts[0].entry.queued_s)
        if self._cost.is_short(rows, self._settings.inline_budget_s):
            results = self._run(parts, run, self._clock)
            self._finish(parts, run, results)
            return
        self._running = True
        loop = asyncio.get_running_loop()
        # run_in_executor would make a future and a callback chain; one hop back is all that is needed.
        self._pool.submit(self._run_away, loop, parts, run)

    def _run_away(self, loop: asyncio.AbstractEventLoop, parts: list[_Part], run: Run) -> None:
        """In a thread of the pool."""
        results = self._run(parts, run, self._cost_clock)
        # RuntimeError: the loop was closed while the model ran; the worker is gone and nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._finish_away, parts, run, results)

    def _finish_away(self, parts: list[_Part], run: Run, results: Tensors | list[Tensors | GatewayError]) -> None:
        self._running = False
        self._finish(parts, run, results)

    def _next_batch(self) -> list[_Part]:
        """Take the rows of the next batch from the queue; entries that nobody needs any more leave it here."""
        parts: list[_Part] = []
        room = self._max_batch_rows
        now_s = self._clock()
        shapes: Any = None
        while self._queue and room > 0:
            entry = self._queue[0]
            if entry.taken == 0 and (entry.gone or entry.deadline_s <= now_s):
                self._drop(entry)
                continue
            if not self._shares:
                if not parts:
                    parts.append(self._take(entry, entry.rows))
                break
            own = self._shapes(entry)
            if parts and own != shapes:
                break
            shapes = own
            part = self._take(entry, room)
            parts.append(part)
            room = room - (part.stop - part.start) if self._enabled else 0
        return parts

    def _shapes(self, entry: Entry) -> Any:
        """What must be equal for entries to be stacked: the sizes that the signature leaves open."""
        return [entry.request.inputs[name].shape[1:] for name in self._variable] if self._variable else None

    def _take(self, entry: Entry, room: int) -> _Part:
        start = entry.taken
        entry.taken = min(entry.rows, start + room)
        self.queued_rows -= entry.taken - start
        if entry.taken == entry.rows:
            self._queue.popleft()
        return _Part(entry, start, entry.taken)

    def _drop(self, entry: Entry) -> None:
        self._queue.popleft()
        self.queued_rows -= entry.rows
        if entry.gone:
            entry.owner.finish(entry, CallerLeft("the caller left before the run"))
        else:
            entry.owner.finish(entry, DeadlineExceeded("the deadline passed while the request waited for a run"))

    def _run(
        self, parts: list[_Part], run: Run, cost_clock: Callable[[], float]
    ) -> Tensors | list[Tensors | GatewayError]:
        """Run a batch: its outputs, uncut. If it fails, run its parts singly, so that only the guilty one fails."""
        begun_s, begun_cost_s = self._clock(), cost_clock()
        results: Tensors | list[Tensors | GatewayError]
        try:
            results = self._run_together(parts, run.rows)
        except Exception as error:  # whatever a run raises, every entry of the batch must get an answer
            run.failed = True
            if not isinstance(error, InferenceFailed):
                error = InferenceFailed(f"the run failed: {error!r}")
            results = [error] if len(parts) == 1 else [self._run_alone(part) for part in parts]
        run.run_s = self._clock() - begun_s
        run.cost_s = cost_clock() - begun_cost_s
        return results

    def _run_together(self, parts: list[_Part], rows: int) -> Tensors:
        outputs = self._runtime.run(self._stacked(parts, rows))
        if self._batchable:
            _check_rows(outputs, rows)
        return outputs

    def _stacked(self, parts: list[_Part], rows: int) -> Tensors:
        """The inputs of a batch."""
        if len(parts) == 1:
            return parts[0].inputs()
        flats = [part.entry.request.flat for part in parts if part.stop - part.start == part.entry.rows]
        if len(flats) == len(parts) and None not in flats:
            first = self._first
            values = np.frombuffer(b"".join(flats), first.dtype)  # type: ignore[arg-type]  # arrays are buffers
            return {first.name: values.reshape(rows, *first.shape[1:])}
        stacked = [part.inputs() for part in parts]
        return {name: np.concatenate([inputs[name] for inputs in stacked]) for name in stacked[0]}

    def _run_alone(self, part: _Part) -> Tensors | GatewayError:
        try:
            return self._run_together([part], part.stop - part.start)
        except InferenceFailed as error:
            return error
        except Exception as error:  # as in _run
            return InferenceFailed(f"the run failed: {error!r}")

    def _finish(self, parts: list[_Part], run: Run, results: Tensors | list[Tensors | GatewayError]) -> None:
        if not run.failed:
            self._cost.observe(run.rows, run.cost_s)
        self._on_run(run)
        if self._queue:
            self._plan()
        if isinstance(results, list):
            for part, result in zip(parts, results, strict=True):
                self._finish_part(part, run, result)
            return
        entries = [part.entry for part in parts if part.stop - part.start == part.entry.rows]
        if len(entries) == len(parts):
            for entry in entries:
                entry.queued_s, entry.run_s, entry.batch_rows = run.oldest_wait_s, run.run_s, run.rows
            entries[0].owner.finish_batch(entries, results)
            return
        start = 0
        for part in parts:
            stop = start + part.stop - part.start
            self._finish_part(part, run, {name: array[start:stop] for name, array in results.items()})
            start = stop

    def _finish_part(self, part: _Part, run: Run, result: Tensors | GatewayError) -> None:
        entry = part.entry
        if entry.taken < 0:
            return  # an earlier part failed and the entry is answered
        entry.queued_s, entry.batch_rows = run.oldest_wait_s, max(entry.batch_rows, run.rows)
        entry.run_s += run.run_s
        if isinstance(result, GatewayError):
            self._forget_rest(entry)
            entry.owner.finish(entry, result)
        elif part.stop - part.start == entry.rows:
            entry.owner.finish(entry, result)
        else:
            entry.parts = entry.parts or []
            entry.parts.append(result)
            if part.stop == entry.rows:
                whole = {name: np.concatenate([done[name] for done in entry.parts]) for name in result}
                entry.owner.finish(entry, whole)

    def _forget_rest(self, entry: Entry) -> None:
        """Take the rows of a failed entry that still wait out of the queue."""
        if entry.taken < entry.rows and self._queue and self._queue[0] is entry:
            self._queue.popleft()
            self.queued_rows -= entry.rows - entry.taken
        entry.taken = -1

    def close(self, error: GatewayError) -> None:
        """Answer everything that still waits with *error*."""
        while self._queue:
            entry = self._queue.popleft()
            self.queued_rows -= entry.rows - entry.taken
            if entry.taken >= 0:
                entry.taken = -1
                entry.owner.finish(entry, error)


def _check_rows(outputs: Tensors, rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise InferenceFailed(f"output {name!r} has shape {list(array.shape)} for a batch of {rows} rows")
