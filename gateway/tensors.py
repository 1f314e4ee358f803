"""Named tensors and what a model says of them: datatypes, shapes, features, classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gateway.errors import InvalidInput

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

# Open Inference Protocol datatypes and the numpy dtypes that hold them. BYTES is an object array of bytes. numpy has no
# BF16: such tensors are held as the FP32 of which they are the first half.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.float32),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
DATATYPES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
# Datatypes whose values do not travel as JSON numbers.
BINARY_ONLY = frozenset({"FP16", "BF16"})

# What stands for a missing text in a BYTES tensor, which has no null; the converters write it so too.
_MISSING_TEXT = b""

# A tensor wider than this is one thing (an image, a text), not a row of named features.
MAX_FEATURES = 4096

Role = Literal["label", "probabilities", "value"]
Kind = Literal["numeric", "categorical"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. shape has -1 where a dimension may vary; the first is the rows if the model is batchable."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    role: Role = "value"

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.datatype]

    @property
    def row_bytes(self) -> int:
        """Bytes of the numbers of one row, where no size but that of the rows may vary."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Feature:
    """One named column that people know: where it sits in which input, and what may stand in it."""

    name: str
    input: str
    column: int
    kind: Kind = "numeric"
    categories: tuple[str, ...] | None = None
    missing_allowed: bool = False


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """One number or label per row of an output, by the name it has in the sample log and the reference."""

    name: str
    output: str
    index: int | None  # None: the output is one value per row


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    batchable: the first dimension of every tensor is the rows. batch_invariant: a row's answer does not depend on
    the rows beside it. cacheable: equal inputs get equal answers, and are asked for again. classes: the labels that the
    probabilities' columns stand for, in order.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[Feature, ...] = ()
    classes: tuple[str | int | float | bool, ...] | None = None
    batchable: bool = True
    batch_invariant: bool = True
    cacheable: bool = True

    def input(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.outputs if spec.name == name), None)

    def names(self) -> set[str]:
        """All names under which a value can stand in the sample log: of tensors, features and output columns."""
        tensors = {spec.name for spec in (*self.inputs, *self.outputs)}
        return tensors | {feature.name for feature in self.features} | {column.name for column in self.output_columns()}

    def parts(self) -> dict[str, list[str]]:
        """By tensor, the names under which its values stand in the sample log: its features, or its output columns."""
        found: dict[str, list[str]] = {}
        for feature in self.features:
            found.setdefault(feature.input, []).append(feature.name)
        for column in self.output_columns():
            found.setdefault(column.output, []).append(column.name)
        return found

    def output_columns(self) -> Iterator[OutputColumn]:
        """The columns of all outputs: ``label``, ``probabilities.setosa``; wide outputs are left out."""
        for spec in self.outputs:
            width = _width(spec.shape)
            if width == 1:
                yield OutputColumn(spec.name, spec.name, None if len(spec.shape) < 2 else 0)
            elif 1 < width <= MAX_FEATURES:
                names: Sequence[Any] = range(width)
                if self.classes is not None and len(self.classes) == width:
                    names = self.classes
                for index, name in enumerate(names):
                    yield OutputColumn(f"{spec.name}.{name}", spec.name, index)


def _width(shape: tuple[int, ...]) -> int:
    """Values per row of a tensor of at most two dimensions; 0 if that is not a fixed number."""
    if len(shape) <= 1:
        return 1
    return shape[1] if len(shape) == 2 and shape[1] > 0 else 0


def features_of(inputs: Sequence[TensorSpec]) -> tuple[Feature, ...]:
    """Features for a model that names none: ``x[0]``, ``x[1]`` ..., or the input's own name if it has one column."""
    found: list[Feature] = []
    for spec in inputs:
        width = _width(spec.shape)
        kind: Kind = "categorical" if spec.datatype in ("BYTES", "BOOL") else "numeric"
        missing = spec.datatype in FLOATS
        if width == 1:
            found.append(Feature(spec.name, spec.name, 0, kind, missing_allowed=missing))
        else:
            found += [Feature(f"{spec.name}[{i}]", spec.name, i, kind, missing_allowed=missing) for i in range(width)]
    return tuple(found) if len(found) <= MAX_FEATURES else ()


def from_bfloat16(bits: Array) -> Array:
    """The FP32 of BF16 values that lie in *bits*, an array of uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(floats: Array) -> Array:
    """FP32 values as the bits of the nearest BF16 (of two the even one), an array of uint16."""
    bits = np.ascontiguousarray(floats, np.float32).view(np.uint32)
    halves = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounded, a NaN could become another number: it keeps its first half, and stays one.
    found = np.where(np.isnan(floats), (bits >> 16) | 0x40, halves).astype(np.uint16)
    return found.reshape(floats.shape)  # ascontiguousarray has no array without dimensions


def shape_text(shape: Sequence[int]) -> str:
    """``[-1, 4]``: how a shape is written in messages."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def check_shape(spec: TensorSpec, shape: Sequence[int]) -> None:
    """Raise InvalidInput unless *shape* fits *spec*; -1 in the signature fits any size."""
    if len(shape) != len(spec.shape) or any(
        want not in (-1, size) for want, size in zip(spec.shape, shape, strict=True)
    ):
        raise InvalidInput(
            f"inputs.{spec.name}.shape", shape_text(shape), f"{shape_text(spec.shape)} (-1 stands for any size)"
        )


def same_rows(signature: Signature, tensors: Tensors) -> int:
    """The number of rows that all inputs share; 1 for a model that is not batchable.

    Raises InvalidInput if the inputs differ in rows or have none.
    """
    if not signature.batchable:
        return 1
    rows = -1
    for name, array in tensors.items():
        if rows == -1:
            rows = array.shape[0]
        elif array.shape[0] != rows:
            raise InvalidInput(f"inputs.{name}.shape", f"{array.shape[0]} rows", f"{rows} rows, as the other inputs")
    if rows < 1:
        raise InvalidInput("inputs", "0 rows", "at least 1 row")
    return rows


class FeatureCheck:
    """Refuses NaN where a feature may not be missing, and texts outside of a closed list. Built once per version."""

    __slots__ = ("_closed", "_columns", "_names", "_strict")

    def __init__(self, signature: Signature) -> None:
        self._closed = [
            (f, frozenset([text.encode() for text in f.categories] + [_MISSING_TEXT] * f.missing_allowed))
            for f in signature.features
            if f.categories is not None and any(s.name == f.input and s.datatype == "BYTES" for s in signature.inputs)
        ]
        self._names = {(f.input, f.column): f.name for f in signature.features}
        self._strict: list[str] = []  # inputs in which no column may be missing
        self._columns: dict[str, list[int]] = {}  # inputs in which some may not
        for spec in signature.inputs:
            if spec.datatype not in FLOATS:
                continue
            own = [f for f in signature.features if f.input == spec.name]
            closed = [f.column for f in own if not f.missing_allowed]
            if closed and len(closed) == len(own):
                self._strict.append(spec.name)
            elif closed:
                self._columns[spec.name] = closed

    def __call__(self, tensors: Tensors) -> None:
        """Raise InvalidInput naming the first row and feature that is NaN or a text where it may not be."""
        for name in self._strict:
            array = tensors[name]
            # min() of an array is NaN if any value is; it costs half of isnan().any() and allocates nothing.
            if array.size and math.isnan(array.min()):
                self._refuse(name, array, range(array.shape[1] if array.ndim > 1 else 1))
        for name, columns in self._columns.items():
            array = tensors[name]
            if array.size and math.isnan(array.min()):
                self._refuse(name, array, columns)

        for feature, known in self._closed:
            array = tensors[feature.input]
            column = array.reshape(array.shape[0], -1)[:, feature.column].tolist() if array.ndim else [array.item()]
            if not known.issuperset(column):
                row = next(index for index, text in enumerate(column) if text not in known)
                came = column[row].decode("utf-8", "replace")
                raise InvalidInput(
                    f"inputs.{feature.input}: row {row}, feature {feature.name!r}", repr(came), _listed(feature)
                )

    def _refuse(self, name: str, array: Array, columns: Sequence[int]) -> None:
        table = array.reshape(array.shape[0], -1) if array.ndim else array.reshape(1, 1)
        for column in columns:
            rows = np.flatnonzero(np.isnan(table[:, column]))
            if rows.size:
                feature = self._names.get((name, column), str(column))
                raise InvalidInput(
                    f"inputs.{name}: row {rows[0]}, feature {feature!r}",
                    "NaN (missing)",
                    "a number (it has no default)",
                )


def _listed(feature: Feature) -> str:
    """``one of 'red', 'green'``, cut short if there are many."""
    texts = [repr(text) for text in feature.categories or ()]
    more = f" and {len(texts) - 20} more" if len(texts) > 20 else ""
    return f"one of {', '.join(texts[:20])}{more}"
