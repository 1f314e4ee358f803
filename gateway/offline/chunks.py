"""Blocks of the sample log as columns: of its lines here, of its Parquet files in `batches`; only rows drawn at random.

A line that is no sample costs nothing but itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import orjson

from gateway.offline.reference import count_no_numbers, is_no_number, values_of
from gateway.offline.rows import Field, Rows, Shape, objects
from gateway.samples.record import RANDOM, SCHEMA
from gateway.tensors import Array


class Columns(Protocol):
    def numbers(self, field: Field) -> tuple[Array, Array | None]:
        """Values as `reference.values_of` gives them, and which of them should have been numbers; None if none is."""
        ...

    def texts(self, field: Field) -> Array:
        """Values as `reference.values_of` gives them."""
        ...

    def plain(self, name: str) -> Sequence[Any] | None:
        """Values of a name of the log, ``rows`` or ``outputs.label``, as lines say them, null where there is none; None
        if they are not at hand as a column."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one package in the order of the log: at least one.

    ts_ns, row: int64 [n]; ids: texts [n]. routes: pairs of variant and reason, None where a row does not say; route:
    which of them each row has, int [n].
    """

    model: str
    version: str
    digest: str
    ts_ns: Array
    ids: Array
    row: Array
    routes: Sequence[tuple[str | None, str | None]]
    route: Array
    columns: Columns

    def __len__(self) -> int:
        return len(self.ts_ns)

    def rows(self, shape: Shape) -> Rows:
        """With the columns of *shape*; a value that a row does not have is missing."""
        rows = len(self)
        numeric = [field for field in shape if field.kind == "numeric"]
        others = [field for field in shape if field.kind != "numeric"]
        numbers = np.empty((len(numeric), rows))
        wrong = np.zeros((len(numeric), rows), dtype=np.bool_)
        texts = np.empty((len(others), rows), dtype=object)
        for place, field in enumerate(numeric):
            numbers[place], which = self.columns.numbers(field)
            if which is not None:
                wrong[place] = which
        for place, field in enumerate(others):
            texts[place] = self.columns.texts(field)
        return Rows(shape, self.ts_ns, self.ids, self.row, numbers, wrong, texts)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a block held. bad_lines: those that are no samples. records: what the chunks were made of, if that is
    decoded lines."""

    chunks: Sequence[Chunk]
    bad_lines: int
    records: Sequence[Mapping[str, Any]] = ()


def of_lines(block: bytes) -> Taken:
    """The rows of some whole lines, of whatever packages."""
    lines = block.splitlines()
    try:
        found = list(map(orjson.loads, lines))
    except ValueError:
        found = [_decoded(line) for line in lines]
    records, bad_lines = [], 0
    for record in found:
        try:
            if record["schema"] != SCHEMA:
                bad_lines += 1
            elif record["sample_reason"] == RANDOM:
                _check(record)
                records.append(record)
        except (KeyError, TypeError, AttributeError):
            bad_lines += 1
    return Taken([_chunk(list(group), *key) for key, group in groupby(records, _package)], bad_lines, records)


def _decoded(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        return None


def _check(record: dict[str, Any]) -> None:
    """Raises KeyError or TypeError if it is no row that could be compared."""
    texts = record["model"], record["version"], record["digest"], record["prediction_id"]
    ts_ns, row = record["ts_ns"], record["row"]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("model, version, digest and prediction_id must be texts")
    if not (isinstance(ts_ns, int) and isinstance(row, int) and max(abs(ts_ns), abs(row)) < 2**63):
        raise TypeError("ts_ns and row must be whole numbers")
    if not (isinstance(record["inputs"], dict) and isinstance(record["outputs"], dict)):
        raise TypeError("inputs and outputs must be objects")


def _package(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["model"], record["version"], record["digest"]


def _chunk(records: Sequence[Mapping[str, Any]], model: str, version: str, digest: str) -> Chunk:
    places: dict[tuple[str | None, str | None], int] = {}
    said = ((_text_of(record.get("variant")), _text_of(record.get("reason"))) for record in records)
    route = [places.setdefault(kind, len(places)) for kind in said]
    return Chunk(
        model,
        version,
        digest,
        np.array([record["ts_ns"] for record in records], dtype=np.int64),
        objects([record["prediction_id"] for record in records]),
        np.array([record["row"] for record in records], dtype=np.int64),
        list(places),
        np.array(route),
        _Records(records),
    )


def _text_of(value: Any) -> str | None:
    return value if isinstance(value, str) else None


class _Records:
    """Columns of decoded lines."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._groups = {
            "input": [record["inputs"] for record in records],
            "output": [record["outputs"] for record in records],
        }

    def numbers(self, field: Field) -> tuple[Array, Array | None]:
        return numbers_of(self._plain(field), field)

    def texts(self, field: Field) -> Array:
        return values_of(self._plain(field), field.kind, field.datatype)

    def plain(self, name: str) -> None:
        """A line tells what is null from what it does not have, and is at hand in Taken.records."""

    def _plain(self, field: Field) -> list[Any]:
        name = field.name
        return [group.get(name) for group in self._groups[field.role]]


def numbers_of(plain: Sequence[Any], field: Field) -> tuple[Array, Array | None]:
    """Plain values of a numeric column as `Columns.numbers` gives them."""
    wrong = None
    if count_no_numbers(plain):
        wrong = np.array([is_no_number(value) for value in plain], dtype=np.bool_)
    return values_of(plain, field.kind, field.datatype), wrong
