"""uvicorn's HTTP protocol with what it lacks on an open port: a limit of connections, and clocks that end slow ones.

What a subclass does with requests is its own; it says where the connection stands. What is overridden is described by
uvicorn/protocols/http/httptools_impl.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.port import Port

# Bytes of answers that may wait for a slow reader before its next requests wait too.
_MAX_UNSENT_BYTES = 64 * 1024

IDLE, HEAD, BODY, ANSWERING = range(4)  # where a connection stands
# How often a connection is looked at whose client is not to blame for the time that passes just now.
_EXCUSED_S = 0.5
_NEVER_S = float("inf")


def head_size(url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """About how many bytes a head has that the parser has read."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


class _Flow(FlowControl):
    """uvicorn's flow control, which reads nothing more while requests wait for the answers of those before them.

    uvicorn's own reads more with each answer, so that a client that asks faster than it is answered fills the memory.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class TimedHttp(HttpToolsProtocol):
    """One connection. Made by uvicorn; finds its port in the state of the ASGI app."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        app: Any = self.config.app
        self._port: Port[Any] = app.state.port
        self._is_parsing = False  # the parser has seen the begin of a message and not its end
        self._stands = HEAD
        self._since_s = self._port.now_s
        self._head_bytes = 0  # fed since the last head was complete
        self._stuck_since_s = 0.0  # since when what was written waits for the client to read it; 0: it does not
        self.look_by = 0  # the port's

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        if len(self._port.open) >= self._port.max_connections:
            self._port.refuse(transport)  # which is none of ours from now on
            self.parser = None  # type: ignore[assignment]  # as when one is lost
            return
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        transport.set_write_buffer_limits(_MAX_UNSENT_BYTES)  # over TLS uvloop would let far more pile up
        self._port.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.leave_out(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck_since_s = self._port.now_s
        # A client that asks on without reading its answers must not make us keep them all.
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck_since_s = 0.0
        self._since_s = self._port.now_s  # nothing was read meanwhile, which is no fault of the client's
        self.flow.resume_reading()

    def end_if_late(self, now_s: float) -> float:
        """Close the connection if it has been in its state for too long; returns when it will have been."""
        bounds = self._port.bounds
        if self._stuck_since_s:
            if now_s - self._stuck_since_s > bounds.write_timeout_s:
                self.transport.abort()
            self._since_s = now_s  # the time that it takes to read is no time of silence
        elif self.transport.is_closing():
            self._stuck_since_s = now_s  # what it was told last waits for it to be read
        elif self._stands == IDLE:
            due_s: float = self._since_s + bounds.keep_alive_s
            if now_s <= due_s:
                return due_s
            self.transport.close()
        elif self.flow.read_paused:
            self._since_s = now_s  # it is we who keep the client waiting
        elif self._stands == ANSWERING:
            return _NEVER_S
        else:
            due_s = self._since_s + float(bounds.request_timeout_s)
            if now_s <= due_s:
                return due_s
            is_answered = self._stands == BODY and self.cycle is not None and self.cycle.response_complete
            if is_answered or (self._stands == HEAD and self._head_bytes == 0):
                self.transport.close()
            else:
                self._end(408, f"the request: expected whole within {bounds.request_timeout_s:g} s, got a part of it")
        return now_s + _EXCUSED_S

    def on_response_complete(self) -> None:
        """As uvicorn's, but idle time is told by a sweep: a timer per answer would cost as much as the routing."""
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._stands == ANSWERING:
            self._stands, self._since_s = IDLE, self._port.now_s
        if self.flow.read_paused and not self.flow.write_paused:
            self._since_s = self._port.now_s  # as in resume_writing
            self.flow.resume_reading()

    def _end_large_head(self) -> None:
        most = self._port.max_header_bytes
        self._end(431, f"the head of the request: expected at most {most} bytes, got more")

    def _end(self, status: int, text: str) -> None:
        """Answer outside of any protocol and close: what the other end sends is no request that we can take."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(self._port.refusal(status, text, ()))
        self.transport.close()
