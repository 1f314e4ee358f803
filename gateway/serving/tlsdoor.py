"""TLS around the doors: the handshake and its clock.

A server that starts its listeners itself, since uvicorn hands no timeouts of TLS to the event loop. The doors see only
what was decrypted.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

import uvicorn

from gateway.serving.connections import Doors
from gateway.serving.drain import DrainingServer


class TlsServer(DrainingServer):
    """Serves what *config* says, without a lifespan, over TLS. Used on the event loop.

    timeout_s: longest time that a handshake may take, and a client to read its last answer and to close.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        doors: Doors,
        context: ssl.SSLContext,
        *,
        drain_timeout_s: float,
        timeout_s: float,
    ) -> None:
        super().__init__(config, doors, drain_timeout_s=drain_timeout_s)
        self.tls_context = context
        self._timeout_s = timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on *sockets*."""
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self.make_connection,
                sock=listener,
                ssl=self.tls_context,
                backlog=self.config.backlog,
                ssl_handshake_timeout=self._timeout_s,
                ssl_shutdown_timeout=self._timeout_s,
            )
            for listener in sockets or ()
        ]
        self.started = True
