"""One fault tried again and again: what was counted meanwhile, and which promise did not hold."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What a child may take to be ready again, beside what its models take to load.
BACK_WITHIN_S = 2.0
HEAD = ("fault", "rounds", "requests", "failed", "lost", "recovered after (median, worst)")


@dataclass(slots=True)
class Trial:
    """What a fault gets, and what it leaves behind. Used by one thread.

    root: an empty directory of its own. say: told how far it is. draw: all that is random comes from it. failed:
    requests that did not get what they asked for. lost: acknowledged writes that are not there, or there twice.
    recovered_s: per round, from the fault until all is as before. broken: promises that did not hold, in words.
    skipped: why it could not be tried here; empty if it was.
    """

    name: str
    rounds: int
    seed: int
    root: Path
    say: Callable[[str], None]
    draw: random.Random = field(init=False)
    done: int = 0
    requests: int = 0
    failed: int = 0
    lost: int = 0
    recovered_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    skipped: str = ""

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.name}:{self.seed}")

    def turns(self) -> Iterator[int]:
        """The numbers of the rounds, each told before it begins."""
        for turn in range(self.rounds):
            self.say(f"{self.name}: round {turn + 1} of {self.rounds}")
            yield turn
            self.done += 1

    def must(self, holds: bool, promise: str) -> None:
        """Write down that a promise is broken, unless it holds."""
        if not holds:
            self.broken.append(promise)

    def must_be_back(self, within_s: float, *, busy: float | None = None) -> None:
        """Write down that a promise is broken unless most rounds were over within so many seconds.

        The median: one round in which the machine was busy with something else says nothing about the gateway. busy:
        how many times more there is to do than there are processors, which all starts take longer by; None: as the
        system tells of the last minute.
        """
        within_s *= max(1.0, (os.getloadavg()[0] / (os.cpu_count() or 1)) if busy is None else busy)
        median_s = statistics.median(self.recovered_s)
        self.must(median_s <= within_s, f"all was as before after {median_s:.2f} s, not within {within_s:.2f} s")

    def row(self) -> tuple[str, ...]:
        """The trial as a row of the table under HEAD."""
        recovered = "-"
        if self.recovered_s:
            recovered = f"{statistics.median(self.recovered_s):.2f} s, {max(self.recovered_s):.2f} s"
        counts = (self.done, self.requests, self.failed, self.lost)
        return (self.name, *(f"{count:,}" for count in counts), recovered)


class Missing(Exception):
    """A fault cannot be done here; the message says what it needs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. rounds: unless told otherwise. inflict: all of it; raises AssertionError where something
    that it waits for does not come, and Missing where it cannot be done."""

    name: str
    rounds: int
    inflict: Callable[[Trial], None]


def table(trials: list[Trial]) -> str:
    """The trials in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(trial.row() for trial in trials)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
