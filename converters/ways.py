"""The forms that a model can have in ONNX, tried one after the other until one answers as the original does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.allowed import try_values
from converters.original import Answer, Original
from converters.probes import Probed, probe
from converters.rows import MISSING_TEXT, rounded_to_float32, take, to_tensors
from converters.signature import signature_of
from converters.variants import optimized
from converters.verify import OnnxModel, Parity, Tolerance, compare, invariance, tolerance_for
from converters.write import to_onnx
from gateway.errors import ConversionRefused
from gateway.tensors import Signature, Tensors

IN_DOUBLES = "float32 does not answer as the original does, and doubles do: the package takes FP64"
# What is off by less than so many tolerances is off by rounding.
_ROUNDING = 100


@dataclass(frozen=True, slots=True)
class Way:
    """A form that is right. original: as it is seen in this form. signature: with what may be missing or unseen.

    inputs: the rows as they are, as tensors. expected: the original's answers to what the served model sees of them.
    report: all that was compared, as it stands in the manifest. notes: for the user.
    """

    original: Original
    signature: Signature
    content: bytes
    inputs: Tensors
    expected: Answer
    parity: Parity
    report: Mapping[str, Any]
    notes: tuple[str, ...]


def right_one(
    original: Original, frame: Any, raw: Answer, random: np.random.Generator, begin: Callable[[str], None]
) -> Way:
    """The first form that the runtime takes and that answers as the original does, on all rows and all probes.

    raw: the original's answers to the rows of *frame*. begin: hears the steps. Raises ConversionRefused if there is no
    such form, with the report of the first one that could be compared.
    """
    begin("write ONNX")
    unwritten: ConversionRefused | None = None
    wrong: ConversionRefused | None = None
    for form in _forms(original):
        try:
            signature = signature_of(form, frame)
            content = optimized(to_onnx(form, signature))
            model = OnnxModel(content, signature)
        except ConversionRefused as error:
            unwritten = unwritten or error
            continue
        try:
            return _tried(form, signature, content, model, frame, raw, random, begin)
        except ConversionRefused as error:
            wrong = wrong or error
    refusal = wrong or unwritten
    assert refusal is not None
    raise refusal


def _forms(original: Original) -> Iterator[Original]:
    """Trees behind a preparation are written by ourselves if skl2onnx can write the preparation in doubles; else all is
    left to skl2onnx, in float32, which is the fastest. What is wrong then is tried in doubles: all of it, or, since
    doubles let skl2onnx search without end in trees, what comes before them.
    """
    yield original
    if original.ensemble is not None:
        if original.head is not None:
            yield original.without_trees()
    elif not original.holds_trees:
        yield original.in_doubles()
    elif (in_two := original.in_two()) is not None:
        yield in_two


def _tried(
    form: Original,
    signature: Signature,
    content: bytes,
    model: OnnxModel,
    frame: Any,
    raw: Answer,
    random: np.random.Generator,
    begin: Callable[[str], None],
) -> Way:
    """Compare one form. Raises ConversionRefused, with a report, if it is off anywhere."""
    begin("compare")
    inputs = to_tensors(frame, signature)
    rounded = rounded_to_float32(frame, signature)
    rounded_inputs = to_tensors(rounded, signature) if form.takes_doubles else inputs
    expected = form.answer(rounded)
    tolerance = tolerance_for(raw)
    parity = _compared(form, model, (expected, rounded_inputs), (raw, inputs), tolerance, random)
    if form.takes_doubles:  # the rows as they are, are what the served model answers
        rounded, expected = frame, raw
    begin("try missing and unseen values")
    signature, trials = try_values(form, model, signature, rounded, form.text_categories())
    begin("probe thresholds and edges")
    probed = probe(form, model, signature, rounded, tolerance, random)
    report = {**parity.plain(), **probed.plain(), **trials}
    if not probed.agrees:
        raise ConversionRefused(_told_probed(form, probed), report={**report, "agrees": False})
    notes = (IN_DOUBLES,) if form.wide else ()
    return Way(form, signature, content, inputs, expected, parity, report, notes)


def _compared(
    original: Original,
    model: OnnxModel,
    rounded: tuple[Answer, Tensors],
    raw: tuple[Answer, Tensors],
    tolerance: Tolerance,
    random: np.random.Generator,
) -> Parity:
    """Compare on all rows. Raises ConversionRefused, with the report, unless the two agree.

    rounded, raw: the original's answers to the rows rounded to float32 and to the rows as they are, and the tensors
    that they become; the same tensors if the served model takes float32.
    """
    (expected, rounded_inputs), (expected_raw, inputs) = rounded, raw
    found = model.run(inputs)
    parity = Parity(
        compare(expected, found if rounded_inputs is inputs else model.run(rounded_inputs), tolerance),
        compare(expected_raw, found, tolerance),
        invariance(model, inputs, tolerance, random),
    )
    if not parity.agrees:
        wrong = [row["row"] for row in (*parity.float32_rows.first, *parity.raw_rows.first)]
        lacking = all(_is_lacking(take(inputs, row)) for row in wrong)
        raise ConversionRefused(_told(original, parity, lacking=lacking), report=parity.plain())
    return parity


def _is_lacking(row: Tensors) -> bool:
    """Whether a value is missing in this row."""
    return any(bool((v == MISSING_TEXT).any() if v.dtype == object else np.isnan(v).any()) for v in row.values())


def _told(original: Original, parity: Parity, *, lacking: bool) -> str:
    """Why the package is refused, and what to do. lacking: the rows that were found wrong all miss a value."""
    rounded, raw = parity.float32_rows, parity.raw_rows
    parts = [
        (f"{c.mismatches} of {c.rows} labels differ, " if original.task == "classifier" else "")
        + f"{c.over_tolerance} of {c.rows} answers are off by more than {c.tolerance:.2g} "
        + f"(at most {c.max_difference:.2g}) on {which} rows"
        for c, which in ((rounded, "float32"), (raw, "raw"))
        if not c.agrees
    ]
    if lacking:
        advice = "its ONNX form takes missing values otherwise: fill them before, in the training data too"
    elif original.family == "trees" or rounded.agrees:
        advice = (
            "rounding to float32 moves values over decision thresholds: keep the data as float32 in a parquet file, "
            "train on that, and do not scale before trees"
        )
    elif original.family in ("linear", "neural network"):
        advice = "float32 cannot hold sums of such large numbers: put a StandardScaler before the estimator"
    elif all(each.mismatches == 0 and each.max_difference < _ROUNDING * each.tolerance for each in (rounded, raw)):
        advice = "float32 is not fine enough, and its ONNX form has no doubles: put a StandardScaler before it"
    else:
        advice = "its ONNX form computes something else: use another estimator"
    told = f"ONNX does not answer as {original.description} does: {'; '.join(parts)}. Nothing was written"
    return f"{told}. Likely cause: {advice}"


def _told_probed(original: Original, probed: Probed) -> str:
    """Why the package is refused after probes."""
    parts = [
        f"{found.mismatches} labels and {found.over_tolerance} answers of {found.rows} rows {where}"
        for found, where in ((probed.boundary_rows, "on thresholds"), (probed.edge_rows, "at the edges of numbers"))
        if found is not None and not found.agrees
    ]
    return f"ONNX does not answer as {original.description} does: {'; '.join(parts)} are off. Nothing was written"
