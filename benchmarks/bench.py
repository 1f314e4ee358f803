"""Measures what serving costs, and writes results.json, RESULTS.md and plots/. Run by `make bench`.

The parts can be measured one by one: what is not measured anew stays on the page as it was, with its own date.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from speed import against, doors, features, kept, machine, open_loop, page, profile, rows, start
from speed.rounds import Bench

HERE = Path(__file__).parent
PARTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "doors": doors.measure,
    "features": features.measure,
    "rows": rows.measure,
    "poisson": open_loop.measure,
    "start": start.measure,
    "profile": profile.measure,
}
PEERS = "peers"
ENOUGH_ROUNDS = 10  # fewer are a quick look, which does not belong on the page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=10, help="interleaved rounds of each comparison (default: 10)")
    add("--seconds", type=int, default=2, help="of each measurement (default: 2)")
    add("--only", default=",".join((*PARTS, PEERS)), metavar="P,...",
        help=f"parts to measure, of {', '.join((*PARTS, PEERS))} (default: all)")  # fmt: skip
    add("--peers", default="", metavar="N,...", help="peers to measure (default: all that are set up)")
    add("--environments", type=Path, default=machine.ROOT / ".peers", help="where benchmarks/peers/setup put them")
    add("--out", type=Path, metavar="FOLDER",
        help="for results.json, RESULTS.md and plots (default: benchmarks; .bench if under 10 rounds)")  # fmt: skip
    add("--page", action="store_true", help="measure nothing: write the page and plots of the results that are there")
    options = parser.parse_args()
    chosen = [] if options.page else options.only.split(",")
    if unknown := sorted({*chosen} - {*PARTS, PEERS}):
        parser.error(f"no such part: {', '.join(unknown)}")
    if chosen and (missing := _missing()):
        print(missing, file=sys.stderr)
        return 1
    out = options.out or (HERE if options.page or options.rounds >= ENOUGH_ROUNDS else machine.ROOT / ".bench")
    peers = partial(
        against.measure, environments=options.environments, chosen=[name for name in options.peers.split(",") if name]
    )
    return _measure(chosen, {**PARTS, PEERS: peers}, out, options.rounds, options.seconds)


def with_others(before: Mapping[str, Any], found: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The peers that were measured now, each with when and where, and those that were not as they are kept."""
    when = {key: before[key] for key in about if key in before}
    kept_ones = {name: {"about": when, **told} for name, told in before.get("peers", {}).items()}
    return {"peers": {**kept_ones, **{name: {**told, "about": about} for name, told in found.get("peers", {}).items()}}}


def _missing() -> str:
    if shutil.which("wrk") is None:
        return "wrk is not installed; on Debian: apt-get install wrk"
    if not {machine.SERVER_CORE, machine.LOAD_CORE} <= os.sched_getaffinity(0):
        return "two cores are needed: one for the server, one for the load"
    return ""


def _measure(
    chosen: list[str], parts: Mapping[str, Callable[[Bench], dict[str, Any]]], out: Path, rounds: int, seconds: int
) -> int:
    """Measure part by part; what is there is written after each. Exit code 1 if anything failed."""
    out.mkdir(parents=True, exist_ok=True)
    results = kept.read(out)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), rounds, seconds)
        if chosen:
            os.sched_setaffinity(0, {machine.LOAD_CORE})  # whatever is not pinned stays off the servers' core
        for name in chosen:
            bench.failures = []
            try:
                found = parts[name](bench)
            except Exception as error:  # a part that fails as a whole is told on the page; the others are measured
                bench.fail(name, error)
                found = {}
            about = {"machine": machine.describe(), "rounds": rounds, "seconds": seconds}
            if name == PEERS:
                found = with_others(results.get(PEERS, {}), found, about)
            results[name] = {**found, **about, "failures": bench.failures}
            failed = failed or bool(bench.failures)
            kept.write(results, out)
            page.write(kept.read(out), out)
    if not chosen:
        page.write(results, out)
    print((out / "RESULTS.md").read_text())
    print(f"written to {out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
