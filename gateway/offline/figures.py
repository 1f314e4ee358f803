"""The plots of the drift page: small SVGs without a library, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gateway.offline.history import TimelinePoint
from gateway.offline.markup import number, short, text
from gateway.offline.measures import Histogram
from gateway.offline.together import Together

_WIDTH, _HEIGHT = 300, 120
_FOOT = 16  # below the bars, for the axis
_BAR_ROW = 17
_LABEL_WIDTH = 110
_TIMELINE_WIDTH, _TIMELINE_HEIGHT = 720, 180
_MAX_LINES = 5
_LEGEND_ROW = 16
_RELIABILITY_HEIGHT = 220
_DOT = 8  # the place of a dot beside an axis
_LINE_OF_TEXT = 11


def histogram(shown: Histogram, title: str) -> str:
    """Reference and window, one over the other; nothing if there are no values."""
    if shown.edges:
        return _numbers(shown, title)
    return _categories(shown, title) if shown.categories else ""


def timeline(points: Sequence[TimelinePoint], floor: float, when: Callable[[int], str]) -> str:
    """The effect of the columns that moved most, window by window, and the floor below which nothing counts.

    when: writes a Unix time in nanoseconds.
    """
    most: dict[str, float] = {}
    for point in points:
        for name, effect in point.effects.items():
            most[name] = max(most.get(name, 0.0), effect)
    names = sorted(most, key=lambda name: (-most[name], name))[:_MAX_LINES]
    if not names:
        return ""
    top = max(1.25 * floor, *(most[name] for name in names), 1e-9) * 1.05
    left, right, base = 36, 10, _TIMELINE_HEIGHT - _FOOT
    step = (_TIMELINE_WIDTH - left - right - _DOT) / max(len(points) - 1, 1)

    def x(index: int) -> float:
        return left + _DOT + index * step

    def y(effect: float) -> float:
        return base - effect / top * (base - 8)

    parts = [
        f'<line class="axis" x1="{left}" y1="{base}" x2="{_TIMELINE_WIDTH - right}" y2="{base}"/>',
        f'<line class="floor" x1="{left}" y1="{y(floor):.1f}" x2="{_TIMELINE_WIDTH - right}" y2="{y(floor):.1f}"/>',
        f'<text x="{left - 4}" y="{y(floor) + 4:.1f}" text-anchor="end">{floor:g}</text>',
        f'<text x="{left - 4}" y="14" text-anchor="end">{top:.2g}</text>',
        f'<text x="{left}" y="{base + 13}">{text(when(points[0].from_ns))}</text>',
        f'<text x="{_TIMELINE_WIDTH - right}" y="{base + 13}" text-anchor="end">{text(when(points[-1].to_ns))}</text>',
    ]
    if base - y(floor) > _LINE_OF_TEXT:
        parts.append(f'<text x="{left - 4}" y="{base}" text-anchor="end">0</text>')
    for place, name in enumerate(names):
        at = [(index, point.effects[name]) for index, point in enumerate(points) if name in point.effects]
        line = " ".join(f"{x(index):.1f},{y(effect):.1f}" for index, effect in at)
        parts.append(f'<polyline class="line c{place}" points="{line}"/>')
        parts += [
            f'<circle class="dot c{place}{"" if name in points[index].drifted else " calm"}"'
            f' cx="{x(index):.1f}" cy="{y(effect):.1f}" r="3.5"/>'
            for index, effect in at
        ]
        row = _TIMELINE_HEIGHT + 6 + place * _LEGEND_ROW
        parts.append(f'<rect class="key c{place}" x="{left}" y="{row}" width="10" height="10"/>')
        parts.append(f'<text x="{left + 16}" y="{row + 9}">{short(name, 60)}</text>')
    height = _TIMELINE_HEIGHT + 8 + len(names) * _LEGEND_ROW
    return svg(_TIMELINE_WIDTH, height, "effect of each column, window by window", parts)


def band(found: Together) -> str:
    """Where the window's error lies beside the band of the reference."""
    low, high = min(found.low, found.error), max(found.high, found.error)
    margin = (high - low or 1.0) * 0.1

    def x(value: float) -> float:
        return 30 + (value - low + margin) / (high - low + 2 * margin) * (_WIDTH - 60)

    outside = " drifted" if found.is_outside else ""
    return svg(
        _WIDTH,
        36,
        "reconstruction error of the window, and the band of the reference",
        [
            f'<line class="axis" x1="10" y1="14" x2="{_WIDTH - 10}" y2="14"/>',
            f'<rect class="ref" x="{x(found.low):.1f}" y="6" width="{x(found.high) - x(found.low):.1f}" height="16"/>',
            f'<circle class="now{outside}" cx="{x(found.error):.1f}" cy="14" r="5"/>',
            f'<text x="{x(found.low):.1f}" y="34" text-anchor="end">{number(found.low)}</text>',
            f'<text x="{x(found.high):.1f}" y="34" text-anchor="start">{number(found.high)}</text>',
        ],
    )


def decay(
    metric: Mapping[str, Any],
    reference: Sequence[Mapping[str, Any]],
    windows: Sequence[Mapping[str, Any]],
    when: Callable[[int], str],
    *,
    title: str = "",
) -> str:
    """One metric window by window: those of the reference as rings, then the others, and the bound.

    metric: its name, mean, and bound (None if there is none yet), as in the drift document. title: of the plot, if it
    is of no labels.
    """
    name: str = metric["name"]
    mean: float = metric["mean"]
    bound: float | None = metric["bound"]
    points = [(window, is_first) for part, is_first in ((reference, True), (windows, False)) for window in part]
    points = [(window, is_first) for window, is_first in points if window.get(name) is not None]
    if not points:
        return ""
    levels: list[float] = [mean, *(window[name] for window, _ in points), *([] if bound is None else [bound])]
    low, high = min(levels), max(levels)
    margin = (high - low or abs(high) or 1.0) * 0.1
    left, base = 36, _HEIGHT - _FOOT
    step = (_WIDTH - left - 2 * _DOT) / max(len(points) - 1, 1)

    def x(index: int) -> float:
        return left + _DOT + index * step

    def y(value: float) -> float:
        return base - 4 - (value - low + margin) / (high - low + 2 * margin) * (base - 8)

    levels_of = [("axis", mean)] + ([("floor", bound)] if bound is not None else [])
    parts = [
        f'<line class="{line}" x1="{left}" y1="{y(value):.1f}" x2="{_WIDTH}" y2="{y(value):.1f}"/>'
        for line, value in levels_of
    ]
    if bound is not None and abs(y(bound) - y(mean)) < _LINE_OF_TEXT:
        levels_of = levels_of[1:]  # two numbers in one place could not be read
    parts += [
        f'<text x="{left - 4}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>'
        for _, value in levels_of
    ]
    line = " ".join(f"{x(index):.1f},{y(window[name]):.1f}" for index, (window, _) in enumerate(points))
    parts.append(f'<polyline class="line c1" points="{line}"/>')
    for index, (window, is_first) in enumerate(points):
        is_beyond = bound is not None and ((window[name] < bound) if bound < mean else (window[name] > bound))
        kind = "dot c1 calm" if is_first else "now drifted" if is_beyond else "now"
        parts.append(f'<circle class="{kind}" cx="{x(index):.1f}" cy="{y(window[name]):.1f}" r="3.5"/>')
    first, last = points[0][0]["from_ns"], points[-1][0]["to_ns"]
    parts += [
        f'<text x="{left}" y="{_HEIGHT - 2}">{text(when(first))}</text>',
        f'<text x="{_WIDTH}" y="{_HEIGHT - 2}" text-anchor="end">{text(when(last))}</text>',
    ]
    return svg(_WIDTH, _HEIGHT, title or f"{name} by labels, window by window", parts)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """What came true of what was said, bin by bin; the area of a dot is its share of the rows. bins: as in the drift
    document, at least one."""
    left, top, side = 36, 8, _RELIABILITY_HEIGHT - _FOOT - 8
    base, largest = top + side, max(float(each["weight"]) for each in bins)

    def at(said: float, true: float) -> tuple[str, str]:
        return f"{left + said * side:.1f}", f"{base - true * side:.1f}"

    parts = [f'<line class="axis" x1="{left}" y1="{y}" x2="{left + side}" y2="{y}"/>' for y in (base, base - side)]
    parts += [f'<line class="floor" x1="{left}" y1="{base}" x2="{left + side}" y2="{top}"/>']
    for value in (0.0, 0.5, 1.0):
        x, y = at(value, value)
        parts.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{value:g}</text>')
        parts.append(f'<text x="{x}" y="{base + 13}" text-anchor="middle">{value:g}</text>')
    line = " ".join(",".join(at(each["predicted"], each["observed"])) for each in bins)
    parts.append(f'<polyline class="line c1" points="{line}"/>')
    for each in bins:
        x, y = at(each["predicted"], each["observed"])
        parts.append(f'<circle class="now" cx="{x}" cy="{y}" r="{1.5 + 3.5 * (each["weight"] / largest) ** 0.5:.1f}"/>')
    return svg(left + side + _DOT, _RELIABILITY_HEIGHT, "chance said, and share that came true", parts)


def _numbers(shown: Histogram, title: str) -> str:
    top = max(*shown.reference, *shown.current, 1e-9)
    base, width = _HEIGHT - _FOOT, _WIDTH / len(shown.reference)

    def outline(shares: Sequence[float]) -> str:
        corners = [f"0,{base}"]
        for index, share in enumerate(shares):
            height = f"{base - share / top * (base - 4):.1f}"
            corners += [f"{index * width:.1f},{height}", f"{(index + 1) * width:.1f},{height}"]
        return " ".join([*corners, f"{_WIDTH},{base}"])

    parts = [
        f'<polygon class="ref" points="{outline(shown.reference)}"/>',
        f'<polyline class="now" points="{outline(shown.current)}"/>',
        f'<line class="axis" x1="0" y1="{base}" x2="{_WIDTH}" y2="{base}"/>',
        f'<text x="0" y="{_HEIGHT - 3}">{number(shown.edges[0], 4)}</text>',
        f'<text x="{_WIDTH}" y="{_HEIGHT - 3}" text-anchor="end">{number(shown.edges[-1], 4)}</text>',
    ]
    return svg(_WIDTH, _HEIGHT, title, parts)


def _categories(shown: Histogram, title: str) -> str:
    top = max(*shown.reference, *shown.current, 1e-9)
    scale = (_WIDTH - _LABEL_WIDTH - 4) / top
    parts = []
    for row, (name, then, now) in enumerate(zip(shown.categories, shown.reference, shown.current, strict=True)):
        y = row * _BAR_ROW
        parts += [
            f'<text x="{_LABEL_WIDTH - 6}" y="{y + 11}" text-anchor="end">{short(name, 15)}</text>',
            f'<rect class="ref" x="{_LABEL_WIDTH}" y="{y + 1}" width="{then * scale:.1f}" height="7"/>',
            f'<rect class="now" x="{_LABEL_WIDTH}" y="{y + 8}" width="{now * scale:.1f}" height="6"/>',
        ]
    return svg(_WIDTH, _BAR_ROW * len(shown.categories), title, parts)


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A drawing of these elements, as large as it says where there is room, else smaller."""
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{text(title)}"><title>{text(title)}</title>{"".join(parts)}</svg>'
    )
