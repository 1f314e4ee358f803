"""What the workers count of each arm, as windows: what was added since the last look, epoch by epoch.

Workers count from their start on, per model, variant and revision of the route (the epoch). The cursor remembers how
far each of them was read, so a look that comes late, or after a restart, takes everything once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gateway.control.status import WorkerStatus

Counts: TypeAlias = dict[str, Any]  # numbers, and dicts of them, by name

# Workers that are gone are remembered this long, in number, in case that their documents come back.
_MAX_GONE = 256
_NUMBERS = ("eligible", "errors", "timeouts", "invalid", "fallbacks", "keys", "labelled", "correct")
_BINS = ("run_s", "outputs")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one revision of the route brought since the last look, per worker, for the two arms."""

    revision: int
    candidate: Mapping[str, Counts] = field(default_factory=dict)
    stable: Mapping[str, Counts] = field(default_factory=dict)


@dataclass(slots=True)
class Cursor:
    """How far each worker was read: worker -> ``revision/variant`` -> counts. JSON can say it as it is."""

    read: dict[str, dict[str, Counts]] = field(default_factory=dict)

    def take(
        self, workers: Iterable[WorkerStatus], model: str, *, candidate: str, stable: str, since_revision: int
    ) -> list[Epoch]:
        """The epochs in which anything was added since the last time, oldest first; moves the cursor.

        candidate, stable: variants. Epochs before *since_revision* belong to others.
        """
        found: dict[int, tuple[dict[str, Counts], dict[str, Counts]]] = {}
        present: dict[str, dict[str, Counts]] = {}
        for worker in workers:
            name = worker_name(worker)
            before = self.read.get(name, {})
            now: dict[str, Counts] = {}
            for revision, variant, counts in _told(worker, model):
                if revision < since_revision or variant not in (candidate, stable):
                    continue
                key = f"{revision}/{variant}"
                if counts == before.get(key):  # workers tell of old epochs too, and not at each look anew
                    continue
                if not _is_sound(counts):
                    continue
                now[key] = counts
                added = minus(now[key], before.get(key, {}))
                if any_count(added):
                    arms = found.setdefault(revision, ({}, {}))
                    arms[0 if variant == candidate else 1][name] = added
            # An epoch that a worker does not tell of any more was read to its end.
            present[name] = {**before, **now}
        gone = {name: read for name, read in self.read.items() if name not in present}
        kept = dict(list(gone.items())[-_MAX_GONE:])
        self.read = {**kept, **present}
        return [Epoch(revision, *arms) for revision, arms in sorted(found.items())]


def _told(worker: WorkerStatus, model: str) -> Iterator[tuple[int, str, Counts]]:
    """Revision, variant and counts of each epoch of *model*; a worker of another gateway may say them otherwise."""
    told = worker.document.get("signals")
    for counted in told if isinstance(told, list) else ():
        try:
            if counted["model"] == model:
                counts = {name: counted[name] for name in (*_NUMBERS, *_BINS) if name in counted}
                yield int(counted["revision"]), str(counted["variant"]), counts
        except (KeyError, TypeError, ValueError):
            continue


def _is_sound(counts: Counts) -> bool:
    """Whether the judge can take them."""
    run_s, outputs = counts.get("run_s", {}), counts.get("outputs", {})
    if not isinstance(run_s, dict) or not isinstance(outputs, dict):
        return False
    numbers = [*(counts[name] for name in _NUMBERS if name in counts), *run_s.values()]
    for bins in outputs.values():
        if not isinstance(bins, dict):
            return False
        numbers += bins.values()
    named = all(name.removeprefix("-").isdecimal() for name in run_s)
    return named and all(isinstance(number, int) and number >= 0 for number in numbers)


def worker_name(worker: WorkerStatus) -> str:
    """A name that no other process has or will have."""
    document = worker.document
    return f"{document.get('boot', '')}/{document.get('slot', '')}/{document.get('pid', '')}"


def plus(one: Mapping[str, Any], other: Mapping[str, Any]) -> Counts:
    """Two counts as one."""
    return {
        name: plus(one.get(name, {}), other.get(name, {}))
        if isinstance(one.get(name, other.get(name)), dict)
        else one.get(name, 0) + other.get(name, 0)
        for name in one.keys() | other.keys()
    }


def minus(now: Mapping[str, Any], before: Mapping[str, Any]) -> Counts:
    """What was added; a count that fell, which none should, added nothing."""
    return {
        name: minus(value, before.get(name, {})) if isinstance(value, dict) else max(0, value - before.get(name, 0))
        for name, value in now.items()
    }


def merged(per_worker: Mapping[str, Counts]) -> Counts:
    """The counts of all workers as one."""
    total: Counts = {}
    for counts in per_worker.values():
        total = plus(total, counts)
    return total


def any_count(counts: Mapping[str, Any]) -> bool:
    """Whether anything was counted."""
    return any(any_count(value) if isinstance(value, dict) else value > 0 for value in counts.values())
