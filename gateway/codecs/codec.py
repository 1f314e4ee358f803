"""What a codec is: one protocol's way from body bytes to named tensors and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gateway.errors import GatewayError
from gateway.tensors import Signature, Tensors, TensorSpec

Headers = tuple[tuple[bytes, bytes], ...]
Spans = Sequence[tuple[int, int]]
JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)


class Wish(NamedTuple):
    """An output that a request asks for. classes: so many of its highest values as texts, instead of all; 0: all."""

    name: str
    is_binary: bool
    classes: int = 0


class Request:
    """A decoded request: every input of the signature, checked.

    rows: rows of all inputs. Either *tensors* or *flat* is given. flat: the values of the one input as they lie in
    memory, row by row; small requests stay like that until a batch is formed, since an array per request would cost
    more than all else of it. What a request seldom says stands in the class.
    """

    id: str | None = None  # what the body says, echoed by the protocols that ask for it
    outputs: tuple[Wish, ...] | None = None  # what is wanted, in order; None: all
    binary: bool = False  # outputs travel as binary unless *outputs* says otherwise
    timeout_s: float | None = None  # the client's wish
    priority: int | None = None  # the client's wish: 1 is the highest, 0 what is usual
    is_plain: bool = False  # few rows, and nothing said about the reply: BoundCodec.encode_rows will do

    def __init__(
        self,
        rows: int,
        tensors: Tensors | None = None,
        *,
        flat: bytes | None = None,
        spec: TensorSpec | None = None,
    ) -> None:
        self.rows = rows
        self.flat = flat
        self._spec = spec
        self._tensors = tensors

    @property
    def inputs(self) -> Tensors:
        """All inputs as arrays [rows, ...]."""
        if self._tensors is None:
            assert self.flat is not None
            assert self._spec is not None
            shape = (self.rows, *self._spec.shape[1:])
            self._tensors = {self._spec.name: np.frombuffer(self.flat, self._spec.dtype).reshape(shape)}
        return self._tensors

    @property
    def size_bytes(self) -> int:
        """Bytes of the numeric inputs."""
        if self.flat is not None:
            return len(self.flat)
        return sum(array.nbytes for array in self.inputs.values())


class Encoded(NamedTuple):
    """A reply's body without the parts that differ between equal requests, and the headers that describe it."""

    body: bytes
    headers: Headers


class BoundCodec(Protocol):
    """A codec for one version of one model. Called on the event loop; pure."""

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Request:
        """Read and check a body. Raises InvalidInput naming the field, what came and what was expected."""
        ...

    def decode_plain(self, bodies: list[bytes]) -> list[bytes | None]:
        """The values of bodies that ask for rows of the only input and say nothing else, read together.

        Each as `Request.flat`, whose length tells the rows. The headers say nothing of how to read the bodies. None for
        each body that is something else, right or wrong: `decode` will tell.
        """
        ...

    def encode(self, request: Request, outputs: Tensors) -> Encoded:
        """The reply to *request*; *outputs* hold its rows only."""
        ...

    def encode_rows(self, outputs: Tensors, spans: Spans | None = None) -> list[bytes] | None:
        """For each row of a batch, the body that `encode` would give to a plain request of that row alone.

        spans: from which row to before which one plain requests have asked: a body for each of them instead. None if
        these outputs cannot be written so; then `encode` is called for each request.
        """
        ...

    @property
    def stamp(self) -> Callable[[bytes, str, str], bytes] | None:
        """Completes an encoded body with what differs between equal requests: its variant and its prediction id.

        None if nothing in this protocol's bodies does.
        """
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
