"""Rows of one version in memory: typed columns side by side, and no object per row but the text of its id."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gateway.offline.drift import Role
from gateway.tensors import Array, Kind

# (ts_ns, prediction id, row of the request): by it rows are ordered, and no two rows have the same one.
Key = tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class Field:
    """One feature or output, as the reference describes it."""

    role: Role
    name: str
    kind: Kind
    datatype: str


Shape = tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of the log, as far as they are compared: the columns of *shape*.

    ts_ns, row: int64 [n]. ids: texts [n]. numbers: float64 [numeric columns, n], NaN is missing; wrong: bool, alike:
    where it is missing, or was made of a text, since it was no number. texts: objects [categorical columns, n], None is
    missing. Each in the order of *shape*. lots: uint64 [n], what decides who is drawn; None until somebody asked.
    """

    shape: Shape
    ts_ns: Array
    ids: Array
    row: Array
    numbers: Array
    wrong: Array
    texts: Array
    lots: Array | None = None

    def __len__(self) -> int:
        return len(self.ts_ns)

    def __iter__(self) -> Iterator[Key]:
        """The keys of the rows."""
        return zip(self.ts_ns.tolist(), self.ids.tolist(), self.row.tolist(), strict=True)

    @property
    def size_bytes(self) -> int:
        """Of the columns, without the texts that they refer to."""
        columns = (self.ts_ns, self.ids, self.row, self.numbers, self.wrong, self.texts)
        return sum(column.nbytes for column in columns)

    def taken(self, which: Array) -> Rows:
        """The rows that *which*, places or a mask, names, as copies."""
        return Rows(
            self.shape,
            self.ts_ns[which],
            self.ids[which],
            self.row[which],
            self.numbers[:, which],
            self.wrong[:, which],
            self.texts[:, which],
            None if self.lots is None else self.lots[which],
        )

    def part(self, start: int, stop: int) -> Rows:
        """Rows *start* to *stop* as copies: a view would keep all the others in memory."""
        if stop - start >= len(self):
            return self
        return Rows(
            self.shape,
            self.ts_ns[start:stop].copy(),
            self.ids[start:stop].copy(),
            self.row[start:stop].copy(),
            self.numbers[:, start:stop].copy(),
            self.wrong[:, start:stop].copy(),
            self.texts[:, start:stop].copy(),
            None if self.lots is None else self.lots[start:stop].copy(),
        )

    def in_order(self) -> Rows:
        """The same rows, oldest first."""
        if self._is_in_order():
            return self
        in_time = self.taken(np.argsort(self.ts_ns, kind="stable"))
        if in_time._is_in_order():
            return in_time
        return self.taken(np.lexsort((self.row, self.ids, self.ts_ns)))

    def _is_in_order(self) -> bool:
        if np.any(self.ts_ns[1:] < self.ts_ns[:-1]):
            return False
        at = np.flatnonzero(self.ts_ns[1:] == self.ts_ns[:-1])
        before, after = self.ids[at], self.ids[at + 1]
        if np.any(before > after):
            return False
        return not np.any((before == after) & (self.row[at] > self.row[at + 1]))

    def values(self) -> list[tuple[Array, int]]:
        """Of each column in order: its values, and how many of them should have been numbers."""
        numbers, texts = iter(zip(self.numbers, self.wrong, strict=True)), iter(self.texts)
        found = []
        for field in self.shape:
            if field.kind == "numeric":
                values, wrong = next(numbers)
                found.append((values, int(np.count_nonzero(wrong))))
            else:
                found.append((next(texts), 0))
        return found

    def of_shape(self, shape: Shape) -> Rows | None:
        """The same rows with only the columns of *shape*; None if one is not there."""
        if not set(shape) <= set(self.shape):
            return None
        numeric = [field for field in self.shape if field.kind == "numeric"]
        others = [field for field in self.shape if field.kind != "numeric"]
        numbers = [numeric.index(field) for field in shape if field.kind == "numeric"]
        texts = [others.index(field) for field in shape if field.kind != "numeric"]
        return replace(
            self, shape=shape, numbers=self.numbers[numbers], wrong=self.wrong[numbers], texts=self.texts[texts]
        )

    def with_lots(self) -> Rows:
        """The same rows, whose lots are known."""
        if self.lots is not None:
            return self
        # Not the hash that sampling uses: of a sampled id that one is known to be small.
        lots = b"".join(
            hashlib.blake2b(f"{identity}/{row}".encode(), digest_size=8).digest()
            for identity, row in zip(self.ids.tolist(), self.row.tolist(), strict=True)
        )
        return replace(self, lots=np.frombuffer(lots, ">u8").astype(np.uint64))

    def drawn(self, limit_rows: int) -> Rows:
        """At most limit_rows of the rows, drawn at random and yet the same in whatever order they came.

        A draw from a draw and further rows is a draw from all of them.
        """
        if len(self) <= limit_rows:
            return self
        known = self.with_lots()
        assert known.lots is not None
        return known.taken(np.argsort(known.lots, kind="stable")[:limit_rows])

    def to_plain(self) -> dict[str, Any]:
        """As JSON can say it, without the shape; numbers to the last bit."""
        return {
            "ts_ns": self.ts_ns.tolist(),
            "ids": self.ids.tolist(),
            "row": self.row.tolist(),
            "numbers": b64encode(self.numbers.astype("<f8").tobytes()).decode(),
            "wrong": np.flatnonzero(self.wrong).tolist(),
            "texts": self.texts.tolist(),
        }


def rows_of(plain: Mapping[str, Any], shape: Shape) -> Rows:
    """The inverse of Rows.to_plain. Raises KeyError, TypeError or ValueError if it is no such thing."""
    ts_ns = np.array(plain["ts_ns"], dtype=np.int64)
    numeric = sum(field.kind == "numeric" for field in shape)
    numbers = np.frombuffer(b64decode(plain["numbers"]), "<f8").astype(np.float64).reshape(numeric, len(ts_ns))
    wrong = np.zeros(numbers.size, dtype=np.bool_)
    wrong[plain["wrong"]] = True
    texts = np.empty((len(shape) - numeric, len(ts_ns)), dtype=object)
    for column, values in zip(texts, plain["texts"], strict=True):
        column[:] = values
    ids, row = objects(plain["ids"]), np.array(plain["row"], dtype=np.int64)
    if not len(ts_ns) == len(ids) == len(row):
        raise ValueError("columns differ in length")
    return Rows(shape, ts_ns, ids, row, numbers, wrong.reshape(numbers.shape), texts)


def shape_of(plain: Sequence[Mapping[str, Any]]) -> Shape:
    """A shape from decoded JSON. Raises TypeError if it is none."""
    return tuple(Field(**field) for field in plain)


def no_rows(shape: Shape = ()) -> Rows:
    numeric = sum(field.kind == "numeric" for field in shape)
    return Rows(
        shape,
        np.empty(0, np.int64),
        np.empty(0, object),
        np.empty(0, np.int64),
        np.empty((numeric, 0)),
        np.empty((numeric, 0), np.bool_),
        np.empty((len(shape) - numeric, 0), object),
    )


def together(parts: Sequence[Rows]) -> Rows:
    """All rows of *parts*, of which there is one at least, one part after the other. They are of one shape."""
    if len(parts) == 1:
        return parts[0]
    lots = None
    if any(part.lots is not None for part in parts):
        lots = np.concatenate([part.with_lots().lots for part in parts])
    return Rows(
        parts[0].shape,
        np.concatenate([part.ts_ns for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.numbers for part in parts], axis=1),
        np.concatenate([part.wrong for part in parts], axis=1),
        np.concatenate([part.texts for part in parts], axis=1),
        lots,
    )


def objects(values: Sequence[Any]) -> Array:
    """A column of Python objects, whatever they are."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


class Drawn:
    """A bounded random choice of all rows that were added: at most twice *limit_rows* of them are held."""

    def __init__(self, limit_rows: int) -> None:
        self._limit_rows = limit_rows
        self._parts: list[Rows] = []
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def add(self, rows: Rows) -> None:
        """Always drawn when there are twice as many as wanted: so it is the same in whatever portions they come."""
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + 2 * self._limit_rows - self._held)
            self._parts.append(rows.part(start, stop))
            self._held += stop - start
            start = stop
            if self._held >= 2 * self._limit_rows:
                self._parts = [together(self._parts).drawn(self._limit_rows)]
                self._held = len(self._parts[0])

    def rows(self, shape: Shape = ()) -> Rows:
        """All that are held; of *shape* if there are none."""
        if not self._parts:
            return no_rows(shape)
        self._parts = [together(self._parts)]
        return self._parts[0]
