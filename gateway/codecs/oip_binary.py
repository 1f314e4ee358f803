"""The Open Inference Protocol's binary tensor extension: little-endian, row-major bytes after the JSON part.

Source: triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

import numpy as np

from gateway.codecs.numbers import name_of
from gateway.errors import InvalidInput
from gateway.tensors import DTYPES, Array, TensorSpec, from_bfloat16, to_bfloat16

LENGTH_HEADER = "inference-header-content-length"
_ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {"BF16": 2}

if sys.byteorder != "little":
    raise ImportError("the binary tensor codec reads memory as it is, so it needs a little-endian machine")


class Blobs:
    """The bytes after the JSON part, taken in order of the inputs."""

    def __init__(self, rest: bytes | memoryview) -> None:
        self._rest = memoryview(rest)
        self._taken = 0

    def take(self, size: Any, field: str) -> memoryview:
        """The next *size* bytes. Raises InvalidInput if there are not so many."""
        if type(size) is not int or size < 0:
            raise InvalidInput(f"{field}.parameters.binary_data_size", name_of(size), "a whole number of at least 0")
        left = len(self._rest) - self._taken
        if size > left:
            raise InvalidInput(f"{field}.parameters.binary_data_size", str(size), f"at most the {left} bytes that came")
        self._taken += size
        return self._rest[self._taken - size : self._taken]

    def check_all_read(self) -> None:
        """Raise InvalidInput if bytes are left that no input named."""
        left = len(self._rest) - self._taken
        if left:
            raise InvalidInput("body", f"{left} bytes after the last binary input", "no bytes that no input names")


def json_length(header: str, body_bytes: int) -> int:
    """The bytes of the JSON part. Raises InvalidInput."""
    length = int(header) if header.isascii() and header.isdigit() and len(header) < 12 else -1
    if not 0 <= length <= body_bytes:
        raise InvalidInput("header Inference-Header-Content-Length", repr(header[:40]), f"0 to {body_bytes}")
    return length


def raw_shape(spec: TensorSpec, size_bytes: int, *, batchable: bool) -> tuple[int, ...]:
    """The shape of a raw body: one row, and at most one size that follows from the number of bytes."""
    shape = list(spec.shape)
    if batchable:
        shape[0] = 1
    if spec.datatype == "BYTES":
        return tuple(1 if size == -1 else size for size in shape)
    variable = [index for index, size in enumerate(shape) if size == -1]
    if len(variable) > 1:
        raise InvalidInput(f"inputs.{spec.name}", "a raw body", "a named tensor, since its shape has several unknowns")
    if variable:
        fixed = math.prod(size for size in shape if size != -1) * _ITEM_BYTES[spec.datatype]
        shape[variable[0]] = size_bytes // fixed if fixed else 0
    return tuple(shape)


def raw(body: bytes, spec: TensorSpec, *, batchable: bool) -> Array:
    """A body that is one row of a tensor and no more; of a text without its length. Raises InvalidInput."""
    shape = raw_shape(spec, len(body), batchable=batchable)
    if spec.datatype == "BYTES":
        body = struct.pack("<I", len(body)) + body
    return decode(memoryview(body), spec, shape)


def decode(blob: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The bytes of one tensor as an array; numbers that are most of the body are a view of it. Raises InvalidInput."""
    field = f"inputs.{spec.name}"
    if spec.datatype == "BYTES":
        return _texts(blob, field, math.prod(shape)).reshape(shape)
    expected = math.prod(shape) * _ITEM_BYTES[spec.datatype]
    if len(blob) != expected:
        raise InvalidInput(field, f"{len(blob)} bytes", f"{expected} bytes for {spec.datatype} {list(shape)}")
    if spec.datatype == "BOOL" and len(blob):
        highest = int(np.frombuffer(blob, np.uint8).max())
        if highest > 1:
            raise InvalidInput(field, f"a byte of {highest}", "0 or 1 for each BOOL")
    if spec.datatype == "BF16":
        return from_bfloat16(np.frombuffer(blob, np.uint16)).reshape(shape)
    array = np.frombuffer(blob, dtype=spec.dtype).reshape(shape)
    # A view keeps the whole body alive: kept in a cache or queue, a small tensor must not hold a large body there.
    return array if 2 * blob.nbytes >= memoryview(blob.obj).nbytes else array.copy()


def _texts(blob: memoryview, field: str, count: int) -> Array:
    if count > len(blob) // 4:  # each has 4 bytes of length: before memory is taken for what cannot be there
        raise InvalidInput(field, f"{len(blob)} bytes", f"{count} strings")
    texts = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        if position + 4 > len(blob):
            raise InvalidInput(field, f"{index} strings", f"{count} strings")
        (size,) = struct.unpack_from("<I", blob, position)
        position += 4 + size
        if position > len(blob):
            raise InvalidInput(f"{field}[{index}]", f"a length of {size} bytes", "a length inside the body")
        texts[index] = bytes(blob[position - size : position])
        try:
            texts[index].decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{field}[{index}]", f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text"
            ) from None
    if position != len(blob):
        raise InvalidInput(field, f"{len(blob) - position} bytes too many", f"{count} strings")
    return texts


def encode(array: Array, datatype: str) -> bytes | memoryview:
    """The bytes of one output: of numbers a view, if they lie in memory as they travel."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text)) + text for text in array.ravel().tolist())
    if datatype == "BF16":
        return to_bfloat16(array).tobytes()
    return np.ascontiguousarray(array, dtype=DTYPES[datatype]).reshape(-1).view(np.uint8).data
