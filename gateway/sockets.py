"""The listening sockets: bound by the supervisor, one per worker on the same port, listened on by the children."""

from __future__ import annotations

import errno
import socket

from gateway.errors import CannotStart


def bind_all(host: str, port: int, count: int, *, what: str) -> list[socket.socket]:
    """*count* sockets bound to one address with SO_REUSEPORT, so that the kernel spreads connections over them.

    port 0 lets the system pick one. The sockets do not listen yet: the child that gets one does when it is ready, so
    that no connection waits for a process that is still loading. Raises CannotStart naming *what*, the address and the
    way out.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CannotStart(f"{what}: cannot resolve the host {host!r}: {error.strerror}") from error
    bound: list[socket.socket] = []
    # A plain bind first: with SO_REUSEPORT alone, a second gateway of the same user would silently share the port.
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            address = probe.getsockname()
            for _ in range(count):
                listener = socket.socket(family, kind, protocol)
                bound.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listener.bind(address)
        except OSError as error:
            for listener in bound:
                listener.close()
            raise CannotStart(f"{what}: {_why(error, host, port)}") from error
    return bound


def park(listener: socket.socket) -> None:
    """Stop listening, but keep the port: new connections go to the other sockets of the port.

    Linux takes a listening socket that is shut down out of its SO_REUSEPORT group; the next listen() brings it back.
    Connections that nobody had accepted are reset.
    """
    try:
        listener.shutdown(socket.SHUT_RD)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # it was not listening
            raise


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """``http://HOST:PORT`` under which this machine reaches *listener*; loopback for one bound to every address."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop the process that uses it, or choose another port (0 picks one)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} may only be bound by root; choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine"
    return f"cannot bind port {port} on {host}: {error.strerror}"
