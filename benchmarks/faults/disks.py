"""A state directory whose disk is full, or cannot be written: predictions go on, and nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults import stage
from faults.edits import Editor
from faults.load import Load
from faults.processes import Scene
from faults.sample_log import make_durable, rows_in
from faults.trial import Fault, Trial
from tests.disks import read_only, small_disk
from tests.live import LiveGateway, SettingsTable, eventually

SIZE = "size=48m"
# Without it a disk as small as this counts as full from the first.
SETTINGS: SettingsTable = {"sampling": {"rate": 1.0, "sync_s": 0.01, "min_free_bytes": 0}, "cache": {"max_bytes": 0}}
_BLOCK = b"\0" * 65536
_CUT = frozenset({"cut"})  # what a worker that was killed meanwhile had
_REFUSED = frozenset({"503 sample_log_unavailable"})


@contextlib.contextmanager
def _scene(trial: Trial, *, durable: bool = False, harmless: frozenset[str] = frozenset()) -> Iterator[Scene]:
    """A gateway whose whole state is on a small disk, under load and edits until it is left; then all is checked."""
    with small_disk(trial.root / "state", SIZE):
        with stage.gateway(trial, stage.iris, SETTINGS) as live:
            if durable:
                make_durable(live, "iris")
            with Editor(live) as editor, Load(live.data_url, stage.ask_iris, seed=trial.seed) as load:
                load.wait_answered(20)
                editor.wait_acknowledged(2)
                yield Scene(live, load, editor)
                load.wait_answered(20)
                editor.wait_acknowledged(2)
            editor.check(trial)
        stage.none_failed(trial, load, but=harmless)
        found = rows_in(trial.root / "state" / "samples")
        twice = [identity for identity, count in found.items() if count > 1]
        lost = [identity for identity in load.answered if durable and (identity, 0) not in found]
        trial.lost += len(lost) + len(twice)
        trial.must(not twice, f"{len(twice)} rows are in the log more than once")
        trial.must(not lost, f"{len(lost)} of {len(load.answered)} answered rows are not in the log")


@contextlib.contextmanager
def _filled(state: Path) -> Iterator[None]:
    """No byte is free on this disk; at the end there is room again."""
    ballast = state / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(_BLOCK)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
            while file.write(b"\0"):  # and the last page
                pass
        yield
    finally:
        ballast.unlink()


def _ids(live: LiveGateway) -> set[str]:
    return {identity for identity, _row in rows_in(live.state / "samples")}


def _logs_again(on: Scene) -> None:
    """Wait until a prediction that is asked for from now on is in the log."""
    before = set(on.load.answered)
    eventually(lambda: _ids(on.live) & (on.load.answered.keys() - before), "samples are written again")


def full(trial: Trial) -> None:
    """No byte left for flags, log, status and counts; in every second round a worker is killed meanwhile."""
    with _scene(trial, harmless=_CUT) as on:
        for turn in trial.turns():
            with _filled(on.live.state):
                on.load.wait_answered(20)
                on.editor.wait_refused(503)
                if turn % 2:
                    stage.killed(trial, on.live, "worker", trial.draw.randrange(2))
                    trial.recovered_s.pop()  # of the process, not of the disk
                on.load.wait_answered(20)
            began_s = time.monotonic()
            on.editor.wait_acknowledged()
            _logs_again(on)
            trial.recovered_s.append(time.monotonic() - began_s)


def _has_failed(on: Scene, more_than: int) -> bool:
    return len(on.load.failures) > more_than


def full_and_durable(trial: Trial) -> None:
    """The same while each answer must be in the log first: what cannot be logged is refused, and nothing is lost."""
    with _scene(trial, durable=True, harmless=_REFUSED) as on:
        for _turn in trial.turns():
            enough = len(on.load.failures) + 20
            with _filled(on.live.state):
                eventually(partial(_has_failed, on, enough), "predictions are refused")
            began_s = time.monotonic()
            on.load.wait_answered(1)
            on.editor.wait_acknowledged()
            trial.recovered_s.append(time.monotonic() - began_s)


def unwritable(trial: Trial) -> None:
    """Nothing can be made, removed or opened for writing; a worker and control start meanwhile."""
    with _scene(trial, harmless=_CUT) as on:
        for _turn in trial.turns():
            with read_only(on.live.state):
                on.load.wait_answered(20)
                stage.killed(trial, on.live, "worker", trial.draw.randrange(2))
                stage.killed(trial, on.live, "control")
                on.editor.wait_refused(503)
                on.load.wait_answered(20)
            began_s = time.monotonic()
            on.editor.wait_acknowledged()
            _logs_again(on)
            trial.recovered_s[-2:] = [time.monotonic() - began_s]


FAULTS = (
    Fault("disk full", 10, full),
    Fault("disk full, each answer must be in the log", 10, full_and_durable),
    Fault("disk read-only", 10, unwritable),
)
