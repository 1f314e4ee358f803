"""TLS around the doors: a server whose listeners shake hands. The doors see only what was decrypted."""

from __future__ import annotations

import socket
import ssl

import uvicorn

from gateway.handshakes import TlsListener
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
        assert self.tls_context is not None
        self.tls_listeners = [
            TlsListener(
                listener,
                self.tls_context,
                self._doors,
                self.make_connection,
                backlog=self.config.backlog,
                timeout_s=self._timeout_s,
            )
            for listener in sockets or ()
        ]
        self.started = True
