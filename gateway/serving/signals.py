"""What the judge of a release is told: per arm of a split, how many requests, how they ended, and what was answered.

All counts rise for as long as the worker lives. An epoch is the time during which one revision of a route is in force.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from gateway.flags.compile import Route
from gateway.serving import sketch
from gateway.tensors import Tensors

BadEnd = Literal["errors", "timeouts", "invalid", "fallbacks"]

_MAX_EPOCHS = 8  # of one model
# Keys that are known apart in the epoch in force, over all arms: about 3 MB. When they are reached, no arm counts on.
MAX_KEYS = 32_768
# Bad ends that are known apart in one epoch, over all arms: about 1.5 MB; then no arm counts on until the next one.
MAX_BAD_ENDS = 16_384
_MAX_OUTPUTS = 8
_RUN_STEP = math.log(1.1)


def run_bin(run_s: float) -> int:
    """Runs of *run_s* seconds and up to 10 % longer: whole powers of 1.1, counted from a microsecond."""
    return math.floor(math.log(max(run_s, 1e-9) / 1e-6) / _RUN_STEP)


class ArmCounts:
    """What became of the requests that a split gave to one variant in one epoch. Used on the event loop only."""

    __slots__ = (
        "_epoch",
        "_offered",
        "_outputs",
        "_run_bins",
        "_runs",
        "eligible",
        "ends",
        "keys",
        "model",
        "revision",
        "variant",
        "version",
        "wants_outputs",
    )

    def __init__(self, epoch: _Epoch, route: Route, variant: str, version: str) -> None:
        self._epoch = epoch
        self.model, self.revision = route.model, route.revision
        self.variant, self.version = variant, version
        self.eligible = self.keys = 0
        self.ends: dict[BadEnd, int] = {"errors": 0, "timeouts": 0, "invalid": 0, "fallbacks": 0}
        self._run_bins: dict[int, int] = defaultdict(int)
        self._runs: list[tuple[float, int]] = []
        self._outputs: dict[str, dict[str, int]] = {}
        self._offered: tuple[Tensors, Sequence[int]] | None = None
        self.wants_outputs = True  # once per flush

    def saw(self, key: str | None) -> None:
        """A request was decided whose key is not known yet. None: it has none, and is one of its own."""
        self._epoch.saw(self, key)

    def answered(self, requests: int, run_s: float | None) -> None:
        """So many requests were answered by one run. None: they were parts of one that failed as a whole."""
        self.eligible += requests
        if run_s is not None:
            self._runs.append((run_s, requests))

    def ended(self, end: BadEnd, key: str | None) -> None:
        """A request ended badly; at most one such end per key and epoch counts, since the errors of a key cluster.

        A key that always fails would blame its arm again and again, and where it fell is chance.
        """
        if self._epoch.is_new(end, key):
            self.ends[end] += 1

    def offer(self, outputs: Tensors, rows: Sequence[int]) -> None:
        """Outputs of a run, and which of their rows are this arm's; looked at when the counts are flushed."""
        self.wants_outputs = False
        self._offered = outputs, rows[: sketch.MAX_ROWS]

    def flush(self) -> None:
        """Put what was gathered into its bins, and want outputs of another run."""
        self._bin_runs()
        if self._offered is None:
            return
        (outputs, rows), self._offered = self._offered, None
        self.wants_outputs = True
        for name, array in list(outputs.items())[:_MAX_OUTPUTS]:
            if array.ndim and len(array) > max(rows, default=0):
                sketch.add(self._outputs.setdefault(name, {}), array[list(rows)])

    def to_json(self) -> dict[str, Any]:
        self._bin_runs()  # or the runs would lag behind the requests in what is told
        return {
            "model": self.model,
            "version": self.version,
            "variant": self.variant,
            "revision": self.revision,
            "eligible": self.eligible,
            **{str(end): count for end, count in self.ends.items()},
            "keys": self.keys,
            "run_s": {str(place): count for place, count in self._run_bins.items()},
            "outputs": self._outputs,
        }

    def _bin_runs(self) -> None:
        for run_s, requests in self._runs:
            self._run_bins[run_bin(run_s)] += requests
        self._runs.clear()


class _Epoch:
    """The arms of one revision of a route, and what they must remember together."""

    def __init__(self, route: Route) -> None:
        self.is_closed = False
        self._keys: set[int] | None = set()
        self._bad: set[tuple[BadEnd, int]] = set()
        self.arms = {variant: ArmCounts(self, route, variant, version) for variant, version in route.split.items()}

    def saw(self, arm: ArmCounts, key: str | None) -> None:
        keys = self._keys
        if keys is None:
            return
        if key is not None:
            hashed = hash(key)
            if hashed in keys:
                return
            if len(keys) >= MAX_KEYS:
                self._keys = None
                return
            keys.add(hashed)
        arm.keys += 1

    def is_new(self, end: BadEnd, key: str | None) -> bool:
        if len(self._bad) >= MAX_BAD_ENDS:
            return False
        if key is not None:
            known = len(self._bad)
            self._bad.add((end, hash(key)))
            return len(self._bad) > known
        return True

    def close(self) -> None:
        """Another revision is in force: no new keys come."""
        self.is_closed, self._keys = True, None


class Signals:
    """The counts of all split models of one worker, of their last epochs. Used on the event loop only."""

    def __init__(self) -> None:
        self._epochs: dict[str, dict[int, _Epoch]] = {}

    def arms(self, route: Route) -> dict[str, ArmCounts]:
        """By variant, where the requests of *route* are counted from now on; none if it splits nothing."""
        epochs = self._epochs.get(route.model, {})
        for revision, epoch in epochs.items():
            if revision != route.revision:
                epoch.close()
        if len(set(route.split.values())) < 2:
            return {}
        epochs = self._epochs.setdefault(route.model, {})
        known = epochs.get(route.revision)
        if known is None or known.is_closed:  # closed: a store that was restored gives its revisions a second time
            epochs.pop(route.revision, None)
            epochs[route.revision] = _Epoch(route)
            while len(epochs) > _MAX_EPOCHS:
                del epochs[next(iter(epochs))]
        return epochs[route.revision].arms

    def forget(self, model: str) -> None:
        """The flags do not name this model any more."""
        self._epochs.pop(model, None)

    def flush(self) -> None:
        """Called each time that the counts go to the metrics."""
        for epochs in self._epochs.values():
            for epoch in epochs.values():
                for arm in epoch.arms.values():
                    arm.flush()

    def to_json(self) -> list[dict[str, Any]]:
        """For the status document, oldest epoch first."""
        return [
            arm.to_json()
            for epochs in self._epochs.values()
            for epoch in epochs.values()
            for arm in epoch.arms.values()
        ]
