"""The connections of a worker: what else is known of them than what each port knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.codecs.codec import Headers
from gateway.errors import GatewayError
from gateway.port import Port
from gateway.serving.call import Call
from gateway.serving.doorway import Doorway
from gateway.serving.replies import Block, refusal_wire
from gateway.settings import ServerSettings


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
    """One connection, as the clocks see it. look_by: of its port."""

    look_by: int

    def expire_if_late(self, now_s: float) -> float:
        """Answer the prediction that is waiting if its deadline has passed; returns that deadline, or infinity."""
        ...

    def end_if_late(self, now_s: float) -> float:
        """Close the connection if it has been in its state for too long; returns when it will have been."""
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


class Doors(Port[Connection]):
    """All connections of a worker, and the clocks that end what lasts too long. Used on the event loop only.

    fast: whether predictions are answered here or by the ASGI app. is_leaving: every answer is the last one of its
    connection. is_announced: the whole gateway stops, so that this worker is not ready any more.
    """

    def __init__(self, doorway: Doorway, settings: ServerSettings, *, fast: bool, clock: Callable[[], float]) -> None:
        super().__init__(
            settings,
            owner="worker",
            refusal=refusal_wire,
            on_refused=lambda: doorway.counts.refused("too_many_connections"),
            clock=clock,
        )
        self.doorway = doorway
        self.look_every_s = min(self.look_every_s, doorway.admission.deadline_s)  # calls that ask for less say so
        self.fast = fast
        self.is_leaving = False
        self.is_announced = False

    def look(self, connection: Connection) -> float:
        """Answer its call if the deadline has passed, and end it if it is slow; returns when it may be late next."""
        return min(connection.expire_if_late(self.now_s), connection.end_if_late(self.now_s))

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
