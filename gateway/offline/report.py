"""The drift document: the shape in which the monitor tells the world what it found, one file per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gateway.offline.course import Courses, courses_of
from gateway.offline.drift import ColumnDrift, Rules
from gateway.offline.history import Alarm, AlarmRule, TimelinePoint, alarm_of
from gateway.offline.measures import Histogram, Measures
from gateway.offline.outside import Outside
from gateway.offline.together import Together

SCHEMA = 1

Status = Literal["drifted", "stable", "insufficient", "no reference"]


@dataclass(frozen=True, slots=True)
class BesideReport:
    """A candidate beside the stable version, both at the same time. Fields as in VersionReport, where alike.

    baseline: the stable version. baseline_rows: its rows, which stand where else the reference stands. Of outputs only
    what lies beyond the difference of the packages' references is drift.
    """

    baseline: str
    status: Status
    reason: str
    window_rows: int
    baseline_rows: int
    window_from_ns: int
    window_to_ns: int
    columns: tuple[ColumnDrift, ...]
    alarms: tuple[Alarm, ...]
    quiet: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionReport:
    """What was found for one version.

    window_rows: rows compared, from window_from_ns to window_to_ns (Unix time; 0 if there are none). rows_total: rows
    ever counted. columns: features, then outputs; empty if there is no reference. alarms: columns that drifted in
    enough finished windows; quiet: those that surely do not. late_rows: came after their window was finished.
    together: all features as one figure; None if reference or window have too little to say, and together_reason says
    what there is too little of.
    beside: the version beside the stable one, if it is another one's candidate.
    outside: rows unlike all of the reference; None if there is no reference or no row. outside_outputs: rows whose
    numeric outputs are; None also if there are no such outputs.
    courses: the columns by hour and by day; None if there is no reference, no row, or no datasketches.
    """

    version: str
    digest: str
    status: Status
    reason: str
    window_rows: int
    window_from_ns: int
    window_to_ns: int
    rows_total: int
    reference_rows: int
    columns: tuple[ColumnDrift, ...]
    alarms: tuple[Alarm, ...] = ()
    quiet: tuple[str, ...] = ()
    late_rows: int = 0
    timeline: tuple[TimelinePoint, ...] = ()
    together: Together | None = None
    beside: BesideReport | None = None
    outside: Outside | None = None
    courses: Courses | None = None
    together_reason: str = ""
    outside_outputs: Outside | None = None

    @property
    def drifted(self) -> tuple[ColumnDrift, ...]:
        """The drifted columns, the largest effect first."""
        found = (column for column in self.columns if column.verdict == "drifted")
        return tuple(sorted(found, key=lambda column: -(column.effect or 0.0)))


@dataclass(frozen=True, slots=True)
class DriftDocument:
    """The latest findings on one model. written_at: Unix time in seconds. window_rows: the bound of each window;
    window_s: its length, 0 if windows are cut by count."""

    model: str
    written_at: float
    window_rows: int
    rules: Rules
    versions: tuple[VersionReport, ...]
    alarm_rule: AlarmRule
    window_s: float = 0.0
    performance: Mapping[str, Any] | None = None  # how good predictions with labels were; None without labels

    def to_json(self) -> bytes:
        plain = {
            "schema": SCHEMA,
            "model": self.model,
            "written_at": self.written_at,
            "window_rows": self.window_rows,
            "window_s": self.window_s,
            "rules": self.rules,
            "alarm_rule": self.alarm_rule,
            "versions": self.versions,
            "performance": self.performance,
        }
        return orjson.dumps(plain, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def status_of(columns: Sequence[ColumnDrift]) -> tuple[Status, str]:
    """The verdict on a version from those on its columns, and why."""
    drifted = sum(column.verdict == "drifted" for column in columns)
    if drifted:
        return "drifted", f"{drifted} of {len(columns)} columns drifted"
    if columns and all(column.verdict == "insufficient" for column in columns):
        return "insufficient", columns[0].reason
    return "stable", f"none of {len(columns)} columns drifted"


def parse(plain: Mapping[str, Any]) -> DriftDocument:
    """The inverse of to_json, from decoded JSON. Raises ValueError if it is not a drift document of this schema."""
    if plain.get("schema") != SCHEMA:
        raise ValueError(f"expected a drift document of schema {SCHEMA}, got {plain.get('schema')!r}")
    try:
        return DriftDocument(
            plain["model"],
            plain["written_at"],
            plain["window_rows"],
            Rules(**plain["rules"]),
            tuple(_version(version) for version in plain["versions"]),
            AlarmRule(**plain.get("alarm_rule", {"drifted": 1, "windows": 1})),
            plain.get("window_s", 0.0),
            plain.get("performance"),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a drift document: {error}") from error


def _version(plain: Mapping[str, Any]) -> VersionReport:
    parts = {
        "columns": tuple(_column(column) for column in plain["columns"]),
        "alarms": tuple(alarm_of(alarm) for alarm in plain.get("alarms", ())),
        "quiet": tuple(plain.get("quiet", ())),
        "together": None if plain.get("together") is None else Together(**plain["together"]),
        "beside": None if plain.get("beside") is None else _beside(plain["beside"]),
        "outside": None if plain.get("outside") is None else _outside(plain["outside"]),
        "outside_outputs": None if plain.get("outside_outputs") is None else _outside(plain["outside_outputs"]),
        "courses": None if plain.get("courses") is None else courses_of(plain["courses"]),
        "timeline": tuple(_point(point) for point in plain.get("timeline", ())),
    }
    return VersionReport(**{**plain, **parts})


def _beside(plain: Mapping[str, Any]) -> BesideReport:
    parts = {
        "columns": tuple(_column(column) for column in plain["columns"]),
        "alarms": tuple(alarm_of(alarm) for alarm in plain["alarms"]),
        "quiet": tuple(plain["quiet"]),
    }
    return BesideReport(**{**plain, **parts})


def _outside(plain: Mapping[str, Any]) -> Outside:
    return Outside(**{**plain, "prediction_ids": tuple(plain["prediction_ids"])})


def _point(plain: Mapping[str, Any]) -> TimelinePoint:
    return TimelinePoint(**{**plain, "drifted": tuple(plain["drifted"])})


def _column(plain: Mapping[str, Any]) -> ColumnDrift:
    measures = plain.get("measures")
    if measures is not None:
        measures = Measures(**{**measures, "histogram": Histogram(**measures["histogram"])})
    return ColumnDrift(**{**plain, "measures": measures})
