"""What a codec is: one protocol's way from body bytes to named tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.errors import GatewayError
from gateway.tensors import Signature, Tensors

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class Request:
    """A decoded request: every input of the signature, checked.

    rows: rows of all inputs. id: what the body says, echoed by the protocols that ask for it. outputs: names wanted,
    in order, with whether each shall travel as binary; None: all, binary if *binary*. timeout_s: the client's wish.
    """

    inputs: Tensors
    rows: int
    id: str | None = None
    outputs: tuple[tuple[str, bool], ...] | None = None
    binary: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A reply's body without the parts that differ between equal requests, and the headers that describe it."""

    body: bytes
    headers: Headers


class BoundCodec(Protocol):
    """A codec for one version of one model. Called on the event loop; pure."""

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        """Read and check a body. Raises InvalidInput naming the field, what came and what was expected."""
        ...

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        """The reply to *request*; *outputs* hold its rows only."""
        ...

    def stamp(self, body: bytes, variant: str, prediction_id: str) -> bytes:
        """*body* as encoded, completed with what differs between equal requests."""
        ...


class Codec(Protocol):
    """One protocol. *name* is its metric label and the flags' ``protocol``."""

    name: str

    def bind(self, model: str, version: str, signature: Signature) -> BoundCodec:
        """The codec for one version."""
        ...

    def error(self, error: GatewayError) -> bytes:
        """The body of an error reply, as JSON."""
        ...

    def cache_headers(self, headers: Mapping[str, str]) -> str:
        """The request headers that change how a body is read or answered, as part of the cache key."""
        ...
