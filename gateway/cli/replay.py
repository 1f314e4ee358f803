"""The rows of a package's reference, asked once more: does this machine answer them as the converting machine did?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.errors import PackageInvalid
from gateway.models.manifest import REFERENCE_FILE
from gateway.models.runtime import OnnxRuntime
from gateway.models.source import Package
from gateway.tensors import Array, Signature, Tensors

# As the conversion compares: absolute for probabilities, of the number itself for others.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Replayed:
    """rows: how many were asked. wrong: rows answered otherwise, ties left out. most: the largest difference."""

    rows: int
    wrong: int
    most: float


def replay(directory: Path, package: Package) -> Replayed | None:
    """Ask all rows of reference.parquet; None if the package has none, or nothing that could be compared.

    Raises PackageInvalid if its columns are not those of the signature, and ImportError without pyarrow.
    """
    manifest = package.manifest
    if manifest is None or REFERENCE_FILE not in manifest.files or not manifest.signature.batchable:
        return None
    import pyarrow.parquet

    signature = manifest.signature
    table = pyarrow.parquet.read_table(directory / REFERENCE_FILE)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    wanted = {feature.name for feature in signature.features}
    if wanted - columns.keys():
        raise PackageInvalid(f"{REFERENCE_FILE} has no column {min(wanted - columns.keys())!r}")
    if not wanted or not len(table):
        return None
    found = OnnxRuntime(package.model_bytes).run(_inputs(signature, columns))
    return _compared(signature, columns, found)


def _inputs(signature: Signature, columns: dict[str, Any]) -> Tensors:
    tensors: Tensors = {}
    for spec in signature.inputs:
        own = sorted((f for f in signature.features if f.input == spec.name), key=lambda feature: feature.column)
        stacked = np.stack([_as(spec.datatype, spec.dtype, columns[feature.name]) for feature in own], axis=1)
        tensors[spec.name] = stacked if len(spec.shape) > 1 else stacked[:, 0]
    return tensors


def _as(datatype: str, dtype: Any, values: Any) -> Array:
    if datatype != "BYTES":
        return np.asarray(values).astype(dtype)
    texts: Array = np.empty(len(values), dtype=object)
    texts[:] = [b"" if value is None else str(value).encode() for value in values]
    return texts


def _compared(signature: Signature, columns: dict[str, Any], found: Tensors) -> Replayed | None:
    rows = len(next(iter(columns.values())))
    wrong, compared = np.zeros(rows, dtype=bool), False
    most = 0.0
    for column in signature.output_columns():
        if column.name not in columns:
            continue
        compared = True
        spec = signature.output(column.output)
        values = found[column.output] if column.index is None else found[column.output][:, column.index]
        if values.dtype.kind != "f":
            said = _as("BYTES", object, columns[column.name]) if values.dtype == object else columns[column.name]
            differs = values != said
            wrong |= differs & ~_tied(found) if spec is not None and spec.role == "label" else differs
            continue
        is_share = spec is not None and spec.role == "probabilities"
        apart, size = _apart(values.astype(np.float64), np.asarray(columns[column.name], dtype=np.float64), is_share)
        most = max(most, float(apart.max(initial=0.0)))
        wrong |= apart > TOLERANCE * size
    return Replayed(rows, int(wrong.sum()), most) if compared else None


def _apart(found: Array, said: Array, is_share: bool) -> tuple[Array, float]:
    """How far apart two columns are: probabilities as they are, other numbers in parts of their own and usual size."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(found - said)
    apart[(found == said) | (np.isnan(found) & np.isnan(said))] = 0.0
    apart = np.nan_to_num(apart, nan=np.inf)
    if is_share:
        return apart, 1.0
    sizes = np.abs(said[np.isfinite(said) & (said != 0)])
    usual = float(np.median(sizes)) if sizes.size else 1.0
    return apart / (np.abs(np.nan_to_num(said, posinf=0.0, neginf=0.0)) + usual), 1.0


def _tied(found: Tensors) -> Array | bool:
    """Rows whose two best classes are as good as equal, if there are probabilities."""
    if "probabilities" not in found or found["probabilities"].shape[1] < 2:
        return False
    best = np.sort(found["probabilities"], axis=1)
    return np.asarray(best[:, -1] - best[:, -2] < TOLERANCE)
