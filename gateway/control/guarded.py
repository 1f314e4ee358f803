"""HTTP over connections that were judged: httpx, but a name is connected to at the addresses that `reach` let pass."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import AsyncIterable, AsyncIterator, Iterable

import httpcore
import httpx

from gateway.control.reach import Reach

# Of several addresses, what one gets to answer before the next is tried; the last one gets the rest of the time.
_CONNECT_TIMEOUT_S = 1.5


class _Network(httpcore.AsyncNetworkBackend):
    """Connects to judged addresses only."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # as httpcore calls it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._reach.addresses(host, port)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        *first, last = addresses
        for address in first:
            try:
                return await self._inner.connect_tcp(address, port, _CONNECT_TIMEOUT_S, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(last, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx over connections that `Reach` has judged. A host's name stays its name for TLS and for the receiver."""

    def __init__(self, reach: Reach) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=100,
            keepalive_expiry=5.0,
            network_backend=_Network(reach),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        assert isinstance(request.stream, typing.AsyncIterable)
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        answered = await self._pool.handle_async_request(asked)
        assert isinstance(answered.stream, typing.AsyncIterable)
        return httpx.Response(
            answered.status,
            headers=answered.headers,
            stream=_Stream(answered.stream),
            extensions=answered.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()
