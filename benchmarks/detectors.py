"""How often detectors on single errors are wrong, and how late: ``python benchmarks/detectors.py``.

Simulated streams of 0/1 errors, 10 % and from the middle on 20 %, independent and in clusters (a hidden state that
stays for 200 rows on average and has half or one and a half times the rate); the monitor's detectors, no cool-down.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

from gateway.labelling import DETECTORS
from gateway.offline.detectors import ErrorWatch
from gateway.offline.scores import Judged

_BEFORE, _AFTER = 0.1, 0.2
_STAY_ROWS = 200
_LOW, _HIGH = 0.5, 1.5


def errors_of(dice: np.random.Generator, rows: int, *, clustered: bool) -> list[bool]:
    """One stream; its rate doubles at the middle."""
    rates = np.where(np.arange(rows) < rows // 2, _BEFORE, _AFTER)
    if clustered:
        switches = np.cumsum(dice.random(rows) < 1 / _STAY_ROWS)
        rates = rates * np.where(switches % 2 == 0, _LOW, _HIGH)
    return [bool(each) for each in dice.random(rows) < rates]


def found_by(name: str, errors: list[bool]) -> list[int]:
    """The rows at which the detector tells a change for the worse."""
    watch = ErrorWatch("", (name,), 0.0, is_classes=True)
    found = []
    before = 0
    for index, error in enumerate(errors):
        watch.add(Judged(index + 1, "", 0, "a", None, "b" if error else "a", 1.0, "", 0.0))
        if (now := watch.told(name)["found"]) > before:
            found.append(index)
            before = now
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    print(f"{options.streams} streams of {options.rows} rows; the rate of errors doubles at the middle")
    print(f"{'errors':<12} {'detector':<14} {'false per 100,000 rows':>22} {'found':>8} {'median delay, rows':>19}")
    half = options.rows // 2
    for clustered in (False, True):
        dice = np.random.default_rng(1)
        streams = [errors_of(dice, options.rows, clustered=clustered) for _ in range(options.streams)]
        for name in DETECTORS:
            every = [found_by(name, errors) for errors in streams]
            false = sum(index < half for found in every for index in found) * 100_000 / (half * len(streams))
            delays = [min(later) - half for found in every if (later := [index for index in found if index >= half])]
            delay = f"{statistics.median(delays):.0f}" if delays else "-"
            kind = "clustered" if clustered else "independent"
            print(f"{kind:<12} {name:<14} {false:>22.0f} {len(delays):>4}/{len(streams):<3} {delay:>19}")


if __name__ == "__main__":
    main()
