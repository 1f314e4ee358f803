"""Copies of answered requests: how they wait for one model's shadow version, and what came of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gateway.errors import GatewayError
from gateway.models.runtime import Runtime
from gateway.samples.pairs import Kind, PairSums, comparable, compare, inputs_differ
from gateway.serving.batch_policy import RunCost
from gateway.serving.batcher import Batcher
from gateway.serving.entry import Entry, Run
from gateway.serving.registry import LiveVersion
from gateway.tensors import Tensors

# A round of copies ends with so many rows, or before its runs would take so long: a client may come any time.
_ROUND_ROWS = 64
_ROUND_S = 0.02
# Versions that have answered while one shadowed them; the oldest comparison goes when there is one more.
_MAX_COMPARISONS = 8
# Outputs of a run that are no larger are held for one row of them; of larger ones the row is copied.
_MAX_SHARED_BYTES = 4096


class Comparison:
    """What is known of one version's copies of what another has answered. refusal: why there can be no copies."""

    __slots__ = ("base", "base_digest", "digest", "kinds", "refusal", "since_s", "sums")

    def __init__(self, base: LiveVersion, shadow: LiveVersion, since_s: float) -> None:
        self.base = base.version
        self.base_digest = base.digest
        self.digest = shadow.digest
        self.refusal = inputs_differ(base.signature, shadow.signature)
        self.kinds: Mapping[str, Kind] = comparable(base.signature, shadow.signature)
        self.since_s = since_s
        self.sums = PairSums()

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "base_digest": self.base_digest,
            "digest": self.digest,
            "since": self.since_s,
            **self.sums.to_json(),
        }


class Copy(Entry):
    """One answered request to be run once more. outputs: what was answered, from row *start* on; None: all of it.

    size_bytes: what it keeps in memory, at the most.
    """

    def __init__(
        self, asked: Entry, outputs: Tensors, start: int | None, comparison: Comparison, offered_s: float
    ) -> None:
        self._request = asked._request
        self.rows = asked.rows
        self.flat = asked.flat
        self.spec = asked.spec
        self.run_by_s = math.inf
        size_bytes = _size(outputs)
        if start is None:
            # Rows of a larger array would hold all of that.
            outputs = {name: array if array.base is None else array.copy() for name, array in outputs.items()}
        elif size_bytes > _MAX_SHARED_BYTES:
            outputs = {name: array[start : start + self.rows].copy() for name, array in outputs.items()}
            size_bytes, start = _size(outputs), None
        self.outputs = outputs
        self.start = start
        self.size_bytes = size_bytes + (_size(self.request.inputs) if self.flat is None else len(self.flat))
        self.comparison = comparison
        self.offered_s = offered_s

    @property
    def answered(self) -> Tensors:
        """The outputs of this request alone."""
        start = self.start
        if start is None:
            return self.outputs
        return {name: array[start : start + self.rows] for name, array in self.outputs.items()}


# What has run together: the copies, and the outputs, uncut; of one copy, just its outputs.
Ran = tuple[list[Copy], Tensors]


class Runner:
    """A warm version as its copies run: its session with an abort of its own, and a queue of its own."""

    __slots__ = ("batcher", "cost", "live", "runtime")

    def __init__(self, live: LiveVersion, runtime: Runtime, cost: RunCost, batcher: Batcher) -> None:
        self.live = live
        self.runtime = runtime
        self.cost = cost
        self.batcher = batcher


class Shadowed:
    """One model and the version that shadows it. rate: the share of requests that are copied, 0 while it is off."""

    def __init__(self, model: str, version: str) -> None:
        self.model = model
        self.version = version
        self.rate = 0.0
        self.comparisons: dict[str, Comparison] = {}  # by the version that answered
        self.queue: deque[Copy] = deque()
        self.queued_bytes = 0
        self.runner: Runner | None = None
        self.rests_until_s = 0.0
        self.latest_round_s = 0.0
        self.rounds = 0

    def comparison(self, base: LiveVersion, shadow: LiveVersion, wall_clock: Callable[[], float]) -> Comparison:
        """That of *base* and *shadow*; a new one, if either is another package than before."""
        found = self.comparisons.get(base.version)
        if found is None or found.base_digest != base.digest or found.digest != shadow.digest:
            self.comparisons.pop(base.version, None)
            if len(self.comparisons) >= _MAX_COMPARISONS:
                del self.comparisons[next(iter(self.comparisons))]
            found = self.comparisons[base.version] = Comparison(base, shadow, wall_clock())
        return found

    def put(self, copy: Copy) -> None:
        self.queue.append(copy)
        self.queued_bytes += copy.size_bytes

    def take(self) -> Copy:
        copy = self.queue.popleft()
        self.queued_bytes -= copy.size_bytes
        return copy

    def take_round(self, cost: RunCost) -> list[Copy]:
        """The copies of one round: at least one if any waits."""
        taken: list[Copy] = []
        rows = 0
        while self.queue:
            rows += self.queue[0].rows
            if taken and (rows > _ROUND_ROWS or cost.expected_s(rows) > _ROUND_S):
                break
            taken.append(self.take())
        return taken

    def take_old(self, before_s: float) -> Iterator[Copy]:
        """Those that were offered before that."""
        while self.queue and self.queue[0].offered_s < before_s:
            yield self.take()

    def to_json(self, now_s: float, *, is_warm: bool) -> dict[str, Any]:
        """For the status document. now_s: on the clock of *rests_until_s*."""
        return {
            "model": self.model,
            "version": self.version,
            "rate": self.rate,
            "state": self._state(now_s, is_warm),
            "comparisons": [comparison.to_json() for comparison in self.comparisons.values()],
        }

    def _state(self, now_s: float, is_warm: bool) -> str:
        if not self.rate:
            return "off"
        if not is_warm:
            return "not warm"
        refusals = [comparison.refusal for comparison in self.comparisons.values() if comparison.refusal]
        if refusals:
            return f"cannot run what it would be given: {refusals[-1]}"
        return "resting after a run that took too long" if now_s < self.rests_until_s else "on"


class Round:
    """Copies on their way through the runner. on_done is called once, with the last outcome."""

    def __init__(
        self,
        shadowed: Shadowed,
        runner: Runner,
        copies: list[Copy],
        clock: Callable[[], float],
        on_done: Callable[[Round], None],
    ) -> None:
        self.shadowed = shadowed
        self.runner = runner
        self.batches: list[Ran] = []
        self.failed: list[Copy] = []
        self.is_overdue = False
        self.base: LiveVersion | None = None  # held to be timed beside the shadow, if it is this round's turn
        self.progress_s = clock()
        self._open = len(copies)
        self._clock = clock
        self._on_done = on_done
        for copy in copies:
            copy.owner = self

    @property
    def done(self) -> list[Copy]:
        """The copies that have run."""
        return [copy for copies, _ in self.batches for copy in copies]

    def finish_batch(self, entries: list[Copy], outputs: Tensors, run: Run) -> None:
        """See entry.Owner."""
        self.batches.append((entries, outputs))
        self._ended(len(entries))

    def finish(self, entry: Copy, result: Tensors | GatewayError, run: Run | None) -> None:
        """See entry.Owner."""
        if isinstance(result, GatewayError):
            self.failed.append(entry)
        else:
            self.batches.append(([entry], result))
        self._ended(1)

    def _ended(self, count: int) -> None:
        self.progress_s = self._clock()
        self._open -= count
        if not self._open:
            self._on_done(self)


def _size(tensors: Tensors) -> int:
    """Bytes of tensors in memory."""
    size = 0
    for array in tensors.values():
        size += array.nbytes
        if array.dtype == object:  # its nbytes are those of the references; the texts come on top
            size += sum(map(len, array.ravel().tolist()))
    return size


# -- comparing, in the thread ------------------------------------------------------------------------


def compare_all(batches: list[Ran]) -> list[tuple[Comparison, PairSums]]:
    """What the runs of a round add to their comparisons. Pure."""
    found = []
    for copies, outputs in batches:
        comparison = copies[0].comparison
        starts = [copy.start for copy in copies if copy.rows == 1 and copy.comparison is comparison]
        if len(copies) > 1 and len(starts) == len(copies) and None not in starts:
            found.append((comparison, _compare_rows(copies, outputs)))
            continue
        start = 0
        for copy in copies:
            stop = start + copy.rows
            own = outputs if len(copies) == 1 else {name: array[start:stop] for name, array in outputs.items()}
            found.append((copy.comparison, compare(copy.answered, own, [copy.rows], copy.comparison.kinds)))
            start = stop
    return found


def time_both(
    copies: list[Copy], base: Runtime, shadow: Runtime, *, base_first: bool, clock: Callable[[], float]
) -> PairSums:
    """Run copies of one batch by both versions, one right after the other: the same inputs, thread and company.

    Each twice, so that neither has the place that is better for all of the time. *shadow* has just run them.
    """
    inputs = copies[0].request.inputs
    if len(copies) > 1:
        inputs = {name: np.concatenate([copy.request.inputs[name] for copy in copies]) for name in inputs}
    base.run(inputs)
    first, second = (base, shadow) if base_first else (shadow, base)
    times_s = {True: 0.0, False: 0.0}
    for runtime in (first, second, second, first):
        begun_s = clock()
        runtime.run(inputs)
        times_s[runtime is base] += clock() - begun_s
    return PairSums(timed=1, base_s=times_s[True], shadow_s=times_s[False])


def _compare_rows(copies: list[Copy], outputs: Tensors) -> PairSums:
    """Compare one row of each copy; outputs: of the copies in their order. Those of one run are taken together."""
    kinds = copies[0].comparison.kinds
    runs: dict[int, tuple[Tensors, list[int], list[int]]] = {}  # by the run that answered: its rows, and whose they are
    for place, copy in enumerate(copies):
        _, rows, places = runs.setdefault(id(copy.outputs), (copy.outputs, [], []))
        rows.append(copy.start or 0)
        places.append(place)
    by_shape: dict[Any, list[tuple[Tensors, list[int]]]] = {}
    for answered, rows, places in runs.values():
        base = {name: answered[name][rows] for name in kinds if name in answered}
        by_shape.setdefault(tuple(array.shape[1:] for array in base.values()), []).append((base, places))
    sums = PairSums()
    for parts in by_shape.values():
        order = [place for _, places in parts for place in places]
        base = {name: np.concatenate([answered[name] for answered, _ in parts]) for name in parts[0][0]}
        sums.merge(compare(base, {name: array[order] for name, array in outputs.items()}, [1] * len(order), kinds))
    return sums
