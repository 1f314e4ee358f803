"""``sluicegate restart``: have the workers of a running gateway replaced one by one, and wait for it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.cli import Subparsers

_POLL_S = 0.05


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "restart",
        help="replace the workers one by one",
        description="Have the gateway that runs on a state directory read its settings file and its TLS certificate "
        "again and replace its workers, one at a time, without losing a request; as SIGHUP to it does. A new worker "
        "that does not become ready stops the restart; then the old ones serve on.",
    )
    parser.add_argument("--state", metavar="DIR", type=Path, default=Path("state"), help="(default: state)")
    parser.add_argument("--timeout", metavar="S", type=float, default=3600.0, help="how long to wait (default: 3600)")
    parser.add_argument("--json", action="store_true", help="print what became of it as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    run_dir, pid = _running(options.state)
    before = _number(_restart(run_dir))
    os.kill(pid, signal.SIGHUP)
    found = _wait(run_dir, pid, before, options.timeout)
    if options.json:
        print(json.dumps(found))
    elif found["state"] == "done":
        print(f"{found['replaced']} workers replaced")
    else:
        print(f"{found['state']}: {found['why']}")
    return 0 if found["state"] == "done" else 1


def _running(state: Path) -> tuple[Path, int]:
    """Run directory and process of the gateway that serves on *state*. Raises CannotRestart."""
    from gateway import boot, health
    from gateway.errors import CannotRestart

    holder = boot.holder(state, "serving")
    for path in sorted((state / "run").glob(f"*/{health.HEALTH_FILE}")):
        if holder is not None and health.read(path.parent).get("pid") == holder:
            return path.parent, holder
    raise CannotRestart(f"no gateway serves on the state directory {state}; name it with --state DIR")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _restart(run_dir: Path) -> Mapping[str, Any]:
    from gateway import health

    found: Mapping[str, Any] = health.read(run_dir).get("restart", {})
    return found


def _number(restart: Mapping[str, Any]) -> int:
    return int(restart.get("number", 0))


def _wait(run_dir: Path, pid: int, before: int, timeout_s: float) -> Mapping[str, Any]:
    """The restart after number *before*, once it has ended. Raises CannotRestart."""
    from gateway.errors import CannotRestart

    until_s = time.monotonic() + timeout_s
    while _is_alive(pid):
        found = _restart(run_dir)
        if _number(found) > before and found["state"] != "running":
            return found
        if time.monotonic() > until_s:
            raise CannotRestart(f"the restart has not ended within {timeout_s:g} s; it goes on")
        time.sleep(_POLL_S)
    raise CannotRestart("the gateway has ended meanwhile")
