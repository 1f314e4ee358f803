"""Answers compressed for clients that accept it: large ones alone, in a thread of their own."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from gateway.serving.codings import WINDOWS, coding_for
from gateway.serving.replies import Reply

# Of zlib's levels the fastest: the others take two to five times as long for some percent.
_LEVEL = 1
# What is not this much smaller goes out as it is: the client would have to inflate it for nothing.
_WORTH = 0.9
# So many may wait for the thread; a worker so busy has no time for compressing more.
_MAX_WAITING = 16


class Packer:
    """Compresses answers. Used on the event loop; the work is done in one thread, which zlib lets run beside it.

    min_bytes: what is shorter is left as it is; 0: everything is.
    """

    def __init__(self, min_bytes: int) -> None:
        self.min_bytes = min_bytes or 2**62
        self._pool = ThreadPoolExecutor(1, "pack")  # starts its thread with the first answer
        self._waiting = 0

    def give(self, reply: Reply, headers: Mapping[str, str], send: Callable[[Reply], None]) -> None:
        """Hand the reply to *send*, at once or, compressed, from a later turn of the event loop.

        headers: of the request, lower-case names.
        """
        packing = self.packing(reply, headers)
        if packing is None:
            send(reply)
        else:
            packing.add_done_callback(lambda done: None if done.cancelled() else send(done.result()))

    def packing(self, reply: Reply, headers: Mapping[str, str]) -> asyncio.Future[Reply] | None:
        """The reply as it will go out, compressed if that is worth it. None: it goes out as it is, now."""
        if len(reply.body) < self.min_bytes or reply.error is not None or self._waiting >= _MAX_WAITING:
            return None
        coding = coding_for(headers.get("accept-encoding", ""))
        if coding is None:
            return None
        self._waiting += 1
        packing = asyncio.get_running_loop().run_in_executor(self._pool, _packed, reply, coding)
        packing.add_done_callback(self._done)
        return packing

    def _done(self, _: object) -> None:
        self._waiting -= 1


def _packed(reply: Reply, coding: str) -> Reply:
    """In the thread: the reply with its body compressed, or as it was."""
    pack = zlib.compressobj(_LEVEL, zlib.DEFLATED, WINDOWS[coding])
    body = pack.compress(reply.body) + pack.flush()
    if len(body) > _WORTH * len(reply.body):
        return reply
    encoding = ((b"content-encoding", coding.encode()), (b"vary", b"accept-encoding"))
    return reply._replace(body=body, content=(*reply.content, *encoding))
