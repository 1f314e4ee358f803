"""From a package to a version that may take traffic: checked, loaded, proved on its golden pairs, warmed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from gateway.codecs import oip_binary
from gateway.codecs.oip_json import OipCodec
from gateway.errors import GatewayError, PackageInvalid
from gateway.models.runtime import OnnxRuntime, Runtime, check_same
from gateway.models.source import ModelSource, Package
from gateway.redaction import Rules
from gateway.serving.batch_policy import MIN_RUNS, BestSize, RunCost
from gateway.serving.outputs import misdeclared
from gateway.serving.sampling_rules import Ranges, ranges_of
from gateway.tensors import BINARY_ONLY, DTYPES, MAX_FEATURES, Array, Signature, Tensors

# Batch sizes that every version is run with before it takes traffic: the first run at a size is the slowest.
_WARM_ROWS = (1, 2, 8, 32, 128, 512)
_WARM_BUDGET_S = 2.0
# A size that the signature leaves open, other than the rows, is taken as this for warming.
_OPEN_SIZE = 4
_INVARIANCE_TOLERANCE = 1e-5
# How far a number of a golden answer may be off beside the package's own tolerance: halves end much earlier.
_GOLDEN_RELATIVE = {"FP16": 2.0**-10, "BF16": 2.0**-7}
_USUAL_RELATIVE = 1e-5


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version ready to be queued for. misdeclared: outputs that it gives in another shape than its signature says.

    trouble: why it could not be run for warming, empty if it could. Made-up rows may be outside of what a model can
    read. example: inputs of a golden request, to be shown to people: one row of a batchable model. None if there are
    none, they are too large to be kept, or something of the model's predictions may not be told.
    """

    runtime: Runtime
    signature: Signature
    digest: str
    cost: RunCost
    best: BestSize
    misdeclared: frozenset[str] = frozenset()
    ranges: Ranges = field(default_factory=dict)
    redact: Rules = field(default_factory=dict)
    trouble: str = ""
    example: Tensors | None = None


def load(
    source: ModelSource,
    model: str,
    version: str,
    *,
    intra_op_threads: int,
    max_batch_rows: int = 32,
    inline_budget_s: float = 0.0,
    on_runtime: Callable[[OnnxRuntime], None],
    on_package: Callable[[Package], None] = lambda _package: None,
) -> Loaded:
    """Bring a version up. Blocks for as long as it takes: call it in a thread of its own.

    on_package: gets the package when it is read and checked; what it raises ends the load.
    on_runtime: gets the runtime before its first run, so that another thread can abort a run that does not end.
    Raises PackageInvalid if the package is not what it says, InferenceFailed if the model fails on its own rows.
    """
    package = source.open(model, version)
    golden: Tensors | None = None
    on_package(package)
    runtime = OnnxRuntime(package.model_bytes, intra_op_threads=intra_op_threads)
    on_runtime(runtime)
    if package.manifest is None:
        signature = runtime.signature
        rows = _made_up(signature)
        if signature.batchable and not _is_invariant(runtime, rows):
            signature = replace(signature, batch_invariant=False)
    else:
        signature = package.manifest.signature
        check_same(signature, runtime.signature)
        try:
            golden = _replay(package, runtime, signature)
        except PackageInvalid as error:
            raise PackageInvalid(f"{error}{_of_another_processor(package.manifest.quantization)}") from error
        rows = golden or _made_up(signature)
    cost, best = RunCost(), BestSize(inline_budget_s)
    # With several threads in a run, the time of the one that asked is not what it costs.
    clock = time.thread_time if intra_op_threads == 1 else time.monotonic
    outputs, trouble = _warm(runtime, signature, rows, cost, best, max_batch_rows, clock)
    if runtime.aborted:
        raise PackageInvalid(f"{model}/{version}: its first run was called off")
    manifest, wrong = package.manifest, misdeclared(signature, outputs)
    if manifest is None:
        return Loaded(runtime, signature, package.digest, cost, best, wrong, trouble=trouble)
    ranges = ranges_of(manifest.reference, signature)
    shown = None if manifest.redact else _shown(golden, signature)
    return Loaded(runtime, signature, package.digest, cost, best, wrong, ranges, manifest.redact, trouble, shown)


def _replay(package: Package, runtime: Runtime, signature: Signature) -> Tensors | None:
    """Answer the golden requests; returns the inputs of the first, None if there are none."""
    if not package.golden:
        return None
    bound = OipCodec().bind(package.model, package.version, signature)
    first: Tensors | None = None
    try:
        tolerance = float(package.golden["tolerance"]["absolute"])
        for index, pair in enumerate(package.golden["pairs"]):
            request = bound.decode(*_asked(pair["request"]))
            first = first or request.inputs
            outputs = runtime.run(request.inputs)
            for expected in pair["response"]["outputs"]:
                _compare(outputs[expected["name"]], expected, tolerance, f"golden pair {index}")
    except (KeyError, TypeError, ValueError) as error:
        raise PackageInvalid(f"golden.json is not what its schema says: {error!r}") from error
    except GatewayError as error:
        raise PackageInvalid(f"the golden predictions fail: {error}") from error
    return first


def _asked(request: Mapping[str, Any]) -> tuple[bytes, Mapping[str, str]]:
    """Body and headers of a golden request as a client sends it: halves come as bytes behind the JSON document."""
    inputs, blobs = [], []
    for tensor in request["inputs"]:
        if tensor["datatype"] in BINARY_ONLY:
            blob = oip_binary.encode(_numbers(tensor["data"]).astype(DTYPES[tensor["datatype"]]), tensor["datatype"])
            blobs.append(blob)
            tensor = {key: value for key, value in tensor.items() if key != "data"}
            tensor["parameters"] = {"binary_data_size": len(blob)}
        inputs.append(tensor)
    document = orjson.dumps({**request, "inputs": inputs})
    return b"".join([document, *blobs]), {oip_binary.LENGTH_HEADER: str(len(document))} if blobs else {}


def _numbers(values: list[Any]) -> Array:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _of_another_processor(quantization: Mapping[str, Any]) -> str:
    """Why a quantized model may answer otherwise here; empty for one that is not."""
    chosen = str(quantization.get("chosen", "float32"))
    if "int8" not in chosen:
        return ""
    cpu = quantization.get("cpu", {})
    judged = " ".join([str(cpu.get("model", "an unknown processor")), *cpu.get("flags", ())])
    return f"; it is {chosen}, judged on {judged}: int8 may round otherwise here, so convert it on such a machine"


def _shown(golden: Tensors | None, signature: Signature) -> Tensors | None:
    """A copy of the first row in which nothing is missing, or of the first one; of a model without rows, of all."""
    if golden is None:
        return None
    if signature.batchable:
        rows = len(next(iter(golden.values())))
        complete = (row for row in range(rows) if not any(_has_nan(array[row : row + 1]) for array in golden.values()))
        row = next(complete, 0)
        golden = {name: array[row : row + 1] for name, array in golden.items()}
    if sum(array.size for array in golden.values()) > MAX_FEATURES:
        return None
    return {name: array.copy() for name, array in golden.items()}


def _has_nan(values: Any) -> bool:
    return bool(np.isnan(values).any()) if values.dtype.kind == "f" else False


def _compare(found: Array, expected: Mapping[str, Any], tolerance: float, where: str) -> None:
    flat = found.ravel()
    values = expected["data"]
    name = expected["name"]
    if len(values) != flat.size:
        raise PackageInvalid(f"{where}, output {name!r}: {flat.size} values, golden has {len(values)}")
    if flat.dtype == object:
        same = [value.decode("utf-8", "replace") for value in flat.tolist()] == values
    elif flat.dtype.kind == "f":
        relative = _GOLDEN_RELATIVE.get(expected["datatype"], _USUAL_RELATIVE)
        golden = _numbers(values)
        same = bool(np.allclose(flat.astype(np.float64), golden, rtol=relative, atol=tolerance, equal_nan=True))
    else:
        same = flat.tolist() == values
    if not same:
        raise PackageInvalid(f"{where}, output {name!r}: this machine answers otherwise than the package's own record")


def _made_up(signature: Signature) -> Tensors:
    """A few rows that fit the signature, for models that bring none of their own."""
    draw = random.Random(7)  # numpy's own would cost the worker 3 MB and 15 ms
    rows: Tensors = {}
    for spec in signature.inputs:
        shape = [_OPEN_SIZE if size == -1 else size for size in spec.shape]
        if spec.datatype == "BYTES":
            array: Array = np.full(shape, b"", dtype=object)
        elif spec.dtype.kind == "f":
            array = np.array([draw.gauss() for _ in range(math.prod(shape))], dtype=spec.dtype).reshape(shape)
        else:
            array = np.array([draw.randrange(2) for _ in range(math.prod(shape))], dtype=spec.dtype).reshape(shape)
        rows[spec.name] = array
    return rows


def _is_invariant(runtime: Runtime, rows: Tensors) -> bool:
    """Whether a row alone gets the answer that it gets beside others."""
    try:
        together = runtime.run(rows)
        if any(array.shape[:1] != (_OPEN_SIZE,) for array in together.values()):
            return False
        for index in range(_OPEN_SIZE):
            alone = runtime.run({name: array[index : index + 1] for name, array in rows.items()})
            for name, array in alone.items():
                if array.shape[:1] != (1,) or not _close(array[0], together[name][index]):
                    return False
    except GatewayError:
        return True  # made-up rows may be outside of what the model can read; nothing is learned from them
    return True


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=_INVARIANCE_TOLERANCE, atol=_INVARIANCE_TOLERANCE, equal_nan=True))
    return bool(np.array_equal(a, b))


def _warm(
    runtime: Runtime,
    signature: Signature,
    rows: Tensors,
    cost: RunCost,
    best: BestSize,
    max_batch_rows: int,
    clock: Callable[[], float],
) -> tuple[Tensors, str]:
    """Run every warm size until the cost of a run is known; made-up rows that the model refuses end it early.

    Returns the outputs of the last run, none if there was none, and why it ended early, if it did.
    """
    until_s = time.monotonic() + _WARM_BUDGET_S
    sizes = [size for size in _WARM_ROWS if size <= max_batch_rows] if signature.batchable else [1]
    outputs: Tensors = {}
    # The first run at each size pays for memory that later runs reuse: it teaches nothing about them.
    for turn in range(-len(sizes), MIN_RUNS):
        size = sizes[turn % len(sizes)]
        inputs = rows if not signature.batchable else {name: _resized(array, size) for name, array in rows.items()}
        begun_s = clock()
        try:
            outputs = runtime.run(inputs)
        except GatewayError as error:
            return outputs, str(error)
        run_s = clock() - begun_s
        if turn >= 0:
            cost.observe(size, run_s)
            best.observe(size, run_s)
        if time.monotonic() > until_s:
            break
    return outputs, ""


def _resized(array: Array, rows: int) -> Array:
    return np.resize(array, (rows, *array.shape[1:])) if array.shape[0] != rows else array
