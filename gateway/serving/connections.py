"""The connections of a worker, and the clocks that end what lasts too long on them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from gateway.codecs.codec import Headers
from gateway.errors import GatewayError
from gateway.serving.call import Call
from gateway.serving.doorway import Doorway
from gateway.serving.replies import Block, refusal_wire
from gateway.settings import ServerSettings

# How often deadlines of waiting calls are looked at, and how many looks pass between looks at all connections.
TICK_S = 0.02
_TICKS_PER_SWEEP = 25
_TICK_PER_CONNECTION_S = 10e-6
# A connection beyond the limit has so long to read its answer, and so many may be doing that at once.
_LINGER_S = 1.0
_MAX_LINGERING = 256
# What such a client is asked to wait; by chance, so that they do not all come back together.
_RETRY_S = (1, 2)


class _NoEvent:
    """Stands where uvicorn's cycle has the event that wakes its task; here there is no task."""

    __slots__ = ()

    def set(self) -> None: ...


class Exchange:
    """The prediction that a connection is busy with; to uvicorn's protocol it is the current cycle."""

    __slots__ = ("call", "chunks", "disconnected", "keep_alive", "response_complete", "size_bytes")

    message_event = _NoEvent()
    response_started = False  # an answer is written whole

    def __init__(self) -> None:
        self.call: Call | None = None  # from its admission to its answer
        self.chunks: list[bytes] = []
        self.size_bytes = 0
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = True


def to_nobody(call: Call, error: GatewayError | None, route: Block, content: Headers, body: bytes) -> None:
    """Takes the answer to a request whose connection is gone."""


class Connection(Protocol):
    """One connection, as the clocks see it."""

    def expire_if_late(self, now_s: float) -> None:
        """Answer the prediction that is waiting if its deadline has passed."""
        ...

    def end_if_late(self, now_s: float, settings: ServerSettings) -> None:
        """Close the connection if it has been in its state for too long."""
        ...

    def answer_last(self) -> None:
        """Let the answer that is on its way be the last one."""
        ...

    def close_if_idle(self, idle_before_s: float, silent_before_s: float) -> None:
        """Close it if it has been idle, or silent in the middle of a head, since before those times."""
        ...

    def turn_away(self) -> None:
        """Answer what waits on it with Draining."""
        ...


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


class Doors:
    """All connections of a worker, and the clocks that end what lasts too long. Used on the event loop only.

    fast: whether predictions are answered here or by the ASGI app. is_leaving: every answer is the last one of its
    connection. is_announced: the whole gateway stops, so that this worker is not ready any more.
    """

    def __init__(self, doorway: Doorway, settings: ServerSettings, *, fast: bool, clock: Callable[[], float]) -> None:
        self.doorway = doorway
        self.fast = fast
        self.max_header_bytes = settings.max_header_bytes
        self.max_connections = settings.max_connections
        text = f"this worker has {settings.max_connections} connections, the most it takes"
        self._refusals = [refusal_wire(503, text, ((b"retry-after", b"%d" % wait_s),)) for wait_s in _RETRY_S]
        self._lingering: set[_TurnedAway] = set()
        self.open: set[Connection] = set()
        self.is_leaving = False
        self.is_announced = False
        self._settings = settings
        self._clock = clock
        self.now_s = clock()  # as of the last tick: good enough for what is counted in seconds

    def refuse(self, transport: asyncio.Transport) -> None:
        """Answer and end a connection beyond the limit."""
        self.doorway.counts.refused("too_many_connections")
        transport.write(random.choice(self._refusals))
        if len(self._lingering) >= _MAX_LINGERING:
            transport.set_protocol(asyncio.Protocol())
            transport.close()
            return
        transport.set_protocol(_TurnedAway(transport, self._lingering))
        if transport.can_write_eof():
            transport.write_eof()

    async def watch(self) -> None:
        """Look at the clocks for ever."""
        ticks = 0
        while True:
            # Longer pauses where thousands of connections are looked at, so that looking stays below one percent.
            await asyncio.sleep(max(TICK_S, len(self.open) * _TICK_PER_CONNECTION_S))
            self.now_s = self._clock()
            self.expire_calls()
            ticks += 1
            if ticks % _TICKS_PER_SWEEP == 0:
                self.end_slow_connections()

    def expire_calls(self) -> None:
        """Answer the calls whose deadline has passed."""
        for connection in list(self.open):
            connection.expire_if_late(self.now_s)

    def leave(self) -> None:
        """From now on every answer says that it is the last one of its connection."""
        self.is_leaving = True
        for connection in self.open:
            connection.answer_last()

    def announce(self) -> None:
        """Leave, and be no longer ready meanwhile: nobody takes the place of this worker."""
        self.is_announced = True
        self.leave()

    def close_idle(self, idle_s: float, silent_s: float) -> None:
        """Close connections that have been idle for *idle_s*, or silent before or in a head for *silent_s*."""
        now_s = self._clock()
        for connection in list(self.open):
            connection.close_if_idle(now_s - idle_s, now_s - silent_s)

    def turn_away(self) -> None:
        """Answer all that waits with Draining."""
        for connection in list(self.open):
            connection.turn_away()

    def end_slow_connections(self) -> None:
        """End connections that have been idle, silent, slow to send or slow to read for too long."""
        for connection in list(self.open):
            connection.end_if_late(self.now_s, self._settings)
