"""The models and operator cases that come with the onnx package: how many are served, and what the rest is refused for.

Each becomes a package as `sluicegate convert` makes one, is loaded as a worker loads it, gets the inputs that the case
brings, and has to give the outputs that the case expects, within the case's own tolerance.

    .venv/bin/python benchmarks/light.py [--kind light] [--names REGEX] [--reasons]
"""

from __future__ import annotations

import argparse
import collections
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from converters.convert import Order, convert
from gateway.errors import GatewayError
from gateway.models.source import DirectorySource
from gateway.serving.loading import load
from gateway.tensors import DTYPES, check_shape

# Not "node", each operator by itself: ONNX Runtime gives some other outputs itself, and ends the process at rows that
# are drawn for STFT.
KINDS = ("light", "simple", "pytorch-converted", "pytorch-operator")
_LIGHT_TOLERANCE = {"light_densenet121": 2e-3}
# What tells one refusal from another, in the words of the refusals.
_REASONS = {
    "a sequence": "a sequence, a map or an optional",
    "an optional": "a sequence, a map or an optional",
    "a map": "a sequence, a map or an optional",
    "ONNX Runtime refuses the model": "ONNX Runtime has no kernel, or finds it invalid",
    "only tensors can be served": "a datatype that no protocol has (4 and 8 bit, complex)",
    "the model failed on these inputs": "it fails on the inputs of the case",
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
    """What became of a case: ``reproduced``, ``refused``, or ``wrong``, which would be a fault of ours."""

    case: Case
    what: str
    reason: str = ""


def cases(kind: str, names: str = "") -> Iterator[Case]:
    """The cases of a kind that the installed onnx package brings and whose names match."""
    if kind == "light":
        yield from (case for case in _light() if re.search(names, case.name))
        return
    for test in load_model_tests(kind=kind):
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


def tried(case: Case) -> Outcome:
    """Package a case, load it as a worker does, and compare."""
    try:
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = Path(directory) / "models"
            (Path(directory) / "case.onnx").write_bytes(case.model)
            convert(Order(Path(directory) / "case.onnx", "case", "1", None, models))
            source = DirectorySource(models)
            loaded = load(source, "case", "1", intra_op_threads=1, max_batch_rows=1, on_runtime=lambda _: None)
            return _compared(case, loaded)
    except GatewayError as error:
        return Outcome(case, "refused", str(error))


def _compared(case: Case, loaded: Any) -> Outcome:
    signature = loaded.signature
    for given, expected in case.pairs:
        inputs = {}
        for spec, value in zip(signature.inputs, given, strict=False):
            inputs[spec.name] = _as_served(value, spec.datatype)
            check_shape(spec, inputs[spec.name].shape)  # as a codec does before a model sees a tensor
        if len(inputs) < len(signature.inputs):
            return Outcome(case, "refused", f"{len(given)} inputs came, {len(signature.inputs)} expected")
        found = loaded.runtime.run(inputs)
        for spec, value in zip(signature.outputs, expected, strict=False):
            reason = _off(_as_served(value, spec.datatype), found[spec.name], case)
            if reason:
                return Outcome(case, "wrong", f"output {spec.name!r} {reason}")
    return Outcome(case, "reproduced")


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
    print(f"onnx {onnx.__version__}\n\n| cases | all | reproduced | refused | wrong |\n|---|---|---|---|---|")
    listed = []
    for kind in options.kind or KINDS:
        outcomes = [tried(case) for case in cases(kind, options.names)]
        counts = collections.Counter(outcome.what for outcome in outcomes)
        told = " | ".join(f"{counts[what]:,}" for what in ("reproduced", "refused", "wrong"))
        print(f"| {kind} | {len(outcomes):,} | {told} |", flush=True)
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
