"""ONNX files from other exporters: made such that the runtime takes them, and what must be known to serve them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.from_sklearn import OPSET
from converters.sources import first_line
from converters.variants import nodes_of, optimized, takes_scales_of_batch
from converters.verify import OnnxModel
from converters.write import MAX_IR_VERSION, one_import_per_domain
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import FLOATS, Array, Signature, Tensors, TensorSpec

# ONNX Runtime guarantees nothing for older ones.
_OLDEST_OPSET = 7
_ELEMENTS = {
    "tensor_type": "tensors",
    "sequence_type": "a sequence",
    "map_type": "a map",
    "optional_type": "an optional",
}
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
_LOCALE = "C.UTF-8"
_AFFIX = re.compile(r"((past|present)(_key_values)?|prev(ious)?|next|new|in(put)?|out(put)?|initial|final|last)")
_STATE_WORDS = re.compile(r"state|hidden|cell|memory|cache|past|present|prev|\bh\d?n?\b|\bc\d?n?\b")


@dataclass(frozen=True, slots=True)
class Ready:
    """A file that the runtime takes. notes: what was found and changed. is_changed: whether anything was.

    carried: pairs of an input and the output that a caller hands back as that input the next time. is_repeatable: equal
    inputs get equal answers.
    """

    content: bytes
    signature: Signature
    notes: tuple[str, ...]
    is_changed: bool
    carried: tuple[tuple[str, str], ...]
    is_repeatable: bool = True


def open_file(path: Path) -> Ready:
    """Read an ONNX file, upgrade it where the runtime needs it, and tell what it takes and gives.

    Raises InvalidInput if it is no ONNX file, and ConversionRefused, with the reason, if it cannot be served.
    """
    try:
        proto = onnx.load(path)  # with the weights that lie in files beside it
    except Exception as error:  # protobuf's DecodeError, missing files of weights, and more
        raise InvalidInput("model", f"{path.name}: {first_line(error)}", "an ONNX file") from error
    notes: list[str] = []
    classes = _without_zipmaps(proto, notes)
    _check_kinds(proto)
    imports = len(proto.opset_import)
    one_import_per_domain(proto)
    if len(proto.opset_import) < imports:
        notes.append("an operator set was imported twice; the higher version was kept")
    before = bytes(proto.SerializeToString())
    _without_foreign_locales(proto, notes)
    content, model = _loaded(proto, notes)
    if not model.signature.inputs:
        raise ConversionRefused("it has no inputs, so that its answer is always the same: nothing is there to ask")
    content = _without_needless_work(content, model)
    signature = _with_roles(model.signature, classes or _classes(proto))
    carried = tuple(_carried(signature))
    random = sorted({node.op_type for node in nodes_of(proto.graph) if node.op_type in _RANDOM})
    if carried:
        pairs = ", ".join(f"{given!r} -> {back!r}" for given, back in carried)
        notes.append(f"it carries state between calls ({pairs}): requests are never batched nor cached")
    if random:
        notes.append(f"it draws random numbers ({', '.join(random)}): requests are never batched nor cached")
    if takes_scales_of_batch(content):
        notes.append("it quantizes by scales over the whole batch (DynamicQuantizeLinear): requests are not batched")
        signature = replace(signature, batch_invariant=False)
    if carried or random:
        signature = replace(signature, batch_invariant=False, cacheable=False)
    if not signature.batchable:
        fixed = [
            f"{spec.name!r} {list(spec.shape)}"
            for spec in (*signature.inputs, *signature.outputs)
            if not _is_open(spec)
        ]
        notes.append(f"its first dimension is fixed ({', '.join(fixed)}): requests are not batched")
    return Ready(content, signature, tuple(notes), content != before, carried, is_repeatable=not random)


def _is_open(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == -1


def _check_kinds(proto: Any) -> None:
    """Raise ConversionRefused for inputs and outputs that no request can hold."""
    constants = {constant.name for constant in proto.graph.initializer}
    for what, arguments in (("input", proto.graph.input), ("output", proto.graph.output)):
        for argument in arguments:
            kind = argument.type.WhichOneof("value")
            if kind not in ("tensor_type", None) and argument.name not in constants:
                raise ConversionRefused(
                    f"{what} {argument.name!r} is {_ELEMENTS.get(kind, kind)}; requests and answers are tensors only: "
                    "export it with tensors"
                )


def _without_zipmaps(proto: Any, notes: list[str]) -> tuple[Any, ...] | None:
    """Let outputs that are a dictionary per row be the matrix that those are made of; returns its classes."""
    graph = proto.graph
    classes: tuple[Any, ...] | None = None
    for node in [node for node in graph.node if node.op_type == "ZipMap" and node.domain == "ai.onnx.ml"]:
        labels = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        found = labels.get("classlabels_int64s") or labels.get("classlabels_strings") or ()
        classes = tuple(label.decode() if isinstance(label, bytes) else int(label) for label in found)
        for output in graph.output:
            if output.name == node.output[0]:
                output.CopyFrom(
                    helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, ["rows", len(classes)])
                )
        graph.node.remove(node)
        graph.node.append(helper.make_node("Identity", [node.input[0]], [node.output[0]]))
        notes.append(f"output {node.output[0]!r} was a dictionary per row (ZipMap), and is a matrix now")
    return classes


def _loaded(proto: Any, notes: list[str]) -> tuple[bytes, OnnxModel]:
    """The bytes that the runtime takes: as they are, with another IR version, or with a newer operator set."""
    refusal: ConversionRefused | None = None
    opset = next((each.version for each in proto.opset_import if each.domain == ""), OPSET)
    if opset >= _OLDEST_OPSET:
        try:
            return _tried(proto)
        except ConversionRefused as error:
            refusal = error
    if proto.ir_version > MAX_IR_VERSION:
        came = proto.ir_version
        proto.ir_version = MAX_IR_VERSION
        try:
            content, model = _tried(proto)
            notes.append(f"IR version {came} is newer than the runtime; {MAX_IR_VERSION} is written")
            return content, model
        except ConversionRefused as error:
            refusal = error
    if opset != OPSET:
        if proto.ir_version < 4:  # constants had to be listed as inputs, which the converter takes for inputs
            constants = {constant.name for constant in proto.graph.initializer}
            kept = [argument for argument in proto.graph.input if argument.name not in constants]
            del proto.graph.input[:]
            proto.graph.input.extend(kept)
            proto.ir_version = MAX_IR_VERSION
        try:
            if opset < _OLDEST_OPSET:
                _with_slopes_of_channels(proto)
            content, model = _tried(onnx.version_converter.convert_version(proto, OPSET))
            notes.append(f"operator set {opset} became {OPSET}")
            return content, model
        except Exception as error:  # the version converter raises RuntimeError and more on operators it does not know
            refusal = refusal or ConversionRefused(
                f"operator set {opset} is older than the runtime takes, and cannot be converted: {first_line(error)}"
            )
    assert refusal is not None
    raise refusal


def _with_slopes_of_channels(proto: Any) -> None:
    """Give slopes of PRelu the form in which newer operator sets take them as one per channel, the second dimension.

    They were a vector, which is now one of the last dimension; the version converter leaves it as it is. Raises
    ValueError if a slope is no constant, or it is not known how many dimensions it is for.
    """
    graph = onnx.shape_inference.infer_shapes(proto).graph
    known = [
        value for value in (*graph.input, *graph.value_info, *graph.output) if value.type.tensor_type.HasField("shape")
    ]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    constants = {constant.name: constant for constant in proto.graph.initializer}
    for node in [node for node in nodes_of(proto.graph) if node.op_type == "PRelu"]:
        given, slope = node.input
        if slope not in constants or given not in ranks:
            raise ValueError(f"PRelu takes a slope per channel, and {slope!r} is none that is known")
        slopes = numpy_helper.to_array(constants[slope])
        if slopes.ndim == 1 and slopes.size > 1:
            node.input[1] = f"{slope}_of_{ranks[given]}"
            if node.input[1] not in constants:
                shaped = slopes.reshape(-1, *[1] * (ranks[given] - 2))
                proto.graph.initializer.append(numpy_helper.from_array(shaped, node.input[1]))
                constants[node.input[1]] = proto.graph.initializer[-1]


def _without_foreign_locales(proto: Any, notes: list[str]) -> None:
    """Texts are made upper or lower case in en_US unless a file says otherwise, which small images do not have."""
    found = [node for node in nodes_of(proto.graph) if node.op_type == "StringNormalizer"]
    for node in found:
        kept = [attribute for attribute in node.attribute if attribute.name != "locale"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("locale", _LOCALE)])
    if found:
        notes.append(f"texts are made upper or lower case by the rules of {_LOCALE}, which every Linux has")


def _without_needless_work(content: bytes, model: OnnxModel) -> bytes:
    """The file with its constants folded, if the runtime takes that as it takes the file itself."""
    try:
        folded = optimized(content)
        return folded if OnnxModel(folded).signature == model.signature else content
    except Exception:  # the optimizer raises anything, and the file is good without it
        return content


def _tried(proto: Any) -> tuple[bytes, OnnxModel]:
    try:
        onnx.checker.check_model(proto)
        content = bytes(proto.SerializeToString())
    except (onnx.checker.ValidationError, ValueError) as error:  # not valid, or more than 2 GB
        raise ConversionRefused(f"the file is not valid ONNX, or too large: {first_line(error)}") from error
    return content, OnnxModel(content)


def _classes(proto: Any) -> tuple[Any, ...] | None:
    """The labels that a classifier of ai.onnx.ml says it has; None if there is not exactly one such node."""
    found = [
        helper.get_attribute_value(attribute)
        for node in nodes_of(proto.graph)
        for attribute in node.attribute
        if node.op_type.endswith("Classifier") and attribute.name.startswith("classlabels_")
    ]
    if len(found) != 1 or len(found[0]) < 2:
        return None
    return tuple(label.decode() if isinstance(label, bytes) else int(label) for label in found[0])


def _with_roles(signature: Signature, classes: tuple[Any, ...] | None) -> Signature:
    """The signature with its label and its probabilities named as such, if they can be told by the classes."""
    if classes is None:
        return signature
    outputs = []
    for spec in signature.outputs:
        if spec.datatype in ("INT64", "BYTES") and len(spec.shape) == 1:
            outputs.append(replace(spec, role="label"))
        elif spec.datatype in ("FP32", "FP64") and len(spec.shape) == 2 and spec.shape[1] in (-1, len(classes)):
            outputs.append(replace(spec, role="probabilities", shape=(spec.shape[0], len(classes))))
        else:
            outputs.append(spec)
    return replace(signature, outputs=tuple(outputs), classes=classes)


def _carried(signature: Signature) -> Iterator[tuple[str, str]]:
    """Pairs of an input and an output of the same type whose names say that one becomes the other."""
    for given in signature.inputs:
        for back in signature.outputs:
            if (
                given.datatype == back.datatype
                and len(given.shape) == len(back.shape)
                and _hands_on(given.name, back.name)
            ):
                yield given.name, back.name


def _hands_on(given: str, back: str) -> bool:
    """Whether names are those of a state before and after: ``h`` and ``hn``, ``past.0.key`` and ``present.0.key``."""
    one, other = given.lower(), back.lower()
    if not (_STATE_WORDS.search(one) or _STATE_WORDS.search(other)):
        return False
    return one != other and (_stem(one) == _stem(other) or other in (f"{one}n", f"{one}_n"))


def _stem(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _AFFIX.sub("", name))


def made_up(signature: Signature, rows: int, random: np.random.Generator) -> Tensors:
    """Inputs that fit a signature, drawn at random: numbers around zero, small whole numbers, texts of one letter."""
    tensors: Tensors = {}
    for spec in signature.inputs:
        shape = [_OPEN_SIZE if size == -1 else size for size in spec.shape]
        if signature.batchable:
            shape[0] = rows
        tensors[spec.name] = _drawn(spec, shape, random)
    return tensors


_OPEN_SIZE = 1


def _drawn(spec: TensorSpec, shape: Sequence[int], random: np.random.Generator) -> Array:
    if spec.datatype == "BYTES":
        texts: Array = np.empty(tuple(shape), dtype=object)
        texts[...] = b"a"
        return texts
    if spec.datatype in FLOATS:
        return random.standard_normal(tuple(shape)).astype(spec.dtype)
    return random.integers(0, 2, tuple(shape)).astype(spec.dtype)
