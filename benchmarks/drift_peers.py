"""The drift rule beside other monitors with their defaults, on the same rows: how often wrong, how much is found.

`python benchmarks/drift_peers.py` prints a line per size and monitor, for those that are set up
(`benchmarks/peers/setup evidently`, `nannyml`). `--windows` says how many windows are simulated, `--evidently-windows`
of how many of them (the first ones of each reference) Evidently is asked, which is slow.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import other_monitors
from drift import COLUMNS, REFERENCE_ROWS, REFERENCES, SHIFT_DEVIATIONS, SIZES, Drawn, Verdicts, draw, verdicts

OURS, EVIDENTLY, NANNYML = "sluicegate", "evidently", "nannyml"
# Whose rule -> how it is called in the table.
RULES = {OURS: "Sluicegate", EVIDENTLY: "Evidently, DataDriftPreset", NANNYML: "NannyML, univariate"}
MAX_CLEAN, LEAST_FOUND, LEAST_FOUND_IN_FEW_ROWS = 0.08, 0.98, 0.7
_FEW_ROWS = 500  # fewer than that
HEAD = """
| rows | rule | windows | clean: a column | clean: whole | shift found | whole | another column with it | bars | ms |
|---|---|---|---|---|---|---|---|---|---|"""
FOOT = f"""
Bars: a column in at most {MAX_CLEAN:.0%} of the clean windows; the shift found in {LEAST_FOUND_IN_FEW_ROWS:.0%},
from {_FEW_ROWS} rows on in {LEAST_FOUND:.0%}. Whole: of Sluicegate an alarm (a column in 2 of 3 windows that follow
each other; the shift stays), of Evidently drift of the dataset (half of its columns); NannyML says nothing of the
whole, and takes its thresholds from the reference's own chunks (mean + 3 sd), as large as the windows.
ms: per window."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares, 0..1, over all windows of all references.

    clean: windows without drift in which a column is called drifted; clean_whole: that are said to have drifted as a
    whole, None if the monitor says nothing of the whole. found, found_whole: the same of windows with one shifted
    column, found for that column alone, found_error its standard error, others for any other column.
    """

    windows: int
    clean: float
    clean_whole: float | None
    found: float
    found_error: float
    found_whole: float | None
    others: float


def least_found(rows: int) -> float:
    """What share of the shifts must be found in windows of *rows* rows."""
    return LEAST_FOUND if rows >= _FEW_ROWS else LEAST_FOUND_IN_FEW_ROWS


def quality(clean: Sequence[Verdicts], shifted: Sequence[Verdicts], *, has_whole: bool) -> Quality:
    """The shares of windows, one part per reference, each as large as the others."""
    by_reference = np.array([part.columns[:, 0].mean() for part in shifted])
    return Quality(
        sum(len(part.columns) for part in clean),
        float(np.mean([part.columns.any(axis=1).mean() for part in clean])),
        float(np.mean([part.whole.mean() for part in clean])) if has_whole else None,
        float(by_reference.mean()),
        float(by_reference.std(ddof=1) / np.sqrt(len(by_reference))),
        float(np.mean([part.whole.mean() for part in shifted])) if has_whole else None,
        float(np.mean([part.columns[:, 1:].any(axis=1).mean() for part in shifted])),
    )


def ours(drawn: Sequence[Drawn]) -> tuple[Quality, float]:
    """What the product's rule says, and its seconds per window; whole: an alarm, where there can be one already."""
    began_s = time.monotonic()
    clean = [verdicts(part.reference, part.clean) for part in drawn]
    shifted = [verdicts(part.reference, part.shifted) for part in drawn]
    seconds = time.monotonic() - began_s
    full = [[Verdicts(part.columns, part.whole[2:]) for part in parts] for parts in (clean, shifted)]
    found = quality(*full, has_whole=True)
    return found, seconds / (2 * found.windows)


def peer(name: str, drawn: Sequence[Drawn], windows: int, environments: Path) -> tuple[Quality, float]:
    """What a peer says of the first *windows* windows of each reference; and its seconds per window."""
    with tempfile.TemporaryDirectory(prefix="sluicegate-benchmark-") as folder:
        for number, part in enumerate(drawn):
            path = Path(folder) / f"{number:03d}.npz"
            np.savez(path, reference=part.reference, clean=part.clean[:windows], shifted=part.shifted[:windows])
        answer = other_monitors.ask(name, "windows.py", Path(folder), environments=environments)
    parts = [found for _number, found in sorted(answer["files"].items())]
    clean, shifted = ([_verdicts(part[kind]) for part in parts] for kind in ("clean", "shifted"))
    has_whole = parts[0]["clean"]["whole"] is not None
    return quality(clean, shifted, has_whole=has_whole), answer["seconds"] / (2 * windows * len(drawn))


def _verdicts(plain: Any) -> Verdicts:
    columns = np.array(plain["columns"], dtype=np.bool_)
    return Verdicts(columns, np.array(plain["whole"] or np.zeros(len(columns)), dtype=np.bool_))


def line(rows: int, name: str, found: Quality, seconds: float) -> str:
    """The line of the table."""
    shares = [
        f"{found.clean:.1%}",
        _share(found.clean_whole),
        f"{found.found:.1%} ± {found.found_error:.1%}",
        _share(found.found_whole),
        f"{found.others:.1%}",
    ]
    return f"| {rows} | {name} | {found.windows} | {' | '.join(shares)} | {_bar(rows, found)} | {seconds * 1e3:.0f} |"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _bar(rows: int, found: Quality) -> str:
    missed = [f"clean > {MAX_CLEAN:.0%}"] if found.clean > MAX_CLEAN else []
    if found.found < least_found(rows):
        missed.append(f"found < {least_found(rows):.0%}")
    return ", ".join(missed) or "met"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=400, help="windows per line, clean and shifted ones each")
    parser.add_argument("--references", type=int, default=REFERENCES, help="references that they are spread over")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="sizes of the windows")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="whose rules")
    parser.add_argument("--evidently-windows", type=int, default=100, help="of how many windows Evidently is asked")
    parser.add_argument("--environments", type=Path, default=other_monitors.ENVIRONMENTS, help="where setup put them")
    options = parser.parse_args(arguments)
    references = max(2, options.references)
    each = max(3, options.windows // references)  # an alarm looks at three
    asked = dict.fromkeys(options.rules, each)
    if EVIDENTLY in asked:
        asked[EVIDENTLY] = min(each, max(1, options.evidently_windows // references))
    print(
        f"{each * references} windows per line over {references} references of {REFERENCE_ROWS} rows; "
        f"{COLUMNS} columns; one shifted by {SHIFT_DEVIATIONS} sd; {datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} processors"
    )
    for name in [name for name in asked if name != OURS]:
        if other_monitors.is_set_up(name, options.environments):
            print(f"{RULES[name]}: {other_monitors.versions(name)}; the first {asked[name]} windows of each reference")
        else:
            print(f"{RULES[name]}: left out, benchmarks/peers/setup {name}")
            del asked[name]
    print(HEAD)
    for rows in options.rows:
        drawn = [draw(rows, each, number) for number in range(references)]
        for name, windows in asked.items():
            if name == NANNYML and 2 * rows > REFERENCE_ROWS:
                print(f"| {rows} | {RULES[name]}: the reference is one chunk, its thresholds need several |")
                continue
            found, seconds = ours(drawn) if name == OURS else peer(name, drawn, windows, options.environments)
            print(line(rows, RULES[name], found, seconds), flush=True)
    print(FOOT)


if __name__ == "__main__":
    main()
