"""What a version answers, as counts in bins that are the same in all workers and for all versions."""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.tensors import Array

OTHER = "other"
MAX_ROWS = 64  # of one run
MAX_COLUMNS = 16
_MAX_CLASSES = 64
# Floating-point bins are about 230 from 1e-9 to 1e9 and both signs of it; more than this is no distribution.
_MAX_BINS = 2048
_STEP = math.log(1.2)


def float_bin(value: float) -> str:
    """``0``, ``nan``, ``inf``, ``-inf``, or sign and power of 1.2 at or below: ``p3``, ``m-7``."""
    if value == 0.0:
        return "0"
    if math.isfinite(value):
        return f"{'p' if value > 0 else 'm'}{math.floor(math.log(abs(value)) / _STEP)}"
    return "nan" if value != value else "inf" if value > 0 else "-inf"


def _class(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value).lower() if isinstance(value, bool) else str(value)


def add(counts: dict[str, int], rows: Array) -> None:
    """Count the values of *rows* [rows, ...] into *counts*; those of several columns as ``<column>:<bin>``."""
    table = rows.reshape(len(rows), -1)
    name: Callable[[float], str] = float_bin if rows.dtype.kind == "f" else _class
    most = _MAX_BINS if rows.dtype.kind == "f" else _MAX_CLASSES
    columns = table.T[:MAX_COLUMNS].tolist()
    for column, values in enumerate(columns):
        prefix = f"{column}:" if table.shape[1] > 1 else ""
        for value in values:
            key = prefix + name(value)
            if key not in counts and len(counts) >= most * len(columns):
                key = prefix + OTHER
            counts[key] = counts.get(key, 0) + 1
