"""Answers kept for equal requests: bounded in bytes and age, one store per worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cachetools import TLRUCache

from gateway.codecs.codec import Encoded, Request
from gateway.settings import CacheSettings
from gateway.tensors import Signature, Tensors

# A request or answer larger than this is seldom asked twice and would push out many small ones.
MAX_ENTRY_BYTES = 64 * 1024
# What an entry costs beside its payload: key tuple, record, links of the cache.
_OVERHEAD_BYTES = 700


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept answer. encoded is None for an entry of the tensor cache."""

    inputs: Tensors
    outputs: Tensors
    rows: int
    encoded: Encoded | None
    size_bytes: int
    ttl_s: float


def raw_key(digest: str, codec: str, headers: str, body: bytes) -> object:
    """Equal keys mean equal answers: same package, same protocol, same reading of the same bytes.

    The body itself is part of the key and is compared byte for byte; its hash alone is never trusted.
    """
    return (digest, codec, headers, body)


def tensor_key(digest: str, signature: Signature, request: Request) -> object:
    """The key of checked inputs: their datatypes are the signature's, so shapes and bytes tell them apart."""
    if request.flat is not None:
        spec = signature.inputs[0]
        return (digest, (request.rows, *spec.shape[1:]), request.flat.tobytes())
    inputs = request.inputs
    parts: list[Any] = [digest]
    for spec in signature.inputs:
        array = inputs[spec.name]
        parts.append(array.shape)
        # bytes of an object array would be addresses; its texts are compared instead
        parts.append(tuple(array.ravel().tolist()) if spec.datatype == "BYTES" else array.tobytes())
    return tuple(parts)


def bytes_of(tensors: Tensors) -> int:
    """Bytes that tensors hold; texts are counted by their lengths."""
    return sum(
        sum(map(len, array.ravel().tolist())) + 56 * array.size if array.dtype == object else array.nbytes
        for array in tensors.values()
    )


class PredictionCache:
    """Raw answers by body and outputs by inputs, in one least-recently-used store. Used on the event loop only."""

    def __init__(self, settings: CacheSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = settings.max_bytes
        self._store: TLRUCache[object, Kept] = TLRUCache(
            maxsize=settings.max_bytes, ttu=_expiry, timer=clock, getsizeof=_size
        )

    @property
    def enabled(self) -> bool:
        return self._max_bytes > 0

    @property
    def size_bytes(self) -> int:
        """Bytes now held, expired entries included until they are swept."""
        return int(self._store.currsize)

    def get(self, key: object) -> Kept | None:
        """The kept answer, if it is not too old."""
        return self._store.get(key)

    def put(
        self, key: object, inputs: Tensors, outputs: Tensors, rows: int, encoded: Encoded | None, *, ttl_s: float
    ) -> None:
        """Keep an answer for *ttl_s*; one that is too large is not kept.

        The arrays are copied: a slice would keep its whole batch alive.
        """
        size = _OVERHEAD_BYTES + 2 * bytes_of(inputs) + bytes_of(outputs)
        if encoded is not None:
            size += len(encoded.body) + len(key[3])  # type: ignore[index]  # raw keys end in the body
        if size > MAX_ENTRY_BYTES or size > self._max_bytes:
            return
        owned = {name: array if array.base is None else array.copy() for name, array in outputs.items()}
        self._store[key] = Kept(inputs, owned, rows, encoded, size, ttl_s)

    def purge(self, digest: str) -> int:
        """Forget all answers of one package; returns how many there were."""
        keys = [key for key in self._store if key[0] == digest]  # type: ignore[index]  # all keys begin with the digest
        for key in keys:
            self._store.pop(key, None)
        return len(keys)

    def sweep(self) -> None:
        """Drop what is too old."""
        self._store.expire()


def _expiry(_key: object, kept: Kept, now_s: float) -> float:
    return now_s + kept.ttl_s


def _size(kept: Kept) -> int:
    return kept.size_bytes
