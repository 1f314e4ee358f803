"""What was found in each finished window, and when that is enough for an alarm: in several windows, not in one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.offline.cuts import Cut
from gateway.offline.drift import (
    CHI_SQUARE,
    FISHER,
    KS,
    MISSING,
    RANKS,
    Column,
    ColumnDrift,
    Role,
    Rules,
    Verdict,
    compare,
)
from gateway.offline.outside import outside_share

MAX_WINDOWS = 32
MAX_EXAMPLES = 5
MAX_TOP_FEATURES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One column in one finished window; fields as in ColumnDrift. prediction_ids: rows that show the drift."""

    name: str
    role: Role
    verdict: Verdict
    n_ref: int
    n_cur: int
    test: str
    statistic: float | None
    p: float | None
    q: float | None
    effect: float | None
    reason: str
    prediction_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedWindow:
    """One finished window of one version. rows: compared; rows_seen: that there were; Unix times in nanoseconds.
    outside: share of rows unlike all of the reference, outside_outputs: of those whose numeric outputs are; None if
    that is not known."""

    from_ns: int
    to_ns: int
    rows: int
    rows_seen: int
    findings: tuple[Finding, ...]
    outside: float | None = None
    outside_outputs: float | None = None


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """A column alarms that drifted in *drifted* of its *windows* newest finished windows with a verdict."""

    drifted: int
    windows: int


@dataclass(frozen=True, slots=True)
class TopFeature:
    """A feature that drifted in the same window."""

    name: str
    effect: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """One column that drifted in enough windows. The figures are those of the newest window in which it did.

    drifted_windows of judged_windows: how often. top_features: the features of that window with the largest effects.
    prediction_ids: some of its rows that show the drift. since_ns: when the oldest of the windows began that are needed
    for the alarm: all that it takes came after that. Unix time in nanoseconds; 0 in documents that do not say.
    """

    name: str
    role: Role
    drifted_windows: int
    judged_windows: int
    window_from_ns: int
    window_to_ns: int
    n_ref: int
    n_cur: int
    test: str
    statistic: float
    p: float
    q: float
    effect: float
    reason: str
    top_features: tuple[TopFeature, ...]
    prediction_ids: tuple[str, ...]
    since_ns: int = 0


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """One finished window, for a plot. effects: column -> effect, where a test was made. drifted: columns. outside,
    outside_outputs: as in FinishedWindow."""

    from_ns: int
    to_ns: int
    rows: int
    effects: Mapping[str, float]
    drifted: tuple[str, ...]
    outside: float | None = None
    outside_outputs: float | None = None


def judged(columns: Sequence[Column], cut: Cut, rules: Rules) -> FinishedWindow:
    """What is found in a finished window of at least one row; its rows are those of each column's current."""
    ids, ts_ns = cut.rows.ids.tolist(), cut.rows.ts_ns
    drifts = zip(compare(columns, rules), columns, strict=True)
    findings = tuple(finding(drift, column, ids) for drift, column in drifts)
    return FinishedWindow(
        int(ts_ns[0]),
        int(ts_ns[-1]),
        len(ids),
        cut.rows_seen,
        findings,
        outside_share(columns, len(ids)),
        outside_share(columns, len(ids), "output"),
    )


def finding(drift: ColumnDrift, column: Column, ids: Sequence[str]) -> Finding:
    """What is kept of *drift*. ids: the prediction id of each row of column.current."""
    return Finding(
        drift.name,
        drift.role,
        drift.verdict,
        drift.n_ref,
        drift.n_cur,
        drift.test,
        drift.statistic,
        drift.p,
        drift.q,
        drift.effect,
        drift.reason,
        examples(column, drift.test, ids) if drift.verdict == "drifted" else (),
    )


def examples(column: Column, test: str, ids: Sequence[str]) -> tuple[str, ...]:
    """Prediction ids of the newest rows of the window that lie where it has more than the reference.

    Numbers: on that side of the point where the distributions are furthest apart. Categories: in the one that gained
    most. Missing values: those that miss it, or that have it if fewer do now.
    """
    if test in (KS, RANKS):
        is_shown = _beyond(column)
    elif test in (CHI_SQUARE, FISHER):
        is_shown = _gained(column)
    elif test == MISSING:
        then, now = column.then.is_missing, column.now.is_missing
        is_shown = now if now.mean() >= then.mean() else ~now
    else:
        return ()
    newest = np.flatnonzero(is_shown)[::-1]
    return tuple(dict.fromkeys(ids[index] for index in newest[: 4 * MAX_EXAMPLES].tolist()))[:MAX_EXAMPLES]


def alarms(history: Sequence[FinishedWindow], rule: AlarmRule) -> tuple[list[Alarm], list[str]]:
    """The alarms that *history* (oldest first) gives now, the largest effect first; and the columns that were judged in
    enough windows to say that they give none."""
    found: list[Alarm] = []
    quiet: list[str] = []
    verdicts: dict[str, list[tuple[FinishedWindow, Finding]]] = {}
    for window in history:
        for one in window.findings:
            if one.verdict != "insufficient":
                verdicts.setdefault(one.name, []).append((window, one))
    for name, every in verdicts.items():
        judged = every[-rule.windows :]
        drifted = [(window, one) for window, one in judged if one.verdict == "drifted"]
        if len(drifted) >= rule.drifted:
            found.append(_alarm(*drifted[-1], len(drifted), len(judged), drifted[-rule.drifted][0].from_ns))
        elif len(judged) - len(drifted) > rule.windows - rule.drifted or len(judged) == rule.windows:
            quiet.append(name)
    return sorted(found, key=lambda alarm: -alarm.effect), quiet


def timeline(history: Iterable[FinishedWindow]) -> tuple[TimelinePoint, ...]:
    return tuple(
        TimelinePoint(
            window.from_ns,
            window.to_ns,
            window.rows,
            {one.name: round(one.effect, 4) for one in window.findings if one.effect is not None},
            tuple(one.name for one in window.findings if one.verdict == "drifted"),
            window.outside,
            window.outside_outputs,
        )
        for window in history
    )


def window_of(plain: Mapping[str, Any]) -> FinishedWindow:
    """A finished window from decoded JSON. Raises KeyError or TypeError if it is none."""
    findings = tuple(Finding(**{**one, "prediction_ids": tuple(one["prediction_ids"])}) for one in plain["findings"])
    return FinishedWindow(**{**plain, "findings": findings})


def alarm_of(plain: Mapping[str, Any]) -> Alarm:
    """An alarm from decoded JSON. Raises KeyError or TypeError if it is none."""
    top = tuple(TopFeature(**one) for one in plain["top_features"])
    return Alarm(**{**plain, "top_features": top, "prediction_ids": tuple(plain["prediction_ids"])})


def _alarm(window: FinishedWindow, found: Finding, drifted_windows: int, judged_windows: int, since_ns: int) -> Alarm:
    assert found.statistic is not None
    assert found.p is not None
    assert found.q is not None
    assert found.effect is not None
    features = [one for one in window.findings if one.verdict == "drifted" and one.role == "input"]
    features.sort(key=lambda one: -(one.effect or 0.0))
    return Alarm(
        found.name,
        found.role,
        drifted_windows,
        judged_windows,
        window.from_ns,
        window.to_ns,
        found.n_ref,
        found.n_cur,
        found.test,
        found.statistic,
        found.p,
        found.q,
        found.effect,
        found.reason,
        tuple(TopFeature(one.name, one.effect or 0.0) for one in features[:MAX_TOP_FEATURES]),
        found.prediction_ids,
        since_ns,
    )


def _beyond(column: Column) -> Any:
    """Which rows of the window lie on the side of the widest gap between the two distributions that gained."""
    then, now = column.then.ordered, column.now.ordered
    points = np.concatenate([then, now])
    gap = (
        np.searchsorted(now, points, side="right") / now.size - np.searchsorted(then, points, side="right") / then.size
    )
    widest = int(np.argmax(np.abs(gap)))
    return column.current <= points[widest] if gap[widest] > 0 else column.current > points[widest]


def _gained(column: Column) -> Any:
    """Which rows of the window are of the category whose share grew most."""
    then, now = column.then.counts, column.now.counts
    n_then, n_now = len(column.then), len(column.now)
    most = max(now, key=lambda name: (now[name] / n_now - then[name] / n_then, name))
    return np.array([value == most for value in column.current.tolist()], dtype=np.bool_)
