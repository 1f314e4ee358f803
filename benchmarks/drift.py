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
Flags = npt.NDArray[np.bool_]

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


@dataclass(frozen=True, slots=True)
class Drawn:
    """One reference, [columns, rows], and windows of it, [windows, columns, rows]; in the shifted ones the first column
    is shifted."""

    reference: Array
    clean: Array
    shifted: Array


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Which columns are called drifted, [windows, columns], and what is said of each window as a whole, [windows]."""

    columns: Flags
    whole: Flags


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
    tallies = np.zeros((references, 5))
    for number in range(references):
        drawn = draw(rows, windows // references, number, shift=shift, seed=seed)
        clean = verdicts(drawn.reference, drawn.clean, settings)
        shifted = verdicts(drawn.reference, drawn.shifted, settings)
        fit = Fit(_columns(drawn.reference, drawn.reference))
        apart = [fit.judge(_columns(drawn.reference, window)).is_outside for window in drawn.clean]
        tallies[number] = (
            clean.columns.any(axis=1).mean(),
            clean.whole.mean(),
            np.mean(apart),
            shifted.columns[:, 0].mean(),
            shifted.columns[:, 1:].any(axis=1).mean(),
        )
    found, alarmed, apart_share, moved, others = tallies.mean(axis=0).tolist()
    return Found(found, alarmed, apart_share, moved, others, float(tallies[:, 3].std(ddof=1) / np.sqrt(references)))


def draw(rows: int, windows: int, number: int, *, shift: float = SHIFT_DEVIATIONS, seed: int = 1) -> Drawn:
    """The reference of this number, and windows of it. Of more windows the first ones are the same."""
    random = np.random.default_rng([seed, rows, number])
    reference = _table(random, REFERENCE_ROWS)
    clean, shifted = (np.empty((windows, COLUMNS, rows)) for _ in range(2))
    for window in range(windows):
        clean[window] = _table(random, rows)
        shifted[window] = _table(random, rows)
        shifted[window, 0] += shift
    return Drawn(reference, clean, shifted)


def verdicts(reference: Array, windows: Array, settings: MonitorSettings | None = None) -> Verdicts:
    """What the rule of *settings*, by default the product's, says of windows that follow each other; whole: whether any
    column has an alarm after the window."""
    monitor = settings or MonitorSettings()
    rules = Rules(monitor.min_window_rows, monitor.max_false_discovery_rate, monitor.min_effect)
    rule = AlarmRule(monitor.alarm_drifted_windows, monitor.alarm_windows)
    called = np.zeros((len(windows), len(reference)), dtype=np.bool_)
    alarmed = np.zeros(len(windows), dtype=np.bool_)
    history: list[FinishedWindow] = []
    for number, window in enumerate(windows):
        columns = _columns(reference, window)
        drifts = compare(columns, rules)
        ids = [""] * window.shape[1]
        findings = tuple(finding(drift, column, ids) for drift, column in zip(drifts, columns, strict=True))
        history = [*history, FinishedWindow(0, 0, len(ids), len(ids), findings)][-rule.windows :]
        called[number] = [drift.verdict == "drifted" for drift in drifts]
        alarmed[number] = bool(alarms(history, rule)[0])
    return Verdicts(called, alarmed)


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
