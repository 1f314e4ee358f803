"""Whether processes grow: what each of them holds, looked at again and again, and the slope of it."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speed import machine

from tests.live import LiveGateway

HEAD = ("process", "what", "after warm-up", "at the end", "trend", "flat within", "verdict")
_MIB = 1024 * 1024
_MOST_PAIRS = 300  # of a series whose slope is sought: beyond that it is thinned, evenly


@dataclass(frozen=True, slots=True)
class Look:
    """What one process held at a moment. at_s: monotonic."""

    at_s: float
    rss_bytes: int
    anonymous_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a quantity may seem to rise from the warm-up to the end of the watch, and still be called flat."""

    memory_bytes: int = 8 * _MIB
    memory_share: float = 0.04  # of what there is after the warm-up; the larger of the two counts
    descriptors: float = 4
    threads: float = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """One quantity of one process. rise: the slope over the watched time, in the quantity's own unit."""

    process: str
    what: str
    first: float
    last: float
    rise: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        return self.rise <= self.allowed

    def row(self) -> tuple[str, ...]:
        """Under HEAD."""
        unit, scale = (" MiB", _MIB) if self.what in ("RSS", "anonymous") else ("", 1)
        numbers = (f"{value / scale:{sign}.1f}{unit}" for value, sign in
                   ((self.first, ""), (self.last, ""), (self.rise, "+"), (self.allowed, "")))  # fmt: skip
        return (self.process, self.what, *numbers, "flat" if self.is_flat else "GROWS")


@dataclass(slots=True)
class Watch:
    """The processes of a gateway over time. Used by one thread.

    replaced: processes whose place somebody else has taken meanwhile; what they held says nothing any more.
    """

    looks: dict[str, list[Look]] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    _pids: dict[str, int] = field(default_factory=dict)

    def look(self, processes: Mapping[str, int]) -> None:
        """Look at processes by name; those that are gone are passed over."""
        for name, pid in processes.items():
            if self._pids.setdefault(name, pid) != pid:
                self.replaced.add(name)
            with contextlib.suppress(OSError):
                self.looks.setdefault(name, []).append(held(pid))

    def verdicts(self, *, warm_up: float = 0.3, bounds: Bounds | None = None) -> list[Verdict]:
        """Of each process and quantity. warm_up: the share of the time that is left out; looks must remain."""
        bounds = bounds or Bounds()
        found = []
        for name, looks in self.looks.items():
            begin_s = looks[0].at_s + warm_up * (looks[-1].at_s - looks[0].at_s)
            kept = [look for look in looks if look.at_s >= begin_s]
            at_s = [look.at_s for look in kept]
            for what, values, least, share in (
                ("RSS", [look.rss_bytes for look in kept], bounds.memory_bytes, bounds.memory_share),
                ("anonymous", [look.anonymous_bytes for look in kept], bounds.memory_bytes, bounds.memory_share),
                ("descriptors", [look.descriptors for look in kept], bounds.descriptors, 0.0),
                ("threads", [look.threads for look in kept], bounds.threads, 0.0),
            ):
                first, last = _level(values[: len(values) // 4 or 1]), _level(values[-(len(values) // 4 or 1) :])
                rise = slope(at_s, values) * (at_s[-1] - at_s[0])
                found.append(Verdict(name, what, first, last, rise, max(least, share * first)))
        return found


def processes(live: LiveGateway) -> dict[str, int]:
    """The processes of a running gateway: name -> pid."""
    children = {f"{child['role']} {child['slot']}": child["pid"] for child in live.ready["children"]}
    return {"supervisor": live.pid, **children}


def held(pid: int) -> Look:
    """What a process holds now. Raises OSError if it is gone."""
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    status = Path(f"/proc/{pid}/status").read_text()
    threads = int(next(line.split()[1] for line in status.splitlines() if line.startswith("Threads:")))
    memory = machine.memory([pid])
    return Look(time.monotonic(), memory.rss_bytes, memory.anonymous_bytes, descriptors, threads)


def slope(at_s: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs (Theil and Sen), per second: peaks and pauses do not move it."""
    step = max(1, len(at_s) // _MOST_PAIRS)
    points = list(zip(at_s[::step], values[::step], strict=True))
    slopes = [
        (later - before) / (then_s - now_s)
        for place, (now_s, before) in enumerate(points)
        for then_s, later in points[place + 1 :]
        if then_s > now_s
    ]
    return statistics.median(slopes) if slopes else 0.0


def table(verdicts: Sequence[Verdict]) -> str:
    """In Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(verdict.row() for verdict in verdicts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _level(values: Sequence[float]) -> float:
    return float(statistics.median(values))
