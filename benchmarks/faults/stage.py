"""The gateway that a fault is done to, on free ports and in a directory of its own, and what it leaves running."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
from speed import machine

from faults.load import Ask, Load
from faults.trial import Trial
from tests.builders import Linear, classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually

# Children are started again soon, or a round would be a wait: these pauses double with each death in a row.
QUICK_RESTARTS = {"backoff_min_s": 0.05, "backoff_max_s": 0.2}
IRIS = classifier()
_GONE_S = 10.0


@contextlib.contextmanager
def gateway(
    trial: Trial, packages: Callable[[Path], None], settings: SettingsTable, *, workers: int = 2, name: str = "state"
) -> Iterator[LiveGateway]:
    """A gateway that is ready; when it has stopped, none of its processes may be left.

    packages: writes them into the directory that it is given. settings: beside those that keep rounds short.
    """
    models = trial.root / "models"
    if not models.exists():
        models.mkdir()
        packages(models)
    quick = {**QUICK_RESTARTS, **settings.get("supervisor", {})}
    seen: set[int] = set()
    try:
        with LiveGateway(
            models, trial.root / name, workers=workers, settings={**settings, "supervisor": quick}
        ) as live:
            try:
                yield live
            finally:
                with contextlib.suppress(AssertionError):  # it does not run
                    seen.update(machine.tree(live.pid))
    finally:
        end(trial, seen)


def end(trial: Trial, pids: set[int]) -> None:
    """Processes that should be gone by now; one that is not is a broken promise, and ended."""
    until_s = time.monotonic() + _GONE_S
    while (left := [pid for pid in pids if not machine.is_gone(pid)]) and time.monotonic() < until_s:
        time.sleep(0.02)
    trial.must(not left, f"{len(left)} processes were left behind")
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def iris(models: Path) -> None:
    """Two versions of one classifier, each with a reference."""
    for version in ("1", "2"):
        write_package(models, classifier("iris", version), reference_rows=500)


def ask_iris(draw: random.Random) -> Ask:
    """One row, under one of 1,000 targeting keys."""
    return ask_named(draw, IRIS, headers={"x-targeting-key": f"user-{draw.randrange(1000)}"})


def ask_named(
    draw: random.Random,
    linear: Linear,
    *,
    rows: int = 1,
    shifts: frozenset[str] = frozenset(),
    headers: dict[str, str] | None = None,
) -> Ask:
    """Rows of the distribution of the packages' references, but for the features named in *shifts*."""
    named = [
        {feature: draw.gauss(3.0 if feature in shifts else 0.0, 1.0) for feature in linear.features}
        for _ in range(rows)
    ]
    return Ask(f"/predict/{linear.model}", orjson.dumps({"rows": named}), rows, headers or {})


def note(trial: Trial, load: Load) -> None:
    """Add what a load has counted."""
    trial.requests += load.requests
    trial.failed += len(load.failures)


def none_failed(trial: Trial, load: Load) -> None:
    """Add what a load has counted; nothing of it may have failed."""
    note(trial, load)
    trial.must(not load.failures, f"requests failed: {load.kinds()}")


def killed(trial: Trial, live: LiveGateway, role: str, slot: int = 0) -> None:
    """kill -9 a child, and note how long it takes until another one is ready in its place."""
    assert role in ("worker", "control", "monitor", "follower")
    old_pid = eventually(lambda: live.child_pids(role).get(slot), f"{role} {slot} is there")  # type: ignore[arg-type]
    os.kill(old_pid, signal.SIGKILL)
    began_s = time.monotonic()
    live.wait_replaced(role, slot, old_pid, timeout_s=60.0)  # type: ignore[arg-type]
    trial.recovered_s.append(time.monotonic() - began_s)
