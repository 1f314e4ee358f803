"""The HTTP server of a worker: uvicorn with our protocol, behind TLS or not."""

from __future__ import annotations

import asyncio
from logging import getLogger
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway import tls
from gateway.serving.connections import Doors
from gateway.serving.drain import DrainingServer
from gateway.serving.fastdoor import UVICORN, FastDoor
from gateway.serving.tlsdoor import TlsServer
from gateway.settings import ServerSettings

_log = getLogger(__name__)
# How uvloop says that a connection is gone before anybody has told its protocol; it has no type of its own for it.
_GONE = "the handler is closed"


def _protocol() -> Any:
    """The protocol that uvicorn shall use: the fast door, or uvicorn's own where the fast door was not tested."""
    found = tuple(int(part) for part in uvicorn.__version__.split(".")[:2])
    if UVICORN[0] <= found < UVICORN[1]:
        return FastDoor
    _log.warning(
        "the fast door does not know this uvicorn; predictions go through the ASGI app",
        extra={"uvicorn": uvicorn.__version__, "known": UVICORN},
    )
    return "httptools"


class PublicApp(Starlette):
    """The ASGI app of the public port, for which it is no failure that a client has left before its answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Starlette."""
        try:
            await super().__call__(scope, receive, send)
        except RuntimeError as error:
            if _GONE not in str(error):
                raise
            # Whom uvicorn does not know to be gone yet it would take for somebody whose answer was forgotten.
            cycle = getattr(send, "__self__", None)
            if isinstance(cycle, RequestResponseCycle):
                cycle.disconnected = True


def server_for(settings: ServerSettings, app: Starlette, doors: Doors) -> DrainingServer:
    """The server of a worker, not started yet. Raises InvalidSetting for a certificate or key that cannot be used."""
    config = uvicorn.Config(
        app,
        loop="none",
        http=_protocol(),
        proxy_headers=False,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        backlog=2048,
    )
    if not settings.tls_certificate:
        return DrainingServer(config, doors, drain_timeout_s=settings.drain_timeout_s)
    context = tls.server_context(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return TlsServer(
        config, doors, context, drain_timeout_s=settings.drain_timeout_s, timeout_s=settings.request_timeout_s
    )


async def first_of(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
