"""Sketches of one version by the rows' own time: the last hours of UTC, and the days that older hours become."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gateway.offline.course import Courses, Span, told
from gateway.offline.reference import Reference
from gateway.offline.rows import Rows, Shape
from gateway.offline.sketches import Sketches, rank_error

HOUR_S, DAY_S = 3600, 86_400
_HOURS_OF_A_DAY = 24

Unit = Literal["hour", "day"]
Place = tuple[Unit, int]  # which of them since 1970


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many of each are kept, by the monitor's clock: the one that goes on is among them."""

    hours: int
    days: int


class Hours:
    """Rows of one package under one version. Used by one thread.

    Each row is in one hour, or in one day if its hour is no longer kept: what is told of a day is put together from
    both. first_hour, first_day: what is older is not kept, and never will be again. changed: places that are not as
    they were when `changed` was last emptied, by who keeps them.
    """

    def __init__(self, digest: str, shape: Shape, bounds: Bounds, dice: random.Random) -> None:
        self.digest = digest
        self.shape = shape
        self.first_hour, self.first_day = 0, 0
        self.too_late_rows, self.ahead_rows = 0, 0
        self.spans: dict[Place, Sketches] = {}
        self.changed: set[Place] = set()
        self._bounds = bounds
        self._dice = dice
        self._whole_days: dict[int, Sketches] = {}  # that were put together and have not changed since

    def add(self, rows: Rows, now_s: float) -> None:
        """Count rows of this shape."""
        self.age(now_s)
        hours = rows.ts_ns // (HOUR_S * 10**9)
        for hour in np.unique(hours).tolist():
            of_hour = hours == hour
            own = rows if of_hour.all() else rows.taken(of_hour)
            if hour > now_s // HOUR_S + 1:  # a clock that is far ahead must not push out what is remembered
                self.ahead_rows += len(own)
            elif hour >= self.first_hour:
                self._span(("hour", hour)).add(own, self._dice)
            elif hour // _HOURS_OF_A_DAY >= self.first_day:
                self._span(("day", hour // _HOURS_OF_A_DAY)).add(own, self._dice)
            else:
                self.too_late_rows += len(own)

    def age(self, now_s: float) -> None:
        """Let hours that are too old become part of their day, and forget days that are too old."""
        first_hour = int(now_s // HOUR_S) - self._bounds.hours + 1
        self.first_day = max(self.first_day, int(now_s // DAY_S) - self._bounds.days + 1)
        if first_hour > self.first_hour:
            self.first_hour = first_hour
            for hour in [hour for unit, hour in self.spans if unit == "hour" and hour < first_hour]:
                self._roll_up(hour)
        for day in [day for unit, day in self.spans if unit == "day" and day < self.first_day]:
            self._forget(("day", day))

    def shrink(self) -> bool:
        """Keep less by one: the oldest hour becomes part of its day, or, if there is but one, the oldest day is
        forgotten. Returns whether there was something left to take."""
        hours = sorted(number for unit, number in self.spans if unit == "hour")
        days = sorted(number for unit, number in self.spans if unit == "day")
        if len(hours) > 1:
            self.first_hour = hours[0] + 1
            self._roll_up(hours[0])
        elif days and (hours or len(days) > 1):
            self.first_day = days[0] + 1
            self._forget(("day", days[0]))
        else:
            return False
        return True

    def courses(self, reference: Reference, effects: Mapping[str, float | None]) -> Courses | None:
        """What is told of them; None if nothing is remembered. reference: of this shape. effects: of `course.told`."""
        hours = sorted(number for unit, number in self.spans if unit == "hour")
        by_day: dict[int, list[Sketches]] = {}
        for place, sketches in self.spans.items():
            by_day.setdefault(_day_of(place), []).append(sketches)
        days = {day: self._whole_day(day, parts) for day, parts in sorted(by_day.items()) if day >= self.first_day}
        of_hours = [self.spans["hour", hour] for hour in hours]
        if not days and not hours:
            return None
        return Courses(
            rank_error(),
            self.too_late_rows,
            self.ahead_rows,
            tuple(Span(day * DAY_S, sketches.rows) for day, sketches in days.items()),
            tuple(Span(hour * HOUR_S, self.spans["hour", hour].rows) for hour in hours),
            told(reference, list(days.values()), of_hours, effects),
        )

    # -- the parts --------------------------------------------------------------------------------------

    def _whole_day(self, day: int, parts: list[Sketches]) -> Sketches:
        if len(parts) == 1:
            return parts[0]
        if day not in self._whole_days:
            whole = Sketches(self.shape)
            for part in parts:
                whole.merge(part)
            self._whole_days[day] = whole
        return self._whole_days[day]

    def _span(self, place: Place) -> Sketches:
        """The sketches of *place*, to be changed."""
        self.changed.add(place)
        self._whole_days.pop(_day_of(place), None)
        return self.spans.setdefault(place, Sketches(self.shape))

    def _roll_up(self, hour: int) -> None:
        sketches = self._forget(("hour", hour))
        day = hour // _HOURS_OF_A_DAY
        if day >= self.first_day:
            self._span(("day", day)).merge(sketches)

    def _forget(self, place: Place) -> Sketches:
        self.changed.add(place)
        self._whole_days.pop(_day_of(place), None)
        return self.spans.pop(place)


def _day_of(place: Place) -> int:
    unit, number = place
    return number if unit == "day" else number // _HOURS_OF_A_DAY
