"""One conversion from start to end: a trained model and rows in, a verified model package out, or a refusal."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from converters import from_torch, judging, model_card, package, ways
from converters.card import read_card
from converters.original import load
from converters.prune import MaxTrees, prune
from converters.quality import Truth
from converters.quantize import Choice, Decision, Gate, Subject, decide, gate_of
from converters.ready import repack
from converters.reference import histograms, rows_as_parquet
from converters.rows import read_rows
from converters.signature import choose_features, signature_of
from converters.slices import by_slice, usual_columns
from converters.sources import SOURCES
from converters.verify import TOLERANCE, OnnxModel, answers
from gateway.errors import ConversionRefused, InvalidInput
from gateway.models.manifest import CARD_FILE, GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Manifest, sha256_of
from gateway.tensors import Signature, Tensors

# What begins now, how many steps are done, how many there are.
Progress = Callable[[str, int, int], None]

STEPS = 8
_LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "sluicegate")
# Choices of rows must be the same in every run.
_SEED = 20_260
CLAIM_UNKNOWN = "the rows may be rows that the model was trained on"


@dataclass(frozen=True, slots=True)
class Order:
    """What to convert. model: a file for `sources.load`, or an ONNX file. data: rows as .csv or .parquet; an ONNX file
    may do without. out: the models directory.

    target: the column with the true labels or values, no feature. held_out: the user says that the model was not
    trained on these rows. trust: the user says that the model's file may run code. origin: what
    else is known, for the lineage.
    gate: what differs from the gate's defaults. max_trees: how many rounds of trees are kept at most, None for all.
    card: a file for `read_card`. slices: columns by which quality is told; none for those that are usual.
    """

    model: Path
    name: str
    version: str
    data: Path | None
    out: Path
    target: str | None = None
    held_out: bool = False
    quantize: Choice = "auto"
    gate: Mapping[str, float] = field(default_factory=dict)
    max_trees: MaxTrees | None = None
    trust: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)
    card: Path | None = None
    slices: Sequence[str] = ()


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
    gate = gate_of(order.gate)
    if order.model.suffix in (".onnx", *from_torch.SUFFIXES):
        return _repacked(order, card, gate, begin, random, now)
    if order.data is None:
        raise InvalidInput("data", "nothing", "rows of features in a .csv or .parquet file")
    begin("load the model")
    original, notes = load(order.model, trust=order.trust)
    begin("read the rows")
    table = read_rows(order.data, texts=original.text_categories())
    frame, left_over = choose_features(original, table, target=order.target)
    if left_over:
        notes.append(f"columns that are no features were left out: {', '.join(left_over)}")
    if order.target is not None and original.task in ("clusterer", "transformer"):
        raise InvalidInput("target", repr(order.target), f"none, since no answer of a {original.task} is true or false")
    truth = None if order.target is None else Truth(original.classes, table[order.target])
    signature_of(original, frame)  # names columns that cannot be packaged
    raw = original.answer(frame)  # it names what it cannot read better than skl2onnx does
    if truth is not None:
        truth.measure(raw.outputs)  # refuses what has no one truth per row
    way = ways.right_one(original, frame, raw, random, begin)
    original, signature, content, parity = way.original, way.signature, way.content, way.parity
    inputs, expected = way.inputs, way.expected
    report = {**way.report, "notes": [*notes, *way.notes]}
    begin("quantize")
    tolerance = parity.float32_rows.tolerance
    subject = Subject(content, signature, inputs, expected, tolerance, original.family, truth, gate)
    if order.max_trees is None:
        decision, content = decide(subject, order.quantize, random)
    else:
        decision, content = prune(original, subject, order.max_trees, random, held_out=order.held_out)
    begin("write the package")
    served = OnnxModel(content, signature)
    signature = dataclasses.replace(signature, batch_invariant=_is_invariant(decision, parity.batch_invariance.holds))
    outputs = answers(served, signature, inputs)
    manifest = Manifest(
        name=order.name,
        version=order.version,
        files={},  # filled in when they are written
        signature=signature,
        created=now().isoformat(timespec="seconds"),
        framework={"name": original.source, "estimator": original.description, "task": original.task},
        libraries=_libraries(original.source),
        lineage=_lineage(order),
        parity=report,
        quantization=dataclasses.asdict(decision),
        metrics=_metrics(order, subject, outputs, table, signature),
        card=card,
    )
    converted = _written(order.out, manifest, served, content, inputs, outputs, tolerance, random)
    begin("done")
    return converted


def _repacked(
    order: Order,
    card: Mapping[str, Any],
    gate: Gate,
    begin: Callable[[str], None],
    random: np.random.Generator,
    now: Callable[[], datetime],
) -> Converted:
    """The package of a ready ONNX file, or of a module that is exported to one."""
    if order.max_trees is not None:
        raise InvalidInput("max-trees", str(order.max_trees), "nothing, for a model that is ONNX already or a module")
    begin("upgrade")
    framework = {"name": "ONNX", "estimator": order.model.name, "task": "unknown"}
    with from_torch.exported(order.model, order.data, order.target, trust=order.trust) as (path, module):
        made = repack(path, order.data, order.target, random, begin, module)
    if module is not None:
        framework = {"name": "PyTorch", "estimator": module.described, "task": "unknown"}
    begin("quantize")
    subject = judging.subject_in(made, gate)
    decision, content = (None, made.content) if subject is None else decide(subject, order.quantize, random)
    if subject is None and order.quantize not in ("auto", "off"):
        raise ConversionRefused(
            f"--quantize {order.quantize}: there are no rows to judge it by, or it is never batched"
        )
    served, signature, outputs = OnnxModel(content), made.signature, made.outputs
    if subject is not None and decision is not None and made.inputs is not None:
        signature = dataclasses.replace(signature, batch_invariant=_is_invariant(decision, signature.batch_invariant))
        outputs = answers(served, signature, made.inputs)
    files = {MODEL_FILE: content}
    reference: Mapping[str, Any] = {}
    begin("write the package")
    if made.inputs is not None and outputs is not None and made.is_repeatable:
        tolerance = TOLERANCE if subject is None else float(np.max(subject.tolerance))
        files[GOLDEN_FILE] = package.golden(signature, made.inputs, outputs, tolerance, served.run)
        if order.data is not None and all(array.ndim == 2 for array in made.inputs.values()):
            files[REFERENCE_FILE] = rows_as_parquet(signature, made.inputs, outputs, random)
            reference = histograms(signature, made.inputs, outputs)
    manifest = Manifest(
        name=order.name,
        version=order.version,
        files={},  # filled in when they are written
        signature=signature,
        created=now().isoformat(timespec="seconds"),
        framework=framework,
        libraries=_libraries(framework["name"]),
        lineage=_lineage(order),
        parity=made.report,
        quantization={} if decision is None else dataclasses.asdict(decision),
        metrics={} if subject is None or outputs is None else _metrics(order, subject, outputs, made.table, signature),
        reference=reference,
        card=card,
    )
    files[CARD_FILE] = model_card.card(manifest)
    manifest = dataclasses.replace(manifest, files=package.checksums(files))
    converted = Converted(package.write(order.out, manifest, files), manifest)
    begin("done")
    return converted


def _steps(progress: Progress) -> Callable[[str], None]:
    """Tells *progress* each step as it begins for the first time: another form of a model goes through some again."""
    told: list[str] = []

    def begin(step: str) -> None:
        if step not in told:
            progress(step, len(told), STEPS)
            told.append(step)

    return begin


def _written(
    out: Path,
    manifest: Manifest,
    served: OnnxModel,
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
        GOLDEN_FILE: package.golden(signature, inputs, outputs, tolerance, served.run),
    }
    whole = dataclasses.replace(manifest, reference=histograms(signature, inputs, outputs))
    files[CARD_FILE] = model_card.card(whole)
    whole = dataclasses.replace(whole, files=package.checksums(files))
    return Converted(package.write(out, whole, files), whole)


def _is_invariant(decision: Decision, otherwise: bool) -> bool:
    for candidate in decision.candidates:
        if candidate.method == decision.chosen and candidate.batch_invariance is not None:
            return candidate.batch_invariance.holds
    return otherwise


def _libraries(name_of_source: str) -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        found[name] = importlib.metadata.version(name)
    if name_of_source == "PyTorch":
        found["torch"] = importlib.metadata.version("torch")
    for source in SOURCES.values():
        if source.name == name_of_source and source.library not in found:
            found[source.library] = source.version()
    return found


def _lineage(order: Order) -> Mapping[str, Any]:
    return {
        "source": order.model.name,
        "source_sha256": sha256_of(order.model),
        "data": None if order.data is None else order.data.name,
        "data_sha256": None if order.data is None else sha256_of(order.data),
        **order.origin,
    }


def _metrics(order: Order, subject: Subject, outputs: Tensors, table: Any, signature: Signature) -> Mapping[str, Any]:
    truth, seen = subject.truth, subject.view(outputs)
    if truth is None:
        if order.slices:
            raise InvalidInput("slice", ", ".join(order.slices), "--target too: slices are judged by true answers")
        return {}
    columns = order.slices or usual_columns(signature, table, truth.name)
    return {
        "target": truth.name,
        "rows": truth.rows,
        "known_held_out": order.held_out,
        "note": "the user says that the model was not trained on these rows" if order.held_out else CLAIM_UNKNOWN,
        "primary": truth.primary,
        "original": truth.measure(subject.expected.outputs),
        "served": truth.measure(seen),
        "slices": by_slice(truth, table, columns, seen),
    }
