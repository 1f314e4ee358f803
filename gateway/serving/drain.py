"""The end of a worker: nobody new is taken, what has begun is finished, and who is idle is let go.

A uvicorn.Server with an end of its own: uvicorn's closes connections on which a request may be on its way, tells nobody
who is cut off at the end of its patience when to come back, and waits for clients of TLS who never say goodbye.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from logging import getLogger
from typing import Any

import uvicorn

from gateway.handshakes import TlsListener, shake_hands
from gateway.listener import Listener
from gateway.port import TICK_S
from gateway.serving.connections import Doors

# How long a connection must have been idle to be closed, where another worker takes the place of this one: who is in
# the middle of a conversation asks again before that, and is told with the answer that it is the last one.
IDLE_S = 1.0
# What a new client, or one in the middle of a head, gets to send the rest.
SILENT_S = 1.0
# What a client that is told goodbye over TLS gets to answer. A pooled connection is often not read before its next use,
# and would hold the worker until the end of its drain.
GOODBYE_TIMEOUT_S = 1.0
# Connections that are taken in one turn of the event loop: beside them, who is connected must not wait for long.
_AT_ONCE = 32
# Connections that are taken from a listener before it is closed.
_MAX_WAITING = 4096
# Looks at whether the last answers have left.
_FAREWELL_TICKS = 10

_log = getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """Serves what *config* says until `stop`, then drains. Used on the event loop; signals are the owner's business.

    drain_timeout_s: what has begun gets to finish.
    """

    def __init__(self, config: uvicorn.Config, doors: Doors, *, drain_timeout_s: float) -> None:
        super().__init__(config)
        self.tls_context: ssl.SSLContext | None = None
        self.servers = []  # of uvicorn's own; there are none
        self.tls_listeners: list[TlsListener] = []
        self.on_start: Callable[[], None] = lambda: None  # connections are taken
        self._doors = doors
        self._drain_timeout_s = drain_timeout_s
        self._stopping = asyncio.Event()
        self._listeners: list[Listener] = []
        self._adopting: set[asyncio.Task[None]] = set()  # connections that were taken and have no protocol yet
        self._told_goodbye_s: dict[Any, float] = {}  # connections that we have closed, and when that was seen

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on *sockets*."""
        self._listeners = [
            Listener(listener, self._take, backlog=self.config.backlog, at_once=_AT_ONCE) for listener in sockets or ()
        ]
        self.started = True

    async def main_loop(self) -> None:
        """Wait for the end."""
        self.on_start()
        await self._stopping.wait()

    def stop(self) -> None:
        """Drain, then return from serve()."""
        self.should_exit = True
        self._stopping.set()

    def hurry(self) -> None:
        """Stop at once: whoever still waits is told to ask another worker."""
        self.force_exit = True
        self.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, finish, and end what is not finished in time."""
        waiting = [connection for listening in sockets or () for connection in _waiting(listening)]
        for listener in self._listeners:
            listener.close()
        for tls_listener in self.tls_listeners:
            tls_listener.close(SILENT_S)
        for listening in sockets or ():
            listening.close()
        for connection in waiting:
            self._take(connection)
        doors, state = self._doors, self.server_state
        doors.leave()
        for other in state.connections - doors.open:  # of uvicorn's own protocol
            other.shutdown()
        # Nobody takes the place of a gateway that stops: there is nothing to be gained for who is idle by waiting.
        idle_s = 0.0 if doors.is_announced else IDLE_S
        until_s = time.monotonic() + self._drain_timeout_s
        while not self.force_exit:
            await asyncio.sleep(TICK_S)  # first: requests may have come in already
            doors.close_idle(idle_s, SILENT_S)
            self._drop_silent()
            if not (state.connections or state.tasks or doors.handshakes or self._adopting):
                return
            if time.monotonic() > until_s:
                _log.error("not all requests were finished in time", extra={"connections": len(state.connections)})
                break
        await self._cut_off()

    def _take(self, connection: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._adopt(connection))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _adopt(self, connection: socket.socket) -> None:
        """Let a connection speak. Over TLS that lasts as long as its handshake."""
        with contextlib.suppress(OSError):  # it has left, or its handshake fails
            if self.tls_context is None:
                await asyncio.get_running_loop().connect_accepted_socket(self.make_connection, connection)
            else:
                await shake_hands(
                    connection, self.tls_context, self.make_connection, handshake_s=SILENT_S, goodbye_s=SILENT_S
                )

    def make_connection(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        protocol: Any = self.config.http_protocol_class  # uvicorn gives it as a type of any protocol
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    def _drop_silent(self) -> None:
        """End connections that we have closed and over which nothing waits to be sent, if the client does not."""
        now_s = time.monotonic()
        for connection in list(self.server_state.connections):
            transport: Any = connection.transport
            if transport.is_closing() and transport.get_write_buffer_size() == 0:
                since_s = self._told_goodbye_s.setdefault(connection, now_s)
                if now_s - since_s >= GOODBYE_TIMEOUT_S:
                    transport.abort()

    async def _cut_off(self) -> None:
        """Answer what still waits with 503, then end all connections."""
        self._doors.turn_away()
        for task in self.server_state.tasks:
            task.cancel()  # the endpoint answers
        for _ in range(_FAREWELL_TICKS):
            await asyncio.sleep(TICK_S)
            if not any(each.transport.get_write_buffer_size() for each in self.server_state.connections):
                break
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _waiting(listener: socket.socket) -> list[socket.socket]:
    """The connections that wait to be accepted: with the listener closed, they would be reset."""
    found = []
    with contextlib.suppress(OSError):
        listener.setblocking(False)
        for _ in range(_MAX_WAITING):
            found.append(listener.accept()[0])  # noqa: PERF401  # the error ends it, and what was found stays
    return found
