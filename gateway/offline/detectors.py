"""Detectors that look at each labelled row by itself: river's, with a cool-down, and able to go on after a restart.

What a detector is, is a function of the errors that it has looked at since it began. So they are kept, at most so many,
and after a restart a new detector looks at them again; nothing of the detectors themselves is written down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Protocol

from gateway.offline.scores import Judged
from gateway.offline.targets import Target

# Errors of a version that are kept; a detector that has looked at so many begins anew with the newer half of them.
MAX_ERRORS = 10_000
# Errors of numbers are told in units of the mean of the first ones, since the detectors' defaults are made for 0..1.
SCALE_ROWS = 100
# One outlier must not be all that a detector sees.
_MAX_ERROR = 10.0
_MIN_ROWS = 100  # with fewer, nothing is said
_NEWEST_ROWS = 100  # whose mean error is told beside a change
_KEPT_CHANGES = 20
_ONLY_CLASSES = ("ddm",)

_Key = tuple[str, str]  # model, version


class Detector(Protocol):
    """What river's detectors are to us."""

    @property
    def drift_detected(self) -> bool: ...

    def update(self, x: float) -> object: ...


@dataclass(slots=True)
class Change:
    """A change for the worse. ts_ns: of the row at which it was seen. before, after: mean error of the rows that the
    detector had looked at, and of the newest ones, as accuracy misses it (classes) or in the model's unit (numbers)."""

    ts_ns: int
    before: float
    after: float


@dataclass(slots=True)
class Seen:
    """What one detector has looked at and found. used: so many of the newest errors. found: changes for the worse, told
    or not; changes: the newest that were told. quiet_until_ns: by the time of the rows."""

    used: int = 0
    found: int = 0
    changes: list[Change] = field(default_factory=list)
    quiet_until_ns: int = 0


class ErrorWatch:
    """The errors of one package, in the order of time, and the detectors that look at them. Used by one thread."""

    def __init__(self, digest: str, detectors: Sequence[str], cool_down_s: float, *, is_classes: bool) -> None:
        """detectors: names of `gateway.labelling.DETECTORS`; those that are not for numbers are left out for them."""
        self.digest = digest
        self._is_classes = is_classes
        self._cool_down_ns = int(cool_down_s * 1e9)
        self._seen = {name: Seen() for name in detectors if is_classes or name not in _ONLY_CLASSES}
        self._running = {name: made(name) for name in self._seen}
        self._errors: deque[float] = deque(maxlen=MAX_ERRORS)
        self._rows = 0
        self._newest_ns = 0
        self._first_sum = 0.0  # of the first errors, if these are numbers

    def add(self, row: Judged) -> None:
        """Take a row whose wait is over."""
        self._rows += 1
        self._newest_ns = row.ts_ns
        if self._is_classes:
            error = float(row.predicted != row.truth)
        else:
            error = abs(float(row.predicted) - float(row.truth))
            if self._rows <= SCALE_ROWS:
                self._first_sum += error
                return
            error = min(error / self._scale, _MAX_ERROR)
        self._errors.append(error)
        for name, seen in self._seen.items():
            self._look(name, seen, error)

    def told(self, name: str) -> dict[str, Any]:
        """What the drift document says of one detector."""
        seen = self._seen.get(name)
        if seen is None:
            return {"name": name, "verdict": "insufficient", "reason": "for classes only", "rows": self._rows,
                    "found": 0, "changes": []}  # fmt: skip
        verdict, reason = "stable", ""
        if self._rows < _MIN_ROWS:
            verdict, reason = "insufficient", f"{self._rows} rows of at least {_MIN_ROWS}"
        elif seen.changes and self._newest_ns < seen.quiet_until_ns:
            verdict, reason = "drifted", "a change within the cool-down"
        return {"name": name, "verdict": verdict, "reason": reason, "rows": self._rows, "found": seen.found,
                "changes": seen.changes}  # fmt: skip

    @property
    def _scale(self) -> float:
        return 1.0 if self._is_classes else (self._first_sum / SCALE_ROWS or 1.0)

    def _look(self, name: str, seen: Seen, error: float) -> None:
        detector = self._running[name]
        estimate = getattr(detector, "estimation", None)
        detector.update(error)
        seen.used += 1
        # Of these detectors, ADWIN alone also sees changes for the better.
        if detector.drift_detected and (estimate is None or getattr(detector, "estimation", 0.0) > estimate):
            seen.found += 1
            if self._newest_ns >= seen.quiet_until_ns:
                seen.quiet_until_ns = self._newest_ns + self._cool_down_ns
                change = Change(self._newest_ns, self._mean(seen.used), self._mean(_NEWEST_ROWS))
                seen.changes = [*seen.changes[1 - _KEPT_CHANGES :], change]
            seen.used = 0
            self._running[name] = made(name)
        elif seen.used >= MAX_ERRORS:
            seen.used = MAX_ERRORS // 2
            self._running[name] = self._replayed(name, seen.used)

    def _mean(self, rows: int) -> float:
        newest = list(islice(reversed(self._errors), rows))
        return sum(newest) / len(newest) * self._scale

    def _replayed(self, name: str, rows: int) -> Detector:
        detector = made(name)
        for error in islice(self._errors, len(self._errors) - rows, None):
            detector.update(error)
        return detector

    def to_plain(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "is_classes": self._is_classes,
            "errors": list(self._errors),
            "rows": self._rows,
            "newest_ns": self._newest_ns,
            "first_sum": self._first_sum,
            "seen": {name: asdict(seen) for name, seen in self._seen.items()},
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on where to_plain was called; detectors that were not there then begin now. Raises KeyError, TypeError."""
        self._errors.extend(plain["errors"])
        self._rows, self._newest_ns, self._first_sum = plain["rows"], plain["newest_ns"], plain["first_sum"]
        for name in self._seen.keys() & plain["seen"].keys():
            told = plain["seen"][name]
            seen = self._seen[name] = Seen(**{**told, "changes": [Change(**one) for one in told["changes"]]})
            self._running[name] = self._replayed(name, seen.used)


class Watches:
    """The error watches of all versions; without detectors it does nothing. Used by one thread."""

    def __init__(self, detectors: Sequence[str], cool_down_s: float) -> None:
        self._detectors = detectors
        self._cool_down_s = cool_down_s
        self._by_version: dict[_Key, ErrorWatch] = {}

    def add(self, key: _Key, digest: str, row: Judged, target: Target) -> None:
        """Take a labelled row of a version whose wait is over; rows come in the order of time."""
        if not self._detectors:
            return
        watch = self._by_version.get(key)
        if watch is None or watch.digest != digest:
            watch = self._by_version[key] = self._new(digest, is_classes=target.is_classes)
        watch.add(row)

    def told(self, key: _Key) -> list[dict[str, Any]]:
        watch = self._by_version.get(key)
        return [] if watch is None else [watch.told(name) for name in self._detectors]

    def forget(self, key: _Key) -> None:
        self._by_version.pop(key, None)

    def to_plain(self) -> list[list[Any]]:
        return [[*key, watch.to_plain()] for key, watch in self._by_version.items()]

    def restore(self, plain: Sequence[Sequence[Any]]) -> None:
        """Raises KeyError, TypeError or ValueError if it is not what to_plain gave."""
        if not self._detectors:
            return
        for model, version, own in plain:
            watch = self._by_version[model, version] = self._new(own["digest"], is_classes=own["is_classes"])
            watch.restore(own)

    def _new(self, digest: str, *, is_classes: bool) -> ErrorWatch:
        return ErrorWatch(digest, self._detectors, self._cool_down_s, is_classes=is_classes)


def made(name: str) -> Detector:
    """A new detector with river's defaults. Needs river."""
    from river import drift  # here and not above: it is of an extra of its own, and loading it takes seconds

    kinds: dict[str, Callable[[], Detector]] = {
        "adwin": drift.ADWIN,
        "page_hinkley": lambda: drift.PageHinkley(mode="up"),
        "ddm": drift.binary.DDM,
    }
    return kinds[name]()
