"""The connections of a worker, and the clocks that end what lasts too long on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.serving.call import Call
from gateway.serving.doorway import Doorway
from gateway.settings import ServerSettings

# How often deadlines of waiting calls are looked at, and how many looks pass between looks at all connections.
TICK_S = 0.02
_TICKS_PER_SWEEP = 25
_TICK_PER_CONNECTION_S = 10e-6


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


class Connection(Protocol):
    """One connection, as the clocks see it."""

    def expire_if_late(self, now_s: float) -> None:
        """Answer the prediction that is waiting if its deadline has passed."""
        ...

    def end_if_late(self, now_s: float, keep_alive_s: float, request_timeout_s: float) -> None:
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


class Doors:
    """All connections of a worker, and the clocks that end what lasts too long. Used on the event loop only.

    fast: whether predictions are answered here or by the ASGI app. is_leaving: every answer is the last one of its
    connection. is_announced: the whole gateway stops, so that this worker is not ready any more.
    """

    def __init__(self, doorway: Doorway, settings: ServerSettings, *, fast: bool, clock: Callable[[], float]) -> None:
        self.doorway = doorway
        self.fast = fast
        self.max_header_bytes = settings.max_header_bytes
        self.open: set[Connection] = set()
        self.is_leaving = False
        self.is_announced = False
        self._settings = settings
        self._clock = clock
        self.now_s = clock()  # as of the last tick: good enough for what is counted in seconds

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
        settings = self._settings
        for connection in list(self.open):
            connection.end_if_late(self.now_s, settings.keep_alive_s, settings.request_timeout_s)
