"""What the drift page says of alarms: each in plain words, whatever it is of, with the command that shows its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.offline import alarmed
from gateway.offline.drift import KS, MISSING, RANKS
from gateway.offline.history import Alarm
from gateway.offline.markup import METRICS, TESTS, chance, figure, number, short, text, time
from gateway.offline.report import DriftDocument, VersionReport

_MAX_NAME = 80


def listed(document: DriftDocument, version: VersionReport) -> Iterator[str]:
    """All alarms of one version as items of a list: columns, columns beside the default version, what labels say."""
    model, performance = document.model, document.performance
    for alarm in version.alarms:
        yield _column(alarm, "the reference", alarmed.command(model, version.version, alarm))
    if version.beside is not None:
        for alarm in version.beside.alarms:
            command = alarmed.command(model, version.version, alarm)
            yield _column(alarm, f"version {version.beside.baseline} at the same time", command)
    told = alarmed.of_version(performance, version.version)
    for metric in alarmed.decayed(performance, version.version):
        yield _metric(metric, told, alarmed.command_of_metric(model, version.version, told))
    for found in alarmed.changed(performance, version.version):
        yield _detector(found, alarmed.command_of_detector(model, version.version, found))


def _column(alarm: Alarm, against: str, command: str) -> str:
    what = {
        MISSING: f"is missing in another share of the rows than in {text(against)}",
        KS: f"has other values than in {text(against)}",
        RANKS: f"has other values than in {text(against)}",
    }.get(alarm.test, f"has its categories in other shares than in {text(against)}")
    kind = "feature" if alarm.role == "input" else "output"
    others = [
        f"{short(top.name, _MAX_NAME)} ({top.effect:.2f})" for top in alarm.top_features if top.name != alarm.name
    ]
    moved = f"<p>Features that moved in the same window: {', '.join(others)}.</p>" if others else ""
    ids = ", ".join(f"<code>{text(one)}</code>" for one in alarm.prediction_ids)
    return (
        f"<li><p><strong>{short(alarm.name, _MAX_NAME)}</strong> ({kind}) {what}: in {alarm.drifted_windows} of the "
        f"last {alarm.judged_windows} windows.</p>"
        f"<p>In the newest of them, {time(alarm.window_from_ns / 1e9)} to {time(alarm.window_to_ns / 1e9)}, "
        f"{alarm.n_cur} rows against {alarm.n_ref}: effect {alarm.effect:.2f} of 1, "
        f"{figure('q', chance(alarm.q))} ({figure(TESTS.get(alarm.test, alarm.test), number(alarm.statistic))}, "
        f"{figure('p', chance(alarm.p))}).</p>"
        f"{moved}<p>Predictions to look at: {ids or 'none'}.</p>{_shown(command)}</li>"
    )


def _metric(metric: Mapping[str, Any], told: Mapping[str, Any], command: str) -> str:
    name = METRICS.get(metric["name"], metric["name"])
    return (
        f"<li><p><strong>{short(name, _MAX_NAME)}</strong> (by labels) got worse: {number(metric['value'])} in the "
        f"newest window of {told['window_rows']} labelled rows, at first {number(metric['mean'])}; the bound is "
        f"{number(metric['bound'])}.</p>{_shown(command)}</li>"
    )


def _detector(found: Mapping[str, Any], command: str) -> str:
    newest = found["changes"][-1]
    return (
        f"<li><p><strong>{short(found['name'], _MAX_NAME)}</strong> (by labels) found a change for the worse at "
        f"{time(newest['ts_ns'] / 1e9)}: mean error {number(newest['before'])} → {number(newest['after'])}.</p>"
        f"{_shown(command)}</li>"
    )


def _shown(command: str) -> str:
    return f"<p>Its rows, on the gateway's host: <code>{text(command)}</code></p>" if command else ""
