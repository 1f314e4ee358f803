"""Answers kept for equal requests: bounded in bytes and age, one store per worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any

from cachetools import LRUCache

from gateway.codecs.codec import Encoded, Request
from gateway.settings import CacheSettings
from gateway.tensors import Signature, Tensors

# A request or answer larger than this is seldom asked twice and would push out many small ones.
MAX_ENTRY_BYTES = 64 * 1024
# What an entry costs beside its payload: key tuple, record, links of the cache.
_OVERHEAD_BYTES = 700
_SWEEP_ENTRIES = 5000
# How old an entry's turn may get before a hit renews it.
_TURN_S = 1.0


class Kept:
    """One kept answer. encoded is None for an entry of the tensor cache. touched_s: when its turn was last renewed."""

    __slots__ = ("encoded", "expires_s", "outputs", "request", "size_bytes", "touched_s")

    def __init__(
        self,
        request: Request,
        outputs: Tensors,
        encoded: Encoded | None,
        size_bytes: int,
        now_s: float,
        expires_s: float,
    ) -> None:
        self.request = request
        self.outputs = outputs
        self.encoded = encoded
        self.size_bytes = size_bytes
        self.expires_s = expires_s
        self.touched_s = now_s

    @property
    def rows(self) -> int:
        return self.request.rows

    @property
    def inputs(self) -> Tensors:
        return self.request.inputs


def raw_key(digest: str, codec: str, headers: str, body: bytes) -> Hashable:
    """Equal keys mean equal answers: same package, same protocol, same reading of the same bytes.

    The body itself is part of the key and is compared byte for byte; its hash alone is never trusted.
    """
    return (digest, codec, headers, body)


def tensor_key(digest: str, signature: Signature, request: Request) -> Hashable:
    """The key of checked inputs: their datatypes are the signature's, so shapes and bytes tell them apart."""
    if request.flat is not None:
        spec = signature.inputs[0]
        return (digest, (request.rows, *spec.shape[1:]), request.flat)
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
    size = 0
    for array in tensors.values():
        size += array.nbytes if array.dtype != object else sum(map(len, array.ravel().tolist())) + 56 * array.size
    return size


class _Store(LRUCache[Hashable, Kept]):
    """Least recently used goes first; its entries stand beside it too, in the order in which they came."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(maxsize=max_bytes, getsizeof=_size)
        self.entries: dict[Hashable, Kept] = {}

    def popitem(self) -> tuple[Hashable, Kept]:
        key, kept = super().popitem()
        self.entries.pop(key, None)
        return key, kept


class PredictionCache:
    """Raw answers by body and outputs by inputs, in one least-recently-used store. Used on the event loop only.

    Ages are looked at here and not by cachetools' own TTL caches, whose get() takes ten times as long. An entry's turn
    is renewed at most once a second: doing it for each hit would cost more than all else of the hit.
    """

    def __init__(self, settings: CacheSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = settings.max_bytes
        self._clock = clock
        self._store = _Store(settings.max_bytes)
        self._entries = self._store.entries
        self.enabled = settings.max_bytes > 0

    @property
    def size_bytes(self) -> int:
        """Bytes now held, expired entries included until they are swept."""
        return int(self._store.currsize)

    def describe(self) -> dict[str, Any]:
        """How full it is, for who looks into the worker."""
        held = {"entries": len(self._entries), "bytes": self.size_bytes, "max_bytes": self._max_bytes}
        return {"enabled": self.enabled, **held}

    def get(self, key: Hashable) -> Kept | None:
        """The kept answer, if it is not too old."""
        kept = self._entries.get(key)
        if kept is None:
            return None
        now_s = self._clock()
        if kept.expires_s <= now_s:
            return None
        if now_s - kept.touched_s > _TURN_S:
            kept.touched_s = now_s
            self._store.get(key)
        return kept

    def put(
        self,
        key: Hashable,
        request: Request,
        outputs: Tensors,
        encoded: Encoded | None,
        *,
        ttl_s: float,
        like: Kept | None = None,
    ) -> Kept | None:
        """Keep an answer for *ttl_s*; returns it as it is kept, or None if it is too large for that.

        like: the kept answer that these outputs are from, if they are no new ones: their age is its age. The arrays are
        copied: a slice would keep its whole batch alive.
        """
        inputs_bytes = len(request.flat) if request.flat is not None else bytes_of(request.inputs)
        size = _OVERHEAD_BYTES + 2 * inputs_bytes + bytes_of(outputs) + len(request.id or "")
        if encoded is not None:
            size += len(encoded.body) + len(key[3])  # type: ignore[index]  # raw keys end in the body
        if size > MAX_ENTRY_BYTES or size > self._max_bytes:
            return None
        owned = {name: array if array.base is None else array.copy() for name, array in outputs.items()}
        now_s = self._clock()
        expires_s = now_s + ttl_s if like is None else min(now_s + ttl_s, like.expires_s)
        kept = Kept(request, owned, encoded, size, now_s, expires_s)
        self._store[key] = kept
        self._entries.pop(key, None)  # an entry that is renewed goes to the end of the order
        self._entries[key] = kept
        return kept

    def purge(self, digest: str) -> int:
        """Forget all answers of one package; returns how many there were."""
        keys = [key for key in self._entries if key[0] == digest]  # type: ignore[index]  # all begin with the digest
        for key in keys:
            self._drop(key)
        return len(keys)

    def sweep(self) -> None:
        """Drop what is too old among the oldest entries; called about once a second, it takes a millisecond at most."""
        now_s = self._clock()
        for key in [k for k, kept in islice(self._entries.items(), _SWEEP_ENTRIES) if kept.expires_s <= now_s]:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self._store.pop(key, None)
        self._entries.pop(key, None)


def _size(kept: Kept) -> int:
    return kept.size_bytes
