"""A ready ONNX file becomes a package: what it takes and gives, what was changed, and that it answers as it came."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters import from_onnx
from converters.from_onnx import Ready
from converters.rows import read_rows, spread, take, to_tensors
from converters.verify import TOLERANCE, OnnxModel
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import FLOATS, MAX_FEATURES, Array, Feature, Kind, Signature, Tensors

# Rows that are drawn where none are given.
_DRAWN_ROWS = 8
_ALONE_ROWS = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Repacked:
    """What stands in the package. inputs and outputs are None where the file fails on rows that were drawn.

    is_repeatable: equal inputs get equal answers. truth: the column of true labels or values, None if there is none.
    table: all columns of the data.
    """

    content: bytes
    signature: Signature
    inputs: Tensors | None
    outputs: Tensors | None
    report: Mapping[str, Any]
    is_repeatable: bool = True
    truth: Any = None
    table: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Module:
    """What an ONNX file was exported from: its name, and its answers by the names of the file's outputs."""

    described: str
    answer: Callable[[Tensors], Tensors]


def repack(
    path: Path,
    data: Path | None,
    target: str | None,
    random: np.random.Generator,
    begin: Callable[[str], None],
    module: Module | None = None,
) -> Repacked:
    """Make the ONNX file at *path* ready to be served, and try it on the rows in *data* or on rows that are drawn.

    It is compared with the *module* that it was exported from, if there is one, else with the file as it came. The
    runtime may end the process: *begin* is told before it gets rows. Raises InvalidInput for files that make no sense
    together, ConversionRefused if the file cannot be served, or answers otherwise.
    """
    ready = from_onnx.open_file(path)
    model = OnnxModel(ready.content)
    signature, notes = ready.signature, list(ready.notes)
    truth: Any = None
    table: Any = None
    if data is not None:
        table = frame = read_rows(data)
        if target is not None and target not in frame.columns:
            raise InvalidInput("target", repr(target), f"a column of the data: {', '.join(list(frame.columns)[:5])}")
        truth = None if target is None else frame[target]
        signature, inputs = _from_rows(signature, frame.drop(columns=[] if target is None else [target]))
    else:
        inputs = from_onnx.made_up(signature, _DRAWN_ROWS, random)
    begin("answer rows that were drawn at random" if data is None else "answer the rows")
    try:
        outputs = model.run(inputs)
    except ConversionRefused as error:
        if data is not None:
            raise
        notes.append(f"it fails on rows that were drawn at random, so that none were tried: {error}")
        return Repacked(ready.content, signature, None, None, {"of": "nothing", "notes": notes})
    off = _off_module(module, inputs, outputs) if module else _differences(path, ready, model, inputs, notes)
    repeatable = ready.is_repeatable
    if signature.cacheable and not _equal(outputs, model.run(inputs)):
        repeatable = False
        notes.append("it answers the same rows otherwise each time: requests are never batched nor cached")
        signature = dataclasses.replace(signature, batch_invariant=False, cacheable=False)
    if (
        signature.batchable
        and signature.batch_invariant
        and not _is_invariant(model, signature, inputs, outputs, random)
    ):
        notes.append("a row's answer depends on its batch: requests are not batched")
        signature = dataclasses.replace(signature, batch_invariant=False)
    rows = len(next(iter(inputs.values()))) if signature.batchable else 1
    of = "the file as it is served against the file as it came" if ready.is_changed else "the file, unchanged"
    report = {
        "agrees": True,
        "of": f"float32 ONNX against the {module.described}" if module else of,
        "rows": rows,
        "drawn_at_random": data is None,
        "max_difference": off,
        "notes": notes,
    }
    return Repacked(ready.content, signature, inputs, outputs, report, repeatable, truth, table)


def _off_module(module: Module, inputs: Tensors, outputs: Tensors) -> float:
    """How far ONNX is off the module. Raises ConversionRefused if that is too far."""
    before = module.answer(inputs)
    worst = 0.0
    for name, found in outputs.items():
        apart = _apart(before[name], found)
        if apart > TOLERANCE:
            raise ConversionRefused(
                f"ONNX does not answer as the {module.described} does: output {name!r} is off by {apart:.2g}. "
                "Nothing was written"
            )
        worst = max(worst, apart)
    return worst


def _from_rows(signature: Signature, frame: Any) -> tuple[Signature, Tensors]:
    """The signature with its features named by the columns of the data, and the rows as its tensors."""
    names = list(frame.columns)
    inputs = signature.inputs
    if not signature.batchable:
        raise InvalidInput("data", "rows", "none, for a model whose first dimension is fixed")
    if all(spec.name in names and spec.shape in ((-1,), (-1, 1)) for spec in inputs):
        features = tuple(_feature(spec.name, spec.name, 0, spec.datatype) for spec in inputs)
    elif len(inputs) == 1 and len(inputs[0].shape) == 2 and inputs[0].shape[1] in (-1, len(names)):
        if len(names) > MAX_FEATURES:
            raise InvalidInput("data", f"{len(names)} features", f"at most {MAX_FEATURES}")
        only = dataclasses.replace(inputs[0], shape=(-1, len(names)))
        inputs = (only,)
        features = tuple(_feature(name, only.name, i, only.datatype) for i, name in enumerate(names))
    else:
        wanted = ", ".join(f"{spec.name!r} {list(spec.shape)}" for spec in inputs)
        raise InvalidInput("data", f"columns {names[:10]}", f"a column for each of the model's inputs: {wanted}")
    named = dataclasses.replace(signature, inputs=inputs, features=features)
    tensors = to_tensors(frame, named)
    flat = {spec.name: tensors[spec.name] if len(spec.shape) > 1 else tensors[spec.name][:, 0] for spec in inputs}
    return named, {spec.name: flat[spec.name].astype(spec.dtype, copy=False) for spec in inputs}


def _feature(name: str, given: str, column: int, datatype: str) -> Feature:
    is_text = datatype in ("BYTES", "BOOL")
    kind: Kind = "categorical" if is_text else "numeric"
    return Feature(name, given, column, kind, missing_allowed=datatype in FLOATS)


def _differences(path: Path, ready: Ready, model: OnnxModel, inputs: Tensors, notes: list[str]) -> float:
    """How far the served file is off the one that came. Raises ConversionRefused if that is too far."""
    if not ready.is_changed or not ready.is_repeatable:
        return 0.0
    try:
        came = OnnxModel(path.read_bytes())
    except ConversionRefused:
        notes.append("the runtime does not take the file as it came: there is nothing to compare with")
        return 0.0
    try:
        before = came.run(inputs)
    except ConversionRefused:
        return 0.0
    worst = 0.0
    for name, found in model.run(inputs).items():
        if name not in before or isinstance(before[name], list):
            continue
        apart = _apart(before[name], found)
        if apart > TOLERANCE:
            raise ConversionRefused(f"output {name!r} is off by {apart:.2g} once the file was upgraded")
        worst = max(worst, apart)
    return worst


def _is_invariant(
    model: OnnxModel, signature: Signature, inputs: Tensors, outputs: Tensors, random: np.random.Generator
) -> bool:
    """Whether rows alone get the answers that they get together: those that are given, and drawn ones.

    Real rows may hide it for long: a network that is sure of them moves less than one that sees noise.
    """
    drawn = from_onnx.made_up(signature, _DRAWN_ROWS, random)
    try:
        found = model.run(drawn)
    except ConversionRefused:  # it cannot read what was drawn
        drawn, found = {}, {}
    return _agree_alone(model, inputs, outputs) and (not drawn or _agree_alone(model, drawn, found))


def _agree_alone(model: OnnxModel, inputs: Tensors, outputs: Tensors) -> bool:
    total = len(next(iter(inputs.values())))
    for row in spread(total, _ALONE_ROWS):
        alone = model.run(take(inputs, slice(row, row + 1)))
        if any(_apart(take(outputs, slice(row, row + 1))[name], found) > TOLERANCE for name, found in alone.items()):
            return False
    return True


def _equal(one: Tensors, other: Tensors) -> bool:
    return all(_apart(one[name], found) == 0 for name, found in other.items())


def _apart(one: Array, other: Array) -> float:
    """The largest difference, relative for numbers and medians above 1; infinite if shapes or other types differ."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if one.dtype.kind != "f":
        return 0.0 if np.array_equal(one, other) else float("inf")
    a, b = np.atleast_1d(one).astype(np.float64), np.atleast_1d(other).astype(np.float64)  # a scalar too
    with np.errstate(invalid="ignore"):
        sizes = np.abs(np.where(np.isfinite(a), a, 1.0))
        apart = np.abs(a - b) / np.maximum(max(1.0, float(np.median(sizes)) if a.size else 1.0), sizes)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
