"""Copies of answered requests: how they wait for one model's shadow version, and what came of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gateway.codecs.codec import Request
from gateway.errors import GatewayError
from gateway.models.runtime import Runtime
from gateway.samples.pairs import Kind, PairSums, comparable, compare, inputs_differ
from gateway.serving.batch_policy import RunCost
from gateway.serving.batcher import Batcher
from gateway.serving.entry import Entry, Run
from gateway.serving.registry import LiveVersion
from gateway.tensors import Tensors

# A round of copies ends with so many rows, or before its runs would take so long: a client may come any time.
_ROUND_ROWS = 256
_ROUND_S = 0.02
# Versions that have answered while one shadowed them; the oldest comparison goes when there is one more.
_MAX_COMPARISONS = 8
_NO_TENSORS: Tensors = {}


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
    """One answered request to be run once more. outputs: what was answered; run: what that took part in."""

    def __init__(
        self, request: Request, outputs: Tensors, run: Run, comparison: Comparison, size_bytes: int, offered_s: float
    ) -> None:
        self._request = request
        self.rows = request.rows
        self.flat = request.flat
        self.run_by_s = math.inf
        self.outputs = outputs
        self.base_run_rows = run.rows
        self.base_run_s = run.cost_s
        self.comparison = comparison
        self.size_bytes = size_bytes
        self.offered_s = offered_s


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

    def comparison(self, base: LiveVersion, shadow: LiveVersion, now_s: float) -> Comparison:
        """That of *base* and *shadow*; a new one, if either is another package than before. now_s: Unix time."""
        found = self.comparisons.get(base.version)
        if found is None or found.base_digest != base.digest or found.digest != shadow.digest:
            self.comparisons.pop(base.version, None)
            if len(self.comparisons) >= _MAX_COMPARISONS:
                del self.comparisons[next(iter(self.comparisons))]
            found = self.comparisons[base.version] = Comparison(base, shadow, now_s)
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
        self.done: list[tuple[Copy, Tensors]] = []
        self.failed: list[Copy] = []
        self.is_overdue = False
        self.progress_s = clock()
        self._open = len(copies)
        self._clock = clock
        self._on_done = on_done
        for copy in copies:
            copy.owner = self

    @property
    def is_running(self) -> bool:
        """Whether some copies have not yet run."""
        return self._open > 0

    def finish_batch(self, entries: list[Copy], outputs: Tensors, run: Run) -> None:
        """See entry.Owner."""
        start = 0
        for copy in entries:
            stop = start + copy.rows
            alone = len(entries) == 1
            self.finish(copy, outputs if alone else {name: a[start:stop] for name, a in outputs.items()}, run)
            start = stop

    def finish(self, entry: Copy, result: Tensors | GatewayError, run: Run | None) -> None:
        """See entry.Owner."""
        self.progress_s = self._clock()
        if isinstance(result, GatewayError):
            self.failed.append(entry)
        else:
            self.done.append((entry, result))
        self._open -= 1
        if not self._open:
            self._on_done(self)


def size_of(request: Request, outputs: Tensors) -> int:
    """Bytes that a copy keeps in memory."""
    size = 0 if request.flat is None else len(request.flat)
    for tensors in (_NO_TENSORS if request.flat is not None else request.inputs, outputs):
        for array in tensors.values():
            size += array.nbytes
            if array.dtype == object:  # its nbytes are those of the references; the texts come on top
                size += sum(map(len, array.ravel().tolist()))
    return size


def own_outputs(outputs: Tensors) -> Tensors:
    """Outputs that hold no larger array in memory: those of one request are often a few rows of a whole run's."""
    return {name: array if array.base is None else array.copy() for name, array in outputs.items()}


def compare_all(done: list[tuple[Copy, Tensors]]) -> list[tuple[Comparison, PairSums]]:
    """What the pairs of a round add to their comparisons. Pure; those of equal shape are compared together."""
    groups: dict[Any, list[tuple[Copy, Tensors]]] = {}
    for copy, outputs in done:
        kinds = copy.comparison.kinds
        shapes = tuple((_row_shape(copy.outputs.get(name)), _row_shape(outputs.get(name))) for name in kinds)
        groups.setdefault((id(copy.comparison), shapes), []).append((copy, outputs))
    found = []
    for group in groups.values():
        comparison = group[0][0].comparison
        # Arrays without rows, as those of a model that takes no batches, are not put together.
        parts = [group] if all(_has_rows(copy, outputs) for copy, outputs in group) else [[one] for one in group]
        for part in parts:
            base = _together([copy.outputs for copy, _ in part])
            shadow = _together([outputs for _, outputs in part])
            found.append((comparison, compare(base, shadow, [copy.rows for copy, _ in part], comparison.kinds)))
    return found


def _row_shape(array: Any) -> tuple[int, ...] | None:
    return None if array is None else array.shape[1:]


def _has_rows(copy: Copy, outputs: Tensors) -> bool:
    return all(array.shape[:1] == (copy.rows,) for tensors in (copy.outputs, outputs) for array in tensors.values())


def _together(parts: list[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in parts[0]}
