"""What a gateway serves, asked of the gateway itself, and rows to ask it about: from a file, or made up."""

from __future__ import annotations

import csv
import json
import math
import random
import struct
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

# Little-endian, as the Open Inference Protocol wants them.
DTYPES = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"} | {
    f"{sign}INT{bits}": f"<{letter}{bits // 8}" for sign, letter in (("", "i"), ("U", "u")) for bits in (8, 16, 32, 64)
}
MADE_UP_ROWS = 500
HTTP_TIMEOUT_S = 10.0


class Unusable(Exception):
    """There is nothing here that can be asked for predictions; the message says why."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input tensor and its values for all rows, an array [rows, ...]."""

    name: str
    datatype: str
    table: Any


@dataclass(frozen=True, slots=True)
class Served:
    """One model: its inputs, and rows to ask it about (none if its features have no names)."""

    name: str
    inputs: tuple[Input, ...]
    rows: tuple[Row, ...]
    row_count: int

    def binary(self, picked: Sequence[int]) -> tuple[bytes, dict[str, str]]:
        """An inference request of the Open Inference Protocol with binary tensors: body and headers."""
        tensors, blobs = [], []
        for spec in self.inputs:
            values = spec.table[list(picked)]
            blobs.append(_texts(values) if spec.datatype == "BYTES" else values.tobytes())
            parameters = {"binary_data_size": len(blobs[-1])}
            shape = list(values.shape)
            tensors.append({"name": spec.name, "datatype": spec.datatype, "shape": shape, "parameters": parameters})
        head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
        return b"".join((head, *blobs)), headers


def discover(base_url: str, wanted: Sequence[str], row_files: Mapping[str, Path]) -> list[Served]:
    """Ask the gateway what it serves. wanted: model names, or none for all. row_files: by model, "" for all others.

    Raises Unusable if the gateway does not answer, does not serve what is wanted, or a file does not fit.
    """
    names: list[str] = ask(f"{base_url}/v2/models")["models"]
    if unknown := [name for name in wanted if name not in names]:
        raise Unusable(f"{base_url} does not serve {', '.join(unknown)}; it serves {', '.join(names) or 'no model'}")
    if not names:
        raise Unusable(f"{base_url} serves no model")
    return [_served(name, ask(f"{base_url}/v2/models/{name}"), row_files) for name in wanted or names]


def classes_of(base_url: str, model: str, version: str) -> frozenset[Any]:
    """The labels of one version; none if it is no classifier or is not loaded any more."""
    try:
        told = ask(f"{base_url}/v2/models/{model}/versions/{version}")
    except Unusable:
        return frozenset()
    return frozenset(told.get("parameters", {}).get("classes", ()))


def ask(url: str) -> Any:
    """The JSON that a GET answers. Raises Unusable."""
    try:
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as reply:  # noqa: S310 - the URL is the user's own
            return json.load(reply)
    except (OSError, ValueError) as error:
        raise Unusable(f"{url}: {error}; is a gateway's data plane there?") from error


def _served(name: str, told: Mapping[str, Any], row_files: Mapping[str, Path]) -> Served:
    named: Mapping[str, Sequence[str]] = told.get("parameters", {}).get("features", {})
    datatypes = {feature: spec["datatype"] for spec in told["inputs"] for feature in named.get(spec["name"], ())}
    path = row_files.get(name, row_files.get(""))
    rows: list[Row] = []
    if datatypes:
        rows = _read_rows(path, datatypes) if path else _made_up_rows(datatypes)
    elif path:
        raise Unusable(f"{path}: the features of model {name!r} have no names to look up in a file")
    inputs = tuple(_input(spec, named.get(spec["name"], ()), rows) for spec in told["inputs"])
    return Served(name, inputs, tuple(rows), len(rows) or MADE_UP_ROWS)


def _input(spec: Mapping[str, Any], features: Sequence[str], rows: Sequence[Row]) -> Input:
    """One input with its values for all rows; they are made up where the columns have no names."""
    count = len(rows) or MADE_UP_ROWS
    shape = tuple(1 if size == -1 else size for size in spec["shape"][1:])
    if rows:
        flat = [row[name] for row in rows for name in features]
    else:
        flat = [_made_up(spec["datatype"]) for _ in range(count * math.prod(shape))]
    if spec["datatype"] == "BYTES":
        table = np.empty(len(flat), dtype=object)
        table[:] = flat
    else:
        table = np.array([math.nan if value is None else value for value in flat], dtype=DTYPES[spec["datatype"]])
    return Input(spec["name"], spec["datatype"], table.reshape(count, *shape))


def _texts(values: Any) -> bytes:
    encoded = [text.encode() for text in values.ravel().tolist()]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def _read_rows(path: Path, datatypes: Mapping[str, str]) -> list[Row]:
    """Rows of a CSV, Parquet or JSON file; columns that are no features are left out."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet  # only those who have such a file need it

            raw = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".json":
            document = json.loads(path.read_text())
            raw = document["rows"] if isinstance(document, dict) else document
        else:
            with path.open(newline="") as file:
                raw = list(csv.DictReader(file))
        rows = [{name: _convert(row[name], kind) for name, kind in datatypes.items()} for row in raw]
    except KeyError as error:
        raise Unusable(f"{path}: there is no column {error.args[0]!r}") from error
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise Unusable(f"{path}: {error}") from error
    if not rows:
        raise Unusable(f"{path}: there are no rows")
    return rows


def _convert(value: Any, datatype: str) -> Any:
    if datatype == "BYTES":
        return "" if value is None else str(value)
    if datatype == "BOOL":
        return str(value).lower() in ("1", "1.0", "true", "yes")
    number = math.nan if value in (None, "") else float(value)
    if datatype.startswith("FP"):
        return None if math.isnan(number) else number
    return int(number)


def _made_up_rows(datatypes: Mapping[str, str]) -> list[Row]:
    return [{name: _made_up(kind) for name, kind in datatypes.items()} for _ in range(MADE_UP_ROWS)]


def _made_up(datatype: str) -> Any:
    if datatype.startswith("FP"):
        return round(random.gauss(0.0, 1.0), 3)
    return random.choice("abc") if datatype == "BYTES" else random.randrange(2 if datatype == "BOOL" else 10)
