"""What requests to receivers may reach: names are looked up, judged, and connected to at the address that was judged.

A receiver is named by who holds an admin token, and spoken to from inside of the network that control runs in. So that
this leads to nothing that outsiders shall not reach, addresses that are not public are refused: when a webhook is made,
and again for each connection, since its name may lead elsewhere by then.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from gateway.errors import GatewayError
from gateway.networks import Address, Network, why_forbidden

LOOKUP_TIMEOUT_S = 3.0
_PORTS = {"http": 80, "https": 443}


class Unreachable(GatewayError):
    """A receiver is, or its name leads, where nothing may be sent."""

    code = "unreachable"


class Reach:
    """Where requests may go. Used on one event loop. allowed: networks that are not public, but allowed."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)

    async def check(self, url: str) -> None:
        """Raise Unreachable if *url* leads where nothing may be sent. A name that nobody knows now is not looked at."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if proxy_for(url):  # names are the proxy's business
            self.check_literal(url)
            return
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                await self.addresses(host, parts.port or _PORTS[parts.scheme])
        except (OSError, TimeoutError, UnicodeError):
            return

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of *host*, all of them judged. Raises Unreachable, OSError if there are none.

        One bad address is enough: a name that leads to public and private places leads nobody by accident.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            self._judge(host, ipaddress.ip_address(address.partition("%")[0]))
        if not addresses:
            raise OSError(f"{host} has no address")
        return addresses

    def check_literal(self, url: str) -> None:
        """Raise Unreachable if *url* says an address, and not a name, where nothing may be sent."""
        host = urlsplit(url).hostname or ""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return
        self._judge(host, address)

    def _judge(self, host: str, address: Address) -> None:
        why = why_forbidden(address, self._allowed)
        if why:
            named = host if host == str(address) else f"{host} is {address}, which"
            raise Unreachable(
                f"{named} is {why}: nothing is sent there unless the setting webhooks.allow_networks names its network"
            )


def proxy_for(url: str) -> str:
    """The proxy that the environment names for *url*; empty for none."""
    import urllib.request  # takes its time, and most gateways have no webhook

    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not found or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return found if "://" in found else f"http://{found}"
