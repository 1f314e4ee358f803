"""What a column looked like in some time, in a few KB however many rows there were: quantiles, categories, missing.

The quantiles are those of a KLL sketch, the categories those of a frequent-items sketch, both of Apache DataSketches.
"""

from __future__ import annotations

import random
import struct
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasketches
import numpy as np
import orjson

from gateway.offline.course import QUANTILES
from gateway.offline.rows import Rows, Shape
from gateway.tensors import Array

SCHEMA = 1

# Accuracy of the quantiles: about 1.3 % of the rows, for some 600 values that are kept.
_K = 200
# Values that 32 bits hold without a loss, as the rows have them by then.
_SHORT = frozenset(("FP16", "BF16", "FP32"))

# From so many rows at once on a sorted column is thinned out to between so many values and twice as many.
_MIN_THINNED_ROWS = 800
_THINNED_ROWS = 200

# Categories of a column that are counted exactly (3/4 of 2 to this power); of more, the frequent ones nearly so.
_LG_CATEGORIES = 8
# Of one chunk so many categories at most are looked at, the most frequent ones.
_CHUNK_CATEGORIES = 256
_CATEGORY_LETTERS = 100

# The format of a KLL sketch: integers before the levels, version of the format, family, no flags; smallest level.
_FULL, _VERSION, _FAMILY, _NO_FLAGS, _M = 5, 1, 15, 0, 8


def rank_error() -> float:
    """How far the rank of a quantile is off at most, as a share of the rows, in 99 of 100 columns."""
    return float(datasketches.kll_floats_sketch.get_normalized_rank_error(_K, False))


class NumberSketch:
    """missing: rows without a value; they are not in the sketch. Values are float32 if *datatype* says that this is
    enough, else float64."""

    def __init__(self, datatype: str) -> None:
        self.precision = np.dtype("<f4" if datatype in _SHORT else "<f8")
        self._kind = datasketches.kll_floats_sketch if datatype in _SHORT else datasketches.kll_doubles_sketch
        self._sketch = self._kind(_K)
        self.missing = 0

    @property
    def rows(self) -> int:
        return int(self._sketch.n) + self.missing

    def add(self, ordered: Array, missing: int, dice: random.Random) -> None:
        """ordered: the present values of some rows in this sketch's precision, the smallest first.

        The sketch takes its values one by one, which costs more than all else that the monitor does to them. So of many
        only each 2nd, 4th, ... is taken, from one on that is drawn, and stands for as many: a compaction as the sketch
        makes them itself, of more values at once and therefore closer.
        """
        self.missing += missing
        left = len(ordered)
        if left >= _MIN_THINNED_ROWS:
            level = (left // _THINNED_ROWS).bit_length() - 1
            left %= 1 << level
            whole = ordered[: len(ordered) - left]
            thinned = whole[dice.randrange(1 << level) :: 1 << level]
            self._sketch.merge(self._kind.deserialize(_image(thinned, level, whole[[0, -1]])))
        if left:
            self._sketch.update(ordered[len(ordered) - left :])

    def merge(self, other: NumberSketch) -> None:
        self.missing += other.missing
        self._sketch.merge(other._sketch)

    def quantiles(self) -> tuple[float, ...]:
        """The QUANTILES of the present values; empty if there are none."""
        return () if self._sketch.is_empty() else tuple(self._sketch.get_quantiles(QUANTILES, True))

    def to_plain(self) -> dict[str, Any]:
        return {"missing": self.missing, "sketch": b64encode(self._sketch.serialize()).decode()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        self.missing = plain["missing"]
        self._sketch = self._kind.deserialize(b64decode(plain["sketch"]))


class CategorySketch:
    """missing: rows without a category. Categories are told apart by their first 100 letters."""

    def __init__(self) -> None:
        self._sketch = datasketches.frequent_strings_sketch(_LG_CATEGORIES)
        self._others = 0  # rows whose category was not looked at
        self.missing = 0

    @property
    def rows(self) -> int:
        return int(self._sketch.total_weight) + self._others + self.missing

    def add(self, texts: Array) -> None:
        """texts: of some rows; None is missing."""
        counts = Counter(texts.tolist())
        self.missing += counts.pop(None, 0)
        frequent = counts.most_common(_CHUNK_CATEGORIES) if len(counts) > _CHUNK_CATEGORIES else counts.items()
        looked_at = 0
        for category, rows in frequent:
            self._sketch.update(category[:_CATEGORY_LETTERS], rows)
            looked_at += rows
        self._others += counts.total() - looked_at

    def merge(self, other: CategorySketch) -> None:
        self.missing += other.missing
        self._others += other._others
        self._sketch.merge(other._sketch)

    def counts(self) -> dict[str, int]:
        """How many rows each category had at least, of those that are still known; exact of few categories."""
        kind = datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES
        return {category: lower for category, _estimate, lower, _upper in self._sketch.get_frequent_items(kind)}

    def to_plain(self) -> dict[str, Any]:
        sketch = b64encode(self._sketch.serialize()).decode()
        return {"missing": self.missing, "others": self._others, "sketch": sketch}

    def restore(self, plain: Mapping[str, Any]) -> None:
        self.missing, self._others = plain["missing"], plain["others"]
        self._sketch = datasketches.frequent_strings_sketch.deserialize(b64decode(plain["sketch"]))


class Sketches:
    """All columns of *shape* over one time. Used by one thread."""

    def __init__(self, shape: Shape) -> None:
        self.rows = 0
        self.numbers = [NumberSketch(field.datatype) for field in shape if field.kind == "numeric"]
        self.categories = [CategorySketch() for field in shape if field.kind != "numeric"]

    def add(self, rows: Rows, dice: random.Random) -> None:
        """Count rows of this shape."""
        self.rows += len(rows)
        missing = np.count_nonzero(np.isnan(rows.numbers), axis=1)
        for precision in {sketch.precision for sketch in self.numbers}:
            places = [place for place, sketch in enumerate(self.numbers) if sketch.precision == precision]
            ordered = rows.numbers[places].astype(precision)
            ordered.sort(axis=1)  # NaN comes last
            for place, values in zip(places, ordered, strict=True):
                absent = int(missing[place])
                self.numbers[place].add(values[: len(values) - absent], absent, dice)
        for category, texts in zip(self.categories, rows.texts, strict=True):
            category.add(texts)

    def merge(self, other: Sketches) -> None:
        """Count what *other*, of the same shape, has counted."""
        self.rows += other.rows
        for number, more in zip(self.numbers, other.numbers, strict=True):
            number.merge(more)
        for category, others in zip(self.categories, other.categories, strict=True):
            category.merge(others)

    def columns(self) -> list[NumberSketch | CategorySketch]:
        """Numbers first."""
        return [*self.numbers, *self.categories]

    def to_bytes(self) -> bytes:
        columns = [sketch.to_plain() for sketch in self.columns()]
        return orjson.dumps({"schema": SCHEMA, "rows": self.rows, "columns": columns})


def sketches_of(content: bytes, shape: Shape) -> Sketches:
    """The inverse of Sketches.to_bytes. Raises ValueError if it is no such thing."""
    found = Sketches(shape)
    try:
        plain = orjson.loads(content)
        if plain["schema"] != SCHEMA:
            raise ValueError(f"schema is {plain['schema']!r}, not {SCHEMA}")
        found.rows = plain["rows"]
        for sketch, column in zip(found.columns(), plain["columns"], strict=True):
            sketch.restore(column)
    except (KeyError, TypeError, RuntimeError, IndexError) as error:  # the library's own are RuntimeErrors
        raise ValueError(f"no sketches: {error}") from error
    return found


def _image(values: Array, level: int, ends: Array) -> bytes:
    """A KLL sketch, as the library writes it, of ordered *values* that stand for 2^level values each.

    ends: the smallest and the largest of all. At most 400 values at a level of 2 or more: they have room there.
    """
    first = _CAPACITY[level + 1] - len(values)
    head = struct.pack(
        "<BBBBHBBQHBB", _FULL, _VERSION, _FAMILY, _NO_FLAGS, _K, _M, 0, len(values) << level, _K, level + 1, 0
    )
    return b"".join((head, struct.pack("<I", first) * (level + 1), ends.tobytes(), values.tobytes()))


def _capacity(levels: int) -> int:
    """Values that a KLL sketch of so many levels has room for: each level for 2/3 of the next, but for _M at least."""
    rooms = ((((_K << 1) << depth) // 3**depth + 1) >> 1 for depth in range(levels))
    return sum(max(_M, room) for room in rooms)


_CAPACITY: Sequence[int] = [_capacity(levels) for levels in range(62)]
