"""Where one window of rows ends and the next begins: by count or by time, each row in one window only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gateway.offline.rows import Drawn, Rows, Shape, no_rows, together

# While a backlog is read, the files of several workers come one after the other. So much is held back until all is
# read, so that rows find their place in time: windows by count, and windows by time.
_BACKLOG_WINDOWS = 4
_BACKLOG_PERIODS = 48
# A window by time ends this long after its last moment: workers write their rows within a second.
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Cut:
    """The rows of one finished window, oldest first. rows_seen: how many there were; more than are here if the bound
    was reached, and then those here were drawn at random."""

    rows: Rows
    rows_seen: int


@dataclass(slots=True)
class Uncut:
    """The rows of one version that are in no finished window yet.

    limit_rows: a window by count has so many rows; one by time keeps at most so many. window_ns: length of a window by
    time; 0 cuts by count. Windows by time begin at multiples of their length since 1970. ended_ns: rows before it are
    late, and in no window; late_rows counts them. Holds at most 4 * limit_rows rows by count, 49 * 2 * limit_rows by
    time while a backlog is read, two windows otherwise; and what was added since `cut` was called.
    """

    limit_rows: int
    window_ns: int = 0
    ended_ns: int = 0
    late_rows: int = 0
    _by_count: list[Rows] = field(default_factory=list)
    _periods: dict[int, Drawn] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)

    def add(self, rows: Rows) -> None:
        """All rows that are ever added have one shape."""
        is_late = rows.ts_ns < self.ended_ns
        if late_rows := int(np.count_nonzero(is_late)):
            self.late_rows += late_rows
            rows = rows.taken(~is_late)
        if not len(rows):
            return
        if not self.window_ns:
            self._by_count.append(rows)
            return
        periods = rows.ts_ns // self.window_ns
        for period in np.unique(periods).tolist():
            own = rows.taken(periods == period)
            self._periods.setdefault(period, Drawn(self.limit_rows)).add(own)
            self._seen[period] = self._seen.get(period, 0) + len(own)

    def cut(self, now_ns: int, *, is_all_read: bool) -> Iterator[Cut]:
        """Take out the windows that are finished, oldest first.

        now_ns: Unix time. is_all_read: nothing older is still to be read.
        """
        if not self.window_ns:
            yield from self._cut_by_count(1 if is_all_read else _BACKLOG_WINDOWS)
            return
        # By our clock, not by the newest row's: one that is far ahead must not end everybody's windows.
        over = (now_ns - int(GRACE_S * 1e9)) // self.window_ns
        while self._periods:
            period = min(self._periods)
            if not (is_all_read and period < over) and len(self._periods) <= _BACKLOG_PERIODS:
                return
            rows, seen = self._periods.pop(period).rows().drawn(self.limit_rows), self._seen.pop(period)
            self.ended_ns = (period + 1) * self.window_ns
            yield Cut(rows.in_order(), seen)

    def _cut_by_count(self, windows: int) -> Iterator[Cut]:
        if sum(map(len, self._by_count)) < windows * self.limit_rows:
            return
        rows, start, cuts = together(self._by_count).in_order(), 0, []
        while len(rows) - start >= windows * self.limit_rows:
            cuts.append(Cut(rows.part(start, start + self.limit_rows), self.limit_rows))
            start += self.limit_rows
        self._by_count = [rows.part(start, len(rows))] if start < len(rows) else []
        yield from cuts

    def rows(self, shape: Shape = ()) -> Rows:
        """All that are held; of *shape* if there are none."""
        parts = [*self._by_count, *(drawn.rows() for drawn in self._periods.values())]
        return together(parts) if parts else no_rows(shape)

    def seen(self) -> list[tuple[int, int]]:
        """(period, rows that there were) of each window by time that is not finished."""
        return list(self._seen.items())

    def restore(self, rows: Rows, seen: Sequence[tuple[int, int]]) -> None:
        """Take back what `rows` and `seen` gave."""
        self.add(rows)
        if self.window_ns:
            self._seen.update({period: count for period, count in seen if period in self._periods})
