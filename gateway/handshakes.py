"""TLS handshakes with the connections of a listening socket, of which there are only so many and for so long.

Not left to the event loop's own server, which shakes hands with everybody and tells nobody of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from gateway.listener import Listener
from gateway.port import Port

MakeConnection = Callable[[], asyncio.Protocol]


class _Shaking(asyncio.Protocol):
    """Stands where the connection will be, which is made once the handshake is done."""

    def __init__(self, make: MakeConnection) -> None:
        self._make = make

    def connection_made(self, transport: Any) -> None:  # uvloop's transports are of no class of asyncio
        connection = self._make()
        transport.set_protocol(connection)
        connection.connection_made(transport)


async def shake_hands(
    taken: socket.socket, context: ssl.SSLContext, make: MakeConnection, *, handshake_s: float, goodbye_s: float
) -> None:
    """Let the connection that *make* makes speak over *taken*, which is ours from now on. Raises OSError if it fails.

    handshake_s, goodbye_s: the longest time that a handshake and a goodbye may take.
    """
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: _Shaking(make),
        taken,
        ssl=context,
        ssl_handshake_timeout=handshake_s,
        ssl_shutdown_timeout=goodbye_s,
    )


class TlsListener:
    """Takes connections from *listener* and shakes hands with them. Used on the event loop.

    context: for the handshakes from now on; may be replaced. make: makes a connection of *port*.
    timeout_s: the longest time that a handshake may take, and a client to answer a goodbye.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        port: Port[Any],
        make: MakeConnection,
        *,
        backlog: int,
        timeout_s: float,
    ) -> None:
        self.context = context
        self._port = port
        self._make = make
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._under_way: set[asyncio.Task[None]] = set()
        # Who is connected already is looked at between two handshakes, which cost much.
        self._listener = Listener(listener, self._take, backlog=backlog, at_once=1)

    def close(self, patience_s: float = 0.0) -> None:
        """Take no more; handshakes under way get *patience_s*. The listening socket stays open."""
        self._listener.close()
        for task in self._under_way:
            self._loop.call_later(patience_s, task.cancel)

    def _take(self, taken: socket.socket) -> None:
        if not self._port.may_shake_hands:
            self._port.refuse_handshake()
            taken.close()
            return
        self._port.handshakes += 1
        task = self._loop.create_task(self._shake(taken))
        self._under_way.add(task)
        task.add_done_callback(self._done)

    async def _shake(self, taken: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client left, is none of TLS, or took too long
            await shake_hands(taken, self.context, self._make, handshake_s=self._timeout_s, goodbye_s=self._timeout_s)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._port.handshakes -= 1
