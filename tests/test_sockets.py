"""Listening sockets: shared among workers, refused to strangers, parked and taken back."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from gateway import sockets
from gateway.errors import CannotStart


@contextlib.contextmanager
def bound(count: int, port: int = 0) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(each) for each in sockets.bind_all("127.0.0.1", port, count, what="the data plane")]


def knock(listener: socket.socket, times: int) -> int:
    """Open and close connections to the port of *listener*; returns how many were taken."""
    taken = 0
    for _ in range(times):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(listener.getsockname(), timeout=5).close()
            taken += 1
    return taken


def accepted(listener: socket.socket) -> int:
    """How many connections wait at *listener*."""
    listener.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def test_all_sockets_share_the_one_port_that_the_system_picked_and_the_kernel_spreads_connections() -> None:
    with bound(2) as (first, second):
        assert first.getsockname() == second.getsockname()
        assert first.getsockname()[1] > 0
        first.listen(128)
        second.listen(128)
        assert knock(first, 64) == 64
        shares = accepted(first), accepted(second)
        assert sum(shares) == 64
        assert min(shares) > 5


def test_nobody_is_taken_before_a_child_listens() -> None:
    with bound(1) as (listener,):
        assert knock(listener, 1) == 0


def test_a_parked_socket_gives_its_share_to_the_others_until_it_listens_again() -> None:
    with bound(2) as (first, second):
        first.listen(128)
        second.listen(128)
        sockets.park(first)
        assert knock(second, 64) == 64
        assert accepted(second) == 64
        first.listen(128)
        assert knock(second, 64) == 64
        assert accepted(first) > 5
        assert first.getsockname() == second.getsockname()


def test_parking_a_socket_that_does_not_listen_changes_nothing() -> None:
    with bound(1) as (listener,):
        sockets.park(listener)
        sockets.park(listener)
        listener.listen(8)
        assert knock(listener, 1) == 1


def test_a_port_that_is_listened_on_is_refused_even_if_its_owner_would_share_it() -> None:
    with bound(1) as (listener,):
        listener.listen(1)
        port = listener.getsockname()[1]
        with pytest.raises(CannotStart, match=f"the data plane: port {port} on 127.0.0.1 is in use"), bound(1, port):
            pass


def test_a_port_can_be_bound_again_as_soon_as_its_sockets_are_closed() -> None:
    with bound(2) as (first, second):
        port = first.getsockname()[1]
        for listener in (first, second):
            listener.listen(8)
        client = socket.create_connection(("127.0.0.1", port), timeout=5)
        accepted(first)
        accepted(second)  # closed on the server's side first: leaves TIME_WAIT there
        client.close()
    with bound(2, port) as (again, _):
        assert again.getsockname()[1] == port


@pytest.mark.parametrize(
    ("host", "expected"),
    [("no-such-host.invalid", "cannot resolve the host 'no-such-host.invalid'"), ("192.0.2.1", "not an address of")],
)
def test_a_host_that_is_not_ours_is_refused(host: str, expected: str) -> None:
    with pytest.raises(CannotStart, match=expected):
        sockets.bind_all(host, 0, 1, what="the data plane")


def test_the_url_of_a_socket_bound_to_every_address_is_on_loopback() -> None:
    (listener,) = sockets.bind_all("0.0.0.0", 0, 1, what="the data plane")
    with listener:
        assert sockets.url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
