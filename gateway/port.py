"""The connections of a port: how many there may be, and the clocks that end what lasts too long on them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

# How exactly deadlines of calls and the clocks of connections are kept.
TICK_S = 0.02
# A connection is looked at when it may be late, as it stood when it was last looked at, and after each so large a share
# of the shortest bound: meanwhile it may have come to stand somewhere else.
_LOOK_SHARE = 0.1
# Looking takes so much time in one go, and rests for so long before the next: thousands that are late together would
# hold up the event loop. The clock is looked at after so many connections.
_GO_S = 0.5e-3
_REST_S = 1e-3
_GROUP = 8
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
    """One connection, as the clocks see it. look_by: the tick in which it is looked at, the port's own business."""

    look_by: int

    def end_if_late(self, now_s: float) -> float:
        """Close the connection if it has been in its state for too long; returns when it will have been."""
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
        shortest_s = min(bounds.keep_alive_s, bounds.request_timeout_s, bounds.write_timeout_s)
        self.look_every_s = _LOOK_SHARE * shortest_s
        self._tick = int(self.now_s / TICK_S)  # the next one
        self._due: dict[int, set[C]] = {}  # who is looked at in which tick

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

    def enter(self, connection: C) -> None:
        """A new connection, within the limit."""
        self.open.add(connection)
        self._plan(connection, self.now_s + self.look_every_s)

    def leave_out(self, connection: C) -> None:
        """A connection has ended, which perhaps was none of ours."""
        if connection in self.open:
            self.open.discard(connection)
            self._due[connection.look_by].discard(connection)

    def look_before(self, connection: C, due_s: float) -> None:
        """Look at a connection when *due_s* has passed, if not before."""
        if int(due_s / TICK_S) + 1 < connection.look_by and connection in self.open:
            self._due[connection.look_by].discard(connection)
            self._plan(connection, due_s)

    def _plan(self, connection: C, due_s: float) -> None:
        connection.look_by = tick = max(self._tick, int(due_s / TICK_S) + 1)
        group = self._due.get(tick)
        if group is None:
            group = self._due[tick] = set()
        group.add(connection)

    async def watch(self) -> None:
        """Look at the clocks for ever: at those connections that may be late."""
        while True:
            await asyncio.sleep(TICK_S)
            self.now_s = self._clock()
            while self._tick * TICK_S <= self.now_s:
                tick, self._tick = self._tick, self._tick + 1
                group = self._due.get(tick)
                while group:
                    self._look_at_some(group)
                    if group:
                        await asyncio.sleep(_REST_S)
                        self.now_s = self._clock()
                if group is not None:
                    del self._due[tick]

    def _look_at_some(self, group: set[C]) -> None:
        """Look at as many as one go has time for, and take them out of *group*."""
        until_s = self._clock() + _GO_S
        while group and self._clock() < until_s:
            for _ in range(min(_GROUP, len(group))):
                connection = group.pop()
                try:
                    due_s = self.look(connection)
                except Exception:  # of one connection; the clocks of all others go on
                    log.exception("the clocks of a connection could not be looked at")
                    due_s = self.now_s + self.look_every_s
                self._plan(connection, min(due_s, self.now_s + self.look_every_s))

    def look(self, connection: C) -> float:
        """Look at the clocks of one connection; returns when it may be late next."""
        return connection.end_if_late(self.now_s)
