"""Rows of features: read from a file, rounded to float32, and laid out as the tensors that a signature asks for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gateway.errors import InvalidInput
from gateway.tensors import Array, Feature, Signature, Tensors

# What stands for a missing text in a BYTES tensor, which has no null.
MISSING_TEXT = b""


def read_rows(path: Path, *, texts: Collection[str] = ()) -> Any:
    """The rows of a .csv or .parquet file as a DataFrame.

    texts: columns of a CSV that are text even where they look like numbers ("01234"). Decimals are read to the nearest
    double. Raises InvalidInput if the file cannot be read or has no rows.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise InvalidInput("data", str(path), "a file that ends in .csv or .parquet")
    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(path, dtype=dict.fromkeys(texts, str), **_exact_decimals())
        else:
            frame = pd.read_parquet(path)
    except OSError as error:
        raise InvalidInput("data", f"{path}: {error.strerror or error}", "a readable file") from error
    except ValueError as error:  # pandas' parser errors and pyarrow's are ValueErrors
        raise InvalidInput("data", f"{path.name}: {error}", f"valid {path.suffix[1:]}") from error
    if not len(frame):
        raise InvalidInput("data", f"{path.name} without rows", "at least one row")
    frame.columns = [str(name) for name in frame.columns]
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InvalidInput("data", f"column {twice!r} twice", "each column once")
    return frame.reset_index(drop=True)


def _exact_decimals() -> dict[str, str]:
    """Until pandas 3.1 the default parser is off by one unit in the last place now and then."""
    major, minor = pd.__version__.split(".")[:2]
    return {} if (int(major), int(minor)) >= (3, 1) else {"float_precision": "round_trip"}


def is_text(column: Any, name: str) -> bool:
    """Whether a DataFrame's column holds texts; if not, it holds numbers or booleans. Raises InvalidInput otherwise."""
    if column.dtype.kind in "iufb" and not isinstance(column.dtype, pd.CategoricalDtype):
        return False
    present = column.dropna()
    if all(isinstance(value, str) for value in present):
        return True
    if all(isinstance(value, int | float | bool | np.number | np.bool_) for value in present):
        return False
    raise InvalidInput(f"data.{name}", f"values of type {column.dtype}", "numbers or texts only")


def rounded_to_float32(frame: Any, signature: Signature) -> Any:
    """The same rows, each number rounded to the nearest float32 but held as before.

    Numbers beyond float32's range stay as they are where *signature* takes doubles, else they raise InvalidInput.
    """
    rounded = frame.copy()
    doubles = {feature.name for feature in signature.features if _datatype(signature, feature) == "FP64"}
    for name in frame.columns:
        if not is_text(frame[name], name):
            wide = _numbers(frame[name])
            if name in doubles:
                with np.errstate(over="ignore"):
                    narrow = wide.astype(np.float32).astype(np.float64)
                narrow = np.where(np.isinf(narrow), wide, narrow)
            else:
                narrow = _float32(wide, name).astype(np.float64)
            if not np.array_equal(wide, narrow, equal_nan=True):
                rounded[name] = narrow
    return rounded


def to_tensors(frame: Any, signature: Signature) -> Tensors:
    """The inputs of *signature* filled from the columns of *frame*, one row each.

    Raises InvalidInput if a number is beyond float32's range where that is what the signature takes.
    """
    tensors: Tensors = {}
    for spec in signature.inputs:
        own = sorted((f for f in signature.features if f.input == spec.name), key=lambda f: f.column)
        if spec.datatype == "BYTES":
            columns = [_texts(frame[feature.name]) for feature in own]
        elif spec.datatype == "FP64":
            columns = [_numbers(frame[feature.name]) for feature in own]
        else:
            columns = [_float32(_numbers(frame[feature.name]), feature.name) for feature in own]
        tensors[spec.name] = np.stack(columns, axis=1)
    return tensors


def feature_columns(tensors: Tensors, signature: Signature) -> dict[str, Array]:
    """Each feature's values by its name: floats, or bytes objects."""
    return {feature.name: tensors[feature.input][:, feature.column] for feature in signature.features}


def output_columns(outputs: Tensors, signature: Signature) -> dict[str, Array]:
    """Each output column's values by the name that the sample log gives it."""
    found: dict[str, Array] = {}
    for column in signature.output_columns():
        values = outputs[column.output]
        found[column.name] = values if column.index is None else values[:, column.index]
    return found


def take(tensors: Tensors, rows: Any) -> Tensors:
    """Those rows of every tensor; *rows* is a slice or an array of indices."""
    return {name: array[rows] for name, array in tensors.items()}


def spread(total: int, wanted: int) -> Array:
    """At most *wanted* row indices, evenly spread over *total* rows."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).astype(np.int64))


def bytes_array(values: Any) -> Array:
    """Texts as an object array of bytes."""
    flat = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    array: Array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array


def _datatype(signature: Signature, feature: Feature) -> str:
    spec = signature.input(feature.input)
    return "" if spec is None else spec.datatype


def _numbers(column: Any) -> Array:
    numbers: Array = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _float32(wide: Array, name: str) -> Array:
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    beyond = np.flatnonzero(np.isinf(narrow) & np.isfinite(wide))
    if beyond.size:
        raise InvalidInput(f"data.{name}: row {beyond[0]}", repr(float(wide[beyond[0]])), "a number in float32's range")
    return narrow


def _texts(column: Any) -> Array:
    return bytes_array(MISSING_TEXT if pd.isna(value) else value for value in column)
