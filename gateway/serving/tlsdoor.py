"""TLS around the doors: the handshake and its clock, and a stop that does not wait for clients who never say goodbye.

A uvicorn.Server that starts and ends its listeners itself, since uvicorn hands no timeouts of TLS to the event loop.
The doors see only what was decrypted.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import uvicorn

# What a client that is idle when the worker stops gets to answer our goodbye. A pooled connection is often not read
# before its next use, and would hold the worker until the end of its drain.
GOODBYE_TIMEOUT_S = 1.0


class TlsServer(uvicorn.Server):
    """Serves what *config* says, without a lifespan, over TLS. Used on the event loop.

    timeout_s: longest time that a handshake may take, and a client to read its last answer and to close.
    """

    def __init__(self, config: uvicorn.Config, context: ssl.SSLContext, *, timeout_s: float) -> None:
        super().__init__(config)
        self._context = context
        self._timeout_s = timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on *sockets*."""
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._connection,
                sock=listener,
                ssl=self._context,
                backlog=self.config.backlog,
                ssl_handshake_timeout=self._timeout_s,
                ssl_shutdown_timeout=self._timeout_s,
            )
            for listener in sockets or ()
        ]
        self.started = True

    def _connection(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class  # uvicorn gives it as a type of any protocol
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but idle connections do not hold it up."""
        connections: set[Any] = set(self.server_state.connections)  # those of HTTP, which have a cycle
        idle = [each for each in connections if each.cycle is None or each.cycle.response_complete]
        dropping = asyncio.get_running_loop().call_later(GOODBYE_TIMEOUT_S, _drop, idle)
        try:
            await super().shutdown(sockets)
        finally:
            dropping.cancel()


def _drop(connections: Iterable[Any]) -> None:
    """End connections over which nothing waits to be sent."""
    for connection in connections:
        if connection.transport.get_write_buffer_size() == 0:
            connection.transport.abort()
