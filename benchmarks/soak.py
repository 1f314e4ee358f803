"""Mixed traffic on one gateway for an hour, and whether its processes grow: `make soak`.

Everything that cleans up after itself is set so small that it does so all the time. Prints a table in Markdown. Exit
code 1: something grows, was replaced, or was answered wrongly, and the lines under the table say what.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the gateways of tests/

from growth import Bounds, Verdict, Watch, processes, table
from mixed import Mixed, Tally
from speed import machine

from tests.builders import classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually

RATE_PER_S = 100.0
LOOKS = 360
SETTINGS: SettingsTable = {
    "cache": {"max_bytes": 1_000_000, "ttl_s": 5},
    "sampling": {"rate": 1, "segment_max_age_s": 1, "segment_max_bytes": 100_000, "max_log_bytes": 3_000_000},
    "monitor": {"poll_s": 0.5, "window_rows": 500, "min_window_rows": 100, "compact_after_s": 2},
    "labels": {"wait_s": 1.0},
    "audit": {"checkpoint_rows": 10},
}
_COMPLAINTS = re.compile(r"Traceback|Fatal error|never awaited|never retrieved")


@dataclass(frozen=True, slots=True)
class Soaked:
    """What came of it. troubles: what must not be, in words."""

    verdicts: list[Verdict]
    tally: Tally
    troubles: list[str]

    @property
    def broken(self) -> list[str]:
        return [*(f"{' '.join(each.row())}" for each in self.verdicts if not each.is_flat), *self.troubles]


def soak(
    root: Path, seconds: float, *, rate_per_s: float, seed: int, warm_up: float = 0.3, bounds: Bounds | None = None
) -> Soaked:
    """Start a gateway in an empty directory, load it and watch it. warm_up: the share of the time that is left out."""
    for version in ("1", "2"):
        write_package(root / "models", classifier("iris", version), reference_rows=500)
    watch = Watch()
    with LiveGateway(root / "models", root / "state", settings=SETTINGS) as live:
        declare(live)
        with Mixed(live, seed=seed, rate_per_s=rate_per_s) as mixed:
            begun_s = time.monotonic()
            pause_s = max(0.5, seconds / LOOKS)
            while (left_s := begun_s + seconds - time.monotonic()) > 0:
                watch.look(processes(live))
                time.sleep(min(pause_s, left_s))  # between two looks
            watch.look(processes(live))
        troubles = [f"{what} ({count} times)" for what, count in mixed.troubles.items()]
        troubles += [f"{name} was replaced" for name in sorted(watch.replaced)]
        if complaint := _COMPLAINTS.search(live.log):
            troubles.append(f"the log complains: {live.log[complaint.start() : complaint.end() + 800]}")
    return Soaked(watch.verdicts(warm_up=warm_up, bounds=bounds), mixed.tally, troubles)


def declare(live: LiveGateway) -> None:
    """Both versions in the route of iris, and loaded; and the other flag that will be changed."""
    sampling = {"state": "ENABLED", "variants": {"some": 1.0}, "defaultVariant": "some"}
    new = {"if-none-match": "*", "x-change-reason": "soak"}
    assert live.control.put("/admin/v1/flags/iris.sampling", json=sampling, headers=new).is_success
    why = {"if-match": "*", "x-change-reason": "soak"}
    for patch in ({"variants": {"canary": "1"}}, {"targeting": {"fractional": [["canary", 10], ["stable", 90]]}}):
        eventually(partial(_is_taken, live, patch, why), "iris has a canary")


def _is_taken(live: LiveGateway, patch: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    return live.control.patch("/admin/v1/flags/iris.route", json=patch, headers=dict(headers)).is_success


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="of traffic (default: 3600)")
    parser.add_argument("--rate", type=float, default=RATE_PER_S, help=f"requests per second (default: {RATE_PER_S:g})")
    parser.add_argument("--seed", type=int, default=1, help="what all requests are drawn from (default: 1)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # and the gateway is ended on the way out
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        soaked = soak(Path(folder), options.seconds, rate_per_s=options.rate, seed=options.seed)
    told = machine.describe()
    counts = ", ".join(f"{count:,} {what}" for what, count in asdict(soaked.tally).items())
    print(f"{told['cpu']}, {told['cores']} cores, {told['day']}, revision {told['revision']}: {options.seconds:g} s at "
          f"{options.rate:g} requests/s ({counts}).\n")  # fmt: skip
    print(table(soaked.verdicts))
    broken = soaked.broken
    print("\nAll flat." if not broken else "\nBROKEN:\n" + "\n".join(f"- {line}" for line in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
