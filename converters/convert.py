"""One conversion from start to end: a trained model and rows in, a verified model package out, or a refusal."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from converters import package
from converters.allowed import try_values
from converters.card import read_card
from converters.from_sklearn import choose_features, signature_of, to_onnx
from converters.original import Answer, Original, load
from converters.quality import Truth
from converters.quantize import Choice, Decision, Subject, decide
from converters.reference import histograms, rows_as_parquet
from converters.rows import MISSING_TEXT, read_rows, rounded_to_float32, take, to_tensors
from converters.verify import OnnxModel, Parity, compare, invariance, tolerance_for
from gateway.errors import ConversionRefused
from gateway.models.manifest import GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Manifest, sha256_of
from gateway.tensors import Tensors

# What begins now, how many steps are done, how many there are.
Progress = Callable[[str, int, int], None]

STEPS = 7
_LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "sluicegate")
# Choices of rows must be the same in every run.
_SEED = 20_260
CLAIM_UNKNOWN = "the rows may be rows that the model was trained on"


@dataclass(frozen=True, slots=True)
class Order:
    """What to convert. model: a joblib file. data: rows as .csv or .parquet. out: the models directory.

    target: the column with the true labels or values, no feature. held_out: the user says that the model was not
    trained on these rows. trust: the user says that the joblib file may run code. git_commit: for the lineage.
    card: a file for `read_card`.
    """

    model: Path
    name: str
    version: str
    data: Path
    out: Path
    target: str | None = None
    held_out: bool = False
    quantize: Choice = "auto"
    trust: bool = False
    git_commit: str | None = None
    card: Path | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """A package that was written."""

    path: Path
    manifest: Manifest


def silent(_step: str, _done: int, _steps: int) -> None:
    """The progress callback that shows nothing."""


def convert(
    order: Order, *, progress: Progress = silent, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Converted:
    """Turn a trained model into a package under ``<out>/<name>/<version>``.

    Blocks for seconds. Raises InvalidInput for arguments, models and rows that make no sense, and ConversionRefused,
    with a report of what was compared, if the package would not answer as the original does; nothing is written then.
    """
    random = np.random.default_rng(_SEED)
    begin = _steps(progress)
    package.check_free(order.out, order.name, order.version)
    card = {} if order.card is None else read_card(order.card)
    begin("load the model")
    original, notes = load(order.model, trust=order.trust)
    begin("read the rows")
    table = read_rows(order.data, texts=original.text_categories())
    frame, left_over = choose_features(original, table, target=order.target)
    if left_over:
        notes.append(f"columns that are no features were left out: {', '.join(left_over)}")
    truth = None if order.target is None else Truth(original, table[order.target])
    signature = signature_of(original, frame)
    raw = original.answer(frame)  # it names what it cannot read better than skl2onnx does
    begin("write ONNX")
    content = to_onnx(original, signature)
    model = OnnxModel(content, signature)
    begin("compare")
    inputs = to_tensors(frame, signature)
    rounded = rounded_to_float32(frame)
    expected = original.answer(rounded)
    parity = _compared(original, model, expected, raw, inputs, random)
    begin("try missing and unseen values")
    signature, trials = try_values(original, model, signature, rounded, original.text_categories())
    begin("quantize")
    subject = Subject(content, signature, inputs, expected, parity.float32_rows.tolerance, original.family, truth)
    decision, content = decide(subject, order.quantize, random)
    begin("write the package")
    served = OnnxModel(content, signature)
    signature = dataclasses.replace(signature, batch_invariant=_is_invariant(decision, parity))
    manifest = Manifest(
        name=order.name,
        version=order.version,
        files={},  # filled in when they are written
        signature=signature,
        created=now().isoformat(timespec="seconds"),
        framework={"name": "scikit-learn", "estimator": original.description, "task": original.task},
        libraries=_libraries(),
        lineage=_lineage(order),
        parity={**parity.plain(), **trials, "notes": notes},
        quantization=dataclasses.asdict(decision),
        metrics=_metrics(order, truth, expected, served.run(inputs)),
        card=card,
    )
    converted = _written(order.out, manifest, content, inputs, served.run(inputs), subject.tolerance, random)
    begin("done")
    return converted


def _steps(progress: Progress) -> Callable[[str], None]:
    """Tells *progress* each step as it begins."""
    done = itertools.count()
    return lambda step: progress(step, next(done), STEPS)


def _written(
    out: Path,
    manifest: Manifest,
    content: bytes,
    inputs: Tensors,
    outputs: Tensors,
    tolerance: float,
    random: np.random.Generator,
) -> Converted:
    """The package with its reference and golden pairs, made of the served model's answers."""
    signature = manifest.signature
    files = {
        MODEL_FILE: content,
        REFERENCE_FILE: rows_as_parquet(signature, inputs, outputs, random),
        GOLDEN_FILE: package.golden(signature, inputs, outputs, tolerance),
    }
    whole = dataclasses.replace(
        manifest, files=package.checksums(files), reference=histograms(signature, inputs, outputs)
    )
    return Converted(package.write(out, whole, files), whole)


def _compared(
    original: Original,
    model: OnnxModel,
    expected: Answer,
    raw: Answer,
    inputs: Tensors,
    random: np.random.Generator,
) -> Parity:
    """Compare on all rows. Raises ConversionRefused, with the report, unless the two agree.

    expected, raw: the original's answers to the rows rounded to float32, and to the rows as they are.
    """
    tolerance = tolerance_for(raw)
    found = model.run(inputs)
    parity = Parity(
        compare(expected, found, tolerance),
        compare(raw, found, tolerance),
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
    else:
        advice = "its ONNX form computes something else: use another estimator"
    told = f"ONNX does not answer as {original.description} does: {'; '.join(parts)}. Nothing was written"
    return f"{told}. Likely cause: {advice}"


def _is_invariant(decision: Decision, parity: Parity) -> bool:
    for candidate in decision.candidates:
        if candidate.method == decision.chosen and candidate.batch_invariance is not None:
            return candidate.batch_invariance.holds
    return parity.batch_invariance.holds


def _libraries() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        found[name] = importlib.metadata.version(name)
    return found


def _lineage(order: Order) -> Mapping[str, Any]:
    return {
        "source": order.model.name,
        "source_sha256": sha256_of(order.model),
        "data": order.data.name,
        "data_sha256": sha256_of(order.data),
        "git_commit": order.git_commit,
    }


def _metrics(order: Order, truth: Truth | None, expected: Answer, outputs: Tensors) -> Mapping[str, Any]:
    if truth is None:
        return {}
    return {
        "target": truth.name,
        "rows": truth.rows,
        "known_held_out": order.held_out,
        "note": "the user says that the model was not trained on these rows" if order.held_out else CLAIM_UNKNOWN,
        "primary": truth.primary,
        "original": truth.measure(expected.outputs),
        "served": truth.measure(outputs),
    }
