"""Reads lines of the log straight into columns, without an object per value, where they are as serving writes them.

What is unusual in any way is left to `columns.read_lines`, which looks at each line by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.json

from gateway.offline.columns import IDENTITY, TYPES, Kinds, schema_of
from gateway.samples.record import SCHEMA


class UsualLines:
    """Reads lines of one model, version and set of columns. Used by one thread."""

    def __init__(self, kinds: Kinds, model: str, version: str) -> None:
        self._kinds = kinds
        self._model = model
        self._version = version
        self._schema = schema_of(kinds)
        # What is JSON text in the table is no text in the line.
        self._parse = None if "json" in kinds.values() else _parse_options(kinds)

    def table(self, block: bytes, lines: int) -> Any:
        """The rows of *block*, which is so many whole lines, as a table of schema_of(kinds); None if it must be looked
        at line by line: one is no sample, or has values of other kinds, or infinite ones.
        """
        # Arrow passes over a part of a byte order mark at the beginning as over a whole one; both are no JSON.
        if self._parse is None or not lines or not block.startswith(b"{"):
            return None
        try:
            found = pyarrow.json.read_json(
                pyarrow.BufferReader(block),
                read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=self._parse,
            )
            found.validate(full=True)  # texts are UTF-8
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
            return None
        if found.num_rows != lines or not self._are_samples(found):
            return None
        flat = found.flatten()
        columns = [_times(flat) if field.name == "ts" else flat[field.name] for field in self._schema]
        return pyarrow.table(columns, schema=self._schema)

    def _are_samples(self, found: Any) -> bool:
        """What `columns.read_lines` asks of each, beyond the types."""
        if any(found[name].null_count for name in (*IDENTITY, "inputs", "outputs") if name in found.column_names):
            return False
        wanted = {"schema": SCHEMA, "model": self._model, "version": self._version}
        return all(pyarrow.compute.unique(found[name]).to_pylist() == [value] for name, value in wanted.items())


def _times(flat: Any) -> Any:
    return pyarrow.array(flat["ts_ns"].to_numpy() // np.int64(1000)).cast(pyarrow.timestamp("us"))


def _parse_options(kinds: Kinds) -> Any:
    groups: dict[str, list[Any]] = {}
    for name, kind in {**kinds, "model": "text", "version": "text"}.items():
        head, _, tail = name.partition(".")
        groups.setdefault(head, []).append(pyarrow.field(tail, TYPES[kind]))
    fields = [
        pyarrow.field(head, pyarrow.struct(inner) if inner[0].name else inner[0].type) for head, inner in groups.items()
    ]
    return pyarrow.json.ParseOptions(explicit_schema=pyarrow.schema(fields), unexpected_field_behavior="error")
