"""The HTTP protocol of the admin port: uvicorn's, timed, and a request that offers another protocol keeps its body."""

from __future__ import annotations

from typing import Any

import httptools

from gateway.offers import head_without_offers
from gateway.timed import ANSWERING, BODY, HEAD, IDLE, TimedHttp, head_size

_INVALID = "Invalid HTTP request received."


class AdminDoor(TimedHttp):
    """One connection. To uvicorn a request that offers h2c, as Java's client does, ends with its head."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_dropped = False  # what comes of a request that came when the connection was on its way out

    def data_received(self, data: bytes) -> None:
        if self._stands == IDLE:
            self._stands, self._since_s = HEAD, self._port.now_s
            if not self._is_parsing:  # it begins with empty lines
                self._head_bytes = 0
        while data:
            self._head_bytes += len(data)
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._declined(data[upgrade.args[0] :])
            except httptools.HttpParserError:
                data = b""
            if not data and not self.transport.is_closing():
                self.send_400_response(_INVALID)
        if self._stands != BODY and self._head_bytes > self._port.max_header_bytes and self.parser is not None:
            self._end_large_head()

    def on_message_begin(self) -> None:
        self._is_parsing = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        most = self._port.max_header_bytes
        if self._head_bytes > most and head_size(self.url, self.headers) > most:
            self._end_large_head()
        self._head_bytes = 0
        if self.parser.should_upgrade():
            return
        if self._stands == ANSWERING:  # it came behind another one, whose time is not its own
            self._since_s = self._port.now_s
        self._stands = BODY
        self._is_dropped = self.transport.is_closing()
        if not self._is_dropped:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_dropped:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_parsing = False
        if self.parser.should_upgrade():
            return
        self._head_bytes = 0
        if self._is_dropped:
            return
        super().on_message_complete()
        self._stands = IDLE if self.cycle.response_complete else ANSWERING
        self._since_s = self._port.now_s

    def _declined(self, rest: bytes) -> bytes:
        """The request again without its offer, and *rest*, which came behind its head; empty for CONNECT."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            return b""
        head = head_without_offers(method, self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
        return head + rest
