"""Whether an ONNX file is closed in itself: one that takes weights from other files could answer with any of them.

ONNX lets a tensor lie in another file, named by a path. ONNX Runtime takes that path from the working directory if it
is given a model's bytes, and follows it to wherever this user may read: a model could give out the admin token as a
prediction. Packages are one file, so nothing is lost by taking no such model.

The file is walked as the protocol buffer that it is, without the onnx library, which is too large for a worker, and
only if it holds the word without which there is no such tensor. Field numbers: onnx.proto of ONNX 1.19.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gateway.errors import PackageInvalid

# The key under which a tensor in another file has its path.
_KEY = b"location"
# As the flat buffers of ONNX Runtime's own format begin.
_ORT_FORMAT = slice(4, 8), b"ORTM"
_MAX_DEPTH = 100

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _FUNCTION, _SPARSE, _TENSOR, _TRAINING = range(8)
# What of a message is a message that may hold a tensor: field number -> kind.
_INSIDE: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _TENSOR: {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
# The numbers of a large tree, one field each, which would take seconds to walk: floats and ints of an attribute.
_NUMBERS = re.compile(rb"(?:\x3d[\x00-\xff]{4})+|(?:\x40[\x80-\xff]{0,9}[\x00-\x7f])+")


def check_closed(model: bytes) -> None:
    """Raise PackageInvalid if a tensor of *model* lies, or may lie, in another file."""
    where, word = _ORT_FORMAT
    if model[where] == word:
        raise PackageInvalid("model.onnx is in the format of ONNX Runtime itself; only ONNX is served")
    if _KEY in model and _leads_out(memoryview(model), _MODEL, _MAX_DEPTH):
        raise PackageInvalid("model.onnx takes weights from other files; save it as one file, without external data")


def _leads_out(message: memoryview, kind: int, depth: int) -> bool:
    """Whether a message, or one inside of it, is a tensor that lies elsewhere. What cannot be read counts as one."""
    if depth == 0:
        return True
    inside, at, end = _INSIDE[kind], 0, len(message)
    try:
        while at < end:
            if kind == _ATTRIBUTE and (numbers := _NUMBERS.match(message, at)) is not None:
                at = numbers.end()
                continue
            tag, at = _number(message, at)
            field, wire_type = tag >> 3, tag & 7
            if kind == _TENSOR and field in (_EXTERNAL_DATA, _DATA_LOCATION):
                value, at = _number(message, at)
                if field == _EXTERNAL_DATA or value != 0:
                    return True
            elif wire_type == 0:
                _, at = _number(message, at)
            elif wire_type == 2:
                size, at = _number(message, at)
                if at + size > end:
                    return True
                if field in inside and _leads_out(message[at : at + size], inside[field], depth - 1):
                    return True
                at += size
            elif wire_type in (1, 5):
                at += 8 if wire_type == 1 else 4
            else:  # groups, which ONNX has none of
                return True
    except IndexError:
        return True
    return at != end


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """The variable-length number at *at*, and where the next thing begins. Raises IndexError."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than ten bytes")
