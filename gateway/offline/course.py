"""How the columns of a version have gone, by hour and by day, beside the reference: as the drift document has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gateway.offline.drift import Role
from gateway.offline.reference import Reference, ReferenceColumn
from gateway.tensors import Kind

if TYPE_CHECKING:
    from gateway.offline.sketches import CategorySketch, NumberSketch, Sketches

QUANTILES = (0.05, 0.5, 0.95)

# Columns of a version that are told; of wide ones those that moved most.
_MAX_COLUMNS = 100
_MAX_CATEGORIES = 5


@dataclass(frozen=True, slots=True)
class Span:
    """One hour or one day of UTC that had rows. from_s: Unix time at which it began."""

    from_s: int
    rows: int


@dataclass(frozen=True, slots=True)
class Looks:
    """One column in each of several spans. missing: share of the rows; None if there are none.

    low, median, high: the QUANTILES of numbers; None where there is no value, or an infinite one. shares: of each of
    Course.categories in turn, of the rows of each span.
    """

    missing: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    median: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    shares: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Course:
    """One column. reference: its look in the reference, in a span of its own. categories: the most frequent ones."""

    name: str
    role: Role
    kind: Kind
    categories: tuple[str, ...]
    reference: Looks
    days: Looks
    hours: Looks


@dataclass(frozen=True, slots=True)
class Courses:
    """The columns that moved most, at most 100, over the days and hours that are remembered; each oldest first.

    A day also has the rows of its hours. rank_error: how far quantiles are off at most, as a share of the rows, in 99
    of 100 columns. too_late_rows: older than all that is remembered when they came; ahead_rows: of a time that has not
    come yet. Neither is in any span.
    """

    rank_error: float
    too_late_rows: int
    ahead_rows: int
    days: tuple[Span, ...]
    hours: tuple[Span, ...]
    columns: tuple[Course, ...]


def courses_of(plain: Mapping[str, Any]) -> Courses:
    """From decoded JSON. Raises KeyError or TypeError if it is none."""
    spans = {name: tuple(Span(**span) for span in plain[name]) for name in ("days", "hours")}
    return Courses(**{**plain, **spans, "columns": tuple(_course(column) for column in plain["columns"])})


def _course(plain: Mapping[str, Any]) -> Course:
    looks = {
        name: Looks(**{field: _tuples(values) for field, values in plain[name].items()})
        for name in ("reference", "days", "hours")
    }
    return Course(**{**plain, **looks, "categories": tuple(plain["categories"])})


def _tuples(values: Any) -> Any:
    return tuple(_tuples(value) if isinstance(value, list) else value for value in values)


def told(
    reference: Reference, days: Sequence[Sketches], hours: Sequence[Sketches], effects: Mapping[str, float | None]
) -> tuple[Course, ...]:
    """The courses of the columns. days, hours: of the reference's shape. effects: by which columns are chosen."""
    order = sorted(reference.columns, key=lambda column: -(effects.get(column.name) or 0.0))
    chosen = {column.name for column in order[:_MAX_COLUMNS]}
    numeric = [column for column in reference.columns if column.kind == "numeric"]
    others = [column for column in reference.columns if column.kind != "numeric"]
    numbers = {
        column.name: _numbers(column, *([each.numbers[place] for each in spans] for spans in (days, hours)))
        for place, column in enumerate(numeric)
        if column.name in chosen
    }
    categories = {
        column.name: _categories(column, *([each.categories[place] for each in spans] for spans in (days, hours)))
        for place, column in enumerate(others)
        if column.name in chosen
    }
    found = {**numbers, **categories}
    return tuple(found[column.name] for column in reference.columns if column.name in chosen)


def _numbers(column: ReferenceColumn, days: Sequence[NumberSketch], hours: Sequence[NumberSketch]) -> Course:
    side, then = column.side, []
    if len(side.ordered):
        then = np.quantile(side.ordered, QUANTILES, method="inverted_cdf").tolist()
    reference = _looks([side.missing], [len(side)], [then])
    return Course(column.name, column.role, column.kind, (), reference, _looks_of(days), _looks_of(hours))


def _looks_of(sketches: Sequence[NumberSketch]) -> Looks:
    return _looks(
        [sketch.missing for sketch in sketches],
        [sketch.rows for sketch in sketches],
        [sketch.quantiles() for sketch in sketches],
    )


def _looks(missing: Sequence[int], rows: Sequence[int], quantiles: Sequence[Sequence[float]]) -> Looks:
    low, median, high = (
        tuple(_figure(each[place]) if each else None for each in quantiles) for place in range(len(QUANTILES))
    )
    return Looks(_shares(missing, rows), low, median, high)


def _figure(value: float) -> float | None:
    """Six digits of it: the sketch knows no more of where it lies."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _shares(counts: Sequence[int], rows: Sequence[int]) -> tuple[float | None, ...]:
    return tuple(round(count / each, 6) if each else None for count, each in zip(counts, rows, strict=True))


def _categories(column: ReferenceColumn, days: Sequence[CategorySketch], hours: Sequence[CategorySketch]) -> Course:
    side = column.side
    most: Counter[str] = Counter({str(name): round(1e6 * n / len(side)) for name, n in side.counts.items()})
    by_span = {sketch: sketch.counts() for sketch in (*days, *hours)}
    for sketch, counts in by_span.items():
        for name, rows in counts.items():
            most[name] = max(most[name], round(1e6 * rows / sketch.rows))
    names = tuple(sorted(most, key=lambda name: (-most[name], name))[:_MAX_CATEGORIES])

    def looks(sketches: Sequence[CategorySketch]) -> Looks:
        shares = tuple(
            tuple(round(by_span[sketch].get(name, 0) / sketch.rows, 6) for sketch in sketches) for name in names
        )
        missing = _shares([sketch.missing for sketch in sketches], [sketch.rows for sketch in sketches])
        return Looks(missing, shares=shares)

    then = Looks(
        _shares([side.missing], [len(side)]),
        shares=tuple((round(side.counts.get(name, 0) / max(1, len(side)), 6),) for name in names),
    )
    return Course(column.name, column.role, column.kind, names, then, looks(days), looks(hours))
