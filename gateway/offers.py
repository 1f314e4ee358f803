"""Requests that offer another protocol (h2c, as Java's client does), taken as the plain ones that they also are."""

from __future__ import annotations

from collections.abc import Iterable

# Headers of a request that offers another protocol, and options of its connection header.
_OFFERS = (b"upgrade", b"http2-settings")


def head_without_offers(method: bytes, url: bytes, version: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request again, as one that offers no other protocol."""
    head = [method, b" ", url, b" HTTP/", version, b"\r\n"]
    for name, value in headers:
        if name == b"connection":
            value = b",".join(option for option in value.split(b",") if option.strip().lower() not in _OFFERS)
        if name not in _OFFERS:
            head += [name, b": ", value, b"\r\n"]
    return b"".join(head) + b"\r\n"
