"""The one door to ONNX Runtime: load a model, tell its signature, run a batch."""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from gateway.errors import InferenceFailed, PackageInvalid
from gateway.models.closed import check_closed
from gateway.tensors import (
    DTYPES,
    Array,
    Signature,
    Tensors,
    TensorSpec,
    features_of,
    from_bfloat16,
    to_bfloat16,
)

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class Runtime(Protocol):
    """A loaded model. `run` is called on the event loop or in a run thread, by one thread at a time.

    What comes from `apart` may run at the same time as what it comes from.
    """

    @property
    def signature(self) -> Signature: ...

    def run(self, inputs: Tensors) -> Tensors:
        """Answer a batch: arrays [rows, ...] in, arrays [rows, ...] out. Raises InferenceFailed."""
        ...

    def apart(self) -> Runtime:
        """The same model with an `abort` of its own."""
        ...

    def abort(self) -> None:
        """End the run that is going on in another thread, and refuse all later ones. May be called on any thread."""
        ...


class OnnxRuntime:
    """A model in ONNX Runtime on the CPU, without spinning threads.

    model_bytes: the ONNX file. Raises PackageInvalid if it needs other files, if ONNX Runtime refuses it, or if it has
    inputs or outputs other than tensors. Loading takes from milliseconds to seconds and releases the GIL: call it off
    the event loop.
    """

    def __init__(self, model_bytes: bytes, *, intra_op_threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # What a run takes is the process's again after it: ONNX Runtime's arena keeps it for good, and is no faster.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        check_closed(model_bytes)
        self.size_bytes = len(model_bytes)
        # Should a way be found past that check: then the files that a model names are not there.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null/nowhere")
        try:
            self._session = onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise PackageInvalid(f"ONNX Runtime refuses the model: {_first_line(error)}") from error
        # The session's own run() looks again whether the inputs are there and costs half as much as a small model; what
        # it calls takes the same arguments.
        self._run_session = getattr(self._session, "_sess", self._session).run
        self._run_options = onnxruntime.RunOptions()
        inputs = tuple(_spec(argument) for argument in self._session.get_inputs())
        outputs = tuple(_spec(argument) for argument in self._session.get_outputs())
        batchable = all(len(spec.shape) > 0 and spec.shape[0] == -1 for spec in inputs + outputs)
        self._signature = Signature(inputs, outputs, features_of(inputs), batchable=batchable)
        self._names = [spec.name for spec in outputs]
        self._texts_in = [spec.name for spec in inputs if spec.datatype == "BYTES"]
        self._texts_out = [spec.name for spec in outputs if spec.datatype == "BYTES"]
        self._halves_in = [spec.name for spec in inputs if spec.datatype == "BF16"]
        if any(spec.datatype == "BF16" for spec in outputs):
            if self._texts_in:  # ONNX Runtime has no way that takes these and gives those
                raise PackageInvalid(f"outputs of BF16 beside inputs of texts ({', '.join(self._texts_in)})")
            self._run_session = self._run_to_bfloat16

    @property
    def signature(self) -> Signature:
        """What the ONNX file itself says: no classes, features named by position."""
        return self._signature

    def abort(self) -> None:
        """End the run that is going on in another thread, and refuse all later ones. May be called on any thread."""
        self._run_options.terminate = True

    def apart(self) -> OnnxRuntime:
        """The same session, which several threads may run at once, with an `abort` of its own."""
        other = copy.copy(self)
        other._run_options = onnxruntime.RunOptions()
        return other

    @property
    def aborted(self) -> bool:
        return bool(self._run_options.terminate)

    def run(self, inputs: Tensors) -> Tensors:
        try:
            if self._texts_in:
                inputs = {**inputs, **{name: _to_text(inputs[name]) for name in self._texts_in}}
            if self._halves_in:
                inputs = {**inputs, **{name: _to_ort_value(inputs[name]) for name in self._halves_in}}
            found = self._run_session(self._names, inputs, self._run_options)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise InferenceFailed(f"the model failed on these inputs: {_first_line(error)}") from error
        outputs: Tensors = dict(zip(self._names, found, strict=True))
        for name in self._texts_out:
            outputs[name] = _to_bytes(outputs[name])
        return outputs

    def _run_to_bfloat16(self, names: list[str], inputs: Mapping[str, Any], options: Any) -> list[Any]:
        """As the session's run, which would give arrays, and there are none of BF16."""
        given = {
            name: OrtValue.ortvalue_from_numpy(np.asarray(value, order="C")) if isinstance(value, np.ndarray) else value
            for name, value in inputs.items()
        }
        found = self._session.run_with_ort_values(names, given, options)
        return [_from_ort_value(value) for value in found]


def _to_ort_value(array: Array) -> Any:
    return OrtValue.ortvalue_from_numpy_with_onnx_type(to_bfloat16(array), _BFLOAT16)


def _from_ort_value(value: Any) -> Any:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    bits = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    return from_bfloat16(np.frombuffer(bits, np.uint16)).reshape(shape)  # a copy: the memory is the value's


def check_same(manifest: Signature, model: Signature) -> None:
    """Raise PackageInvalid unless the manifest's inputs and outputs are those of the ONNX file."""
    for kind, said, found in (("input", manifest.inputs, model.inputs), ("output", manifest.outputs, model.outputs)):
        if {spec.name for spec in said} != {spec.name for spec in found}:
            raise PackageInvalid(f"the manifest names {kind}s {_names(said)}, model.onnx has {_names(found)}")
        own = {spec.name: spec for spec in found}
        for spec in said:
            other = own[spec.name]
            if spec.datatype != other.datatype or not _fits(spec.shape, other.shape):
                raise PackageInvalid(
                    f"{kind} {spec.name!r}: the manifest says {spec.datatype} {list(spec.shape)}, "
                    f"model.onnx says {other.datatype} {list(other.shape)}"
                )


def _fits(said: Sequence[int], found: Sequence[int]) -> bool:
    return len(said) == len(found) and all(a == b or -1 in (a, b) for a, b in zip(said, found, strict=True))


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(sorted(spec.name for spec in specs))


def _spec(argument: Any) -> TensorSpec:
    datatype = _DATATYPES.get(argument.type)
    if datatype is None:
        raise PackageInvalid(f"{argument.name!r} is a {argument.type}, which no request and no answer can hold")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in argument.shape)
    return TensorSpec(argument.name, datatype, shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def _to_text(array: Any) -> Any:
    """bytes to str, which is what ONNX Runtime takes; undecodable bytes are the model's InferenceFailed."""
    flat = [value.decode() if isinstance(value, bytes) else str(value) for value in array.ravel().tolist()]
    return np.array(flat, dtype=DTYPES["BYTES"]).reshape(array.shape)


def _to_bytes(array: Any) -> Any:
    flat = [str(value).encode() for value in array.ravel().tolist()]
    encoded = np.empty(len(flat), dtype=DTYPES["BYTES"])
    encoded[:] = flat
    return encoded.reshape(array.shape)
