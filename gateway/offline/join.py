"""Rows of the sample log and their labels, brought together: a row waits for its label until its wait is over."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.samples.labels import Label

# Rows are written a little after their time, and labels a little after theirs.
SLACK_NS = 5 * 10**9
# A label whose row was not found is kept so long after its arrival, since the row may still be on its way to the disk.
_EARLY_NS = 60 * 10**9

_Key = tuple[str, int]  # prediction id, row of its request


@dataclass(slots=True)
class Waiting:
    """One row of a prediction. rows: of its request. plain: what the caller wants back with it; JSON can say it.

    label: the latest by arrival (arrival, value, weight), None before there is one. disputed: labels said two things.
    """

    ts_ns: int
    prediction_id: str
    row: int
    rows: int
    plain: Sequence[Any]
    label: tuple[int, Any, float] | None = None
    disputed: bool = False


@dataclass(slots=True)
class Settled:
    """The times of predictions that wait no longer: of the newest ones, max_ids at most and no fewer than half of that.

    Two halves, of which the older is dropped when the newer is full: an id costs some 160 bytes.
    """

    max_ids: int
    _half: int = field(init=False)
    _newer: dict[str, int] = field(default_factory=dict)
    _older: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def __post_init__(self) -> None:
        self._half = max(1, self.max_ids // 2)

    def add(self, prediction_id: str, ts_ns: int) -> None:
        newer = self._newer
        if len(newer) >= self._half and prediction_id not in newer:
            self._older = newer
            newer = self._newer = {}
        newer[prediction_id] = ts_ns

    def ts_ns(self, prediction_id: str) -> int | None:
        """When it was predicted; None if it never waited, or that was too long ago."""
        found = self._newer.get(prediction_id)
        return self._older.get(prediction_id) if found is None else found

    def to_plain(self) -> list[Any]:
        return [[list(half), list(half.values())] for half in (self._older, self._newer)]

    def take(self, plain: Sequence[Any]) -> None:
        """The inverse of to_plain. Raises ValueError or TypeError."""
        self._older, self._newer = (dict(zip(ids, times, strict=True)) for ids, times in plain)


@dataclass(slots=True)
class Join:
    """Used by one thread. wait_ns: a label that arrives later after its row is too late. max_rows: that may wait.

    counts, rising: labels read, matched (the first of a row), repeated (a further one), disputed (rows with two
    different ones), late (also those of rows that wait no longer, as long as their ids are known), ambiguous (the
    request had several rows, the label names none), unmatched (no row: not sampled, of another host, or forgotten),
    rows let_go (before their wait was over, for want of room).
    """

    wait_ns: int
    max_rows: int
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("read", "matched", "repeated", "disputed", "late", "ambiguous", "unmatched", "let_go"), 0
        )
    )
    _settled: Settled = field(init=False)
    _rows: dict[_Key, Waiting] = field(default_factory=dict)
    # By age, with their keys: most rows come in the order of their time, the others are in a heap.
    _in_order: deque[tuple[int, _Key]] = field(default_factory=deque)
    _stragglers: list[tuple[int, _Key]] = field(default_factory=list)
    _early: dict[str, list[Label]] = field(default_factory=dict)  # in order of reading
    _early_labels: int = 0

    def __post_init__(self) -> None:
        self._settled = Settled(self.max_rows)

    @property
    def is_full(self) -> bool:
        return len(self._rows) >= self.max_rows

    def rows(self) -> Iterator[Waiting]:
        """All that wait."""
        return iter(self._rows.values())

    def add_row(self, row: Waiting) -> None:
        """A row of the log; one that is there already is not added again."""
        ts_ns, in_order = row.ts_ns, self._in_order
        key = (row.prediction_id, row.row)
        if self._rows.setdefault(key, row) is not row:
            return
        if in_order and ts_ns < in_order[-1][0]:
            heapq.heappush(self._stragglers, (ts_ns, key))
        else:
            in_order.append((ts_ns, key))
        if row.prediction_id in self._early:
            self._take_early(row)

    def _take_early(self, row: Waiting) -> None:
        """Give a row the labels that were read before it."""
        kept = []
        for label in self._early.pop(row.prediction_id):
            if label.row is not None and label.row != row.row:
                kept.append(label)
                continue
            self._early_labels -= 1
            if label.row is None and row.rows != 1:
                self.counts["ambiguous"] += 1
            else:
                self._put(row, label)
        if kept:
            self._early[row.prediction_id] = kept

    def add_label(self, label: Label) -> None:
        """A label of the log, in whatever order they come."""
        self.counts["read"] += 1
        row = self._rows.get((label.prediction_id, label.row or 0))
        if row is None:
            predicted_ns = self._settled.ts_ns(label.prediction_id)
            if predicted_ns is not None and label.ts_ns - predicted_ns > self.wait_ns:
                self.counts["late"] += 1
                return
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
        """The rows whose wait is over, oldest first; of these only the ids are kept. To be called when all labels are
        read.

        If there are too many rows, the oldest tenth is let go before its time.
        """
        end_ns = now_ns - self.wait_ns - SLACK_NS
        surplus = len(self._rows) - self.max_rows * 9 // 10 if self.is_full else 0
        in_order, stragglers, settle = self._in_order, self._stragglers, self._settled.add
        while in_order or stragglers:
            is_straggler = bool(stragglers) and (not in_order or stragglers[0] < in_order[0])
            ts_ns, key = stragglers[0] if is_straggler else in_order[0]
            if ts_ns > end_ns:
                if surplus <= 0:
                    return
                self.counts["let_go"] += 1
            surplus -= 1
            if is_straggler:
                heapq.heappop(stragglers)
            else:
                in_order.popleft()
            settle(key[0], ts_ns)
            yield self._rows.pop(key)

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
            "settled": self._settled.to_plain(),
        }

    def take(self, plain: Mapping[str, Any], labels: list[Label]) -> None:
        """Go on where to_plain was called; labels: its ``early``, read. Raises ValueError or TypeError."""
        self.counts |= plain["counts"]
        for ts_ns, identity, number, rows, own, label, disputed in plain["rows"]:
            row = Waiting(ts_ns, identity, number, rows, own, None if label is None else tuple(label), disputed)
            self._rows[identity, number] = row
        self._in_order.extend(sorted((row.ts_ns, key) for key, row in self._rows.items()))
        self._settled.take(plain.get("settled", ([(), ()], [(), ()])))
        for each in labels:
            self._early.setdefault(each.prediction_id, []).append(each)
            self._early_labels += 1
