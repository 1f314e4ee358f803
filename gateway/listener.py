"""Connections taken from a listening socket, a bounded number in each turn of the event loop.

Not left to the event loop's own server: uvloop's takes one connection a turn, so that with many busy ones the last of a
hundred newcomers waits for a hundred turns; asyncio's takes all that wait before it looks at anybody else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

# How long no connection is taken when there is no descriptor left for one.
_RETRY_S = 1.0

_log = logging.getLogger(__name__)


class Listener:
    """Takes connections from *listener*, which stays its owner's to close. Used on the event loop.

    take: called with each connection, which is its from then on. backlog: connections that may wait to be taken.
    at_once: the most that are taken before the event loop looks at those that are connected already.
    """

    def __init__(
        self, listener: socket.socket, take: Callable[[socket.socket], None], *, backlog: int, at_once: int
    ) -> None:
        self._listener = listener
        self._on_taken = take
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener, self._take)

    def close(self) -> None:
        """Take no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)

    def _take(self) -> None:
        for _ in range(self._at_once):
            try:
                taken, _address = self._listener.accept()
            except ConnectionAbortedError:
                continue  # it has left
            except (BlockingIOError, InterruptedError):
                return  # nobody waits, or another process was quicker
            except OSError as error:
                _log.error("no connection can be taken for now", extra={"why": str(error)})
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_RETRY_S, self._loop.add_reader, self._listener, self._take)
                return
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            taken.setblocking(False)
            self._on_taken(taken)
