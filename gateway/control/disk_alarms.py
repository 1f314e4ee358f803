"""Samples and labels that the disk did not take, as an alarm: a row when it begins, another when all is well again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.control.alarms import Said
from gateway.control.signals import worker_name
from gateway.control.status import WorkerStatus
from gateway.flags.store import FlagStore, Note

VERB = "alarm.samples"
# A disk at its bound takes some and refuses some. It is well again once it has taken all for so long.
RECOVERED_AFTER_S = 20.0
_MAX_SEEN = 256  # workers whose losses are remembered: those that are gone come back only as a late document
_WORDS = {"samples": ("samples are being dropped", "samples"), "labels": ("labels are being refused", "requests")}

Counts = dict[str, int]  # by reason


@dataclass(slots=True)
class _Log:
    """One kind of log on one host, as its workers tell of it now: worker -> counts, slot -> trouble."""

    kind: str
    host: str
    lost: dict[str, Counts] = field(default_factory=dict)
    troubles: dict[int, str] = field(default_factory=dict)


class LostSamples:
    """Says once that a log cannot be written, whatever number of workers find out, and once that it can be again.

    The record holds what each worker had lost when all was well, so a loss is told also if control was away meanwhile.
    workers: reads the status documents. clock: unix seconds.
    """

    def __init__(
        self, store: FlagStore, workers: Callable[[], list[WorkerStatus]], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._said = Said(store, "lost_samples")
        self._workers = workers
        self._clock = clock
        self._newest: dict[str, dict[str, Counts]] = {}  # of logs in trouble; workers that died since then, too
        self._well_since: dict[str, float] = {}

    def look(self) -> None:
        """See what workers say. Raises StoreUnavailable."""
        logs = _told([worker for worker in self._workers() if worker.live])
        known = self._said.read() or {"open": {}, "seen": {}}
        is_open, seen = dict(known["open"]), dict(known["seen"])
        notes: list[Note] = []
        for key, log in logs.items():
            lost = _minus(log.lost, seen.get(key, {}))
            if key not in is_open:
                if any(lost.values()) or log.troubles:
                    is_open[key] = self._clock()
                    notes.append(_opened(log, lost))
            elif self._is_well(key, log):
                newest = self._newest.pop(key)
                notes.append(_recovered(log, _minus(newest, seen.get(key, {}))))
                seen[key] = _kept(seen.get(key, {}), newest)
                del is_open[key], self._well_since[key]
        if notes:
            self._said.write(
                {"open": is_open, "seen": seen}, notes, "; ".join(str(note.after["why"]) for note in notes)
            )

    def _is_well(self, key: str, log: _Log) -> bool:
        """Whether nothing was lost for long enough, and nobody has trouble."""
        now_s = self._clock()
        before = self._newest.get(key)
        newest = {**(before or {}), **log.lost}
        self._newest[key] = newest
        if newest != before or log.troubles:
            self._well_since[key] = now_s
        return now_s - self._well_since[key] >= RECOVERED_AFTER_S


def _told(workers: list[WorkerStatus]) -> dict[str, _Log]:
    logs: dict[str, _Log] = {}
    for worker in workers:
        for kind in _WORDS:
            try:
                told = worker.document["logs"][kind]
                lost = {str(reason): int(count) for reason, count in told["lost"].items()}
                trouble = str(told["trouble"])
            except (KeyError, TypeError, ValueError, AttributeError):  # of another version of the gateway
                continue
            log = logs.setdefault(f"{worker.host}/{kind}" if worker.host else kind, _Log(kind, worker.host))
            if any(lost.values()):
                log.lost[worker_name(worker)] = lost
            if trouble:
                log.troubles[worker.slot] = trouble
    return logs


def _minus(now: Mapping[str, Counts], before: Mapping[str, Counts]) -> Counts:
    """What was lost since *before*, over all workers."""
    total: Counts = defaultdict(int)
    for worker, counts in now.items():
        for reason, count in counts.items():
            total[reason] += max(0, count - before.get(worker, {}).get(reason, 0))
    return {reason: count for reason, count in sorted(total.items()) if count}


def _kept(before: Mapping[str, Counts], newest: Mapping[str, Counts]) -> dict[str, Counts]:
    gone = {worker: counts for worker, counts in before.items() if worker not in newest}
    return dict([*gone.items(), *newest.items()][-_MAX_SEEN:])


def _opened(log: _Log, lost: Counts) -> Note:
    what, _ = _WORDS[log.kind]
    slots = sorted(log.troubles)
    reason = log.troubles[slots[0]] if slots else f"lost: {_words(lost)}"
    return _note(log, "open", lost, slots, f"{what}{_place(log, slots)}: {reason}")


def _recovered(log: _Log, lost: Counts) -> Note:
    _, unit = _WORDS[log.kind]
    missing = f"{sum(lost.values())} {unit} were lost ({_words(lost)})" if lost else "nothing was lost that was counted"
    return _note(log, "recovered", lost, [], f"{log.kind} are written again{_place(log, [])}; {missing}")


def _note(log: _Log, state: str, lost: Counts, workers: list[int], why: str) -> Note:
    after = {"log": log.kind, "host": log.host, "state": state, "lost": lost, "workers": workers, "why": why}
    return Note(VERB, f"log:{log.kind}", after=after)


def _place(log: _Log, slots: list[int]) -> str:
    parts = ([f"host {log.host}"] if log.host else []) + ([f"worker {', '.join(map(str, slots))}"] if slots else [])
    return f" on {', '.join(parts)}" if parts else ""


def _words(lost: Counts) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in lost.items())
