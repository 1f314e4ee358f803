"""Bodies that come compressed: inflated a portion at a time, and never beyond what a body may have.

One portion a turn of the event loop, and no thread: a portion takes a fraction of a millisecond, others are answered
between two of them, and what has come out is counted before more does.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping

from gateway.errors import BodyTooLarge, DeadlineExceeded, GatewayError, InvalidInput
from gateway.serving.admission import Admission
from gateway.serving.call import Call, OnReply
from gateway.serving.codings import WINDOWS
from gateway.serving.pipeline import Pipeline
from gateway.serving.replies import Reply

# At most so much goes in, and comes out, at a time.
PORTION_BYTES = 64 * 1024
# A gzip stream may be many, one behind the other; block-wise writers make one of each 64 KiB.
_MAX_MEMBERS = 1024


class Inflation:
    """One compressed body on its way out."""

    def __init__(self, body: bytes, coding: str) -> None:
        self._coding = coding
        self._body = memoryview(body)
        self._read = 0  # bytes of the body that were given to zlib
        self._left = b""  # of these, what it has not taken yet
        self._zlib = zlib.decompressobj(WINDOWS[coding])
        self._members = 1
        self._parts: list[bytes] = []
        self.size_bytes = 0  # that have come out

    def step(self) -> bool:
        """Inflate a portion; returns whether all is out. Raises InvalidInput for what is no whole stream."""
        given: bytes | memoryview = self._left
        if not given:
            given = self._body[self._read : self._read + PORTION_BYTES]
            self._read += len(given)
        try:
            part = self._zlib.decompress(given, PORTION_BYTES)
        except zlib.error as error:
            raise self._wrong(f"bytes that are none ({error})") from error
        self._parts.append(part)
        self.size_bytes += len(part)
        self._left = self._zlib.unconsumed_tail
        if self._zlib.eof:
            return self._ends()
        if not given and not part:
            raise self._wrong(f"one that ends after {len(self._body)} bytes in the middle")
        return False

    def _ends(self) -> bool:
        """One stream has ended. Whether it was the last one."""
        self._left = self._zlib.unused_data
        if not self._left and self._read == len(self._body):
            return True
        if self._coding != "gzip" or self._members == _MAX_MEMBERS:
            raise self._wrong(f"more bytes behind the end of {self._members}")
        self._members += 1
        self._zlib = zlib.decompressobj(WINDOWS[self._coding])
        return False

    def check_size(self, max_bytes: int) -> None:
        """Raise BodyTooLarge if more than *max_bytes* has come out."""
        if self.size_bytes > max_bytes:
            raise BodyTooLarge(self.size_bytes, max_bytes, what="body, once inflated")

    def whole(self) -> bytes:
        """All that came out."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _wrong(self, came: str) -> InvalidInput:
        return InvalidInput("body", came, f"one whole {self._coding} stream, as the header content-encoding says")


# Makes the reply to a call whose body is no good, and counts it.
TurnAway = Callable[[Call, Mapping[str, str], GatewayError], Reply]


class Inflater:
    """Takes admitted calls with compressed bodies to the pipeline. Used on the event loop only."""

    def __init__(self, admission: Admission, pipeline: Pipeline, turn_away: TurnAway) -> None:
        self._admission = admission
        self._pipeline = pipeline
        self._turn_away = turn_away

    def begin(self, call: Call, on_reply: OnReply) -> None:
        """Inflate the body, then begin as `Pipeline.begin` does. A body of one portion is inflated before this returns.

        on_reply is told of BodyTooLarge and TooManyBytesInFlight as soon as too much has come out, and of InvalidInput.
        """
        assert call.coding is not None
        call.on_reply = on_reply
        self._go_on(call, Inflation(call.body, call.coding))

    def _go_on(self, call: Call, stream: Inflation) -> None:
        on_reply = call.on_reply
        if call.left or on_reply is None:
            return  # it has its answer, or nobody waits for it any more
        try:
            is_whole = stream.step()
            stream.check_size(self._admission.max_body_bytes)
            self._admission.hold(call, len(call.body) + stream.size_bytes)
            if not is_whole and call.deadline_s <= self._admission.now_s():
                raise DeadlineExceeded("the deadline passed before the body was inflated")
        except GatewayError as error:
            call.on_reply = None
            reply = self._turn_away(call, call.headers, error)
            on_reply(call, error, reply.route, reply.content, reply.body)
        except Exception as error:  # whatever it is, this call gets its answer and its connection goes on
            self._pipeline.refuse(call, error)
        else:
            if is_whole:
                call.body, call.coding = stream.whole(), None
                self._pipeline.begin(call, on_reply)
            else:
                asyncio.get_running_loop().call_soon(self._go_on, call, stream)
