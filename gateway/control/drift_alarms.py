"""Drift documents as alarms: one row when columns drifted in enough windows, and one when they have recovered."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.control.alarms import Said
from gateway.flags.document import MODEL_PATTERN
from gateway.flags.store import FlagStore, Note

_log = logging.getLogger(__name__)

SCHEMA = 1
# A column on the edge is found drifted in one report and not in the next. It has recovered once it was stable for so
# long, by the monitor's clock.
RECOVERED_AFTER_S = 300.0
MAX_COLUMNS = 50  # that a row names, those of the largest effect
_NAMED_IN_TEXT = 3

DRIFTED, STABLE = "drifted", "stable"

# What a row tells of a column: how much, how sure, by how many rows of when, what else moved, and where to look.
TOLD = (
    "name", "role", "test", "statistic", "p", "q", "effect", "n_ref", "n_cur", "window_from_ns", "window_to_ns",
    "drifted_windows", "judged_windows", "top_features", "prediction_ids",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """One version in a drift document. columns: name -> its alarm, and a verdict: drifted if it has one, else stable.
    Columns of which too few windows were judged to say either are left out."""

    digest: str
    columns: Mapping[str, Mapping[str, Any]]

    def named(self, verdict: str) -> set[str]:
        return {name for name, column in self.columns.items() if column["verdict"] == verdict}


class DriftAlarms:
    """Watches the directory of drift documents. Used by one thread at a time."""

    def __init__(self, store: FlagStore, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._stamps: dict[str, tuple[int, int, int]] = {}
        # (model, version, digest, column) -> when the monitor first found it stable again
        self._stable_since: dict[tuple[str, str, str, str], float] = {}

    def look(self) -> None:
        """See which documents are new. Raises StoreUnavailable; then they are new at the next look, too."""
        for path in sorted(self._directory.glob("*.json")):
            model = path.stem
            try:
                found = os.stat(path)
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
                if self._stamps.get(model) == stamp or not MODEL_PATTERN.fullmatch(model):
                    continue
                written_at, versions = _parse(path.read_bytes())
            except FileNotFoundError:
                continue  # what a model that is gone had drifted to stays so
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("a drift document cannot be read", extra={"path": str(path), "why": repr(error)})
                self._stamps[model] = stamp
                continue
            self._take(model, written_at, versions)
            self._stamps[model] = stamp

    def _take(self, model: str, written_at: float, versions: Mapping[str, Seen]) -> None:
        said = Said(self._store, f"drift:{model}")
        known = said.read()
        after = {name: dict(version) for name, version in known.items()}
        notes: list[Note] = []
        for name in sorted(known.keys() | versions.keys()):
            before: dict[str, Any] = known.get(name, {"digest": "", "columns": []})
            seen = versions.get(name)
            if seen is None or (before["columns"] and before["digest"] != seen.digest):
                why = "is no longer watched" if seen is None else "was replaced by another package"
                if before["columns"]:
                    notes.append(_recovered(model, name, before["columns"], why))
                before = {"digest": "", "columns": []}
            columns = set(before["columns"])
            if seen is not None:
                new = seen.named(DRIFTED) - columns
                back = self._back(model, name, seen, columns, written_at)
                if new:
                    notes.append(_drifted(model, name, seen, new))
                if back:
                    notes.append(_recovered(model, name, sorted(back), "looks like its reference again"))
                columns = (columns | new) - back
            if columns and seen is not None:
                after[name] = {"digest": seen.digest, "columns": sorted(columns)}
            else:
                after.pop(name, None)
        if notes:
            said.write(after, notes, "; ".join(str(note.after["why"]) for note in notes))
            self._stable_since = {k: v for k, v in self._stable_since.items() if k[0] != model or _is_open(k, after)}

    def _back(self, model: str, version: str, seen: Seen, columns: set[str], written_at: float) -> set[str]:
        """The columns that were stable for long enough. Too few rows to tell say nothing either way."""
        back = set()
        for column in columns:
            key = (model, version, seen.digest, column)
            verdict = seen.columns.get(column, {}).get("verdict")
            if verdict == DRIFTED:
                self._stable_since.pop(key, None)
            elif verdict == STABLE and written_at - self._stable_since.setdefault(key, written_at) >= RECOVERED_AFTER_S:
                back.add(column)
        return back


def _parse(raw: bytes) -> tuple[float, dict[str, Seen]]:
    """When it was written, and its versions. Raises ValueError, KeyError, TypeError if it is no drift document."""
    document = orjson.loads(raw)
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']!r}")
    versions = {
        str(version["version"]): Seen(str(version["digest"]), _columns(version)) for version in document["versions"]
    }
    performance = document.get("performance") or {}
    for version in performance.get("versions", ()):
        seen = versions.get(str(version["version"]))
        if seen is not None:
            by_labels = {**_by_labels(version), **_by_detectors(version, bool(performance.get("detectors_alarm")))}
            versions[str(version["version"])] = Seen(seen.digest, {**seen.columns, **by_labels})
    return float(document["written_at"]), versions


def _columns(version: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {str(name): {"verdict": STABLE} for name in version["quiet"]}
    found |= {str(alarm["name"]): _told(alarm) for alarm in version["alarms"]}
    beside = version.get("beside")
    if beside is not None:  # a column may have drifted from its reference, and from the stable version
        against = f"against {beside['baseline']}"
        found |= {f"{name} {against}": {"verdict": STABLE} for name in beside["quiet"]}
        for alarm in beside["alarms"]:
            name = f"{alarm['name']} {against}"
            found[name] = {**_told(alarm), "name": name}
    return found


def _by_labels(version: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What labels say of a version, as if each metric were one more column."""
    found: dict[str, Mapping[str, Any]] = {}
    for metric in version.get("metrics", ()):
        name = f"{metric['name']} by labels"
        effect = abs(float(metric["value"]) - float(metric["mean"]))
        found[name] = {
            "name": name,
            "role": "performance",
            "verdict": metric["verdict"],
            "effect": effect,
            "test": "band",
        }
    return found


def _by_detectors(version: Mapping[str, Any], do_alarm: bool) -> dict[str, Mapping[str, Any]]:
    """What detectors on the errors say of a version. effect: how much the mean error rose at the newest change.

    do_alarm: whether they may; if not they are stable, so that what was told before that was set recovers.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for each in version.get("detectors", ()):
        name = f"{each['name']} by labels"
        changes = each["changes"]
        effect = float(changes[-1]["after"]) - float(changes[-1]["before"]) if changes else 0.0
        at_ns = changes[-1]["ts_ns"] if changes else 0
        found[name] = {
            "name": name,
            "role": "performance",
            "verdict": each["verdict"] if do_alarm else STABLE,
            "effect": effect,
            "test": each["name"],
            "window_to_ns": at_ns,
        }
    return found


def _told(alarm: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: alarm[key] for key in TOLD}, "effect": float(alarm["effect"]), "verdict": DRIFTED}


def _drifted(model: str, version: str, seen: Seen, new: set[str]) -> Note:
    columns = sorted((seen.columns[name] for name in new), key=lambda column: (-column["effect"], column["name"]))
    shown = [{key: column[key] for key in TOLD if key in column} for column in columns]
    why = f"{model} {version} has drifted: {_words([str(column['name']) for column in columns])}"
    return _note(model, version, "drifted", len(shown), shown[:MAX_COLUMNS], why)


def _recovered(model: str, version: str, columns: list[str], how: str) -> Note:
    shown = [{"name": name} for name in columns[:MAX_COLUMNS]]
    return _note(model, version, "recovered", len(columns), shown, f"{model} {version} {how}: {_words(columns)}")


def _note(model: str, version: str, state: str, count: int, columns: list[dict[str, Any]], why: str) -> Note:
    after = {"model": model, "version": version, "state": state, "count": count, "columns": columns, "why": why}
    return Note("alarm.drift", f"drift:{model}", after=after)


def _words(names: list[str]) -> str:
    more = len(names) - _NAMED_IN_TEXT
    return ", ".join(names[:_NAMED_IN_TEXT]) + (f" and {more} more" if more > 0 else "")


def _is_open(key: tuple[str, str, str, str], after: Mapping[str, Any]) -> bool:
    _, version, _, column = key
    return column in after.get(version, {"columns": []})["columns"]
