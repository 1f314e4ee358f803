"""The HTTP protocol of the admin port: uvicorn's, but a request that offers another protocol keeps its body."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.offers import head_without_offers

_INVALID = "Invalid HTTP request received."


class AdminDoor(HttpToolsProtocol):
    """One connection. To uvicorn a request that offers h2c, as Java's client does, ends with its head."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._declined(data[upgrade.args[0] :])
            except httptools.HttpParserError:
                data = b""
            if not data and not self.transport.is_closing():
                self.send_400_response(_INVALID)

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _declined(self, rest: bytes) -> bytes:
        """The request again without its offer, and *rest*, which came behind its head; empty for CONNECT."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            return b""
        head = head_without_offers(method, self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
        return head + rest
