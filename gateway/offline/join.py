"""Rows of the sample log and their labels, brought together: a row waits for its label until its wait is over."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.samples.labels import Label

# Rows are written a little after their time, and labels a little after theirs.
SLACK_NS = 5 * 10**9
# A label whose row was not found is kept so long after its arrival, since the row may still be on its way to the disk.
_EARLY_NS = 60 * 10**9


@dataclass(slots=True)
class Waiting:
    """One row of a prediction. rows: of its request. plain: what the caller wants back with it; JSON can say it.

    label: the latest by arrival (arrival, value, weight), None before there is one. disputed: labels said two things.
    """

    ts_ns: int
    prediction_id: str
    row: int
    rows: int
    plain: list[Any]
    label: tuple[int, Any, float] | None = None
    disputed: bool = False


@dataclass(slots=True)
class Join:
    """Used by one thread. wait_ns: a label that arrives later after its row is too late. max_rows: that may wait.

    counts, rising: labels read, matched (the first of a row), repeated (a further one), disputed (rows with two
    different ones), late, ambiguous (the request had several rows, the label names none), unmatched (no row: not
    sampled, of another host, or no longer waited for), rows let_go (before their wait was over, for want of room).
    """

    wait_ns: int
    max_rows: int
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("read", "matched", "repeated", "disputed", "late", "ambiguous", "unmatched", "let_go"), 0
        )
    )
    _rows: dict[tuple[str, int], Waiting] = field(default_factory=dict)
    _by_age: list[tuple[int, str, int]] = field(default_factory=list)  # a heap
    _early: dict[str, list[Label]] = field(default_factory=dict)  # in order of reading
    _early_labels: int = 0

    @property
    def is_full(self) -> bool:
        return len(self._rows) >= self.max_rows

    def rows(self) -> Iterator[Waiting]:
        """All that wait."""
        return iter(self._rows.values())

    def add_row(self, row: Waiting) -> None:
        """A row of the log; one that is there already is not added again."""
        key = (row.prediction_id, row.row)
        if key in self._rows:
            return
        self._rows[key] = row
        heapq.heappush(self._by_age, (row.ts_ns, *key))
        for label in self._early.get(row.prediction_id, ()):
            if label.row == row.row or (label.row is None and row.rows == 1):
                self._early_labels -= 1
                self._put(row, label)
        if row.prediction_id in self._early:
            kept = [label for label in self._early[row.prediction_id] if label.row not in (row.row, None)]
            for label in self._early[row.prediction_id]:
                if label.row is None and row.rows != 1:
                    self._early_labels -= 1
                    self.counts["ambiguous"] += 1
            if kept:
                self._early[row.prediction_id] = kept
            else:
                del self._early[row.prediction_id]

    def add_label(self, label: Label) -> None:
        """A label of the log, in whatever order they come."""
        self.counts["read"] += 1
        row = self._rows.get((label.prediction_id, label.row or 0))
        if row is None:
            self._early.setdefault(label.prediction_id, []).append(label)
            self._early_labels += 1
            if self._early_labels > self.max_rows:
                self._forget(next(iter(self._early)))
        elif label.row is None and row.rows != 1:
            self.counts["ambiguous"] += 1
        else:
            self._put(row, label)

    def _put(self, row: Waiting, label: Label) -> None:
        if label.ts_ns - row.ts_ns > self.wait_ns:
            self.counts["late"] += 1
            return
        known = row.label
        self.counts["matched" if known is None else "repeated"] += 1
        if known is not None and known[1] != label.label and not row.disputed:
            row.disputed = True
            self.counts["disputed"] += 1
        if known is None or label.ts_ns >= known[0]:
            row.label = (label.ts_ns, label.label, 1.0 if label.weight is None else label.weight)

    def over(self, now_ns: int) -> Iterator[Waiting]:
        """The rows whose wait is over, oldest first; they are forgotten. To be called when all labels are read.

        If there are too many rows, the oldest tenth is let go before its time.
        """
        end_ns = now_ns - self.wait_ns - SLACK_NS
        surplus = len(self._rows) - self.max_rows * 9 // 10 if self.is_full else 0
        while self._by_age and (self._by_age[0][0] <= end_ns or surplus > 0):
            ts_ns, identity, number = heapq.heappop(self._by_age)
            self.counts["let_go"] += ts_ns > end_ns
            surplus -= 1
            yield self._rows.pop((identity, number))

    def forget_early(self, now_ns: int) -> None:
        """Give up labels whose row would be here by now. To be called when all rows are read."""
        for identity in list(self._early):
            if self._early[identity][0].ts_ns <= now_ns - _EARLY_NS:
                self._forget(identity)

    def _forget(self, identity: str) -> None:
        gone = len(self._early.pop(identity))
        self._early_labels -= gone
        self.counts["unmatched"] += gone

    def to_plain(self) -> dict[str, Any]:
        return {
            "counts": self.counts,
            "rows": [
                [row.ts_ns, row.prediction_id, row.row, row.rows, row.plain, row.label, row.disputed]
                for row in self._rows.values()
            ],
            "early": [label.to_line().decode() for labels in self._early.values() for label in labels],
        }

    def take(self, plain: Mapping[str, Any], labels: list[Label]) -> None:
        """Go on where to_plain was called; labels: its ``early``, read. Raises ValueError or TypeError."""
        self.counts |= plain["counts"]
        for ts_ns, identity, number, rows, own, label, disputed in plain["rows"]:
            row = Waiting(ts_ns, identity, number, rows, own, None if label is None else tuple(label), disputed)
            self._rows[identity, number] = row
            self._by_age.append((ts_ns, identity, number))
        heapq.heapify(self._by_age)
        for each in labels:
            self._early.setdefault(each.prediction_id, []).append(each)
            self._early_labels += 1
