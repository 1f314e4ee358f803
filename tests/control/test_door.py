"""The admin port's own HTTP: offers of other protocols are declined, and slow, silent or too many clients ended."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator

import pytest
from fuzzing import answers
from fuzzing.answers import Response

from tests.control.process import ControlProcess
from tests.live import eventually

OFFERS = {
    "none": b"",
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\n",
}
BODY = json.dumps({"context": {"targetingKey": "user-1"}}).encode()


MAX_CONNECTIONS = 8
QUESTION = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    """A control process with little patience and room."""
    root = tmp_path_factory.mktemp("strict")
    (root / "models").mkdir()
    bounds = {
        "keep_alive_s": 1,
        "request_timeout_s": 0.5,
        "write_timeout_s": 0.5,
        "max_header_bytes": 4096,
        "max_connections": MAX_CONNECTIONS,
    }
    with ControlProcess(root / "models", root / "state", settings={"control": bounds}) as process:
        yield process


def connected(control: ControlProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(control.url.rpartition(":")[2])), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the port ends the connection."""
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(65536):
            read += block
    return read


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


@pytest.mark.parametrize(
    ("kind", "answer"), [("silent", b""), ("half a head", b"408"), ("half a body", b"408"), ("idle", b"200")]
)
def test_a_client_that_falls_silent_is_ended(strict: ControlProcess, kind: str, answer: bytes) -> None:
    whole = evaluation(strict, b"")
    with connected(strict) as connection:
        connection.sendall({"silent": b"", "half a head": whole[:30], "half a body": whole[:-5], "idle": whole}[kind])
        came = rest(connection)
    assert came[9:12] == answer
    if answer == b"408":
        head, _, document = came.partition(b"\r\n\r\n")
        assert b"content-type: application/problem+json" in head
        assert head.endswith(b"connection: close")
        assert json.loads(document)["code"] == "request_too_slow"
    assert "Traceback" not in strict.log


def test_bytes_that_trickle_in_do_not_make_more_time_for_a_head(strict: ControlProcess) -> None:
    came = b""
    with connected(strict) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nx-name: ")
        connection.settimeout(0.05)
        with contextlib.suppress(ConnectionError):
            while not came:
                connection.sendall(b"a")
                with contextlib.suppress(TimeoutError):
                    came = connection.recv(65536)
    assert came.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["whole", "endless"])
def test_a_head_that_is_too_large_is_refused_and_not_obeyed(strict: ControlProcess, end: bytes) -> None:
    created = json.dumps({"name": "x", "scope": "viewer"}).encode()
    head = f"POST /admin/v1/tokens HTTP/1.1\r\nauthorization: Bearer {strict.admin_token}\r\nx-change-reason: test\r\n"
    head += f"content-length: {len(created)}\r\nx-name: {'a' * 5000}"
    with connected(strict) as connection:
        connection.sendall(head.encode() + end + (created if end else b""))
        came = rest(connection)
    assert came.startswith(b"HTTP/1.1 431 ")
    assert json.loads(came.partition(b"\r\n\r\n")[2])["code"] == "head_too_large"
    names = [token["name"] for token in strict.client.get("/admin/v1/tokens").raise_for_status().json()["tokens"]]
    assert "x" not in names


def test_a_client_that_does_not_read_is_cut_off(strict: ControlProcess) -> None:
    ask = f"GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {strict.admin_token}\r\n\r\n".encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(strict.url.rpartition(":")[2])))
        connection.settimeout(20)
        while _goes_on(connection, ask * 100):
            pass
    assert asked(strict, 1, QUESTION)[0].status == 200


def _goes_on(connection: socket.socket, data: bytes) -> bool:
    """Send on; False once the other end has cut the connection off."""
    try:
        connection.sendall(data)
    except ConnectionError:
        return False
    return True


def test_a_connection_beyond_the_limit_is_told_so(strict: ControlProcess) -> None:
    strict.client.close()  # what it keeps open counts
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(strict)) for _ in range(MAX_CONNECTIONS)]
        held[0].sendall(QUESTION)
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200 ")
        came = rest(stack.enter_context(connected(strict)))
    head, _, document = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert re.search(rb"\r\nretry-after: [12]\r\n", head)
    assert json.loads(document)["code"] == "too_many_connections"
    strict.client = strict.client_as(strict.admin_token)
    page = eventually(lambda: strict.client.get("/metrics").raise_for_status().text, "a place is free again")
    assert re.search(r"^sluicegate_admin_refused_connections_total [1-9]", page, re.MULTILINE)
