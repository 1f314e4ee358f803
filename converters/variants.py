"""The variants of a small neural network: int8 with fixed scales or scales of the moment, weights in float16."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from gateway.tensors import Array, Tensors

# The model and calibration rows in, the variant out. May raise anything on graphs that the quantizer does not know.
Build = Callable[[bytes, Tensors], bytes]

_WARNINGS_TOO, _ERRORS_ONLY, _NOTHING = 2, 3, 4  # severities of ONNX Runtime's own logger; the first is its default
_PRODUCTS = ("Gemm", "MatMul")
_CONVOLUTIONS = ("Conv",)
# Smaller constants save nothing as float16.
_HALVED_FROM = 64


def static(content: bytes, calibration: Tensors) -> bytes:
    """All products and convolutions in int8. They hand on int8 or float as the next layer wants it; fastest."""
    return _static(content, calibration, last_in_float=False)


def static_but_last(content: bytes, calibration: Tensors) -> bytes:
    """As `static` with the last product in float32: it is small and decides between close classes."""
    return _static(content, calibration, last_in_float=True)


def dynamic(content: bytes, _calibration: Tensors) -> bytes:
    """Matrix products in int8 with scales of the numbers that a run meets; convolutions would be slower by far."""
    with tempfile.TemporaryDirectory() as directory, _quiet():
        prepared = _prepared(content, Path(directory))
        result = Path(directory) / "int8.onnx"
        quantize_dynamic(
            prepared,
            result,
            op_types_to_quantize=list(_PRODUCTS),
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # of what shape inference does not know
        )
        return _tidied(onnx.load(result))


def half(content: bytes, _calibration: Tensors) -> bytes:
    """Weights kept as float16 and made float32 when the model is loaded: processors compute nothing in float16.

    Raises ValueError if a weight is beyond float16's range, or none is large.
    """
    proto = onnx.load_from_string(content)
    halved = []
    for constant in proto.graph.initializer:
        if constant.data_type == TensorProto.FLOAT and np.prod(constant.dims) >= _HALVED_FROM:
            with np.errstate(over="ignore"):
                narrow = numpy_helper.to_array(constant).astype(np.float16)
            if not np.isfinite(narrow).all():
                raise ValueError(f"weights of {constant.name!r} are beyond float16's range")
            name = constant.name
            constant.CopyFrom(numpy_helper.from_array(narrow, f"{name}_half"))
            halved.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    if not halved:
        raise ValueError("no large weights in float32")
    nodes = [*halved, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return bytes(proto.SerializeToString())


# By the name under which a variant stands in the table, the preferred ones first.
BUILDS: Mapping[str, Build] = {
    "static int8": static,
    "static int8, last layer float32": static_but_last,
    "dynamic int8": dynamic,
    "fp16": half,
}


def takes_scales_of_batch(content: bytes) -> bool:
    """Whether the model quantizes by the numbers that a run meets, which are those of all rows of a batch."""
    return any(node.op_type == "DynamicQuantizeLinear" for node in nodes_of(onnx.load_from_string(content).graph))


def nodes_of(graph: Any) -> Iterator[Any]:
    """All nodes, those of inner graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_of(inner)


def optimized(content: bytes) -> bytes:
    """The model with constants folded and nodes that do nothing gone, by standard operators only.

    Whoever loads it finds the work done. What the runtime does not take stays as it is, for whoever loads it to tell.
    """
    with tempfile.TemporaryDirectory() as directory, _quiet():
        result = Path(directory) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(result)
        options.intra_op_num_threads = 1
        options.log_severity_level = _NOTHING  # the exception says it
        try:
            onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception:  # onnxruntime's exceptions share no base class but Exception
            return content
        return _tidied(onnx.load(result))


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Gives all calibration rows as one batch, once."""

    def __init__(self, inputs: Tensors) -> None:
        texts = {name: array.astype(str).astype(object) for name, array in inputs.items() if array.dtype == object}
        self._batches = iter([{**inputs, **texts}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _static(content: bytes, calibration: Tensors, *, last_in_float: bool) -> bytes:
    """Fixed scales from the calibration rows, weights per tensor."""
    with tempfile.TemporaryDirectory() as directory, _quiet():
        prepared = _prepared(content, Path(directory))
        result = Path(directory) / "int8.onnx"
        kinds = [*_PRODUCTS, *_CONVOLUTIONS]
        products = [node.name for node in onnx.load(prepared).graph.node if node.op_type in kinds]
        quantize_static(
            prepared,
            result,
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            nodes_to_exclude=products[-1:] if last_in_float else [],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "DefaultTensorType": TensorProto.FLOAT,
                "OpTypesToExcludeOutputQuantization": [] if last_in_float else list(_PRODUCTS),
            },
        )
        return _tidied(onnx.load(result))


def _prepared(content: bytes, directory: Path) -> Path:
    source, prepared = directory / "source.onnx", directory / "prepared.onnx"
    source.write_bytes(content)
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    return prepared


def _tidied(proto: Any) -> bytes:
    """The optimizer imports every domain that it knows; other runtimes refuse those that they do not."""
    used = {node.domain for node in proto.graph.node}
    kept = [opset for opset in proto.opset_import if opset.domain in used or opset.domain == ""]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    proto.producer_name = "sluicegate"
    return bytes(proto.SerializeToString())


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
