"""A line to the database for the follower's event loop: opened when needed, every use with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import psycopg

from gateway.flags.pglink import ANSWER_TIMEOUT_S, Address, AsyncConnection, Cut, settle_follower, troubles

Found = TypeVar("Found")


class Line:
    """One connection, used by one task at a time. After an error the next use opens another."""

    def __init__(self, address: Address, greeting: str = "") -> None:
        """greeting: a statement that each new connection begins with."""
        self._address = address
        self._greeting = greeting
        self._turn = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._cut: Cut | None = None
        self._is_closed = False

    async def use(
        self, work: Callable[[AsyncConnection], Awaitable[Found]], *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Found:
        """What *work* returns. Raises StoreUnavailable."""
        async with self._turn:
            with troubles(self._address):
                try:
                    connection = self._connection or await self._open()
                    with self._limited(timeout_s):
                        return await work(connection)
                finally:
                    if self._connection is not None and self._connection.closed:
                        await self._drop()

    async def close(self) -> None:
        """End the connection; a use that waits for the server fails at once."""
        self._is_closed = True
        if self._cut is not None:
            self._cut()
        async with self._turn:
            await self._drop()

    async def _open(self) -> AsyncConnection:
        if self._is_closed:
            raise psycopg.OperationalError("the follower is stopping")
        connection: AsyncConnection = await psycopg.AsyncConnection.connect(
            **self._address.parameters, autocommit=True, prepare_threshold=None
        )
        self._connection, self._cut = connection, Cut(connection)
        try:
            with self._limited(ANSWER_TIMEOUT_S):
                await settle_follower(connection)
                if self._greeting:
                    await connection.execute(self._greeting.encode())
        except BaseException:
            await self._drop()
            raise
        return connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if self._cut is not None:
            self._cut.close()
            self._cut = None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()

    @contextlib.contextmanager
    def _limited(self, timeout_s: float) -> Iterator[None]:
        assert self._cut is not None
        timer = asyncio.get_running_loop().call_later(timeout_s, self._cut)
        try:
            yield
        finally:
            timer.cancel()


async def rows(connection: AsyncConnection, query: str, given: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query. Raises psycopg.Error."""
    cursor = await connection.execute(query.encode(), given)
    return await cursor.fetchall()
