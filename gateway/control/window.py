"""What happened to canary and stable between two looks at the workers: the judge's food, and the bins it comes in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NUMBER = re.compile(r"([pm])(-?\d{1,4})")
_SPECIAL = {"0": 0.0}
MAX_RUN_BIN = 260  # about 16 hours
_RUN_BASE, _OUTPUT_BASE = 1.1, 1.2


@dataclass(frozen=True, slots=True)
class Arm:
    """Requests that a split gave one variant, in one window, summed over the workers.

    eligible .. fallbacks: as in the status document; a bad event belongs to the variant that was decided. run_s: runs
    or requests per run-time bin. keys: distinct targeting keys that were new, by worker: a worker that was restarted
    is another worker. outputs: per output, values per bin. labelled, correct: predictions whose label is known by now,
    and those that it confirms, of a time so long ago that no more labels are awaited.
    Raises ValueError for a negative count.
    """

    eligible: int = 0
    errors: int = 0
    timeouts: int = 0
    invalid: int = 0
    fallbacks: int = 0
    run_s: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    labelled: int = 0
    correct: int = 0

    def __post_init__(self) -> None:
        counts = [self.eligible, self.errors, self.timeouts, self.invalid, self.fallbacks, self.correct]
        counts += [self.labelled - self.correct, *self.run_s.values(), *self.keys.values()]
        counts += [count for bins in self.outputs.values() for count in bins.values()]
        if min(counts) < 0:
            raise ValueError("a window has no negative counts: take differences per worker process")


@dataclass(frozen=True, slots=True)
class Window:
    """Both arms in the same time of one epoch.

    epoch: names the revision of the route, the same for all windows under it and no other. shares: configured shares of
    "canary" and "stable" (of more variants, those two), on any scale; empty if there is nothing to check.
    """

    canary: Arm
    stable: Arm
    epoch: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)


def run_bin(run_s: float) -> int:
    """The bin of a run time in seconds, 0..MAX_RUN_BIN."""
    if run_s <= 1e-6:
        return 0
    return min(math.floor(math.log(run_s / 1e-6) / math.log(_RUN_BASE)), MAX_RUN_BIN)


def run_seconds(bin_: str) -> float:
    """The middle of a run-time bin, in seconds."""
    return float(1e-6 * _RUN_BASE ** (int(bin_) + 0.5))


def output_value(bin_: str) -> float | None:
    """The middle of a bin of a float output; None for what is no finite number."""
    found = _NUMBER.fullmatch(bin_)
    if found is None:
        return _SPECIAL.get(bin_)
    size = math.log(_OUTPUT_BASE) * (int(found[2]) + 0.5)
    return math.copysign(math.exp(min(size, 700.0)), 1.0 if found[1] == "p" else -1.0)
