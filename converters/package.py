"""The model package on disk: golden pairs, checksums, manifest, and a directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters import schema
from converters.rows import MISSING_TEXT, spread, take
from gateway.errors import ConversionRefused, InvalidInput
from gateway.models.manifest import MANIFEST_FILE, NAME_PATTERN, VERSION_PATTERN, Manifest
from gateway.tensors import Array, Signature, Tensors, TensorSpec

GOLDEN_SINGLE_ROWS = 6
GOLDEN_BATCH_ROWS = 4
# Golden labels must be the same everywhere, so rows near a tie are no golden rows.
GOLDEN_MARGIN = 1e-3
# The same for scores and distances, whose size is anything.
GOLDEN_MARGIN_IN_TOLERANCES = 100


def check_free(root: Path, name: str, version: str) -> Path:
    """The directory that the package will have. Raises InvalidInput for bad names, ConversionRefused if it exists."""
    for field, value, pattern in (("name", name, NAME_PATTERN), ("version", version, VERSION_PATTERN)):
        if not pattern.fullmatch(value):
            raise InvalidInput(field, repr(value), f"a text that matches {pattern.pattern}")
    target = root / name / version
    if target.exists():
        raise ConversionRefused(f"{target} exists and a version never changes: choose another version")
    return target


def golden(
    signature: Signature, inputs: Tensors, outputs: Tensors, tolerance: float, run: Callable[[Tensors], Tensors]
) -> bytes:
    """golden.json: a few single rows and one batch with the answers that every serving machine must give.

    outputs: the served model's answers to *inputs*; run: asks it again, since an answer may depend on the batch. Rows
    with missing values or near a tie are passed over. A model that takes no batches has one pair, of all that is given.
    """
    if not signature.batchable:
        return _golden_document(signature, inputs, run, [...], tolerance)
    rows = _golden_rows(inputs, outputs, tolerance)
    picked: list[Any] = [rows[i : i + 1] for i in spread(len(rows), GOLDEN_SINGLE_ROWS)] if len(rows) else []
    if len(rows) > 1:
        picked.append(rows[spread(len(rows), GOLDEN_BATCH_ROWS)])
    return _golden_document(signature, inputs, run, picked, tolerance)


def _golden_document(
    signature: Signature, inputs: Tensors, run: Callable[[Tensors], Tensors], picked: list[Any], tolerance: float
) -> bytes:
    pairs = [
        {
            "request": {"inputs": _as_json(signature.inputs, take(inputs, chosen))},
            "response": {"outputs": _as_json(signature.outputs, run(take(inputs, chosen)))},
        }
        for chosen in picked
    ]
    document = {"schema": 1, "pairs": pairs, "tolerance": {"absolute": tolerance}}
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def checksums(files: Mapping[str, bytes]) -> Mapping[str, str]:
    """SHA-256 in hex of each file, as the manifest lists them."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def write(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write the package and return its directory.

    files: contents by name, whose checksums the manifest lists; it is held against its JSON Schema first. All is
    written and synced beside the target and then renamed, so that a reader, or a crash at any moment, never sees half
    a package. Raises ConversionRefused if the version exists by now, InvalidInput if *root* cannot be a directory.
    """
    target = check_free(root, manifest.name, manifest.version)
    document = manifest.to_json()
    if wrong := schema.faults(document):
        raise ConversionRefused(f"the manifest is not what its schema says, which is a fault of ours: {wrong[0]}")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            "out", f"{root}: {error.strerror}", "a directory that packages can be written into"
        ) from error
    whole = {**files, MANIFEST_FILE: document}
    # A leading dot is no model's name: whoever lists the directory passes over what a crash left behind.
    with _building_directory(root, f".building-{manifest.name}-{manifest.version}-") as building:
        for name, content in whole.items():
            _write_synced(building / name, content)
        building.chmod(0o755)
        _sync_directory(building)
        target.parent.mkdir(exist_ok=True)
        try:
            building.rename(target)
        except OSError as error:
            raise ConversionRefused(f"{target} cannot be put in place: {error.strerror}") from error
        _sync_directory(target.parent)
        _sync_directory(root)
    return target


def _golden_rows(inputs: Tensors, outputs: Tensors, tolerance: float) -> Array:
    """Indices of the rows that may be golden."""
    total = len(next(iter(inputs.values())))
    fit = np.ones(total, dtype=bool)
    for array in (*inputs.values(), *outputs.values()):
        table = array.reshape(total, -1)
        whole = np.isfinite(table) if table.dtype.kind == "f" else table != MISSING_TEXT
        fit &= whole.all(axis=1)
    if "probabilities" in outputs and outputs["probabilities"].shape[1] > 1:
        best = np.sort(outputs["probabilities"], axis=1)
        fit &= best[:, -1] - best[:, -2] > GOLDEN_MARGIN
    elif "score" in outputs:
        fit &= np.abs(outputs["score"][:, 0]) > GOLDEN_MARGIN_IN_TOLERANCES * tolerance
    elif "label" in outputs and "value" in outputs and outputs["value"].shape[1] > 1:  # distances
        nearest = np.sort(outputs["value"], axis=1)
        fit &= nearest[:, 1] - nearest[:, 0] > GOLDEN_MARGIN_IN_TOLERANCES * tolerance
    return np.flatnonzero(fit)


def _as_json(specs: tuple[TensorSpec, ...], tensors: Tensors) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(tensors[spec.name].shape),
            "data": [_plain(value) for value in tensors[spec.name].ravel().tolist()],
        }
        for spec in specs
    ]


def _plain(value: Any) -> Any:
    """A value that JSON has: null for what is no number, and a text for an infinite one."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


@contextlib.contextmanager
def _building_directory(root: Path, prefix: str) -> Iterator[Path]:
    building = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone already if it was put in place


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
