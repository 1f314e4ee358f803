"""Where one window of rows ends and the next begins: by count or by time, each row in one window only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# (ts_ns, prediction id, row of the request, the values of the columns in order)
Row = tuple[int, str, int, list[Any]]

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

    rows: Sequence[Row]
    rows_seen: int


@dataclass(slots=True)
class Uncut:
    """The rows of one version that are in no finished window yet.

    limit_rows: a window by count has so many rows; one by time keeps at most so many. window_ns: length of a window by
    time; 0 cuts by count. Windows by time begin at multiples of their length since 1970. ended_ns: rows before it are
    late, and in no window; late_rows counts them. Holds at most 4 * limit_rows rows by count, 49 * 2 * limit_rows by
    time while a backlog is read, two windows otherwise.
    """

    limit_rows: int
    window_ns: int = 0
    ended_ns: int = 0
    late_rows: int = 0
    _periods: dict[int, list[Row]] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        if row[0] < self.ended_ns:
            self.late_rows += 1
            return
        period = row[0] // self.window_ns if self.window_ns else 0
        rows = self._periods.setdefault(period, [])
        rows.append(row)
        self._seen[period] = self._seen.get(period, 0) + 1
        if self.window_ns and len(rows) >= 2 * self.limit_rows:
            self._periods[period] = drawn(rows, self.limit_rows)

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
            rows, seen = drawn(self._periods.pop(period), self.limit_rows), self._seen.pop(period)
            self.ended_ns = (period + 1) * self.window_ns
            rows.sort(key=lambda row: row[:3])
            yield Cut(rows, seen)

    def _cut_by_count(self, windows: int) -> Iterator[Cut]:
        rows = self._periods.get(0, [])
        if len(rows) < windows * self.limit_rows:
            return
        rows.sort(key=lambda row: row[:3])
        while len(rows) >= windows * self.limit_rows:
            taken = rows[: self.limit_rows]
            del rows[: self.limit_rows]
            yield Cut(taken, self.limit_rows)

    def rows(self) -> list[Row]:
        return [row for rows in self._periods.values() for row in rows]

    def seen(self) -> list[tuple[int, int]]:
        """(period, rows that there were) of each window that is not finished."""
        return list(self._seen.items())

    def restore(self, rows: Sequence[Row], seen: Sequence[tuple[int, int]]) -> None:
        """Take back what `rows` and `seen` gave."""
        for row in rows:
            self.add(row)
        if self.window_ns:
            self._seen.update({period: count for period, count in seen if period in self._periods})


def drawn(rows: list[Row], limit_rows: int) -> list[Row]:
    """At most limit_rows of *rows*, drawn at random and yet the same in whatever order they came.

    A draw from a draw and further rows is a draw from all of them.
    """
    return rows if len(rows) <= limit_rows else sorted(rows, key=_lot)[:limit_rows]


def _lot(row: Row) -> bytes:
    # Not the hash that sampling uses: of a sampled id that one is known to be small.
    return hashlib.blake2b(f"{row[1]}/{row[2]}".encode(), digest_size=8).digest()
