"""How often the real controller takes back a healthy canary, and how soon a bad one: whole rollouts, simulated.

Store, desk, books, controller and judge are the product's; clock, keys, workers and failures are those of
`tests/control/simulated.py`. `python benchmarks/false_rollbacks.py` takes ten minutes on two processors;
`--rollouts` says how many are healthy.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.control.simulated import RAMP, Outcome, Traffic, simulate

CASES = (("healthy", Traffic(), 1.0), ("errors x5", Traffic(worse=5.0), 0.2), ("errors x20", Traffic(worse=20.0), 0.2))


def line(what: str, outcomes: Sequence[Outcome]) -> str:
    """One line of the table. Rollouts that went on at the end are neither taken back nor promoted."""
    back = [each for each in outcomes if each.phase in ("aborting", "rolled_back")]
    promoted = sum(each.phase in ("promoting", "healthy") for each in outcomes)
    paused = sum(bool(each.pauses) for each in outcomes)
    median = f"{statistics.median(each.requests for each in back):.0f}" if back else "-"
    counts = f"{len(outcomes):9} {len(back):11} {len(back) / len(outcomes):8.2%} {promoted:9} {paused:7}"
    return f"{what:12} {counts} {median:>16}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began_s = time.monotonic()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}")
    steps = ", ".join(f"{percent} % for {time_s} s and {requests}" for percent, time_s, requests in RAMP)
    print(f"ramp: {steps} requests; 500 requests a second, 3 workers, 0.5 % errors\n")
    print(
        f"{'what':12} {'rollouts':>9} {'taken back':>11} {'':8} {'promoted':>9} {'paused':>7} {'median requests':>16}"
    )
    reasons: Counter[str] = Counter()
    looks = 0
    with ProcessPoolExecutor(options.processes) as pool:
        for what, traffic, part in CASES:
            seeds = range(max(1, round(options.rollouts * part)))
            outcomes: list[Outcome] = []
            for each in pool.map(partial(simulate, traffic), seeds, chunksize=2):
                outcomes.append(each)
                if len(outcomes) % 100 == 0:
                    print(f"{what}: {len(outcomes)} of {len(seeds)}", file=sys.stderr, flush=True)
            print(line(what, outcomes), flush=True)
            looks += sum(each.looks for each in outcomes)
            if what == "healthy":
                reasons.update(each.why for each in outcomes if each.phase in ("aborting", "rolled_back"))
                reasons.update(pause for each in outcomes for pause in each.pauses)
    for reason, count in reasons.most_common():
        print(f"healthy, {count}: {reason}")
    print(f"\n{looks} looks of the controller, {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
