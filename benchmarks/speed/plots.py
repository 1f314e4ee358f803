"""The plots of the page, as small SVG files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speed import against, doors
from speed.rounds import Samples, ratios

# File -> what it shows, for those who cannot see it.
ABOUT = {
    "doors.svg": "Requests per second over those of the empty app, by number of connections",
    "peers.svg": "Requests per second of this gateway over those of each peer, iris, 32 connections",
    "connections.svg": "Requests per second of this gateway over those of each peer, iris, by number of connections",
}
_INCHES = (7.0, 3.6)
_STYLE: dict[Any, Any] = {"svg.hashsalt": "sluicegate", "svg.fonttype": "none", "font.size": 9,
          "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}  # fmt: skip


def draw(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw what there are results for; returns the names of the files. Without matplotlib, keep what is there."""
    try:
        import matplotlib
    except ImportError:
        return [name for name in ABOUT if (folder / name).exists()]
    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in _PLOTS.items():
        with matplotlib.rc_context(_STYLE):
            figure, axes = pyplot.subplots(figsize=_INCHES)
            if plot(axes, results):
                figure.savefig(folder / name, metadata={"Date": None})
                drawn.append(name)
            pyplot.close(figure)
    return drawn


def _doors(axes: Any, results: Mapping[str, Any]) -> bool:
    series: Mapping[str, Samples] = results.get("doors", {}).get("series", {})
    for name in (doors.HOT, doors.FOREST, doors.IRIS):
        found = {
            count: ratios(series.get(f"{name}@{count}", []), series.get(f"{doors.EMPTY}@{count}", []), "requests_per_s")
            for count in doors.CONNECTIONS
        }
        _line(axes, name, {count: of_count for count, of_count in found.items() if of_count})
    axes.axhline(1.0, color="grey", linewidth=1, label="empty app on bare uvicorn")
    axes.set_ylim(bottom=0)
    _finish(axes, "requests/s over the empty app")
    return bool(series)


def _peers(axes: Any, results: Mapping[str, Any]) -> bool:
    found = _leads(results, against.FULL)
    names = sorted(found, key=lambda name: statistics.median(found[name]), reverse=True)
    middles = [statistics.median(found[name]) for name in names]
    errors = [[middle - min(found[name]) for name, middle in zip(names, middles, strict=True)],
              [max(found[name]) - middle for name, middle in zip(names, middles, strict=True)]]  # fmt: skip
    axes.barh(names, middles, xerr=errors, color="#4c78a8", ecolor="#333333", capsize=2, height=0.6)
    for index, (name, middle) in enumerate(zip(names, middles, strict=True)):
        axes.annotate(f"{middle:.1f}x", (max(found[name]), index), xytext=(4, 0), textcoords="offset points",
                      va="center")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1.0, color="grey", linewidth=1)
    axes.set_xlabel("requests/s of this gateway over the peer's, iris, 32 connections (log scale)")
    axes.margins(x=0.15)
    return bool(names)


def _connections(axes: Any, results: Mapping[str, Any]) -> bool:
    by_count = {count: _leads(results, count) for count in doors.CONNECTIONS}
    names = [*dict.fromkeys(name for leads in by_count.values() for name in leads)]
    for name in names:
        _line(axes, name, {count: leads[name] for count, leads in by_count.items() if name in leads})
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(1.0, color="grey", linewidth=1, label="equal")
    _finish(axes, "requests/s over the peer's (log scale)")
    return bool(names)


def _leads(results: Mapping[str, Any], connections: int) -> dict[str, list[float]]:
    """Ratios by the title of the peer."""
    found: dict[str, list[float]] = {}
    for peer in results.get("peers", {}).get("peers", {}).values():
        series = peer.get("places", {}).get(f"iris@{connections}", {}).get("series", {})
        over = ratios(series.get(against.OURS, []), series.get(against.THEIRS, []), "requests_per_s")
        if over:
            found[peer["title"]] = over
    return found


def _line(axes: Any, name: str, found: Mapping[int, list[float]]) -> None:
    """Medians by number of connections, with the lowest and the highest."""
    middles = [statistics.median(of_count) for of_count in found.values()]
    errors = [[middle - min(of_count) for middle, of_count in zip(middles, found.values(), strict=True)],
              [max(of_count) - middle for middle, of_count in zip(middles, found.values(), strict=True)]]  # fmt: skip
    places = [str(count) for count in found]
    axes.errorbar(places, middles, yerr=errors, marker="o", capsize=3, linewidth=1.5, label=name)


def _finish(axes: Any, what: str) -> None:
    axes.set_xlabel("connections")
    axes.set_ylabel(what)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


_PLOTS: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "doors.svg": _doors,
    "peers.svg": _peers,
    "connections.svg": _connections,
}
