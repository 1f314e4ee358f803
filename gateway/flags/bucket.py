"""Which of 2^32 places a key falls on: flagd's sticky hash in its two generations, byte for byte.

``flagd-v3`` hashes the canonical CBOR of ``[flagKey, targetingKey]`` (or of the value that a rule names), ``flagd-v2``
the text ``flagKey + targetingKey`` (or the text that a rule names); both with MurmurHash3 x86_32, seed 0. The
generation is pinned per flag document, since one and the same key lands elsewhere under the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import mmh3

FLAGD_V3 = "flagd-v3"
FLAGD_V2 = "flagd-v2"
GENERATIONS = (FLAGD_V3, FLAGD_V2)

MAX_TOTAL_WEIGHT = 2**31 - 1

_CBOR_TEXT = 0x60
_CBOR_UNSIGNED = 0x00
_CBOR_NEGATIVE = 0x20
_CBOR_PAIR = b"\x82"


def place(hash32: int, total_weight: int) -> int:
    """The place of a hash among *total_weight* places, 0-based."""
    return (hash32 * total_weight) >> 32


def key_hash(flag_key: str, generation: str) -> Callable[[str], int]:
    """A function from targeting key to unsigned 32-bit hash, for one flag. About 0.4 us a call."""
    if generation == FLAGD_V2:
        return lambda key: mmh3.hash((flag_key + key).encode("utf-8", "surrogatepass"), 0, False)
    _check(generation)
    prefix = _CBOR_PAIR + canonical_cbor(flag_key)
    starts = tuple(prefix + _head(_CBOR_TEXT, length) for length in range(256))

    def hash_key(key: str) -> int:
        raw = key.encode("utf-8", "surrogatepass")
        length = len(raw)
        start = starts[length] if length < 256 else prefix + _head(_CBOR_TEXT, length)
        return mmh3.hash(start + raw, 0, False)

    return hash_key


def value_hash(generation: str) -> Callable[[Any], int | None]:
    """A function from the value that a rule buckets by to its hash; None for a value that cannot be hashed."""
    _check(generation)
    if generation == FLAGD_V2:
        return lambda value: (
            mmh3.hash(value.encode("utf-8", "surrogatepass"), 0, False) if isinstance(value, str) else None
        )

    def hash_value(value: Any) -> int | None:
        if isinstance(value, str | bool | int | float):
            return mmh3.hash(canonical_cbor(value), 0, False)
        return None

    return hash_value


def canonical_cbor(value: str | bool | int | float) -> bytes:
    """Canonical CBOR (RFC 8949, 4.2) of a scalar; floats without a fraction are written as integers, as flagd does."""
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return _head(_CBOR_TEXT, len(raw)) + raw
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value <= 2**64 - 1:
        value = int(value)
    if isinstance(value, int) and -(2**64) <= value < 2**64:
        return _head(_CBOR_UNSIGNED, value) if value >= 0 else _head(_CBOR_NEGATIVE, -1 - value)
    return _float(float(value))


def _head(major: int, length: int) -> bytes:
    if length < 24:
        return bytes((major + length,))
    if length < 2**8:
        return bytes((major + 24, length))
    if length < 2**16:
        return bytes((major + 25,)) + length.to_bytes(2, "big")
    if length < 2**32:
        return bytes((major + 26,)) + length.to_bytes(4, "big")
    return bytes((major + 27,)) + length.to_bytes(8, "big")


def _float(value: float) -> bytes:
    """The shortest of the three float forms that keeps the value."""
    if value != value:
        return b"\xf9\x7e\x00"
    for marker, form in ((b"\xf9", ">e"), (b"\xfa", ">f")):
        try:
            raw = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, raw)[0] == value:
            return marker + raw
    return b"\xfb" + struct.pack(">d", value)


def _check(generation: str) -> None:
    if generation not in GENERATIONS:
        raise ValueError(f"bucketing must be one of {', '.join(GENERATIONS)}, got {generation!r}")
