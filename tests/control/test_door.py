"""The admin port's own HTTP: what offers another protocol is answered as the plain request that it also is."""

from __future__ import annotations

import json
import socket

import pytest
from fuzzing import answers
from fuzzing.answers import Response

from tests.control.process import ControlProcess

OFFERS = {
    "none": b"",
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\n",
}
BODY = json.dumps({"context": {"targetingKey": "user-1"}}).encode()


def asked(control: ControlProcess, count: int, *pieces: bytes) -> list[Response]:
    """Send bytes on a connection of their own, and wait for so many answers."""
    port = int(control.url.rpartition(":")[2])
    read = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        while len(found := answers.read(read)[0]) < count:
            block = connection.recv(65536)
            assert block, f"closed after {read!r}"
            read += block
    return found


def evaluation(control: ControlProcess, offer: bytes) -> bytes:
    head = f"POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {control.admin_token}\r\n"
    return head.encode() + offer + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize("offer", OFFERS)
def test_a_request_that_offers_another_protocol_keeps_its_body(shared: ControlProcess, offer: str) -> None:
    data = evaluation(shared, OFFERS[offer])
    for pieces in ((data,), (data[:30], data[30:]), (data[:-5], data[-5:]), (data + data,)):
        for response in asked(shared, len(b"".join(pieces)) // len(data), *pieces):
            assert response.status == 200, response.body
            assert "flags" in json.loads(response.body)


def test_however_many_offers_come_at_once_each_is_answered(shared: ControlProcess) -> None:
    one = b"GET /livez HTTP/1.1\r\nhost: x\r\n" + OFFERS["websocket"] + b"\r\n"
    assert {response.status for response in asked(shared, 2000, one * 2000)} == {200}
    assert "Traceback" not in shared.log


def test_a_tunnel_is_refused(shared: ControlProcess) -> None:
    (response,) = asked(shared, 1, b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert response.status == 400


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(shared: ControlProcess) -> None:
    data = evaluation(shared, b"")
    with socket.create_connection(("127.0.0.1", int(shared.url.rpartition(":")[2]))) as connection:
        connection.sendall(data[:-5])
    assert asked(shared, 1, data)[0].status == 200
    assert "ClientDisconnect" not in shared.log
