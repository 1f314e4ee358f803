"""Which addresses the gateway may be sent to by what people ask for over the admin API, as webhooks."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Prefixes of IPv6 whose last 32 bits are an IPv4 address that a translator sends the packets on to (RFC 6052, 8215).
_TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
# What older Pythons call global, though IANA's registries of special addresses do not.
_SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(each)
    for each in ("192.0.0.0/24", "192.88.99.0/24", "100::/64", "2001::/23", "3fff::/20", "5f00::/16", "fec0::/10")
)


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Where webhooks may lead to."""

    # "10.1.0.0/16, fd00::/8": networks that are not public, and are allowed all the same; a token of scope admin then
    # suffices to have requests sent there.
    allow_networks: str = ""


def parse_networks(text: str) -> tuple[Network, ...]:
    """The networks of a list with commas. Raises ValueError."""
    found: list[Network] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ipaddress.ip_network(part))
        except ValueError as error:
            raise ValueError(f"{part!r} is no network such as 10.1.0.0/16 or fd00::/8 ({error})") from error
    return tuple(found)


def why_forbidden(address: Address, allowed: Sequence[Network]) -> str:
    """Why nothing may be sent to *address*, in words; empty if it may.

    Allowed is what is public: not loopback, link-local (169.254.169.254, where clouds keep credentials), private,
    shared, multicast, unspecified or reserved. IPv6 addresses that stand for an IPv4 one are judged by that.
    """
    real = _meant(address)
    if any(one in network for network in allowed for one in {address, real}):
        return ""
    for kind in ("unspecified", "loopback", "link_local", "multicast"):
        if getattr(real, f"is_{kind}"):
            return kind.replace("_", "-")
    is_special = any(real in network for network in _SPECIAL)
    return "" if real.is_global and not is_special else "private or reserved"


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    last_bits = int(address) & 0xFFFFFFFF
    if any(address in network for network in _TRANSLATED) or (int(address) >> 32 == 0 and last_bits > 1):
        return ipaddress.IPv4Address(last_bits)
    return address
