"""Faults done to real gateways under load, and a table of what came of it: `make chaos`.

Prints a table in Markdown, which docs/operate.md quotes with its day and machine. Exit code 1: a promise was broken,
and the lines under the table say which.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the gateways of tests/

import pytest
from faults import candidates, clocks, database, disks, files, network, processes, sample_log
from faults.trial import Fault, Missing, Trial, table
from speed import machine

FAMILIES = (processes, sample_log, disks, files, network, candidates, database, clocks)
FAULTS: tuple[Fault, ...] = tuple(fault for family in FAMILIES for fault in family.FAULTS)


def tried(fault: Fault, rounds: int, seed: int) -> Trial:
    """One fault, with all that it needs in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        trial = Trial(fault.name, rounds, seed, Path(folder), _say)
        try:
            fault.inflict(trial)
        except (Missing, pytest.skip.Exception) as missing:  # what a test would be skipped for
            trial.skipped = str(missing)
        except Exception as error:  # whatever it was: this row is broken, the next one is tried
            trial.broken.append(f"{type(error).__name__}: {error}")
    _say("")
    return trial


def _say(text: str) -> None:
    """Progress: one line that is written over, or lines where nobody looks at a screen."""
    if sys.stderr.isatty():
        print(f"\r{text:<79}", end="\r", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def chosen(names: Sequence[str]) -> list[Fault]:
    """The faults whose name contains one of *names*; all if there are none. Raises ValueError if one fits none."""
    for name in names:
        if not any(name in fault.name for fault in FAULTS):
            raise ValueError(f"no fault {name!r}; there are: {', '.join(fault.name for fault in FAULTS)}")
    return [fault for fault in FAULTS if not names or any(name in fault.name for name in names)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="faults with this in their name")
    parser.add_argument("--rounds", type=int, help="of each fault, instead of its own number")
    parser.add_argument("--seed", type=int, default=1, help="what all moments are drawn from (default: 1)")
    options = parser.parse_args()
    try:
        faults = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # and the gateways are ended on the way out
    began_s = time.monotonic()
    trials = [tried(fault, options.rounds or fault.rounds, options.seed) for fault in faults]
    told = machine.describe()
    print(f"{told['cpu']}, {told['cores']} cores, {told['day']}, revision {told['revision']}, seed {options.seed}, "
          f"{(time.monotonic() - began_s) / 60:.0f} minutes.\n")  # fmt: skip
    print(table([trial for trial in trials if not trial.skipped]))
    for trial in trials:
        if trial.skipped:
            print(f"\nNot tried: {trial.name} ({trial.skipped}).")
    broken = [f"{trial.name}: {promise}" for trial in trials for promise in trial.broken]
    print("\nNo promise was broken." if not broken else "\nBROKEN:\n" + "\n".join(f"- {line}" for line in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
