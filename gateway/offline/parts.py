"""The Parquet files of the sample log: how they are named, which segments they took in, and reading them.

    <log>/model=M/version=V/date=YYYY-MM-DD/hour=HH/part-NNNN.parquet

holds the rows of the segments that its footer names, and of no others: a segment that still lies beside it (the
compactor was killed before it removed it) is to be passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from gateway.offline.columns import records_of
from gateway.samples.search import Found, Selection
from gateway.samples.segments import version_in

SUFFIX = ".parquet"
_NAME = re.compile(r"part-(\d{4,})\.parquet")
_FOOTER_KEY = b"sluicegate"
_FOOTER_SCHEMA = 1
# Values, and rows, that are taken into memory at once.
_BATCH_VALUES = 1 << 18
_BATCH_ROWS = 4096


class PartInvalid(ValueError):
    """A Parquet file of the log is none that this gateway reads."""


class PartDamaged(PartInvalid):
    """It is no Parquet file at all."""


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file. sources: name of each segment whose rows it has -> how many."""

    path: Path
    rows: int
    size_bytes: int
    sources: Mapping[str, int]
    schema: Any

    @property
    def number(self) -> int:
        return number_of(self.path)


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:04d}{SUFFIX}"


def number_of(path: Path) -> int:
    """The number in the name of a part; 0 if the name is not that of a part."""
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name is not None else 0


def parts_in(folder: Path) -> list[Path]:
    """The Parquet files of one hour, in the order of their numbers."""
    with suppress(FileNotFoundError):
        return sorted((path for path in folder.iterdir() if number_of(path)), key=number_of)
    return []


def footer(sources: Mapping[str, int]) -> dict[bytes, bytes]:
    """What a writer puts into the footer of a part."""
    return {_FOOTER_KEY: orjson.dumps({"schema": _FOOTER_SCHEMA, "sources": dict(sources)})}


def read_part(path: Path) -> Part:
    """Read the footer of a part. Raises PartInvalid; OSError if it is not there or cannot be read."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            found = pyarrow.parquet.read_metadata(file)
        except pyarrow.ArrowInvalid as error:
            raise PartDamaged(f"{path} is damaged: {error}") from error
    try:
        plain = orjson.loads((found.metadata or {})[_FOOTER_KEY])
        if plain["schema"] != _FOOTER_SCHEMA:
            raise ValueError(f"its footer has schema {plain['schema']!r}, not {_FOOTER_SCHEMA}")
        return Part(path, found.num_rows, size_bytes, plain["sources"], found.schema.to_arrow_schema())
    except (ValueError, KeyError, TypeError) as error:
        raise PartInvalid(f"{path} is not a file of the sample log that this gateway reads: {error}") from error


def version_of(folder: Path) -> tuple[str, str]:
    """(model, version) of an hour's folder."""
    return version_in("/".join(folder.parts[-4:]))


def tables(path: Path, *, first_row: int = 0, selection: Selection | None = None) -> Iterator[Any]:
    """The rows of a part from *first_row* on as small tables. With a *selection*, row groups that hold none of it are
    passed over. Raises OSError, ValueError.
    """
    with path.open("rb") as file:
        parquet = pyarrow.parquet.ParquetFile(file)
        ts_column = parquet.schema_arrow.get_field_index("ts_ns")
        batch_rows = min(_BATCH_ROWS, max(64, _BATCH_VALUES // len(parquet.schema_arrow)))
        for group in range(parquet.metadata.num_row_groups):
            found = parquet.metadata.row_group(group)
            if first_row >= found.num_rows:
                first_row -= found.num_rows
                continue
            if selection is not None and not _may_hold(found.column(ts_column).statistics, selection):
                continue
            for batch in parquet.iter_batches(batch_rows, row_groups=[group], use_threads=False):
                table = pyarrow.Table.from_batches([batch.slice(first_row)], parquet.schema_arrow)
                first_row = max(0, first_row - batch.num_rows)
                if table.num_rows:
                    yield table


def _may_hold(statistics: Any, selection: Selection) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    return selection.overlaps(statistics.min, statistics.max)


class Parts:
    """The Parquet files of the log as `gateway.samples.search` wants them. Used by one thread."""

    def sources(self, folder: Path) -> frozenset[str]:
        """The names of the segments of one hour whose rows are in its parts. Raises OSError, PartInvalid."""
        return frozenset(name for path in parts_in(folder) for name in read_part(path).sources)

    def select(self, folder: Path, selection: Selection) -> Iterator[Found]:
        """The wanted rows of one hour's parts. Raises OSError, ValueError."""
        for path in parts_in(folder):
            for table in tables(path, selection=selection):
                if selection.prediction_ids:
                    wanted = pyarrow.array(sorted(selection.prediction_ids))
                    table = table.filter(pyarrow.compute.is_in(table["prediction_id"], wanted))
                for record in records_of(table, *version_of(folder)):
                    if selection.takes(record):
                        yield _as_found(record)

    def newest(self, folder: Path, rows: int, selection: Selection) -> list[Found]:
        """At least the newest *rows* wanted rows of one hour's parts, if there are as many.

        Raises OSError, ValueError.
        """
        found: list[Found] = []
        for path in parts_in(folder):
            with path.open("rb") as file:
                times = pyarrow.parquet.read_table(file, columns=["ts_ns"], use_threads=False)["ts_ns"].to_numpy()
            times = times[selection.in_span(times)]
            if not len(times):
                continue
            newer = selection.from_on(int(np.partition(times, -rows)[-rows]) if rows < len(times) else int(times.min()))
            for table in tables(path, selection=newer):
                wanted = table.filter(newer.in_span(table["ts_ns"].to_numpy()))
                found.extend(_as_found(record) for record in records_of(wanted, *version_of(folder)))
        return found


def _as_found(record: dict[str, Any]) -> Found:
    return record, orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
