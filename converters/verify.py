"""Does the ONNX model answer as the original does, and does a row's answer depend on the rows beside it?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from converters.original import Answer
from converters.rows import spread, take
from gateway.errors import ConversionRefused, InferenceFailed, PackageInvalid
from gateway.models.runtime import OnnxRuntime, check_same
from gateway.tensors import Array, Signature, Tensors

# float32 holds seven digits; a sum over trees or features loses one or two of them.
TOLERANCE = 1e-5
# Values, unlike probabilities, may be large: there each may be off by this part of itself as well.
RELATIVE = 1e-5
_SHOWN = 5
_ALONE_ROWS = 64
_COMPANIES = 24
_MAX_COMPANY_ROWS = 64


# One number for all columns of an answer, or one for each.
Tolerance = float | Array


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found when two models answered the same rows.

    tolerance: the largest one of all columns. ties: rows whose labels differ while the original's two best classes are
    less than the tolerance apart. mismatches: rows whose labels differ and are no ties. over_tolerance: rows with a
    probability off by more than the tolerance, a value or score off by more than the tolerance + relative x value, or
    with another text. first: the first few wrong rows, for people.
    """

    rows: int
    tolerance: float
    relative: float
    mismatches: int
    ties: int
    over_tolerance: int
    max_difference: float
    mean_difference: float
    first: tuple[Mapping[str, Any], ...]

    @property
    def agrees(self) -> bool:
        return self.mismatches == 0 and self.over_tolerance == 0


@dataclass(frozen=True, slots=True)
class Invariance:
    """What was found when rows were answered alone and in random company.

    label_changes: ties left out. scales_of_batch: the model takes scales over all rows of a batch, so that answers
    depend on it even where no row was found for which they do.
    """

    rows: int
    companies: int
    tolerance: float
    label_changes: int
    over_tolerance: int
    max_difference: float
    scales_of_batch: bool = False

    @property
    def holds(self) -> bool:
        return self.label_changes == 0 and self.over_tolerance == 0 and not self.scales_of_batch


@dataclass(frozen=True, slots=True)
class Parity:
    """ONNX against the original on the same rows, once rounded to float32 for both and once raw for the original."""

    float32_rows: Comparison
    raw_rows: Comparison
    batch_invariance: Invariance

    @property
    def agrees(self) -> bool:
        return self.float32_rows.agrees and self.raw_rows.agrees

    def plain(self) -> Mapping[str, Any]:
        """The report as it stands in the manifest."""
        return {"agrees": self.agrees, "of": "float32 ONNX against the original", **asdict(self)}


class OnnxModel:
    """An ONNX file in the runtime that serves it, on one thread.

    Raises ConversionRefused if it cannot be loaded, has other inputs or outputs than *signature* says, if it is given,
    or fails on rows.
    """

    def __init__(self, content: bytes, signature: Signature | None = None) -> None:
        try:
            self._runtime = OnnxRuntime(content)
            if signature is not None:
                check_same(signature, self._runtime.signature)
        except PackageInvalid as error:
            raise ConversionRefused(f"the model cannot be served: {error}") from error

    @property
    def signature(self) -> Signature:
        """What the file itself says: no classes, features named by position."""
        return self._runtime.signature

    def run(self, tensors: Tensors) -> Tensors:
        """Answer rows as serving would."""
        try:
            return self._runtime.run(tensors)
        except InferenceFailed as error:
            raise ConversionRefused(str(error)) from error


def answers(model: OnnxModel, signature: Signature, inputs: Tensors) -> Tensors:
    """The model's answers to rows as clients get them: one by one where a row's answer depends on its batch."""
    if not signature.batchable or signature.batch_invariant:
        return model.run(inputs)
    single = [model.run(take(inputs, slice(row, row + 1))) for row in range(len(next(iter(inputs.values()))))]
    return {name: np.concatenate([each[name] for each in single]) for name in single[0]}


def tolerance_for(answer: Answer) -> Tolerance:
    """How far apart two answers may be: TOLERANCE for probabilities; for values, that part of their column's median
    size, zeros left out.
    """
    values = answer.outputs.get("value", answer.outputs.get("score"))
    if values is None or not values.size or values.dtype == object:
        return TOLERANCE
    sizes = np.abs(np.where(np.isfinite(values) & (values != 0), values, np.nan))
    found = np.full(sizes.shape[1], TOLERANCE)
    for column in np.flatnonzero(~np.isnan(sizes).all(axis=0)):
        found[column] *= np.nanmedian(sizes[:, column])
    return float(found[0]) if len(found) == 1 else found


def compare(expected: Answer, found: Tensors, tolerance: Tolerance) -> Comparison:
    """Compare two models' answers to the same rows, output by output. Raises ConversionRefused if shapes differ."""
    for name, array in expected.outputs.items():
        if name not in found or found[name].shape != array.shape:
            shape = found[name].shape if name in found else "nothing"
            raise ConversionRefused(f"output {name!r}: the original gives shape {array.shape}, ONNX gives {shape}")
    rows = len(next(iter(expected.outputs.values())))
    difference, over = _difference(expected.outputs, found, rows, tolerance)
    unequal = np.zeros(rows, dtype=bool)
    tied = np.zeros(rows, dtype=bool)
    if "label" in expected.outputs:
        unequal = expected.outputs["label"] != found["label"]
        assert expected.margin is not None
        tied = unequal & (expected.margin < np.max(tolerance))
    wrong = (unequal & ~tied) | over
    finite = difference[np.isfinite(difference)]
    return Comparison(
        rows=rows,
        tolerance=float(np.max(tolerance)),
        relative=RELATIVE if expected.outputs.keys() & {"value", "score"} else 0.0,
        mismatches=int((unequal & ~tied).sum()),
        ties=int(tied.sum()),
        over_tolerance=int(over.sum()),
        max_difference=_plain(difference.max(initial=0.0)),
        mean_difference=_plain(finite.mean() if finite.size else 0.0),
        first=tuple(_told(expected.outputs, found, difference, row) for row in np.flatnonzero(wrong)[:_SHOWN]),
    )


def invariance(model: OnnxModel, tensors: Tensors, tolerance: Tolerance, random: np.random.Generator) -> Invariance:
    """Answer rows one by one, then in batches of random rows in random order, and compare.

    A label may change only where the row's own best two classes are less than the tolerance apart.
    """
    total = len(next(iter(tensors.values())))
    chosen = spread(total, _ALONE_ROWS)
    alone = {int(row): model.run(take(tensors, slice(row, row + 1))) for row in chosen}
    worst, changes, over = 0.0, 0, 0
    for _ in range(_COMPANIES):
        row = int(random.choice(chosen))
        company = random.integers(0, total, size=int(random.integers(1, _MAX_COMPANY_ROWS)))
        place = int(random.integers(0, len(company) + 1))
        together = model.run(take(tensors, np.insert(company, place, row)))
        beside = take(together, slice(place, place + 1))
        difference, is_over = _difference(alone[row], beside, 1, tolerance)
        worst = max(worst, float(difference[0]))
        over += int(is_over[0])
        if "label" in beside and beside["label"][0] != alone[row]["label"][0]:
            changes += not _is_tie(alone[row], tolerance)
    return Invariance(len(chosen), _COMPANIES, float(np.max(tolerance)), changes, over, _plain(worst))


def _is_tie(outputs: Tensors, tolerance: Tolerance) -> bool:
    if "score" in outputs:
        return bool(abs(outputs["score"][0, 0]) < np.max(tolerance))
    if "probabilities" in outputs:
        best = np.sort(outputs["probabilities"][0])[::-1]
    elif "value" in outputs:  # distances
        best = np.sort(outputs["value"][0])
    else:
        return False
    return len(best) > 1 and bool(abs(best[0] - best[1]) < np.max(tolerance))


def _difference(expected: Tensors, found: Tensors, rows: int, tolerance: Tolerance) -> tuple[Array, Array]:
    """Per row, the largest absolute difference over all outputs but the label, and whether one is too large.

    It is infinite where only one of the two is NaN, and where a text is another one.
    """
    largest = np.zeros(rows)
    over = np.zeros(rows, dtype=bool)
    for name, array in expected.items():
        if name == "label":
            continue
        apart, allowed = _apart(name, array.reshape(rows, -1), found[name].reshape(rows, -1), tolerance)
        largest = np.maximum(largest, apart.max(axis=1, initial=0.0))
        over |= (apart > allowed).any(axis=1)
    return largest, over


def _apart(name: str, expected: Array, found: Array, tolerance: Tolerance) -> tuple[Array, Array | float]:
    """How far numbers are apart, and how far they may be."""
    if expected.dtype == object:
        return np.where(expected == found, 0.0, np.inf), 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    apart[np.isnan(apart)] = np.inf
    if name == "probabilities":
        return apart, TOLERANCE if isinstance(tolerance, np.ndarray) else tolerance
    # What is no number is either the same or too far: it widens no tolerance.
    return apart, tolerance + RELATIVE * np.abs(np.where(np.isfinite(a), a, 0.0))


def _plain(number: Any) -> float:
    """A float that JSON can hold: what is infinitely far is told as the largest float."""
    return float(min(float(number), np.finfo(np.float64).max))


def _told(expected: Tensors, found: Tensors, difference: Array, row: int) -> Mapping[str, Any]:
    """One wrong row: its label, or the number that is off by the most."""
    told: dict[str, Any] = {"row": int(row), "difference": _plain(difference[row])}
    name, column = next(iter(expected)), 0
    if name != "label" and expected[name].ndim > 1:
        apart, _ = _apart(name, expected[name][row : row + 1], found[name][row : row + 1], 0.0)
        column = int(apart[0].argmax())
    for whose, outputs in (("original", expected), ("onnx", found)):
        value = outputs[name][row].ravel()[column] if outputs[name].ndim > 1 else outputs[name][row]
        plain = value.decode() if isinstance(value, bytes) else value.item()
        told[whose] = plain if not isinstance(plain, float) or math.isfinite(plain) else str(plain)
    return told
