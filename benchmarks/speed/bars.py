"""The bars that the gateway has set itself, and what was measured beside each. A bar is never moved to be met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from speed import against, doors, features, open_loop, rows, start
from speed.rounds import Samples, ratios, values

Parts = Mapping[str, Any]
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise and what was measured of it, a value per round. goal: what is reached for beyond the bar."""

    number: str
    what: str
    values: list[float]
    limit: float
    at_least: bool
    goal: float | None = None
    unit: str = "x"
    strict: bool = False  # the limit itself does not do

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def is_met(self) -> bool | None:
        """None where nothing was measured."""
        median = self.median
        if median is None:
            return None
        if self.strict:
            return median > self.limit if self.at_least else median < self.limit
        return median >= self.limit if self.at_least else median <= self.limit

    @property
    def missed_by(self) -> float:
        """How far the median is on the wrong side, as a share of the limit."""
        assert self.median is not None
        return abs(self.median - self.limit) / self.limit


def all_of(parts: Parts) -> list[Bar]:
    """Every bar; those whose part was not measured have no values."""
    return [*_doors(parts), *_peers(parts), *_rows(parts), *_features(parts), *_open_loop(parts), *_start(parts)]


def _series(parts: Parts, part: str) -> Callable[[str], Samples]:
    found: Mapping[str, Samples] = parts.get(part, {}).get("series", {})
    return lambda name: found.get(name, [])


def _doors(parts: Parts) -> list[Bar]:
    of = _series(parts, "doors")

    def over_empty(name: str, connections: int, figure: str) -> list[float]:
        return ratios(of(f"{name}@{connections}"), of(f"{doors.EMPTY}@{connections}"), figure)

    def rate(name: str) -> list[float]:
        return over_empty(name, doors.FULL, "requests_per_s")

    def p50(name: str) -> list[float]:
        return over_empty(name, doors.ALONE, "p50_ms")

    full = f"requests/s over the empty app, {doors.FULL} connections"
    return [
        Bar("1", f"iris, cache off: {full}", rate(doors.IRIS), 1.4, True, 1.7),
        Bar("2", f"iris, hot row from the cache: {full}", rate(doors.HOT), 1.7, True, 2.4),
        Bar("3", f"forest of 100 trees, cache off: {full}", rate(doors.FOREST), 1.2, True, 1.5),
        Bar("4", "iris, cache off: p50 over the empty app's, one connection", p50(doors.IRIS), 1.25, False, 1.1),
        Bar("4", "iris, hot row: p50 over the empty app's, one connection", p50(doors.HOT), 1.0, False, 0.8),
    ]


def _peers(parts: Parts) -> list[Bar]:
    found: Mapping[str, Any] = parts.get("peers", {}).get("peers", {})
    bars = []
    for name, leads in against.LEADS.items():
        peer = found.get(name, {})
        title = peer.get("title", name)
        places: Mapping[str, Any] = peer.get("places", {})

        def over(place: str, figure: str, places: Mapping[str, Any] = places) -> list[float]:
            series = places.get(place, {}).get("series", {})
            return ratios(series.get(against.OURS, []), series.get(against.THEIRS, []), figure)

        for place, lead in leads.items():
            model, _, count = place.partition("@")
            what = f"{model}: requests/s over {title}, {count} connections"
            bars.append(Bar("5", what, over(place, "requests_per_s"), lead, True))
        bars.append(Bar("5", f"iris: p99 over {title}'s, 32 connections", over("iris@32", "p99_ms"), 1.0, False,
                        strict=True))  # fmt: skip
        for connections in (1, 24, 128):
            at = f"{connections} connection{'s' * (connections > 1)}"
            rates, p99s = (over(f"iris@{connections}", figure) for figure in ("requests_per_s", "p99_ms"))
            bars.append(Bar("5", f"iris: requests/s over {title}, {at}", rates, 1.0, True, strict=True))
            bars.append(Bar("5", f"iris: p99 over {title}'s, {at}", p99s, 1.0, False, strict=True))
    return bars


def _rows(parts: Parts) -> list[Bar]:
    of = _series(parts, "rows")
    limits = {rows.MLP_ONE: (0.30, 0.5), rows.MLP_BINARY: (0.80, 0.9), rows.FOREST_JSON: (0.40, 0.55)}
    return [
        Bar("6", f"{name} requests: rows/s over a bare ONNX Runtime loop",
            ratios(of(name), of(rows.LOOP.format(rows.MODEL_OF[name])), "rows_per_s"), limit, True, goal)
        for name, (limit, goal) in limits.items()
    ]  # fmt: skip


def _features(parts: Parts) -> list[Bar]:
    of = _series(parts, "features")

    def over(own: str, other: str) -> list[float]:
        return ratios(of(own), of(other), "cpu_us")

    return [
        Bar("7", "all features on over all off: CPU per request", over(features.ON, features.OFF), 1.18, False, 1.08),
        Bar("8", "unique rows with the cache on over cache off: CPU per request", over(features.UNIQUE, features.ON),
            1.04, False, 1.01),
        Bar("9", "two workers over one, both on one core: CPU per request", over(features.TWO, features.ON), 1.10,
            False, 1.03),
    ]  # fmt: skip


def _open_loop(parts: Parts) -> list[Bar]:
    p99 = values(_series(parts, "poisson")(open_loop.IRIS), "p99_ms")
    return [Bar("10", "iris, open loop at half of the peak: p99", p99, 3.0, False, 1.0, unit=" ms")]


def _start(parts: Parts) -> list[Bar]:
    of = _series(parts, "start")

    def megabytes(name: str) -> list[float]:
        return [value / _MB for value in values(of(name), "rss_bytes")]

    return [
        Bar("11", "a worker with iris loaded: resident memory", megabytes(start.WORKER), 110, False, 90, unit=" MB"),
        Bar("11", "the same after a second of load", megabytes(start.LOADED), 110, False, 90, unit=" MB"),
        Bar("11", "a worker's start to its first right answer", values(of(start.WORKER), "start_s"), 1.0, False, 0.6,
            unit=" s"),
        Bar("11", "`sluicegate serve` to the first right answer", values(of(start.SERVE), "start_s"), 1.0, False, 0.6,
            unit=" s"),
    ]  # fmt: skip
