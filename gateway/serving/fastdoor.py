"""The fast door: predictions answered inside the HTTP protocol, without an ASGI scope, a task or a Future.

A subclass of uvicorn's httptools protocol. A plain POST of a prediction path is answered here; all else falls through
to the ASGI app, which answers the same bytes. The bound on heads and the clocks that end silent and slow connections
hold for both. What is overridden is described by uvicorn/protocols/http/httptools_impl.py of the versions in UVICORN.

Of most requests the HTTP parser sees nothing: their heads come whole, nothing else beside them, and `heads` reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httptools

from gateway.codecs.codec import JSON_HEADERS, Headers
from gateway.errors import BodyTooLarge, BodyTooSlow, Draining, GatewayError
from gateway.offers import head_without_offers
from gateway.serving.admission import TIMEOUT_HEADER
from gateway.serving.call import Call, OnReply
from gateway.serving.connections import Doors, Exchange, to_nobody
from gateway.serving.replies import Block, Reply, ok_json_wire, refused_json_wire, wire_bytes
from gateway.serving.target import Target
from gateway.timed import ANSWERING as _ANSWERING
from gateway.timed import BODY as _BODY
from gateway.timed import HEAD as _HEAD
from gateway.timed import IDLE as _IDLE
from gateway.timed import TimedHttp, head_size

_NEVER_S = float("inf")
# The uvicorn releases, as (first, first not), whose protocol this subclass was tested with.
UVICORN = ((0, 54), (0, 55))


class FastDoor(TimedHttp):
    """One connection. Made by uvicorn; finds the doors in the state of the ASGI app."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._doors: Doors = self.app.state.doors
        self._doorway = self._doors.doorway
        self._admission = self._doorway.admission
        self._may_skip_parser = self._doors.fast
        self._max_quick_head_bytes = self._doors.max_header_bytes - 4
        self._packed_bytes = self._doorway.packer.min_bytes
        self._read_head = self._doorway.heads.read
        self._begin = self._doorway.pipeline.begin
        self._exchange = Exchange()
        self._on_reply: OnReply = self.on_reply  # bound once, not once per request
        self._on_earlier: Callable[[float], None] | None = self.on_earlier
        self._is_prediction = False  # the request that is being parsed
        self._missing_bytes = 0  # of a body whose head did not go through the parser

    # -- the connection -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if self not in self._doors.open:  # one too many: it is none of ours from now on
            self._on_reply, self._on_earlier = to_nobody, None

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._exchange.response_complete:
            self._exchange.response_complete = True
            self._forget(self._exchange)
        super().connection_lost(exc)
        # Both lead back here, and the garbage collector of a worker hardly ever looks at rings that are old.
        self.cycle, self._on_reply, self._on_earlier = None, to_nobody, None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._missing_bytes:
            self._take_body(data)
            return
        if self._stands <= _HEAD and not self._is_parsing and self._may_skip_parser and self._begin_quickly(data):
            return
        if self._stands == _IDLE:
            self._stands, self._since_s = _HEAD, self._doors.now_s
            if not self._is_parsing:  # empty lines before a request that was then read here
                self._head_bytes = 0
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")
            return
        if self._stands != _BODY and self._head_bytes > self._doors.max_header_bytes and self.parser is not None:
            self._end_large_head()

    def answer_last(self) -> None:
        """Let the newest request be the last one on this connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def close_if_idle(self, idle_before_s: float, silent_before_s: float) -> None:
        """Close it if it has been idle, or silent before or in a head, since before those times."""
        if self._stands <= _HEAD and self._since_s <= (idle_before_s if self._stands == _IDLE else silent_before_s):
            self.transport.close()

    def turn_away(self) -> None:
        """Answer the prediction that waits with Draining; those of the ASGI door answer it themselves."""
        exchange, call = self._exchange, self._exchange.call
        if call is None:
            return
        exchange.keep_alive = False
        if call.on_reply is not None:
            self._doorway.pipeline.turn_away(call)
        elif call.decision is None:  # its body is still to come; else its answer is being compressed
            self._refuse(exchange, Draining("the gateway is stopping"))

    # -- one request, read here ---------------------------------------------------------------------

    def _begin_quickly(self, data: bytes) -> bool:
        """Begin a prediction whose head is whole and easily read. False: nothing was done, the parser shall see it."""
        end = data.find(b"\r\n\r\n")
        if not 0 < end < self._max_quick_head_bytes:
            return False
        head = self._read_head(data[:end])
        if head is None:
            return False
        target, headers, length = head
        missing = length - (len(data) - end - 4)
        if missing < 0:
            return False  # the next request has come too
        try:
            call = self._admission.open(target, headers, length)
        except GatewayError as error:
            if missing:
                return False
            self._turn_away_quickly(target, headers, error)
            return True
        exchange = self._exchange
        exchange.response_complete = False
        exchange.keep_alive = not self._doors.is_leaving
        exchange.call = call
        call.on_earlier = self._on_earlier
        if TIMEOUT_HEADER in headers:
            self.on_earlier(call.deadline_s)
        self.cycle = exchange  # type: ignore[assignment]  # has all that uvicorn's protocol asks of a cycle
        if missing:
            self._missing_bytes = missing
            exchange.chunks = [data[end + 4 :]]
            self._stands, self._since_s = _BODY, self._doors.now_s
        else:
            call.body = data[end + 4 :]
            self._stands = _ANSWERING
            self._begin(call, self._on_reply)
        return True

    def _turn_away_quickly(self, target: Target, headers: Mapping[str, str], error: GatewayError) -> None:
        """Refuse a request that has come whole: the parser would only read it again, when there is least time."""
        exchange = self._exchange
        exchange.response_complete = False
        exchange.keep_alive = not self._doors.is_leaving
        self.cycle = exchange  # type: ignore[assignment]  # as above
        self._stands = _ANSWERING
        self._send(self._doorway.turn_away(target, headers, error))

    def _take_body(self, data: bytes) -> None:
        """More of the body of a request that was begun quickly."""
        missing = self._missing_bytes
        self._missing_bytes = max(0, missing - len(data))
        exchange, call = self._exchange, self._exchange.call
        if call is None:
            return  # refused, and the connection is on its way out
        exchange.chunks.append(data[:missing])
        if self._missing_bytes:
            return
        call.body = b"".join(exchange.chunks)
        exchange.chunks = []
        self._stands = _ANSWERING
        self._doorway.pipeline.begin(call, self._on_reply)
        if len(data) > missing:
            self.data_received(data[missing:])

    # -- one request, read by the parser ------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._is_parsing = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        doors, exchange, parser = self._doors, self._exchange, self.parser
        if self._head_bytes > doors.max_header_bytes and head_size(self.url, self.headers) > doors.max_header_bytes:
            self._end_large_head()
        self._head_bytes = 0
        if parser.should_upgrade():
            return
        if self._stands == _ANSWERING:  # it came behind another one, whose time is not its own
            self._since_s = doors.now_s
        self._stands = _BODY
        is_idle = self.cycle is None or self.cycle.response_complete
        is_free = exchange.response_complete and not self.pipeline and is_idle
        if self.transport.is_closing() and is_free:
            self._is_prediction = True  # nobody will read an answer: what comes is dropped
            self.cycle = exchange  # type: ignore[assignment]  # has all that uvicorn's protocol asks of a cycle
            return
        target = None
        if doors.fast and is_free and parser.get_method() == b"POST":
            target = self._doorway.target(self.url)
        self._is_prediction = target is not None
        if target is None:
            self._fall_through()
            return
        exchange.response_complete = False
        exchange.chunks = []
        exchange.size_bytes = 0
        version = parser.get_http_version()
        exchange.keep_alive = version != "1.0" and parser.should_keep_alive() and not doors.is_leaving
        self.cycle = exchange  # type: ignore[assignment]  # as above
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        try:
            exchange.call = call = self._admission.open(target, headers)
        except GatewayError as error:
            self._send(self._doorway.turn_away(target, headers, error))
            return
        call.on_earlier = self._on_earlier
        self.on_earlier(call.deadline_s)
        if self.expect_100_continue and version != "1.0":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fall_through(self) -> None:
        """Hand the request to the ASGI app, as if uvicorn's own callbacks had seen it from the start."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        # Clients of HTTP/1.0 know no interim answers (RFC 9110, 10.1.1).
        self.url, self.expect_100_continue = url, expect and self.parser.get_http_version() != "1.0"
        self.headers.extend(headers)
        before = self.cycle
        super().on_headers_complete()
        if self._doors.is_leaving:
            self.cycle.keep_alive = False
            if before is not None and not before.response_complete:
                before.keep_alive = True  # the last one on this connection is another now

    def _decline_upgrade(self, rest: bytes) -> None:
        """Take a request that offers another protocol (h2c, as Java's client does) as the plain one that it also is.

        The parser has stopped after the head, as if all that follows spoke that protocol; *rest* is what follows.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # nothing but another protocol
            self._end(501, "method: expected one that asks for a path, got CONNECT")
            return
        head = head_without_offers(method, self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
        self.data_received(head + rest)

    def on_body(self, body: bytes) -> None:
        if not self._is_prediction:
            super().on_body(body)
            return
        exchange = self._exchange
        if exchange.response_complete:
            return  # it is refused already, the rest of its body is dropped
        exchange.chunks.append(body)
        exchange.size_bytes += len(body)
        limit = self._admission.max_body_bytes
        if exchange.size_bytes > limit:
            self._refuse(exchange, BodyTooLarge(exchange.size_bytes, limit))
            return
        call = exchange.call
        if call is not None and exchange.size_bytes > call.held_bytes:  # it comes in chunks, of unknown number
            try:
                self._admission.hold(call, exchange.size_bytes)
            except GatewayError as error:
                self._refuse(exchange, error)

    def on_message_complete(self) -> None:
        self._is_parsing = False
        if self.parser.should_upgrade():
            return  # _decline_upgrade will take it from the start
        self._head_bytes = 0
        if not self._is_prediction:
            super().on_message_complete()
            self._stands = _IDLE if self.cycle.response_complete else _ANSWERING
            self._since_s = self._doors.now_s
            return
        exchange, call = self._exchange, self._exchange.call
        if call is None:
            self._stands, self._since_s = _IDLE, self._doors.now_s
            return
        chunks = exchange.chunks
        call.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._stands = _ANSWERING
        self._doorway.begin(call, self._on_reply)

    # -- its answer ---------------------------------------------------------------------------------

    def on_reply(self, call: Call, error: GatewayError | None, route: Block, content: Headers, body: bytes) -> None:
        """Where the pipeline hands over the answer, perhaps while the request is still being read."""
        exchange, wire = self._exchange, None
        if (
            content is JSON_HEADERS
            and len(body) < self._packed_bytes
            and exchange.keep_alive
            and not len(self.pipeline)
        ):
            if error is None:
                wire = ok_json_wire(call.request_id, call.prediction_id, route, body)
            else:
                wire = refused_json_wire(error, call.request_id, call.prediction_id, route, body)
        if wire is None:
            reply = Reply(error, call.request_id, call.prediction_id, route, content, body)
            self._doorway.packer.give(reply, call.headers, self._send)
            return
        exchange.response_complete = True
        exchange.call = None
        admission = self._admission
        if call.share is None:
            admission.in_flight -= 1  # as close() does; this is the way of most answers
            admission.in_flight_bytes -= call.held_bytes
        else:
            admission.close(call)
        transport = self.transport
        if transport.is_closing():
            return
        transport.write(wire)
        if self._stands == _ANSWERING:
            self._stands, self._since_s = _IDLE, self._doors.now_s
            if self.flow.read_paused and not self.flow.write_paused:
                self.flow.resume_reading()

    def _send(self, reply: Reply) -> None:
        """Write any answer and go on to what the client has sent meanwhile."""
        exchange = self._exchange
        exchange.response_complete = True
        call, exchange.call = exchange.call, None
        if call is not None:
            self._admission.close(call)
        if self.transport.is_closing():
            return
        self.transport.write(wire_bytes(reply, keep_alive=exchange.keep_alive))
        if not exchange.keep_alive:
            self.transport.close()
        else:
            self.on_response_complete()

    def on_earlier(self, deadline_s: float) -> None:
        """The clocks shall see the call that is open by its deadline, which may be before they come by."""
        self._doors.look_before(self, deadline_s)

    def expire_if_late(self, now_s: float) -> float:
        """Answer the prediction that is waiting if its deadline has passed, in the queue or with its body to come.

        Returns that deadline; infinity if nothing waits any more.
        """
        exchange, call = self._exchange, self._exchange.call
        if call is None:
            return _NEVER_S
        if call.deadline_s > now_s:
            return call.deadline_s
        if call.on_reply is not None:
            self._doorway.pipeline.expire(call)
        elif call.decision is None:  # as in turn_away
            exchange.keep_alive = False
            self._refuse(exchange, BodyTooSlow("body: expected whole before the deadline, got a part of it"))
        return _NEVER_S

    def _refuse(self, exchange: Exchange, error: GatewayError) -> None:
        """Answer a request whose body must not be read on."""
        call = exchange.call
        assert call is not None
        self._send(self._doorway.turn_away(call, call.headers, error))

    def _forget(self, exchange: Exchange) -> None:
        """The client left in the middle of an exchange."""
        call, exchange.call = exchange.call, None
        if call is not None:
            self._doorway.pipeline.abandon(call)
            self._admission.close(call)
