"""An event loop whose name lookups may hang without holding up anything else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

MAX_LOOKUPS = 100  # that hang at one time

Resolve = Callable[..., list[Any]]


class LookupLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, but each lookup has a thread of its own, for which not even the end of the process waits.

    asyncio looks names up in the few threads that all `to_thread` calls share: with a dead name server, a receiver that
    nobody misses would hold up all work on the disk, and then the end of the process.
    """

    def __init__(self, resolve: Resolve = socket.getaddrinfo) -> None:
        super().__init__()
        self._resolve = resolve
        self._under_way = 0

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        if self._under_way >= MAX_LOOKUPS:
            raise OSError(errno.EAGAIN, f"{MAX_LOOKUPS} name lookups hang already")
        found: asyncio.Future[list[Any]] = self.create_future()
        self._under_way += 1

        def look() -> None:
            try:
                answer: list[Any] | Exception = self._resolve(host, port, family, type, proto, flags)
            except Exception as error:  # whatever it is, it is the asker's to see
                answer = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.call_soon_threadsafe(tell, answer)

        def tell(answer: list[Any] | Exception) -> None:
            self._under_way -= 1
            if found.done():  # the asker has left
                return
            if isinstance(answer, Exception):
                found.set_exception(answer)
            else:
                found.set_result(answer)

        threading.Thread(target=look, name="lookup", daemon=True).start()
        return await found
