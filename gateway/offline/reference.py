"""The reference of a version: the rows that its model was built on, read from the package, column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gateway.errors import PackageInvalid
from gateway.models.manifest import MANIFEST_FILE, REFERENCE_FILE, parse, sha256_of
from gateway.offline.drift import Column, Role
from gateway.offline.rows import Field, Rows, Shape, objects
from gateway.offline.sides import Side
from gateway.redaction import Rules, rules_for
from gateway.tensors import Array, Kind, Signature

# A feature of 32 bits is logged with 32 bits, while the reference may hold the 64 bits it was made from. Compared as
# they are, 0.1 and float32(0.1) are different values, and a column of few distinct ones would seem all new.
_PRECISION = {"FP16": np.float16, "BF16": np.float32, "FP32": np.float32}
_NUMBER_TYPES = frozenset((int, float, bool, type(None)))
_NUMBER_WORDS = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True, slots=True)
class ReferenceColumn:
    """One feature or output: what it is, and its values in the reference (as `values_of` gives them)."""

    name: str
    role: Role
    kind: Kind
    datatype: str
    values: Array
    side: Side = field(init=False, compare=False, repr=False)  # the same, for those who judge

    def __post_init__(self) -> None:
        object.__setattr__(self, "side", Side(self.values))


@dataclass(frozen=True, slots=True)
class Reference:
    """All columns of one version's reference, features first. rows: how many rows each of them has."""

    rows: int
    columns: tuple[ReferenceColumn, ...]

    def names(self, role: Role) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.role == role)

    @property
    def shape(self) -> Shape:
        """What rows must have to be compared with it."""
        return tuple(Field(column.role, column.name, column.kind, column.datatype) for column in self.columns)


def load_reference(package: Path, redact: Mapping[str, Rules] | None = None) -> Reference:
    """Read the reference of the package in the directory *package*. Needs pyarrow.

    What is redacted, by the card or by *redact* (by model), is left out: the log has nothing to compare it with.

    Raises PackageInvalid, in words for people, if there is none, or if it is not the one that the manifest names.
    """
    try:
        import pyarrow.parquet
        import scipy  # noqa: F401 -- not used here, but nothing can be compared without it
    except ImportError as error:
        raise PackageInvalid("drift needs pyarrow and scipy: install sluicegate[monitor]") from error
    try:
        manifest = parse((package / MANIFEST_FILE).read_bytes(), where=MANIFEST_FILE)
    except FileNotFoundError as error:
        raise PackageInvalid(f"the package has no {MANIFEST_FILE}") from error
    except OSError as error:
        raise PackageInvalid(f"cannot read {MANIFEST_FILE}: {error.strerror}") from error
    path = package / REFERENCE_FILE
    if REFERENCE_FILE not in manifest.files or not path.is_file():
        raise PackageInvalid(f"the package has no {REFERENCE_FILE}")
    try:
        if sha256_of(path) != manifest.files[REFERENCE_FILE]:
            raise PackageInvalid(f"{REFERENCE_FILE} is not the file that the manifest names (its sha256 differs)")
        with pyarrow.parquet.ParquetFile(path) as parquet:  # read_table would load pandas, if it is there
            table = parquet.read(use_threads=False)
        hidden = rules_for(manifest.name, manifest.redact, redact or {}, manifest.signature.parts())
        columns = tuple(
            ReferenceColumn(name, role, kind, datatype, values_of(table[name].to_pylist(), kind, datatype))
            for name, role, kind, datatype in _described(manifest.signature)
            if name in table.column_names and name not in hidden
        )
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are kinds of these
        raise PackageInvalid(f"cannot read {REFERENCE_FILE}: {error}") from error
    return Reference(table.num_rows, columns)


def columns_of(reference: Reference, rows: Rows) -> list[Column]:
    """The reference's columns with what *rows*, of the reference's shape, hold of them."""
    return [
        Column(column.name, column.role, column.kind, column.values, current, wrong_type, then=column.side)
        for column, (current, wrong_type) in zip(reference.columns, rows.values(), strict=True)
    ]


def _described(signature: Signature) -> list[tuple[str, Role, Kind, str]]:
    """(name, role, kind, datatype) of everything that a version's rows hold, by the names of the sample log."""
    found: list[tuple[str, Role, Kind, str]] = []
    for feature in signature.features:
        spec = signature.input(feature.input)
        found.append((feature.name, "input", feature.kind, spec.datatype if spec is not None else "BYTES"))
    for column in signature.output_columns():
        spec = signature.output(column.output)
        assert spec is not None
        is_category = spec.role == "label" or spec.datatype in ("BYTES", "BOOL")
        found.append((column.name, "output", "categorical" if is_category else "numeric", spec.datatype))
    return found


def values_of(values: Sequence[Any], kind: Kind, datatype: str) -> Array:
    """Plain values, from the log or from the reference, as `drift.Column` wants them.

    Numeric: float64, rounded to the precision of *datatype*; missing, or no number at all: NaN. Categorical: objects,
    texts that are equal for equal categories wherever they come from (1, 1.0 and "1"); missing: None. A missing text is
    null in a reference and empty in the log, since a BYTES tensor has no null.
    """
    if kind == "categorical":
        return objects([category_of(value) or None for value in values])
    try:
        numbers = np.array(values, dtype=np.float64)  # None becomes NaN, "Infinity" becomes infinite
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (len(values),):  # lists of equal lengths would be a table
        numbers = np.array([_number(value) for value in values], dtype=np.float64)
    return rounded(numbers, datatype)


def rounded(numbers: Array, datatype: str) -> Array:
    """float64 *numbers* to the precision of *datatype*."""
    precision = _PRECISION.get(datatype)
    if precision is None:
        return numbers
    with np.errstate(over="ignore"):
        return numbers.astype(precision).astype(np.float64)


def count_no_numbers(values: Sequence[Any]) -> int:
    """How many values from the log are neither missing nor a number, nor one of the words for what JSON cannot say."""
    if set(map(type, values)) <= _NUMBER_TYPES:  # as nearly always
        return 0
    return sum(map(is_no_number, values))


def is_no_number(value: Any) -> bool:
    return not isinstance(value, int | float) and value is not None and value not in _NUMBER_WORDS


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def category_of(value: Any) -> str | None:
    """A text that is equal for equal categories; None if it is missing."""
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
