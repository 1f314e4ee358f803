"""What alarms now of one version, of every kind and in one place, and the commands that show the rows behind it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.offline.history import Alarm
from gateway.offline.report import VersionReport

# Columns against the package's reference, and against the default version at the same time; a metric by labels that
# has left its band; a detector on single errors, where these may alarm.
REFERENCE, BESIDE, LABELS, DETECTORS = KINDS = ("reference", "beside", "labels", "detectors")

_SHELL = frozenset('"$`\\!')
_MINUTE = timedelta(minutes=1)
_ROWS_BEFORE_A_CHANGE = 100

Told = Mapping[str, Any]


def of_version(performance: Told | None, version: str) -> Told:
    """What the section ``performance`` of a drift document says of *version*; empty if nothing."""
    return next((each for each in (performance or {}).get("versions", ()) if each["version"] == version), {})


def decayed(performance: Told | None, version: str) -> list[Told]:
    """The metrics by labels that alarm, as the document has them."""
    metrics = of_version(performance, version).get("metrics", ())
    return [metric for metric in metrics if metric["verdict"] == "drifted"]


def changed(performance: Told | None, version: str) -> list[Told]:
    """The detectors that alarm, as the document has them; none if ``labels.detectors_tell`` is "report"."""
    if not (performance or {}).get("detectors_alarm"):
        return []
    detectors = of_version(performance, version).get("detectors", ())
    return [found for found in detectors if found["verdict"] == "drifted"]


def counts(found: VersionReport, performance: Told | None) -> dict[str, int]:
    """How many alarms there are of each kind."""
    beside = found.beside.alarms if found.beside is not None else ()
    by_labels = (decayed(performance, found.version), changed(performance, found.version))
    return dict(zip(KINDS, map(len, (found.alarms, beside, *by_labels)), strict=True))


def command(model: str, version: str, alarm: Alarm) -> str:
    """What shows the rows that a column's alarm names; empty if it names none."""
    if not alarm.prediction_ids:
        return ""
    ids = " ".join(f"--prediction-id {shlex.quote(identity)}" for identity in alarm.prediction_ids)
    span = f"--since {_minute(alarm.window_from_ns)} --until {_minute(alarm.window_to_ns, after=True)}"
    return f"sluicegate samples tail --model {shlex.quote(model)} --version {shlex.quote(version)} {span} {ids}"


def command_of_metric(model: str, version: str, told: Told) -> str:
    """What shows the labelled rows of the newest window. told: the version's part of ``performance``."""
    newest = told["windows"][-1]
    return _sql(model, version, f"ts_ns between {int(newest['from_ns'])} and {int(newest['to_ns'])} order by ts_ns")


def command_of_detector(model: str, version: str, found: Told) -> str:
    """What shows the labelled rows up to the newest change, the newest first."""
    upto = int(found["changes"][-1]["ts_ns"])
    return _sql(model, version, f"ts_ns <= {upto} order by ts_ns desc limit {_ROWS_BEFORE_A_CHANGE}")


def _sql(model: str, version: str, rest: str) -> str:
    names = f"model = {_literal(model)} and version = {_literal(version)}"
    query = f"select * from labelled where label is not null and {names} and {rest}"  # noqa: S608 -- to be read
    # As somebody would write it, if nothing in it means something else to a shell.
    quoted = shlex.quote(query) if _SHELL & set(query) else f'"{query}"'
    return f"sluicegate samples sql {quoted}"


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _minute(ts_ns: int, *, after: bool = False) -> str:
    """The whole minute before, or after, a Unix time, as ``samples`` takes it: UTC."""
    found = datetime.fromtimestamp(ts_ns // 10**9, UTC).replace(second=0)
    return (found + _MINUTE if after else found).strftime("%Y-%m-%dT%H:%M")
