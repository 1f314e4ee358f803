"""What the monitor says of a candidate beside the default version: read from drift documents, as a rollout's signal.

Both sides are rows of the same time, so a change of the traffic, which does the same to both, is not seen there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

_log = logging.getLogger(__name__)

_NAMED = 3  # columns in a sentence
_KEPT = 20  # columns in a record
_TOLD = (
    "name", "role", "test", "p", "q", "effect", "n_ref", "n_cur", "window_from_ns", "window_to_ns",
    "drifted_windows", "judged_windows", "prediction_ids",
)  # fmt: skip
_ROLES = {"input": "feature", "output": "output"}


@dataclass(frozen=True, slots=True)
class Beside:
    """A candidate beside *baseline*, the version that the route gave by default.

    reason: of its newest rows, in words. rows, baseline_rows: of both in these. alarms: as in the drift document, the
    largest effect first. needed: windows in which a column has to have drifted for an alarm.
    """

    baseline: str
    reason: str
    rows: int
    baseline_rows: int
    alarms: Sequence[Mapping[str, Any]]
    needed: int


class DriftReports:
    """Reads the drift documents of this host. Used by one thread at a time; blocks on the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # model -> what stat says of the file, and what each of its versions is beside
        self._known: dict[str, tuple[tuple[int, int, int], dict[str, Beside]]] = {}

    def of(self, model: str, version: str) -> Beside | None:
        """The newest that is said of a version; None if it is not beside another one."""
        path = self._directory / f"{model}.json"
        try:
            found = os.stat(path)
        except OSError:
            return None
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        known = self._known.get(model)
        if known is None or known[0] != stamp:
            known = self._known[model] = stamp, self._read(path)
        return known[1].get(version)

    @staticmethod
    def _read(path: Path) -> dict[str, Beside]:
        try:
            return _parse(orjson.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("a drift document cannot be read", extra={"path": str(path), "why": repr(error)})
            return {}


def _parse(document: dict[str, Any]) -> dict[str, Beside]:
    needed = int(document["alarm_rule"]["drifted"])
    found = {}
    for version in document["versions"]:
        told = version.get("beside")
        if told is not None:
            alarms = [_alarm(alarm) for alarm in told["alarms"]]
            rows, baseline_rows = int(told["window_rows"]), int(told["baseline_rows"])
            beside = Beside(str(told["baseline"]), str(told["reason"]), rows, baseline_rows, alarms, needed)
            found[str(version["version"])] = beside
    return found


def _alarm(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed of an alarm; an older monitor does not say since when."""
    numbers = {"effect": float(told["effect"]), "q": float(told["q"]), "since_ns": int(told.get("since_ns", 0))}
    return {**{name: told[name] for name in _TOLD}, **numbers}


def finding(beside: Beside | None, baseline: str, since_ns: int) -> dict[str, Any]:
    """What it means for a rollout whose default version is *baseline*: tripped, text, columns, 20 at most, as JSON.

    since_ns: when it began, or somebody last looked at its alarms and went on. Alarms that need a window from before
    say nothing of it.
    """
    if beside is None or beside.baseline != baseline:
        return _quiet(f"the monitor has not put the candidate beside version {baseline} yet")
    alarms = [alarm for alarm in beside.alarms if alarm["since_ns"] >= since_ns]
    if not alarms:
        rows = f"{beside.rows} rows, {beside.baseline_rows} of version {baseline} at the same time"
        return _quiet(f"{beside.reason} ({rows}); no column drifted in {beside.needed} finished windows yet")
    first, *others = alarms
    text = (
        f"drift: {first['name']} ({_ROLES.get(first['role'], first['role'])}) is distributed otherwise than in version "
        f"{baseline} at the same time: effect {first['effect']:.3g}, q {first['q']:.2g}, "
        f"in {first['drifted_windows']} of {first['judged_windows']} windows "
        f"({first['n_cur']} rows against {first['n_ref']})"
    )
    if others:
        more = len(others) - _NAMED
        names = ", ".join(str(alarm["name"]) for alarm in others[:_NAMED])
        text += f"; also {names}" + (f" and {more} more" if more > 0 else "")
    columns = [{name: alarm[name] for name in _TOLD} for alarm in alarms[:_KEPT]]
    return {"tripped": True, "text": text, "columns": columns}


def _quiet(text: str) -> dict[str, Any]:
    return {"tripped": False, "text": f"drift: {text}", "columns": []}
