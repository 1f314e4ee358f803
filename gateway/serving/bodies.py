"""Bodies as the ASGI app gets them: in pieces, and no more than are taken."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Receive

from gateway.errors import BodyTooLarge


async def read_body(
    receive: Receive, max_bytes: int, on_size: Callable[[int], None] = lambda _size: None
) -> bytes | None:
    """The whole body; None if the client leaves before its end. Raises BodyTooLarge, and what *on_size* raises.

    on_size: is told how many bytes have come so far.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise BodyTooLarge(size, max_bytes)
        on_size(size)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
