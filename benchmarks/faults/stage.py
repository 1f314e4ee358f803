"""The gateway that a fault is done to, on free ports and in a directory of its own, and what it leaves running."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson
from speed import machine

from faults.load import Ask, Load
from faults.trial import Trial
from tests.builders import Linear, classifier, write_package
from tests.live import ChildRole, LiveGateway, SettingsTable, eventually

# Children are started again soon, or a round would be a wait: these pauses double with each death in a row.
QUICK_RESTARTS = {"backoff_min_s": 0.05, "backoff_max_s": 0.2}
IRIS = classifier()
_GONE_S = 10.0
_PAGE_ROWS = 500


@contextlib.contextmanager
def gateway(
    trial: Trial,
    packages: Callable[[Path], None],
    settings: SettingsTable,
    *,
    workers: int = 2,
    name: str = "state",
    environment: Mapping[str, str] | None = None,
) -> Iterator[LiveGateway]:
    """A gateway that is ready; when it has stopped, none of its processes may be left.

    packages: writes them into the directory that it is given. settings: beside those that keep rounds short.
    environment: beside that of this process.
    """
    models = trial.root / "models"
    if not models.exists():
        models.mkdir()
        packages(models)
    quick = {**QUICK_RESTARTS, **settings.get("supervisor", {})}
    seen: set[int] = set()
    try:
        with LiveGateway(
            models,
            trial.root / name,
            workers=workers,
            settings={**settings, "supervisor": quick},
            environment=environment,
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
        time.sleep(0.02)  # who is no child of ours tells us nothing when it ends
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


def trail(live: LiveGateway) -> list[dict[str, Any]]:
    """All rows of the audit trail."""
    rows: list[dict[str, Any]] = []
    while True:
        after = rows[-1]["seq"] if rows else 0
        reply = live.control.get("/admin/v1/audit", params={"after": after, "limit": _PAGE_ROWS})
        page: list[dict[str, Any]] = reply.raise_for_status().json()["rows"]
        rows += page
        if len(page) < _PAGE_ROWS:
            return rows


def change(live: LiveGateway, key: str, patch: Mapping[str, Any]) -> httpx.Response:
    """Merge *patch* into a flag, whatever it is by now; returns the reply."""
    headers = {"if-match": "*", "x-change-reason": "chaos", "content-type": "application/merge-patch+json"}
    return live.control.patch(f"/admin/v1/flags/{key}", content=orjson.dumps(patch), headers=headers)


def must_change(live: LiveGateway, key: str, patch: Mapping[str, Any]) -> int:
    """The same where it must be taken; returns the flag's new revision."""
    reply = change(live, key, patch)
    assert reply.status_code == 200, reply.text
    return int(reply.headers["etag"].strip('"'))


def note(trial: Trial, load: Load) -> None:
    """Add what a load has counted."""
    trial.requests += load.requests
    trial.failed += len(load.failures)


def none_failed(trial: Trial, load: Load, *, but: frozenset[str] = frozenset()) -> None:
    """Add what a load has counted; nothing of it may have failed, *but* in these ways."""
    note(trial, load)
    others = [failure for failure in load.failures if failure.how not in but]
    trial.must(not others, f"requests failed: {load.kinds()}")


def killed(trial: Trial, live: LiveGateway, role: ChildRole, slot: int = 0) -> None:
    """kill -9 a child, and note how long it takes until another one is ready in its place."""
    old_pid = eventually(lambda: live.child_pids(role).get(slot), f"{role} {slot} is there")
    os.kill(old_pid, signal.SIGKILL)
    began_s = time.monotonic()
    live.wait_replaced(role, slot, old_pid, timeout_s=60.0)
    trial.recovered_s.append(time.monotonic() - began_s)


def crashed(trial: Trial, live: LiveGateway, load: Load, meanwhile: Callable[[], None]) -> None:
    """kill -9 all processes at once, as if the machine had lost its power, do *meanwhile*, and start anew."""
    family = machine.tree(live.pid)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    live.wait_stopped(exit_code=-signal.SIGKILL)
    end(trial, set(family))
    meanwhile()
    began_s = time.monotonic()
    live.start()
    load.url = live.data_url
    trial.recovered_s.append(time.monotonic() - began_s)
