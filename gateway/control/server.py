"""The HTTP server of the admin port: uvicorn with our protocol, within bounds, behind TLS or not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette

from gateway.admin_port import ControlSettings
from gateway.control.door import AdminDoor
from gateway.control.problems import refusal_wire
from gateway.errors import InvalidSetting
from gateway.handshakes import TlsListener
from gateway.port import Port

DRAIN_TIMEOUT_S = 3  # admin requests take milliseconds
_GOODBYE_TIMEOUT_S = 0.5

_log = logging.getLogger(__name__)


class AdminServer(uvicorn.Server):
    """uvicorn's server, told to stop by us and not by signals: it would raise them again after it has stopped.

    on_started: called once connections are taken. on_refused: for each connection beyond the limit. port: the
    connections; its `watch` must run.
    """

    def __init__(
        self,
        app: Starlette,
        settings: ControlSettings,
        *,
        on_started: Callable[[], None],
        on_refused: Callable[[], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=AdminDoor,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=DRAIN_TIMEOUT_S,
            )
        )
        self.port: Port[AdminDoor] = Port(
            settings, owner="admin port", refusal=refusal_wire, on_refused=on_refused, clock=time.monotonic
        )
        app.state.port = self.port
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        self.servers: list[asyncio.Server] = []  # uvicorn's own start makes it
        self._tls_listeners: list[TlsListener] = []
        self._on_started = on_started

    def stop(self) -> None:
        """Finish the requests in flight and end; safe in a signal handler."""
        self.should_exit = True

    def renew_certificate(self) -> None:
        """Read the files of the certificate again, for connections from now on; what is no good changes nothing."""
        try:
            self._context = self._read_certificate()
        except InvalidSetting as error:
            _log.error("the admin port keeps its certificate", extra={"why": str(error)})
            return
        if self._context is not None:
            for listener in self._tls_listeners:
                listener.context = self._context
            _log.info("the admin port has read its certificate again")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on *sockets*. Raises InvalidSetting for a certificate or key that cannot be used."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.renew_certificate)
        self._context = self._read_certificate()
        for listener in sockets or ():
            if self._context is None:
                self.servers.append(
                    await loop.create_server(self._make_connection, sock=listener, backlog=self.config.backlog)
                )
            else:
                self._tls_listeners.append(
                    TlsListener(
                        listener,
                        self._context,
                        self.port,
                        self._make_connection,
                        backlog=self.config.backlog,
                        timeout_s=self._settings.request_timeout_s,
                    )
                )
        self.started = True
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; but over TLS an idle client that does not answer our goodbye is not waited for."""
        for listener in self._tls_listeners:
            listener.close()
        connections: set[Any] = set(self.server_state.connections)
        idle = [each for each in connections if each.cycle is None or each.cycle.response_complete]
        dropping = asyncio.get_running_loop().call_later(_GOODBYE_TIMEOUT_S, _drop, idle)
        try:
            await super().shutdown(sockets)
        finally:
            dropping.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _read_certificate(self) -> ssl.SSLContext | None:
        port = self._settings
        if not port.tls_certificate:
            return None
        from gateway import tls  # here and not above: most gateways need no OpenSSL

        return tls.server_context(port.tls_certificate, port.tls_key, port.tls_client_ca, section="control")

    def _make_connection(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class  # uvicorn gives it as a type of any protocol
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def _drop(idle: list[Any]) -> None:
    for connection in idle:
        if connection.transport.get_write_buffer_size() == 0:
            connection.transport.abort()
