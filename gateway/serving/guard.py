"""One candidate looked after: where its requests count, whether it is asked, and what its runs say of it.

A candidate is a version that the route can give to a request and that is not the default variant's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gateway.errors import VersionShut
from gateway.flags.compile import Decision
from gateway.serving.breaker import Breaker
from gateway.serving.entry import Batch, Run
from gateway.serving.registry import LiveVersion
from gateway.serving.signals import ArmCounts

# Why the default version answers, as the metric says it.
ERROR, INVALID, TIMEOUT, BREAKER, QUEUE = "error", "invalid", "timeout", "breaker", "queue"
QUARANTINE = "quarantine"


class Arm:
    """One variant of a route in force: where its requests count, and who stands behind it; either may be None."""

    __slots__ = ("counts", "fallback", "guard")

    def __init__(self, counts: ArmCounts | None, guard: Guard | None, fallback: Decision) -> None:
        self.counts = counts
        self.guard = guard
        self.fallback = fallback


class Arms(NamedTuple):
    """The arms of a route by variant: for requests that a split decided, and for those that a rule did."""

    split: Mapping[str, Arm] = {}
    ruled: Mapping[str, Arm] = {}


NO_ARMS = Arms()


class Guard:
    """Stands behind one candidate that is warm. Everything runs on the event loop.

    is_shut: new requests must ask `admits`. is_hanging: somebody could not wait for the run that goes on.
    """

    def __init__(self, live: LiveVersion, clock: Callable[[], float], on_change: Callable[[Guard], None]) -> None:
        self.live = live
        self.default_version = ""
        self.variants: frozenset[str] = frozenset()
        self.breaker = Breaker()
        self.is_shut = False
        self.called_off = ""
        self.is_hanging = False
        self._clock = clock
        self._on_change = on_change

    def admits(self) -> bool:
        """Whether one more request may go to the candidate though it is shut."""
        if self.is_hanging:
            return False
        before = self.breaker.state
        admitted = self.breaker.admits(self._clock())
        if self.breaker.state != before:
            self._on_change(self)
        return admitted

    @property
    def patience(self) -> int:
        return self.breaker.patience

    def ran(self, batch: Batch, run: Run) -> None:
        """Take note of how a run has ended. If that opens the breaker, what waits is sent away."""
        if self.is_hanging:  # it was taken for lost, and counted
            self.is_hanging = False
            self._settle(self.breaker.state)
        elif self.called_off:
            self.trip(self.called_off)
        elif batch.entries[0].falls_back or any(entry.falls_back for entry in batch.entries):
            # Else it was for those who asked for it by name.
            bad = sum([entry.is_invalid for entry in batch.entries]) if run.bad_rows and not run.failed else 0
            for good, failed in run.outcomes or [(run.requests - bad, bad)]:
                self._observe(good, failed, run.failure or "outputs are not finite, or of a wrong shape or type")

    def hangs(self) -> None:
        """A request could not wait for the run that goes on: nobody else shall wait behind it."""
        if not self.is_hanging:
            self.is_hanging = True
            self._observe(0, 1, "the run took too long")
            self.is_shut = True
            self._send_away()

    def trip(self, reason: str) -> None:
        """Open the breaker, whatever it has counted."""
        before = self.breaker.state
        self.breaker.trip(self._clock(), reason)
        self._settle(before)

    def _observe(self, good: int, bad: int, reason: str) -> None:
        breaker = self.breaker
        before = breaker.state
        breaker.observe(good, bad, self._clock(), reason)
        if breaker.state != before:
            self._settle(before)

    def _settle(self, before: str) -> None:
        state = self.breaker.state
        self.is_shut = self.is_hanging or state != "closed"
        if state != before:
            self._on_change(self)
            if state == "open":
                self._send_away()

    def _send_away(self) -> None:
        self.live.batcher.send_away(VersionShut(f"version {self.live.version!r} does not answer", retry_after_s=1.0))
