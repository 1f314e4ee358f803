"""How often the drift rule is wrong, and what it misses: simulated windows of 20 columns, as a table.

`python benchmarks/drift.py` prints it in some minutes; `--windows` says how many are simulated for each line.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.offline.drift import Column, Rules, compare
from gateway.offline.history import AlarmRule, FinishedWindow, alarms, finding
from gateway.offline.together import Fit
from gateway.settings import MonitorSettings

Array = npt.NDArray[np.float64]

COLUMNS = 20  # half of them normal, half lognormal
REFERENCES = 10
REFERENCE_ROWS = 5000
SHIFT_DEVIATIONS = 0.3
SIZES = (200, 500, 1000, 5000)


@dataclass(frozen=True, slots=True)
class Found:
    """Shares, 0..1, over all windows of all references.

    clean: windows without any drift in which some column is called drifted. alarmed: of them, after which some column
    has an alarm. apart: of them, whose features together lie outside of the band. found: windows with one shifted
    column in which that column is called drifted. others: windows with one in which some other column is. found_error:
    standard error of found, from how it differs between references.
    """

    clean: float
    alarmed: float
    apart: float
    found: float
    others: float
    found_error: float


def measured(
    rows: int,
    windows: int,
    *,
    shift: float = SHIFT_DEVIATIONS,
    references: int = REFERENCES,
    settings: MonitorSettings | None = None,
    seed: int = 1,
) -> Found:
    """Judge *windows* windows of *rows* rows without drift and as many in which one of 20 columns is shifted.

    They are spread evenly over *references* references. The rule is that of *settings*, by default the product's.
    """
    monitor = settings or MonitorSettings()
    rules = Rules(monitor.min_window_rows, monitor.max_false_discovery_rate, monitor.min_effect)
    rule = AlarmRule(monitor.alarm_drifted_windows, monitor.alarm_windows)
    tallies = np.zeros((references, 5))
    for number in range(references):
        random = np.random.default_rng([seed, rows, number])
        reference = _table(random, REFERENCE_ROWS)
        fit = Fit(_columns(reference, reference))
        history: list[FinishedWindow] = []
        for _ in range(windows // references):
            columns = _columns(reference, _table(random, rows))
            drifts = compare(columns, rules)
            ids = [""] * rows
            findings = tuple(finding(drift, column, ids) for drift, column in zip(drifts, columns, strict=True))
            history = [*history, FinishedWindow(0, 0, rows, rows, findings)][-rule.windows :]
            shifted = _table(random, rows)
            shifted[0] += shift
            moved = {drift.name for drift in compare(_columns(reference, shifted), rules) if drift.verdict == "drifted"}
            tallies[number] += (
                any(drift.verdict == "drifted" for drift in drifts),
                bool(alarms(history, rule)[0]),
                fit.judge(columns).is_outside,
                "x0" in moved,
                bool(moved - {"x0"}),
            )
    shares = tallies / (windows // references)
    clean, alarmed, apart, found, others = shares.mean(axis=0).tolist()
    return Found(clean, alarmed, apart, found, others, float(shares[:, 3].std(ddof=1) / np.sqrt(references)))


def _table(random: np.random.Generator, rows: int) -> Array:
    half = COLUMNS // 2
    return np.concatenate([random.normal(size=(half, rows)), random.lognormal(size=(COLUMNS - half, rows))])


def _columns(reference: Array, current: Array) -> list[Column]:
    return [
        Column(f"x{index}", "input", "numeric", then, now)
        for index, (then, now) in enumerate(zip(reference, current, strict=True))
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=400, help="windows per line, clean and shifted ones each")
    parser.add_argument("--references", type=int, default=REFERENCES, help="references that they are spread over")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="sizes of the windows")
    options = parser.parse_args(arguments)
    references = max(2, options.references)
    windows = max(references, options.windows)
    print(
        f"{windows} windows per line over {references} references of {REFERENCE_ROWS} rows; {COLUMNS} columns; "
        f"one shifted by {SHIFT_DEVIATIONS} sd; {platform.machine()}, numpy {np.__version__}\n"
    )
    print("| rows | clean: drifted | clean: alarm | clean: together outside | shift found | others with it |")
    print("|---|---|---|---|---|---|")
    began = time.monotonic()
    for rows in options.rows:
        found = measured(rows, windows, references=references)
        clean = " | ".join(f"{share:.1%}" for share in (found.clean, found.alarmed, found.apart))
        print(f"| {rows} | {clean} | {found.found:.1%} ± {found.found_error:.1%} | {found.others:.1%} |", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
