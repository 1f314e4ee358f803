"""Wall clocks that jump while all is running, by libfaketime; the monotonic clock goes on as ever."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from faults.processes import ROLES, scene
from faults.trial import Fault, Missing, Trial
from tests.live import LiveGateway, eventually

INSTALL_IT = "libfaketime is not installed; on Debian: apt-get install libfaketime"
# No jump by more than a day: what is older than sampling.keep_s would rightly be removed.
JUMPS_S = (-86_400, -3600, -90, -5, 5, 90, 3600, 86_400)
# The library looks into the file again after so long.
_SEEN_AFTER_S = 1


def _library() -> Path:
    """Debian's library for programs with threads. Raises Missing."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise Missing(INSTALL_IT)
    return found[0]


def _set(clock: Path, ahead_s: int) -> None:
    draft = clock.with_suffix(".new")
    draft.write_text(f"{ahead_s:+d}\n")
    draft.replace(clock)


def jumps(trial: Trial) -> None:
    """The clock of all processes is put forward or back: nobody is cut, taken for dead or forgotten."""
    clock = trial.root / "clock"
    _set(clock, 0)
    environment = {
        "LD_PRELOAD": str(_library()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": str(_SEEN_AFTER_S),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    ahead_s = 0
    with scene(trial, {}, environment=environment) as on:
        before = {role: on.live.child_pids(role) for role in ROLES}
        for _turn in trial.turns():
            ahead_s = trial.draw.choice([jump_s for jump_s in JUMPS_S if jump_s != ahead_s])
            _set(clock, ahead_s)
            began_s = time.monotonic()
            eventually(partial(_have_jumped, on.live, ahead_s), "the workers go by the new time, and count as live")
            on.editor.wait_acknowledged()
            trial.recovered_s.append(time.monotonic() - began_s)
            on.load.wait_answered(20)
        after = {role: on.live.child_pids(role) for role in ROLES}
        trial.must(after == before, "a process was replaced")
    trial.must_be_back(_SEEN_AFTER_S + 2.0)


def _have_jumped(live: LiveGateway, ahead_s: int) -> bool:
    workers = live.control.get("/admin/v1/status").json()["workers"]
    told = [worker["live"] and abs(worker["written_at"] - time.time() - ahead_s) < 2.5 for worker in workers]
    return len(told) == 2 and all(told)


FAULTS = (Fault("clock jumps", 12, jumps),)
