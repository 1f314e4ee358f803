"""The models and operator cases that come with the onnx package: how many are served, and what the rest is refused for.

Each becomes a package as `sluicegate convert` makes one, is loaded as a worker loads it, gets the inputs that the case
brings, and has to give the outputs that the case expects, within the case's own tolerance. Where it does not, ONNX
Runtime alone is asked on the file as it came. All of this happens in another process, which a model may end.

    .venv/bin/python benchmarks/light.py [--kind node] [--names REGEX] [--reasons]
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import re
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from converters.convert import Order, convert
from gateway.errors import GatewayError
from gateway.models.source import DirectorySource
from gateway.serving.loading import load
from gateway.tensors import DTYPES, check_shape

KINDS = ("light", "simple", "pytorch-converted", "pytorch-operator", "node")
ENDS = ("reproduced", "refused", "random", "runtime", "wrong")
_LIGHT_TOLERANCE = {"light_densenet121": 2e-3}
# What tells one refusal from another, in the words of the refusals.
_REASONS = {
    "a sequence": "a sequence, a map or an optional",
    "an optional": "a sequence, a map or an optional",
    "a map": "a sequence, a map or an optional",
    "ONNX Runtime refuses the model": "ONNX Runtime has no kernel, or finds it invalid",
    "which no request and no answer can hold": "a datatype that no protocol has (4 and 8 bit)",
    "the model failed on these inputs": "it fails on the inputs of the case",
    "the process ended": "it ends the process, on rows that were drawn",
    "it has no inputs": "it takes nothing",
    "expected": "names or shapes that no request can have",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One case. pairs: inputs and the outputs that they have to give. rtol, atol: how far these may be off."""

    kind: str
    name: str
    model: bytes
    pairs: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case, of `ENDS`: it answers as expected; it is refused; it draws random numbers; ONNX Runtime
    alone gives the same answer as we do on the file as it came; or ``wrong``, which would be a fault of ours.
    """

    case: Case
    what: str
    reason: str = ""


def cases(kind: str, names: str = "") -> Iterator[Case]:
    """The cases of a kind that the installed onnx package brings and whose names match."""
    if kind == "light":
        yield from (case for case in _light() if re.search(names, case.name))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are computed here, out of numbers that overflow
        tests = load_model_tests(kind=kind)
    for test in tests:
        if not re.search(names, test.name):
            continue
        if test.model is not None:
            pairs = [(list(inputs), list(outputs)) for inputs, outputs in test.data_sets]
            yield Case(kind, test.name, test.model.SerializeToString(), pairs, test.rtol, test.atol)
        else:
            directory = Path(test.model_dir)
            pairs = [_read(data) for data in sorted(directory.glob("test_data_set_*"))]
            yield Case(kind, test.name, (directory / "model.onnx").read_bytes(), pairs, test.rtol, test.atol)


def _light() -> Iterator[Case]:
    """Large models whose weights are made up, with the inputs that onnx's own tests make up for them."""
    for path in sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx")):
        proto = onnx.load(path)
        constants = {constant.name for constant in proto.graph.initializer}
        inputs = []
        for given in proto.graph.input:
            if given.name not in constants:
                shape = tuple(size.dim_value or 1 for size in given.type.tensor_type.shape.dim)
                count = int(np.prod(shape))
                inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
        outputs = [_tensor(file) for file in sorted(path.parent.glob(f"{path.stem}_output_*.pb"))]
        yield Case(
            "light", path.stem, path.read_bytes(), [(inputs, outputs)], _LIGHT_TOLERANCE.get(path.stem, 1e-3), 1e-7
        )


def _read(directory: Path) -> tuple[list[Any], list[Any]]:
    inputs, outputs = (
        [_tensor(directory / f"{what}_{index}.pb") for index in range(len(list(directory.glob(f"{what}_*.pb"))))]
        for what in ("input", "output")
    )
    return inputs, outputs


def _tensor(path: Path) -> Any:
    return numpy_helper.to_array(onnx.load_tensor(path))


def judged(given: Iterable[Case]) -> Iterator[Outcome]:
    """Try cases one by one in another process, and in a new one after each that ends it."""
    spawning = multiprocessing.get_context("spawn")
    process: Any = None
    for case in given:
        if process is None:
            here, there = spawning.Pipe()
            process = spawning.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
        here.send(case)
        done = "conversion"
        try:
            while isinstance(word := here.recv(), str):
                done = word
            yield Outcome(case, *word)
        except EOFError:
            process.join()
            how = f"by {signal.Signals(-process.exitcode).name}" if process.exitcode < 0 else "by itself"
            yield Outcome(case, "refused" if done == "conversion" else "wrong", f"the process ended {how}, in {done}")
            process = None
    if process is not None:
        here.close()
        process.join()


def _serve(asked: Any) -> None:
    onnxruntime.set_default_logger_severity(4)
    while True:
        try:
            case = asked.recv()
        except EOFError:
            return
        asked.send(_tried(case, lambda: asked.send("serving")))


def _tried(case: Case, converted: Callable[[], None]) -> tuple[str, str]:
    """Package a case, load it as a worker does, and compare."""
    try:
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = Path(directory) / "models"
            (Path(directory) / "case.onnx").write_bytes(case.model)
            convert(Order(Path(directory) / "case.onnx", "case", "1", None, models))
            converted()
            source = DirectorySource(models)
            loaded = load(source, "case", "1", intra_op_threads=1, max_batch_rows=1, on_runtime=lambda _: None)
            return _compared(case, loaded)
    except GatewayError as error:
        return "refused", str(error)


def _compared(case: Case, loaded: Any) -> tuple[str, str]:
    signature = loaded.signature
    for given, expected in case.pairs:
        inputs = {}
        for spec, value in zip(signature.inputs, given, strict=False):
            inputs[spec.name] = _as_served(value, spec.datatype)
            check_shape(spec, inputs[spec.name].shape)  # as a codec does before a model sees a tensor
        if len(inputs) < len(signature.inputs):
            return "refused", f"{len(given)} inputs came, {len(signature.inputs)} expected"
        found = loaded.runtime.run(inputs)
        reason = _off_all(signature, expected, found, case)
        if reason:
            again = loaded.runtime.run(inputs)
            if _off_all(signature, [again[spec.name] for spec in signature.outputs], found, case):
                return "random", reason
            alone, trouble = _alone(case.model, given)
            if alone is None:
                return "wrong", f"{reason}; ONNX Runtime alone: {trouble}"
            return ("wrong" if _off_all(signature, alone, found, case) else "runtime"), reason
    return "reproduced", ""


def _alone(model: bytes, given: Sequence[Any]) -> tuple[list[Any] | None, str]:
    """What ONNX Runtime gives by itself; None if it refuses the file as it came, and its words."""
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        arrays = (numpy_helper.to_array(each) if isinstance(each, onnx.TensorProto) else each for each in given)
        named = zip(session.get_inputs(), arrays, strict=False)
        return session.run(None, {argument.name: np.asarray(array) for argument, array in named}), ""
    except Exception as error:  # its exceptions share no base class but Exception
        return None, str(error).splitlines()[0]


def _off_all(signature: Any, expected: Sequence[Any], found: Any, case: Case) -> str:
    """How outputs differ; empty if they do not."""
    for spec, value in zip(signature.outputs, expected, strict=False):
        reason = _off(_as_served(value, spec.datatype), found[spec.name], case)
        if reason:
            return f"output {spec.name!r} {reason}"
    return ""


def _as_served(value: Any, datatype: str) -> Any:
    """A tensor of a case in the form in which the gateway holds such a tensor."""
    array = np.asarray(numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value)
    if datatype == "BYTES":
        flat = [each if isinstance(each, bytes) else str(each).encode() for each in array.ravel().tolist()]
        held = np.empty(len(flat), dtype=object)
        held[:] = flat
        return held.reshape(array.shape)
    return array.astype(DTYPES[datatype])


def _off(expected: Any, found: Any, case: Case) -> str:
    """How two tensors differ; empty if they do not."""
    if expected.shape != found.shape:
        return f"has shape {found.shape}, expected {expected.shape}"
    if expected.dtype.kind == "f":
        close = np.isclose(found, expected, rtol=case.rtol, atol=case.atol, equal_nan=True)
        return "" if close.all() else f"is off in {int((~close).sum())} of {close.size} values"
    return "" if np.array_equal(expected, found) else "has other values"


def short(reason: str) -> str:
    """What kind of refusal it is."""
    return next((told for words, told in _REASONS.items() if words in reason), reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append", help="this kind only; may be repeated")
    parser.add_argument("--names", default="", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("--reasons", action="store_true", help="print each case that is not reproduced")
    options = parser.parse_args()
    refusals: collections.Counter[str] = collections.Counter()
    print(f"onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}\n")
    print(f"| cases | all | {' | '.join(ENDS)} |\n|---{'|---' * (len(ENDS) + 1)}|")
    listed = []
    for kind in options.kind or KINDS:
        outcomes = list(judged(cases(kind, options.names)))
        counts = collections.Counter(outcome.what for outcome in outcomes)
        print(f"| {kind} | {len(outcomes):,} | {' | '.join(f'{counts[what]:,}' for what in ENDS)} |", flush=True)
        refusals.update(short(outcome.reason) for outcome in outcomes if outcome.what == "refused")
        listed += [outcome for outcome in outcomes if outcome.what != "reproduced"]
    print("\n| refused because of | cases |\n|---|---|")
    for reason, count in refusals.most_common():
        print(f"| {reason} | {count:,} |")
    for outcome in listed:
        if options.reasons or outcome.what == "wrong":
            print(f"{outcome.case.kind} {outcome.case.name}: {outcome.what}: {outcome.reason}")


if __name__ == "__main__":
    main()
