"""The connections of a port: how many there may be, and the clocks that end what lasts too long on them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

# How often deadlines of waiting calls are looked at, and connections whether they are slow.
TICK_S = 0.02
_SWEEP_S = 0.5
# So many connections are looked at in one go: all at once, thousands would hold up the event loop.
_SLICE = 250
_PER_CONNECTION_S = 20e-6
# A connection beyond the limit has so long to read its answer, and so many may be doing that at once.
_LINGER_S = 1.0
_MAX_LINGERING = 256
# What such a client is asked to wait; by chance, so that they do not all come back together.
_RETRY_S = (1, 2)

Refusal = Callable[[int, str, tuple[tuple[bytes, bytes], ...]], bytes]


class PortBounds(Protocol):
    """What the settings say of the connections of a port."""

    @property
    def keep_alive_s(self) -> int: ...
    @property
    def request_timeout_s(self) -> float: ...
    @property
    def write_timeout_s(self) -> float: ...
    @property
    def max_header_bytes(self) -> int: ...
    @property
    def max_connections(self) -> int: ...


class Connection(Protocol):
    """One connection, as the clocks see it."""

    def end_if_late(self, now_s: float) -> None:
        """Close the connection if it has been in its state for too long."""
        ...


C = TypeVar("C", bound=Connection)


class _TurnedAway(asyncio.Protocol):
    """A connection beyond the limit. It has its answer and closes with the first that comes, which nobody looks at.

    Closed at once it would be reset if its request was on the way, and most clients then never read the answer.
    """

    def __init__(self, transport: asyncio.Transport, lingering: set[_TurnedAway]) -> None:
        self._transport = transport
        self._lingering = lingering
        lingering.add(self)
        self._end = asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lingering.discard(self)
        self._end.cancel()


class Port(Generic[C]):
    """All connections of one port of this process. Used on the event loop only.

    owner: what has these connections, for who is refused. refusal: renders an answer, of status, text and headers, to
    a connection that is refused before any request. on_refused: called for each beyond the limit.
    """

    def __init__(
        self,
        bounds: PortBounds,
        *,
        owner: str,
        refusal: Refusal,
        on_refused: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.bounds = bounds
        self.max_header_bytes = bounds.max_header_bytes
        self.max_connections = bounds.max_connections
        self.refusal = refusal
        self.open: set[C] = set()
        self.handshakes = 0  # of TLS that are under way: connections to be
        self._on_refused = on_refused
        text = f"this {owner} has {bounds.max_connections} connections, the most it takes"
        self._refusals = [refusal(503, text, ((b"retry-after", b"%d" % wait_s),)) for wait_s in _RETRY_S]
        self._lingering: set[_TurnedAway] = set()
        self._clock = clock
        self.now_s = clock()  # as of the last look: good enough for what is counted in seconds

    @property
    def may_shake_hands(self) -> bool:
        """Whether there is room for one more handshake: who is beyond the limit is told so behind it, while few are."""
        return len(self.open) + self.handshakes < self.max_connections + _MAX_LINGERING

    def refuse(self, transport: asyncio.Transport) -> None:
        """Answer and end a connection beyond the limit."""
        self._on_refused()
        transport.write(random.choice(self._refusals))
        if len(self._lingering) >= _MAX_LINGERING:
            transport.set_protocol(asyncio.Protocol())
            transport.close()
            return
        transport.set_protocol(_TurnedAway(transport, self._lingering))
        if transport.can_write_eof():
            transport.write_eof()

    def refuse_handshake(self) -> None:
        """Count one that was not begun."""
        self._on_refused()

    async def watch(self) -> None:
        """Look at the clocks for ever: at all connections in turn, some at a time."""
        swept_s = self.now_s
        while True:
            # One that closes meanwhile is looked at once more, which does nothing.
            round_of = list(self.open)
            is_sweep = self._clock() - swept_s >= _SWEEP_S
            if is_sweep:
                swept_s = self._clock()
            slices = [round_of[begin : begin + _SLICE] for begin in range(0, len(round_of), _SLICE)] or [[]]
            del round_of
            # Longer rounds where thousands of connections are looked at, so that looking stays at some percent.
            pause_s = max(TICK_S / len(slices), len(slices[0]) * _PER_CONNECTION_S)
            while slices:
                await asyncio.sleep(pause_s)
                self.now_s = self._clock()
                for connection in slices.pop():
                    self.look(connection, is_sweep=is_sweep)

    def look(self, connection: C, *, is_sweep: bool) -> None:
        """Look at the clocks of one connection; is_sweep: also at those that count in seconds."""
        if is_sweep:
            connection.end_if_late(self.now_s)
