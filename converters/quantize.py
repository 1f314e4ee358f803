"""Which variant of a model is served: each is built, measured on this machine, and kept if it is good and faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from converters import variants
from converters.original import Answer, Family
from converters.quality import Truth
from converters.rows import spread, take
from converters.verify import Invariance, OnnxModel, Tolerance, answers, compare, invariance
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import Signature, Tensors

BATCHES = (1, 32)
_CALIBRATION_ROWS = 1_000
_MEASURE_S = 0.25  # per batch size, shared by all candidates
_MIN_TURNS = 30
_MAX_TURNS = 2_000
_WARM_TURNS = 20
# What makes int8 fast or slow.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")

NOT_APPLICABLE: Mapping[Family, str] = {
    "trees": "not applicable: trees (int8 changes no tree node and gains no speed; fewer of them do: --max-trees)",
    "linear": "not applicable: linear (one product per row, nothing to gain)",
    "other": "not applicable: only small neural networks gain by int8",
}

Choice = Literal["auto", "off", "dynamic", "static", "fp16"]
Verdict = Literal["kept", "passed", "refused", "baseline"]
_METHODS: Mapping[Choice, tuple[str, ...]] = {
    "auto": tuple(variants.BUILDS),
    "static": ("static int8", "static int8, last layer float32"),
    "dynamic": ("dynamic int8",),
    "fp16": ("fp16",),
}


@dataclass(frozen=True, slots=True)
class Gate:
    """What a variant must keep to. Fewer rows than *min_rows* could not show a flip rate this small."""

    max_flip_rate: float = 0.002
    max_metric_drop_points: float = 0.5
    min_speedup: float = 1.2
    or_min_shrinking: float = 2.0
    max_slowdown: float = 1.05
    min_rows: float = 500


def gate_of(settings: Mapping[str, float]) -> Gate:
    """The gate with what is set of it. Raises InvalidInput for what it does not have, or no such number."""
    known = Gate()
    for key, value in settings.items():
        if not hasattr(known, key):
            raise InvalidInput("gate", repr(key), f"one of {', '.join(asdict(known))}")
        if not value >= 0:
            raise InvalidInput(f"gate.{key}", str(value), "a number of at least 0")
    return replace(known, **settings)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the decision table.

    latency_us: median microseconds of one run, by batch size. flips: rows whose label differs from the original's, ties
    left out; None for regressors. metric_drop_points: 100 x the loss of the task's metric; without true labels, for
    regressors, of R2 against the original's own values; None where neither is known.
    """

    method: str
    size_bytes: int
    latency_us: Mapping[str, float]
    max_change: float
    mean_change: float
    flips: int | None
    flip_rate: float | None
    metric_drop_points: float | None
    batch_invariance: Invariance | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which variant is served and why, the table behind it, and the machine it was measured on."""

    chosen: str
    reason: str
    candidates: tuple[Candidate, ...]
    calibration_rows: int
    rows: int
    gate: Mapping[str, float]
    cpu: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """The verified float32 model, the rows to judge on, and the original's answers to them; truth if it is known.

    view: from what the model gives to what is judged of it, named as in *expected*.
    """

    content: bytes
    signature: Signature
    inputs: Tensors
    expected: Answer
    tolerance: Tolerance
    family: Family
    truth: Truth | None
    gate: Gate = field(default_factory=Gate)
    view: Callable[[Tensors], Tensors] = dict

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


def decide(
    subject: Subject, choice: Choice, random: np.random.Generator, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[Decision, bytes]:
    """Choose what is served: the float32 model or a variant of it. Returns the decision and the ONNX bytes.

    ``auto`` keeps the fastest that passes the whole gate. A variant that is asked for by name has to keep the quality,
    but may be slower, and may be one whose rows depend on their batch; raises ConversionRefused if it cannot be had.
    """
    gate, named = subject.gate, choice not in ("auto", "off")
    if choice == "off":
        return undisputed(subject, "switched off with --quantize off"), subject.content
    if subject.family != "neural network":
        if named:
            raise ConversionRefused(f"--quantize {choice} is {NOT_APPLICABLE[subject.family]}")
        return undisputed(subject, NOT_APPLICABLE[subject.family]), subject.content
    if subject.rows < gate.min_rows and not named:
        reason = f"not judged: {subject.rows} rows cannot show a flip rate of {gate.max_flip_rate:.1%}"
        return undisputed(subject, f"{reason}, {gate.min_rows:g} could"), subject.content
    calibration = take(subject.inputs, spread(subject.rows, _CALIBRATION_ROWS))
    contents = {"float32": subject.content}
    failed: list[Candidate] = []
    for method in _METHODS[choice]:
        try:
            contents[method] = variants.BUILDS[method](subject.content, calibration)
            OnnxModel(contents[method], subject.signature)
        except Exception as error:  # the quantizer raises anything on graphs that it does not know
            contents.pop(method, None)
            failed.append(_failed(method, f"cannot be built: {type(error).__name__}: {str(error)[:200]}"))
    judged = judge(subject, contents, random, quality_only=named, clock=clock)
    kept = [candidate for candidate in judged if candidate.verdict == "kept"]
    if named and not kept:
        reasons = "; ".join(f"{each.method}: {each.reason}" for each in (*judged[1:], *failed))
        raise ConversionRefused(f"--quantize {choice} cannot be had ({reasons}). Nothing was written")
    best = min(kept, key=lambda candidate: candidate.latency_us["1"], default=judged[0])
    reason = best.reason if kept else "no variant passed the gate"
    rows = len(next(iter(calibration.values())))
    return settled(subject, judged, failed, best, reason, rows), contents[best.method]


def judge(
    subject: Subject,
    contents: Mapping[str, bytes],
    random: np.random.Generator,
    *,
    quality_only: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Candidate]:
    """Measure variants by their names beside each other, and hold each against the gate; the first is the baseline."""
    models = {method: OnnxModel(content, subject.signature) for method, content in contents.items()}
    latencies = measure(models, subject.inputs, clock=clock)
    return [
        _judged(subject, method, contents, model, latencies, random, quality_only=quality_only)
        for method, model in models.items()
    ]


def settled(
    subject: Subject, judged: list[Candidate], failed: list[Candidate], best: Candidate, reason: str, calibration: int
) -> Decision:
    """The decision for *best*, with the whole table."""
    table = tuple(
        replace(each, verdict="passed", reason=f"{best.method} is preferred")
        if each.verdict == "kept" and each is not best
        else each
        for each in judged
    )
    return Decision(best.method, reason, table + tuple(failed), calibration, subject.rows, asdict(subject.gate), cpu())


def undisputed(subject: Subject, reason: str) -> Decision:
    """The decision to leave the model as it is, without a look at variants."""
    return Decision("float32", reason, (), 0, 0, asdict(subject.gate), cpu())


def measure(
    models: Mapping[str, OnnxModel], inputs: Tensors, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Median microseconds of one run per model and batch size. The models take turns, so that noise hits all alike."""
    medians: dict[str, dict[str, float]] = {method: {} for method in models}
    for batch in BATCHES:
        rows = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in inputs.items()}
        turns: dict[str, list[float]] = {method: [] for method in models}
        end_s = clock() + _MEASURE_S
        turn = 0
        while turn < _MIN_TURNS + _WARM_TURNS or (turn < _MAX_TURNS and clock() < end_s):
            for method, model in models.items():
                begun_s = clock()
                model.run(rows)
                turns[method].append(clock() - begun_s)
            turn += 1
        for method, times in turns.items():
            medians[method][str(batch)] = round(float(np.median(times[_WARM_TURNS:])) * 1e6, 2)
    return medians


def cpu(path: Path = Path("/proc/cpuinfo")) -> Mapping[str, Any]:
    """The processor's name and the instruction sets that matter for int8, as Linux tells them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {"model": "unknown", "flags": []}
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return {
        "model": facts.get("model name", "unknown"),
        "cores": sum(line.startswith("processor") for line in lines),
        "flags": [flag for flag in _TELLING_FLAGS if flag in flags],
    }


def _judged(
    subject: Subject,
    method: str,
    contents: Mapping[str, bytes],
    model: OnnxModel,
    latencies: Mapping[str, Mapping[str, float]],
    random: np.random.Generator,
    *,
    quality_only: bool,
) -> Candidate:
    """Hold one variant against the gate; the first model is the one that the others are compared with."""
    baseline = next(iter(contents))
    alone = invariance(model, subject.inputs, subject.tolerance, random)
    alone = replace(alone, scales_of_batch=variants.takes_scales_of_batch(contents[method]))
    served = replace(subject.signature, batch_invariant=alone.holds)
    found = subject.view(answers(model, served, subject.inputs))
    comparison = compare(subject.expected, found, subject.tolerance)
    is_classifier = "label" in subject.expected.outputs
    flips = comparison.mismatches if is_classifier else None
    rate = comparison.mismatches / comparison.rows if is_classifier else None
    drop = _metric_drop_points(subject, found)
    shrinking = len(contents[baseline]) / len(contents[method])
    speedups = {batch: latencies[baseline][batch] / latencies[method][batch] for batch in latencies[method]}
    verdict: Verdict = "baseline"
    reason = "what the others are compared with"
    if method != baseline:
        against = list(_against_quality(subject.gate, rate, drop))
        if not quality_only:
            against += _against_the_rest(subject.gate, alone, speedups, shrinking)
        verdict = "refused" if against else "kept"
        gains = [f"{speedup:.2f}x as fast at batch {batch}" for batch, speedup in speedups.items()]
        served_alone = [] if alone.holds else ["rows depend on their batch: served unbatched"]
        reason = "; ".join(against or [*gains, f"{shrinking:.1f}x smaller", *served_alone])
    return Candidate(
        method,
        len(contents[method]),
        latencies[method],
        comparison.max_difference,
        comparison.mean_difference,
        flips,
        rate,
        drop,
        alone,
        verdict,
        reason,
    )


def _against_quality(gate: Gate, rate: float | None, drop: float | None) -> Iterator[str]:
    """Each reason not to keep a variant for what it answers."""
    if rate is not None and rate > gate.max_flip_rate:
        yield f"{rate:.2%} of the labels flip, at most {gate.max_flip_rate:.2%} may"
    if drop is not None and drop > gate.max_metric_drop_points:
        yield f"the metric drops by {drop:.2f} points, at most {gate.max_metric_drop_points} may be lost"


def _against_the_rest(gate: Gate, alone: Invariance, speedups: Mapping[str, float], shrinking: float) -> Iterator[str]:
    """Each reason not to keep a variant for what it costs, and for what it does to batches."""
    if not alone.holds:
        yield f"a row's answer depends on its batch (by {alone.max_difference:.2g})"
    for batch, speedup in speedups.items():
        if speedup * gate.max_slowdown < 1:
            yield f"slower at batch {batch} ({speedup:.2f}x)"
    if max(speedups.values()) < gate.min_speedup and shrinking < gate.or_min_shrinking:
        yield f"neither {gate.min_speedup:g}x as fast nor {gate.or_min_shrinking:g}x smaller"


def _metric_drop_points(subject: Subject, found: Tensors) -> float | None:
    if subject.truth is not None:
        name = subject.truth.primary
        before = subject.truth.measure(subject.expected.outputs)[name]
        return 100 * (before - subject.truth.measure(found)[name])
    if "value" in found:
        values = subject.expected.outputs["value"]
        spread_of_values = float(((values - values.mean()) ** 2).sum())
        return 100 * float(((values - found["value"]) ** 2).sum()) / spread_of_values if spread_of_values else None
    return None


def _failed(method: str, reason: str) -> Candidate:
    return Candidate(method, 0, {}, 0.0, 0.0, None, None, None, None, "refused", reason)
