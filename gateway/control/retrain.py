"""Advice to retrain: an event for pipelines when a version that takes traffic has drifted or decays, with the evidence.

It follows what `drift_alarms` has said, so it is no second opinion. Alarms of a candidate beside the default version
are left out: those speak against the candidate, and are the rollout's business.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from gateway.control.alarms import KIND, Said
from gateway.control.drift_alarms import MAX_COLUMNS, TOLD
from gateway.errors import InvalidFlag
from gateway.flags.compile import Route, compile_route
from gateway.flags.document import FlagDocument, route_key
from gateway.flags.store import FlagStore, Note

VERB = "retrain.advised"
_DRIFT, _RETRAIN = "drift:", "retrain:"
_ROWS = ("rows_total", "window_rows", "reference_rows")
_SHOWN_WINDOWS = 3  # of labels: those that a verdict is made of

# What a version's own alarms are, by the name that the audit trail gives them.
Evidence = Mapping[str, dict[str, Any]]


class RetrainAdvice:
    """Advises once per model and version until its alarms have recovered. Used by one thread at a time.

    directory: of the drift documents. cool_down_s: after advice on a model, for so long none on it; what is open by
    then is advised then. clock: unix seconds.
    """

    def __init__(
        self, store: FlagStore, directory: Path, *, cool_down_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._directory = directory
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._known: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}  # by what stat says of the file

    def look(self) -> None:
        """See which alarms are open. Raises StoreUnavailable; then they are looked at again."""
        said = {record.id: dict(record.body) for record in self._store.records(KIND)}
        models = {name.partition(":")[2] for name in said if name.startswith((_DRIFT, _RETRAIN))}
        for model in sorted(models):
            before = said.get(_RETRAIN + model, {"advised_s": 0.0, "versions": {}})
            self._look_at(model, said.get(_DRIFT + model, {}), before)

    def _look_at(self, model: str, alarms: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        versions: dict[str, Any] = {}  # advised already, and not recovered
        waiting: dict[str, Evidence] = {}
        document = self._document(model) if alarms else {}
        for version, found in alarms.items():
            told = _told_of(document, version, found["digest"])
            own: Evidence = {name: told[name] for name in found["columns"] if name in told}
            known = before["versions"].get(version)
            if known is not None and known["digest"] == found["digest"]:
                columns = own.keys() | (set(known["columns"]) & set(found["columns"]))
                if columns:
                    versions[version] = {"digest": found["digest"], "columns": sorted(columns)}
            elif own:
                waiting[version] = own
        after = {"advised_s": before["advised_s"], "versions": versions}
        notes: list[Note] = []
        now_s = self._clock()
        if waiting and now_s - before["advised_s"] >= self._cool_down_s:
            route = _route(self._store.load(), model)
            for version in (each for each in waiting if route is not None and each in route.reachable):
                assert route is not None
                digest, own = alarms[version]["digest"], waiting[version]
                notes.append(self._note(document, model, version, digest, own, version == route.default_version))
                versions[version] = {"digest": digest, "columns": sorted(own)}
                after["advised_s"] = now_s
        if after != before:
            Said(self._store, _RETRAIN + model).write(after, notes, "; ".join(str(note.after["why"]) for note in notes))

    def _document(self, model: str) -> dict[str, Any]:
        """The model's drift document; empty if it cannot be read, which `drift_alarms` says."""
        path = self._directory / f"{model}.json"
        try:
            found = os.stat(path)
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            known = self._known.get(model)
            if known is None or known[0] != stamp:
                known = self._known[model] = stamp, orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            return {}
        return known[1]

    def _note(
        self, document: Mapping[str, Any], model: str, version: str, digest: str, own: Evidence, is_default: bool
    ) -> Note:
        report = _of_version(document["versions"], version)
        columns = sorted((each for each in own.values() if "effect" in each), key=lambda each: -float(each["effect"]))
        metrics = [each for each in own.values() if "effect" not in each]
        names = [each["name"] for each in (*metrics, *columns)]
        since_ns = min((each["since_ns"] for each in own.values() if each["since_ns"]), default=0)
        after = {
            "model": model,
            "version": version,
            "digest": digest,
            "traffic": "default" if is_default else "split",
            "why": f"{model} {version} should be retrained: {_words(names)}",
            "columns": [{name: each[name] for name in TOLD} for each in columns[:MAX_COLUMNS]],
            "metrics": metrics,
            **{name: report.get(name) for name in _ROWS},
            "since_ns": since_ns,
            "document": f"/admin/v1/models/{model}/drift",
            "file": str(self._directory / f"{model}.json"),
            "export": _export(model, version, since_ns),
        }
        return Note(VERB, _RETRAIN + model, after=after)


def _told_of(document: Mapping[str, Any], version: str, digest: str) -> Evidence:
    """The alarms of one version's own, by name: columns against its reference, metrics by labels. None of what is no
    drift document, which `drift_alarms` says."""
    try:
        report = _of_version(document["versions"], version)
        if report is None or report["digest"] != digest:
            return {}
        told = {
            str(alarm["name"]): {**{name: alarm[name] for name in TOLD}, "since_ns": int(alarm.get("since_ns", 0))}
            for alarm in report["alarms"]
        }
        labels = _of_version((document.get("performance") or {}).get("versions", ()), version)
        for metric in (labels or {}).get("metrics", ()):
            if metric["verdict"] == "drifted":
                told[f"{metric['name']} by labels"] = _by_labels(metric, (labels or {}).get("windows", ()))
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return told


def _by_labels(metric: Mapping[str, Any], windows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    last = [
        {**{name: window[name] for name in ("from_ns", "to_ns", "rows")}, "value": window.get(metric["name"])}
        for window in list(windows)[-_SHOWN_WINDOWS:]
    ]
    told = {name: metric[name] for name in ("name", "value", "mean", "bound")}
    return {**told, "windows": last, "since_ns": last[0]["from_ns"] if last else 0}


def _of_version(versions: Iterable[Mapping[str, Any]], version: str) -> Any:
    return next((each for each in versions if str(each["version"]) == version), None)


def _route(document: FlagDocument | None, model: str) -> Route | None:
    """The route of *model*; None if there is none that can be followed."""
    flag = None if document is None else document.flags.get(route_key(model))
    if document is None or flag is None:
        return None
    try:
        return compile_route(model, flag, document.bucketing)
    except InvalidFlag:
        return None


def _words(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _export(model: str, version: str, since_ns: int) -> str:
    """The command that writes the rows that drifted, and those since then, to a file."""
    since = datetime.fromtimestamp(since_ns // 10**9 // 60 * 60, UTC).strftime("%Y-%m-%dT%H:%M")
    which = ["--model", model, "--version", version, *(["--since", since] if since_ns else [])]
    return shlex.join(["sluicegate", "samples", "export", *which, "--out", f"{model}-{version}.parquet"])
