"""Values as JSON texts: many numbers at a time, texts, and what is kept of a tensor that is too wide to be written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from gateway.tensors import DATATYPES, Array


def cells_of(table: Array) -> list[bytes]:
    """The values of [lines, columns] as JSON, line by line."""
    if table.dtype == object:
        return [orjson.dumps(_text(value)) for value in table.ravel().tolist()]
    if table.dtype not in DATATYPES and table.dtype.kind != "f":
        return [orjson.dumps(value) for value in table.ravel().tolist()]
    # Not tolist: it widens to 64 bits and gives 0.10000000149011612 for 0.1; orjson knows the short form.
    flat = np.ascontiguousarray(table).ravel()
    raw = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if flat.dtype.kind != "f":
        return raw[1:-1].split(b",")
    if flat.dtype.itemsize < 8 and (b"e" in raw or b"0.00000" in raw):
        # orjson sets exponents from other sizes on for these types than for 64 bits, as which all readers see them.
        raw = orjson.dumps(orjson.loads(raw))
    cells = raw[1:-1].split(b",")
    if b"u" in raw:  # null: NaN, as it should be, or an infinity; one letter is found ten times faster
        for index in np.flatnonzero(np.isinf(flat)).tolist():
            cells[index] = b'"Infinity"' if flat[index] > 0 else b'"-Infinity"'
    return cells


def _text(value: Any) -> Any:
    """A BYTES element as text; bytes that are not UTF-8 are shown as \\xNN."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _raw(value: Any) -> bytes:
    """A BYTES element as bytes; a model's own texts come as text."""
    return value if isinstance(value, bytes) else str(value).encode()


def summary_of(row: Array, shape: Sequence[int]) -> bytes:
    """What is kept of one row of a tensor too wide to be written: enough to find equal ones again."""
    raw = b"\0".join(map(_raw, row.tolist())) if row.dtype == object else row.tobytes()
    return orjson.dumps(
        {
            "datatype": DATATYPES.get(row.dtype, str(row.dtype)),
            "shape": list(shape),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
    )
