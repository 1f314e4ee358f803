"""Rows that wait for a run, and the way back to whoever gets their answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from gateway.codecs.codec import Request
from gateway.errors import GatewayError, InvalidOutput
from gateway.serving.priority import NORMAL
from gateway.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    from gateway.serving.shares import Share


class Run:
    """What one batch did.

    oldest_wait_s: of the entry that waited longest. begun_s: on the worker's monotonic clock. input_s: of run_s,
    what it took to put the inputs together. cost_s: what is learned
    from; in a thread, without the wait for a processor. is_watched: its outputs were checked; bad_rows: those of its
    rows that were no good. outcomes: how many requests each call of the model answered well, and how many not, if one
    of them failed. failure: what was wrong. confidences: how sure each of its rows is, if somebody has asked.
    """

    __slots__ = (
        "bad_rows",
        "begun_s",
        "confidences",
        "cost_s",
        "failed",
        "failure",
        "input_s",
        "is_watched",
        "oldest_wait_s",
        "outcomes",
        "reason",
        "requests",
        "rows",
        "run_s",
    )

    def __init__(self, rows: int, requests: int, reason: str, oldest_wait_s: float, run_s: float = 0.0) -> None:
        self.rows = rows
        self.requests = requests
        self.reason = reason
        self.oldest_wait_s = oldest_wait_s
        self.run_s = run_s
        self.begun_s = self.cost_s = self.input_s = 0.0
        self.failed = False
        self.failure = ""
        self.is_watched = False
        self.bad_rows: Collection[int] = ()
        self.outcomes: list[tuple[int, int]] = []
        self.confidences: list[float] | None = None


def all_in_one(runs: list[Run]) -> Run:
    """What the runs of a split entry were to it: the longest wait, all of the time, the largest batch."""
    rows, oldest_wait_s = max(run.rows for run in runs), max(run.oldest_wait_s for run in runs)
    whole = Run(rows, 1, runs[0].reason, oldest_wait_s, sum(run.run_s for run in runs))
    whole.begun_s = min(run.begun_s for run in runs)
    whole.cost_s = sum(run.cost_s for run in runs)
    whole.failed = any(run.failed for run in runs)
    whole.is_watched = any(run.is_watched for run in runs)
    return whole


def joined(parts: list[tuple[Run, Tensors]]) -> Tensors | GatewayError:
    """The outputs of a split entry, from those of its parts; InvalidOutput if they do not fit together."""
    try:
        return {name: np.concatenate([outputs[name] for _, outputs in parts]) for name in parts[0][1]}
    except ValueError as error:
        return InvalidOutput(f"the parts of a large request got outputs that do not fit together: {error}")


class Owner(Protocol):
    """Who gets the outcome of an entry: exactly one of the two is called, once, on the event loop."""

    def finish(self, entry: Any, result: Tensors | GatewayError, run: Run | None) -> None:
        """The outputs of one entry, or why there are none. run: what it took part in, None if it never ran."""
        ...

    def finish_batch(self, entries: list[Any], outputs: Tensors, run: Run) -> None:
        """The outputs of a run, uncut: the rows of the entries one after the other; of one entry, just its outputs."""
        ...


class Entry:
    """A decoded request in the queue of its version. Lives on the event loop; the run only reads it.

    run_by_s: when its outputs are worth nothing any more, on the worker's monotonic clock; it may grow while the entry
    waits (another caller joins). gone: nobody waits any more. What an entry seldom says stands in the class.
    """

    rows: int = 1
    priority: int = NORMAL
    share: Share | None = None  # of its client, where clients are told apart
    share_rows: int = 0  # how it counts there
    flat: bytes | None = None  # the values of the only input, if they are no tensor yet
    spec: TensorSpec | None = None  # that input
    gone: bool = False
    taken: int = 0  # rows that are running or done; -1: an error was told
    queued_s: float = 0.0  # when it came
    parts: list[tuple[Run, Tensors]] | None = None  # what ran of it, if it is split
    is_invalid: bool = False  # some of its rows got an answer that is no good
    falls_back: bool = False  # another version may answer in its place
    _request: Request | None = None

    def __init__(self, request: Request, run_by_s: float, owner: Owner) -> None:
        self.run_by_s = run_by_s
        self.owner = owner
        self.take_request(request)

    def take_request(self, request: Request) -> None:
        """What was decoded."""
        self._request = request
        self.rows = request.rows
        self.flat = request.flat

    @property
    def request(self) -> Request:
        """The request as decoded; for rows that were decoded together with others it is made when somebody asks."""
        request = self._request
        if request is None:
            assert self.flat is not None
            request = self._request = Request(self.rows, flat=self.flat, spec=self.spec)
            request.is_plain = True
        return request

    @property
    def known_inputs(self) -> Tensors:
        """The inputs, if the body could be read; else nothing."""
        return {} if self._request is None and self.flat is None else self.request.inputs

    def cut(self, start: int, stop: int) -> Tensors:
        """The inputs of rows start..stop."""
        inputs = self.request.inputs
        if stop - start == self.rows:
            return inputs
        return {name: values[start:stop] for name, values in inputs.items()}


def first_rows(entries: Sequence[Entry], rows: int) -> Sequence[int]:
    """Which of the *rows* rows of a run is the first of each of its entries, if all of them ran whole."""
    if rows == len(entries):
        return range(rows)
    return [*accumulate([entry.rows for entry in entries[:-1]], initial=0)]


class Batch:
    """Entries that run together. first_start, last_stop: which rows of the first and the last one run, if not all."""

    __slots__ = ("entries", "first_start", "last_stop", "reason", "rows")

    def __init__(self, reason: str) -> None:
        self.entries: list[Entry] = []
        self.rows = 0
        self.first_start = 0
        self.last_stop = 0
        self.reason = reason  # why it left with the rows that it has

    @property
    def is_whole(self) -> bool:
        """Whether all entries run with all of their rows."""
        return self.first_start == 0 and self.last_stop == self.entries[-1].rows

    def parts(self) -> list[tuple[Entry, int, int]]:
        """The entries with the rows start..stop that run of them."""
        last = len(self.entries) - 1
        return [
            (entry, self.first_start if place == 0 else 0, self.last_stop if place == last else entry.rows)
            for place, entry in enumerate(self.entries)
        ]

    def mark_invalid(self, bad_rows: Collection[int]) -> None:
        """Tell the entries to which one of these rows of the batch belongs that their answer is no good."""
        bad, at = frozenset(bad_rows), 0
        for entry, start, stop in self.parts():
            rows = range(at, at + stop - start)
            entry.is_invalid = entry.is_invalid or not bad.isdisjoint(rows)
            at = rows.stop


class RunGuard(Protocol):
    """Who looks after the runs of a candidate; on the event loop."""

    @property
    def patience(self) -> int:
        """Failures in a row that it still bears."""
        ...

    def ran(self, batch: Batch, run: Run) -> None:
        """A run has ended; its entries do not have their answers yet."""
        ...


class Away(NamedTuple):
    """A batch that is running in the pool, since when."""

    batch: Batch
    run: Run
    begun_s: float
