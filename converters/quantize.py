"""Static int8 for small neural networks: built, measured on this machine, and kept only if it is good and faster."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from converters.original import Answer, Family
from converters.quality import Truth
from converters.rows import spread, take
from converters.verify import Invariance, OnnxModel, compare, invariance
from gateway.tensors import Array, Signature, Tensors

# The gate. Fewer rows could not show a flip rate this small.
MAX_FLIP_RATE = 0.002
MAX_METRIC_DROP_POINTS = 0.5
MIN_SPEEDUP = 1.2
MIN_SHRINKING = 2.0
MAX_SLOWDOWN = 1.05
MIN_ROWS = 500

BATCHES = (1, 32)
_CALIBRATION_ROWS = 1_000
_MEASURE_S = 0.25  # per batch size, shared by all candidates
_MIN_TURNS = 30
_MAX_TURNS = 2_000
_WARM_TURNS = 20
_WARNINGS_TOO, _ERRORS_ONLY = 2, 3  # severities of ONNX Runtime's own logger; the first is its default
_MATRIX_PRODUCTS = ("Gemm", "MatMul")
# What makes int8 fast or slow.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")

NOT_APPLICABLE: Mapping[Family, str] = {
    "trees": "not applicable: trees (int8 changes no tree node and gains no speed)",
    "linear": "not applicable: linear (one product per row, nothing to gain)",
    "other": "not applicable: only small neural networks gain by int8",
}

Choice = Literal["auto", "off"]
Verdict = Literal["kept", "passed", "refused", "baseline"]


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
    """The verified float32 model, the rows to judge on, and the original's answers to them; truth if it is known."""

    content: bytes
    signature: Signature
    inputs: Tensors
    expected: Answer
    tolerance: float
    family: Family
    truth: Truth | None

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


def decide(
    subject: Subject, choice: Choice, random: np.random.Generator, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[Decision, bytes]:
    """Choose what is served: the float32 model or an int8 variant of it. Returns the decision and the ONNX bytes."""
    if choice == "off":
        return _undisputed("switched off with --quantize off"), subject.content
    if subject.family != "neural network":
        return _undisputed(NOT_APPLICABLE[subject.family]), subject.content
    if subject.rows < MIN_ROWS:
        reason = f"not judged: {subject.rows} rows cannot show a flip rate of {MAX_FLIP_RATE:.1%}, {MIN_ROWS} could"
        return _undisputed(reason), subject.content
    calibration = take(subject.inputs, spread(subject.rows, _CALIBRATION_ROWS))
    contents = {"float32": subject.content}
    failed: list[Candidate] = []
    for method, settings in _METHODS.items():
        try:
            contents[method] = _quantized(subject.content, calibration, settings)
        except Exception as error:  # the quantizer raises anything on graphs that it does not know
            failed.append(_failed(method, f"cannot be built: {type(error).__name__}: {str(error)[:200]}"))
    models = {method: OnnxModel(content, subject.signature) for method, content in contents.items()}
    latencies = measure(models, subject.inputs, clock=clock)
    judged = [_judge(subject, method, contents, models[method], latencies, random) for method in models]
    kept = [candidate for candidate in judged if candidate.verdict == "kept"]
    best = min(kept, key=lambda candidate: candidate.latency_us["1"], default=judged[0])
    table = tuple(_settled(candidate, best) for candidate in judged) + tuple(failed)
    reason = best.reason if kept else "no int8 variant passed the gate"
    rows = len(next(iter(calibration.values())))
    decision = Decision(best.method, reason, table, rows, subject.rows, _gate(), cpu())
    return decision, contents[best.method]


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


@dataclass(frozen=True, slots=True)
class _Settings:
    last_layer_in_float: bool
    float_outputs: bool


_METHODS: Mapping[str, _Settings] = {
    # Products hand on int8 or float as the next layer wants it; fastest.
    "static int8": _Settings(last_layer_in_float=False, float_outputs=True),
    # The last layer is small and decides between close classes; its numbers stay fine.
    "static int8, last layer float32": _Settings(last_layer_in_float=True, float_outputs=False),
}


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Gives all calibration rows as one batch, once."""

    def __init__(self, inputs: Tensors) -> None:
        texts = {name: array.astype(str).astype(object) for name, array in inputs.items() if array.dtype == object}
        self._batches = iter([{**inputs, **texts}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _quantized(content: bytes, calibration: Tensors, settings: _Settings) -> bytes:
    """The model with its matrix products in int8: fixed scales from the calibration rows, weights per tensor."""
    with tempfile.TemporaryDirectory() as directory, _quiet():
        source, prepared, result = (Path(directory) / name for name in ("source.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(content)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        proto = onnx.load(prepared)
        products = [node.name for node in proto.graph.node if node.op_type in _MATRIX_PRODUCTS]
        quantize_static(
            prepared,
            result,
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_MATRIX_PRODUCTS),
            nodes_to_exclude=products[-1:] if settings.last_layer_in_float else [],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(_MATRIX_PRODUCTS) if settings.float_outputs else []
            },
        )
        return _only_used_imports(onnx.load(result))


def _only_used_imports(proto: Any) -> bytes:
    """The optimizer imports every domain that it knows; other runtimes refuse those that they do not."""
    used = {node.domain for node in proto.graph.node}
    kept = [opset for opset in proto.opset_import if opset.domain in used or opset.domain == ""]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    proto.producer_name = "sluicegate"
    content: bytes = proto.SerializeToString()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer warns, through the root logger and its runtime, about things that were done on purpose."""
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        onnxruntime.set_default_logger_severity(_WARNINGS_TOO)


def _judge(
    subject: Subject,
    method: str,
    contents: Mapping[str, bytes],
    model: OnnxModel,
    latencies: Mapping[str, Mapping[str, float]],
    random: np.random.Generator,
) -> Candidate:
    """Hold one variant against the gate; the float32 model is the one that the others are compared with."""
    found = model.run(subject.inputs)
    comparison = compare(subject.expected, found, subject.tolerance)
    is_classifier = "label" in subject.expected.outputs
    flips = comparison.mismatches if is_classifier else None
    rate = comparison.mismatches / comparison.rows if is_classifier else None
    drop = _metric_drop_points(subject, found)
    alone = invariance(model, subject.inputs, subject.tolerance, random)
    shrinking = len(contents["float32"]) / len(contents[method])
    speedups = {batch: latencies["float32"][batch] / latencies[method][batch] for batch in latencies[method]}
    verdict: Verdict = "baseline"
    reason = "what the others are compared with"
    if method != "float32":
        against = list(_against(rate, drop, alone, speedups, shrinking))
        verdict = "refused" if against else "kept"
        gains = [f"{speedup:.2f}x as fast at batch {batch}" for batch, speedup in speedups.items()]
        reason = "; ".join(against or [*gains, f"{shrinking:.1f}x smaller"])
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


def _against(
    rate: float | None, drop: float | None, alone: Invariance, speedups: Mapping[str, float], shrinking: float
) -> Iterator[str]:
    """Each reason not to keep a variant."""
    if not alone.holds:
        yield f"a row's answer depends on its batch (by {alone.max_difference:.2g})"
    if rate is not None and rate > MAX_FLIP_RATE:
        yield f"{rate:.2%} of the labels flip, at most {MAX_FLIP_RATE:.1%} may"
    if drop is not None and drop > MAX_METRIC_DROP_POINTS:
        yield f"the metric drops by {drop:.2f} points, at most {MAX_METRIC_DROP_POINTS} may be lost"
    for batch, speedup in speedups.items():
        if speedup * MAX_SLOWDOWN < 1:
            yield f"slower at batch {batch} ({speedup:.2f}x)"
    if max(speedups.values()) <= 1:
        yield "not faster"
    elif max(speedups.values()) < MIN_SPEEDUP and shrinking < MIN_SHRINKING:
        yield f"neither {MIN_SPEEDUP}x as fast nor {MIN_SHRINKING:g}x smaller"


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


def _settled(candidate: Candidate, best: Candidate) -> Candidate:
    if candidate.verdict != "kept" or candidate is best:
        return candidate
    return replace(candidate, verdict="passed", reason=f"{best.method} is faster at batch 1")


def _failed(method: str, reason: str) -> Candidate:
    return Candidate(method, 0, {}, 0.0, 0.0, None, None, None, None, "refused", reason)


def _undisputed(reason: str) -> Decision:
    return Decision("float32", reason, (), 0, 0, _gate(), cpu())


def _gate() -> Mapping[str, float]:
    return {
        "max_flip_rate": MAX_FLIP_RATE,
        "max_metric_drop_points": MAX_METRIC_DROP_POINTS,
        "min_speedup": MIN_SPEEDUP,
        "or_min_shrinking": MIN_SHRINKING,
        "max_slowdown": MAX_SLOWDOWN,
        "min_rows": MIN_ROWS,
    }
