"""The sample log as columns without an object per value: its Parquet files, and lines as serving writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.json
import pyarrow.parquet

from gateway.offline.chunks import Chunk, Taken, numbers_of
from gateway.offline.columns import TYPES, Kind, Kinds, kinds_in, plain_values
from gateway.offline.parts import version_of
from gateway.offline.reference import rounded, values_of
from gateway.offline.rows import Field, Shape, objects
from gateway.samples.record import RANDOM, SCHEMA
from gateway.tensors import Array

# Columns of a part that say which row it is, and what of it.
_KEYS = ("ts_ns", "prediction_id", "row", "digest")
_SAID = frozenset(("schema", "sample_reason", "variant", "reason", *_KEYS))
_WHOLE = ("schema", "ts_ns", "row")
# Of lines that are joined with labels: the rest of what `awaited` asks for.
_KINDS_FOR_LABELS: Kinds = {
    "rows": "int", "variant": "text", "reason": "text", "cache": "text", "flag_revision": "int"
}  # fmt: skip
# Of few different values: read as places in a list of them.
_OF_FEW_VALUES = ("sample_reason", "digest", "variant", "reason")


# Values that are taken into memory at once.
_BATCH_VALUES = 1 << 18
_MIN_BATCH_ROWS, _MAX_BATCH_ROWS = 64, 16_384


@dataclass(frozen=True, slots=True)
class Batch:
    """What follows each other in a part. rows: of the file, also those that are not taken. is_last: of its row group,
    which is decompressed as a whole: one who stops here need not do that again."""

    taken: Taken
    rows: int
    size_bytes: int
    is_last: bool


def batches(path: Path, *, first_row: int = 0) -> Iterator[Batch]:
    """The rows of a part from *first_row* on. Raises OSError, ValueError."""
    model, version = version_of(path.parent)
    with path.open("rb") as file, pyarrow.parquet.ParquetFile(file, read_dictionary=list(_OF_FEW_VALUES)) as parquet:
        kinds = kinds_in(parquet.metadata.schema.to_arrow_schema())
        names = [name for name in kinds if name in _SAID or name.startswith(("inputs.", "outputs."))]
        batch_rows = min(_MAX_BATCH_ROWS, max(_MIN_BATCH_ROWS, _BATCH_VALUES // len(names)))
        for group in range(parquet.metadata.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if first_row >= rows:
                first_row -= rows
                continue
            for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=names, use_threads=False):
                rows -= batch.num_rows
                rest = batch.slice(first_row)
                first_row = max(0, first_row - batch.num_rows)
                if rest.num_rows:
                    yield Batch(of_batch(rest, kinds, model, version), rest.num_rows, rest.nbytes, rows == 0)


def of_usual_lines(block: bytes, model: str, version: str, shape: Shape, *, for_labels: bool = False) -> Taken | None:
    """What `chunks.of_lines` says of whole lines, in half the time, with no other columns than those of *shape*.

    for_labels: and what rows that wait for labels must say of their requests.

    None if that must be asked, since not all of them are samples of *version* with values of the kinds of *shape*, as
    nearly all are that serving writes.
    """
    schema = _schema_of_lines(shape, for_labels)
    if schema is None:
        return None
    try:
        found = pyarrow.json.read_json(
            pyarrow.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        found.validate(full=True)  # texts are UTF-8
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        return None
    whole = ("model", "version", "inputs", "outputs")
    if found.num_rows != block.count(b"\n") or any(found[name].null_count for name in whole):
        return None
    said = {"model": model, "version": version}
    if any(pyarrow.compute.unique(found[name]).to_pylist() != [value] for name, value in said.items()):
        return None
    (batch,) = found.flatten().to_batches()
    kinds = {f"{field.role}s.{field.name}": _kind_of(field) for field in shape}
    return of_batch(batch, kinds | (_KINDS_FOR_LABELS if for_labels else {}), model, version)


@lru_cache
def _schema_of_lines(shape: Shape, for_labels: bool) -> Any:
    """What `of_usual_lines` reads of each line; None if there is nothing to be read in inputs, or in outputs."""
    columns: dict[str, list[Any]] = {"input": [], "output": []}
    for field in shape:
        columns[field.role].append(pyarrow.field(field.name, TYPES[_kind_of(field)]))
    if not all(columns.values()):
        return None
    said = [pyarrow.field(name, pyarrow.int64() if name in _WHOLE else pyarrow.string()) for name in sorted(_SAID)]
    if for_labels:
        said += [
            pyarrow.field(name, TYPES[_KINDS_FOR_LABELS[name]]) for name in sorted(_KINDS_FOR_LABELS.keys() - _SAID)
        ]
    names = [pyarrow.field(name, pyarrow.string()) for name in ("model", "version")]
    groups = [pyarrow.field(f"{role}s", pyarrow.struct(fields)) for role, fields in columns.items()]
    return pyarrow.schema([*said, *names, *groups])


def _kind_of(field: Field) -> Kind:
    if field.kind == "numeric":
        return "float"
    if field.datatype in ("BOOL", "BYTES"):
        return "bool" if field.datatype == "BOOL" else "text"
    return "int" if "INT" in field.datatype else "float"


def of_batch(batch: Any, kinds: Kinds, model: str, version: str) -> Taken:
    """The rows of an Arrow record batch of a part, whose columns are of *kinds*."""
    names = set(batch.schema.names)
    present = {name: _is_present(batch, name, names) for name in (*_KEYS, "schema", "sample_reason")}
    is_sample = present["schema"] & (_whole(batch, "schema", names) == SCHEMA)
    is_random = is_sample & _is_text(batch, "sample_reason", names, RANDOM)
    has_keys = np.logical_and.reduce([present[name] for name in _KEYS])
    wanted = is_random & has_keys
    bad_lines = int(np.count_nonzero(~is_sample | (is_random & ~has_keys)))
    if not wanted.any():
        return Taken([], bad_lines)
    if not wanted.all():
        batch = batch.take(np.flatnonzero(wanted))
    digests, codes = _coded(batch["digest"])
    bounds = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), batch.num_rows]
    chunks = []
    for start, stop in pairwise(bounds):
        part = batch.slice(start, stop - start)
        chunks.append(
            Chunk(
                model,
                version,
                digests[codes[start]],
                _whole(part, "ts_ns", names),
                part["prediction_id"].to_numpy(zero_copy_only=False),
                _whole(part, "row", names),
                *_routes(part, names),
                _Batch(part, kinds),
            )
        )
    return Taken(chunks, bad_lines)


def _is_present(batch: Any, name: str, names: Set[str]) -> Array:
    if name not in names:
        return np.zeros(batch.num_rows, dtype=np.bool_)
    if not batch[name].null_count:
        return np.ones(batch.num_rows, dtype=np.bool_)
    return np.asarray(batch[name].is_valid().to_numpy(zero_copy_only=False))


def _whole(batch: Any, name: str, names: Set[str]) -> Array:
    """A column of whole numbers; 0 where there is none."""
    if name not in names:
        return np.zeros(batch.num_rows, dtype=np.int64)
    column = batch[name]
    return np.asarray((column.fill_null(0) if column.null_count else column).to_numpy())


def _is_text(batch: Any, name: str, names: Set[str], text: str) -> Array:
    if name not in names:
        return np.zeros(batch.num_rows, dtype=np.bool_)
    texts, codes = _coded(batch[name])
    return np.isin(codes, [code for code, known in enumerate(texts) if known == text])


def _routes(batch: Any, names: Set[str]) -> tuple[list[tuple[str | None, str | None]], Array]:
    """The different pairs of variant and reason, and which of them each row has."""
    variants, reasons = (
        _coded(batch[name]) if name in names else ([], np.full(batch.num_rows, -1)) for name in ("variant", "reason")
    )
    # The code -1, null, is the last place of a list.
    texts = [[*found[0], None] for found in (variants, reasons)]
    places = [found[1] % len(known) for found, known in zip((variants, reasons), texts, strict=True)]
    return list(product(*texts)), places[0] * len(texts[1]) + places[1]


def _coded(column: Any) -> tuple[list[Any], Array]:
    """The different values of a column, and the place among them of each; -1 where it is null."""
    if not hasattr(column, "dictionary"):
        column = column.dictionary_encode()
    codes = column.indices
    return column.dictionary.to_pylist(), (codes.fill_null(-1) if codes.null_count else codes).to_numpy()


class _Batch:
    """Columns of a record batch."""

    def __init__(self, batch: Any, kinds: Kinds) -> None:
        self._batch = batch
        self._kinds = kinds

    def numbers(self, field: Field) -> tuple[Array, Array | None]:
        name = f"{field.role}s.{field.name}"
        kind = self._kinds.get(name, "none")
        if kind == "none":
            return np.full(self._batch.num_rows, np.nan), None
        column = self._batch[name]
        if kind == "bool":
            column = column.cast("int8")
        elif kind not in ("int", "big", "float"):
            return numbers_of(plain_values(column.to_pylist(), kind), field)
        return rounded(column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False), field.datatype), None

    def texts(self, field: Field) -> Array:
        name = f"{field.role}s.{field.name}"
        kind = self._kinds.get(name, "none")
        if kind == "none":
            return objects([None] * self._batch.num_rows)
        column = self._batch[name]
        if kind in ("texts", "floats", "json"):
            return values_of(plain_values(column.to_pylist(), kind), field.kind, field.datatype)
        values, codes = _coded(column)
        known = values_of(plain_values(values, kind), field.kind, field.datatype)
        return objects([*known.tolist(), None])[codes]

    def plain(self, name: str) -> Sequence[Any] | None:
        kind = self._kinds.get(name, "none")
        if kind not in ("int", "float", "bool", "text"):
            return None
        column = self._batch[name]
        if kind == "text" and not column.null_count:
            values, codes = _coded(column)
            return [values[code] for code in codes.tolist()]
        found: list[Any] = (
            column.to_pylist()
            if column.null_count or kind == "text"
            else column.to_numpy(zero_copy_only=False).tolist()
        )
        return found
