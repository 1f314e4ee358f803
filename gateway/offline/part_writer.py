"""Writes rows of segments into a Parquet file that has no name yet, and the lines that are no rows beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from gateway.offline.columns import Kinds, read_lines, schema_of, table_of, values_by_name
from gateway.offline.parts import Part, footer, tables, version_of
from gateway.offline.usual_lines import UsualLines
from gateway.samples.segments import CLOSED

log = logging.getLogger(__name__)

REJECTED = ".rejected"

# What is held in memory at once: lines as text, rows as Arrow columns.
_READ_BYTES = 4 * 1024 * 1024
_GROUP_ROWS = 32_768
_GROUP_BYTES = 32 * 1024 * 1024

GoOn = Callable[[], bool]


class Abandoned(Exception):
    """The caller does not want this to go on."""


@dataclass(slots=True)
class Written:
    """What was written: segment name -> rows, segment name -> lines that were no rows."""

    rows: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)


def read_segment(path: Path) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """(whole lines, a torn last one) of a segment, some MiB at a time."""
    with path.open("rb") as file:
        while lines := file.readlines(_READ_BYTES):
            torn = [] if lines[-1].endswith(b"\n") else [lines.pop()]
            yield lines, torn


def write_part(partial: Path, kinds: Kinds, last: Part | None, segments: Sequence[Path], go_on: GoOn) -> Written:
    """Write the rows of *last* and of *segments* to the file *partial*, and wait for the disk.

    go_on: asked every some thousand rows. Raises KindMismatch if a column does not hold what its kind is, Abandoned if
    go_on said no, OSError, ValueError.
    """
    schema, written = schema_of(kinds), Written()
    with partial.open("wb") as file:
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            groups = _Groups(writer, go_on)
            for table in tables(last.path) if last is not None else ():
                groups.add(_with_columns_of(schema, table))
            usual = UsualLines(kinds, *version_of(partial.parent))
            for segment in segments:
                _write_segment(segment, usual, kinds, groups, written)
            groups.flush()
            writer.add_key_value_metadata(footer({**(last.sources if last is not None else {}), **written.rows}))
        file.flush()
        os.fsync(file.fileno())
    return written


def _write_segment(segment: Path, usual: UsualLines, kinds: Kinds, groups: _Groups, written: Written) -> None:
    model, version = version_of(segment.parent)
    rows = rejected_lines = 0
    bad = partial_of_rejected(segment)
    bad.unlink(missing_ok=True)
    for lines, torn in read_segment(segment):
        rejected = torn
        table = usual.table(b"".join(lines), len(lines))
        if table is None:
            records, rejected = read_lines(lines, model, version)
            rejected += torn
            table = table_of(values_by_name(records), kinds) if records else None
        if table is not None:
            rows += table.num_rows
            groups.add(table)
        if rejected:
            rejected_lines += len(rejected)
            with bad.open("ab") as file:
                file.writelines(rejected)
                file.flush()
                os.fsync(file.fileno())
    written.rows[segment.name] = rows
    written.rejected[segment.name] = rejected_lines


class _Groups:
    """Collects tables and writes them as row groups that are neither small nor large."""

    def __init__(self, writer: Any, go_on: GoOn) -> None:
        self._writer = writer
        self._go_on = go_on
        self._tables: list[Any] = []
        self._rows = self._bytes = 0

    def add(self, table: Any) -> None:
        if not self._go_on():
            raise Abandoned
        self._tables.append(table)
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._tables:
            whole = pyarrow.concat_tables(self._tables)
            self._writer.write_table(whole, row_group_size=whole.num_rows)
            self._tables, self._rows, self._bytes = [], 0, 0


def _with_columns_of(schema: Any, table: Any) -> Any:
    """*table* with the columns of *schema* in its order; those that it has not got are null."""
    missing = pyarrow.nulls(table.num_rows)
    columns = [table[field.name] if field.name in table.column_names else missing.cast(field.type) for field in schema]
    return pyarrow.table(columns, schema=schema)


def rejected_path(segment: Path) -> Path:
    """Where the lines of a segment are kept that are no samples."""
    return segment.with_name(segment.name.removesuffix(CLOSED) + REJECTED)


def partial_of_rejected(segment: Path) -> Path:
    """Where they are until the part is in its place."""
    return segment.with_name(f".{rejected_path(segment).name}.tmp")
