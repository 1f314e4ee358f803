"""The part of the drift page that tells how each column has gone by day and by hour, beside the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from gateway.offline.course import Course, Courses, Looks, Span
from gateway.offline.figures import svg
from gateway.offline.markup import number, share, short, text

_WIDTH, _HEIGHT, _FOOT = 300, 96, 16
_LEFT = 58  # with room for the longest number: -0.000943
_HOUR_S, _DAY_S = 3600, 86_400
_MAX_NAME = 80
_LINE_OF_TEXT = 11


def courses(found: Courses, effects: Mapping[str, float | None]) -> Iterator[str]:
    """effects: by which the columns are ordered, the one that moved most first."""
    apart = [
        f"{rows} rows {words} are in none of them."
        for rows, words in (
            (found.too_late_rows, "came when their day was no longer remembered and"),
            (found.ahead_rows, "are of a time that has not come yet and"),
        )
        if rows
    ]
    yield (
        '<h3>Day by day and hour by hour</h3><p class="soft">Of numbers the band from the 5 % to the 95 % quantile and '
        "the median, in UTC, before those of the reference; of categories the shares of the most frequent ones, the "
        f"reference first. Quantiles are off by at most {found.rank_error:.1%} of the rows, nearly always. "
        f"Shown only; it never alarms. {' '.join(apart)}</p>"
        '<p class="legend soft"><span style="background: var(--ref)"></span>reference'
        '<span style="background: var(--now)"></span>rows</p><div class="grid">'
    )
    for column in sorted(found.columns, key=lambda one: -(effects.get(one.name) or 0.0)):
        yield _card(column, found.days, found.hours)
    yield "</div>"


def _card(column: Course, days: Sequence[Span], hours: Sequence[Span]) -> str:
    plots = "".join(
        (_numbers if column.kind == "numeric" else _categories)(column, looks, spans, unit_s)
        for spans, looks, unit_s in ((days, column.days, _DAY_S), (hours, column.hours, _HOUR_S))
        if spans
    )
    facts = []
    if column.kind != "numeric":
        names = enumerate(column.categories)
        listed = "".join(f'<span style="background: var(--c{place})"></span>{short(name, 20)}' for place, name in names)
        plots += f'<p class="legend soft">{listed}</p>'
    else:
        facts = [("reference", _band(column.reference, 0))]
        facts += [(f"day {_day(days[-1].from_s)}", _band(column.days, -1))] if days else []
        facts += [(f"hour {_hour(hours[-1].from_s)}", _band(column.hours, -1))] if hours else []
    newest = column.hours if hours else column.days
    facts.append(("missing", f"{share(column.reference.missing[0])} → {share(newest.missing[-1])}"))
    told = "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in facts)
    return f'<div class="card"><h4><span>{short(column.name, _MAX_NAME)}</span></h4>{plots}<dl>{told}</dl></div>'


def _band(looks: Looks, place: int) -> str:
    """5 %, median and 95 % of one span."""
    return " / ".join(number(each[place]) for each in (looks.low, looks.median, looks.high))


def _numbers(column: Course, looks: Looks, spans: Sequence[Span], unit_s: int) -> str:
    levels = [
        level
        for part in (column.reference, looks)
        for level in (*part.low, *part.median, *part.high)
        if level is not None
    ]
    if not levels:
        return ""
    low, high = min(levels), max(levels)
    margin = (high - low or abs(high) or 1.0) * 0.08
    base = _HEIGHT - _FOOT

    def y(value: float) -> float:
        return base - 2 - (value - low + margin) / (high - low + 2 * margin) * (base - 4)

    def box(kind: str, left: float, right: float, bottom: float, top: float) -> str:
        height = max(1.0, y(bottom) - y(top))
        return (
            f'<rect class="{kind}" x="{left:.1f}" y="{y(top):.1f}" width="{right - left:.1f}" height="{height:.1f}"/>'
        )

    parts, then = [], column.reference
    if then.low[0] is not None and then.high[0] is not None:
        parts.append(box("ref", _LEFT, _WIDTH, then.low[0], then.high[0]))
    if then.median[0] is not None:
        at = y(then.median[0])
        parts.append(f'<line class="floor" x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH}" y2="{at:.1f}"/>')
    for (left, right), bottom, middle, top in zip(
        _places(spans, unit_s), looks.low, looks.median, looks.high, strict=True
    ):
        if bottom is not None and top is not None:
            parts.append(box("now band", left, right, bottom, top))
        if middle is not None:
            at = y(middle)
            parts.append(f'<line class="median" x1="{left:.1f}" y1="{at:.1f}" x2="{right:.1f}" y2="{at:.1f}"/>')
    parts.append(f'<text x="{_LEFT - 4}" y="{max(10.0, y(high) + 4):.1f}" text-anchor="end">{number(high)}</text>')
    if y(low) - y(high) > _LINE_OF_TEXT:
        parts.append(f'<text x="{_LEFT - 4}" y="{y(low):.1f}" text-anchor="end">{number(low)}</text>')
    return svg(_WIDTH, _HEIGHT, f"{column.name} by {_unit(unit_s)}", [*parts, *_foot(spans, unit_s)])


def _categories(column: Course, looks: Looks, spans: Sequence[Span], unit_s: int) -> str:
    base, parts = _HEIGHT - _FOOT, []
    if not column.categories:
        return ""
    columns = [((0.0, _LEFT - 14.0), tuple(each[0] for each in column.reference.shares))]
    columns += zip(_places(spans, unit_s), zip(*looks.shares, strict=True), strict=True)
    for (left, right), shares in columns:
        top = float(base)
        for place, each in enumerate(shares):
            height = each * (base - 4)
            top -= height
            if height:
                parts.append(
                    f'<rect class="share c{place}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                    f'height="{height:.1f}"/>'
                )
    parts.append(f'<text x="0" y="{base + 13}">ref.</text>')
    return svg(_WIDTH, _HEIGHT, f"{column.name} by {_unit(unit_s)}", [*parts, *_foot(spans, unit_s)])


def _places(spans: Sequence[Span], unit_s: int) -> list[tuple[float, float]]:
    """Where each span lies, from left to right: by its time, so that one without rows is a gap."""
    first, last = spans[0].from_s, spans[-1].from_s
    step = (_WIDTH - _LEFT) / max((last - first) // unit_s + 1, 12)
    gap = min(2.0, step / 5)
    at = [_LEFT + (span.from_s - first) // unit_s * step for span in spans]
    return [(left + gap / 2, left + step - gap / 2) for left in at]


def _foot(spans: Sequence[Span], unit_s: int) -> Iterator[str]:
    base, when = _HEIGHT - _FOOT, _day if unit_s == _DAY_S else _hour
    yield f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_WIDTH}" y2="{base}"/>'
    yield f'<text x="{_LEFT}" y="{base + 13}">{when(spans[0].from_s)}</text>'
    places = _places(spans, unit_s)
    if places[-1][1] - _LEFT > _WIDTH / 2:  # or both would be in one place
        yield f'<text x="{places[-1][1]:.1f}" y="{base + 13}" text-anchor="end">{when(spans[-1].from_s)}</text>'


def _unit(unit_s: int) -> str:
    return "day" if unit_s == _DAY_S else "hour"


def _day(from_s: int) -> str:
    return datetime.fromtimestamp(from_s, UTC).strftime("%m-%d")


def _hour(from_s: int) -> str:
    return datetime.fromtimestamp(from_s, UTC).strftime("%m-%d %H h")
