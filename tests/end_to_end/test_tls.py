"""The public port over TLS: who speaks something else, stops half-way or never says goodbye holds up nobody."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import certificates
from tests.builders import classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually

# The first bytes of a handshake: a record of type 22 that promises 512 bytes.
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@contextlib.contextmanager
def gateway_with(root: Path, **server: float) -> Iterator[LiveGateway]:
    write_package(root / "models", classifier())
    pair = certificates.self_signed(root / "tls").settings
    settings: SettingsTable = {"server": {**server, **pair}, "supervisor": {"backoff_max_s": 0.2}}
    with LiveGateway(root / "models", root / "state", settings=settings) as live:
        yield live


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with gateway_with(tmp_path_factory.mktemp("tls"), request_timeout_s=1) as live:
        yield live


def connected(gateway: LiveGateway) -> socket.socket:
    """A TCP connection that has said nothing yet."""
    return socket.create_connection(("127.0.0.1", int(gateway.ready["data"]["port"])), timeout=30)


def spoken(gateway: LiveGateway) -> ssl.SSLSocket:
    """A TLS connection on which one request was answered."""
    assert gateway.trust is not None
    connection = gateway.trust.wrap_socket(connected(gateway), server_hostname="127.0.0.1")
    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the gateway ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while some := connection.recv(1000):
            received += some
    return received


def predict(gateway: LiveGateway) -> int:
    row = dict.fromkeys(classifier().features, 1.0)
    return gateway.data.post("/predict/iris", json={"rows": [row]}).status_code


def test_the_addresses_say_https_for_the_public_port_alone(gateway: LiveGateway) -> None:
    assert re.fullmatch(r"https://127\.0\.0\.1:\d+", gateway.ready["data"]["url"])
    assert gateway.ready["control"]["url"].startswith("http://")
    records = [json.loads(line) for line in gateway.log.splitlines() if '"message": "ready"' in line]
    assert [record["data"] for record in records] == [gateway.ready["data"]["url"]]
    assert predict(gateway) == 200


def test_the_connection_is_tls_1_2_or_newer_and_speaks_http_1_1(gateway: LiveGateway) -> None:
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    trust.set_alpn_protocols(["h2", "http/1.1"])
    with trust.wrap_socket(connected(gateway)) as connection:
        assert connection.version() in ("TLSv1.2", "TLSv1.3")
        assert connection.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("sent", [b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", b"\x00" * 100], ids=["HTTP", "zeros"])
def test_what_is_no_tls_is_ended_at_once_and_gets_nothing_of_http(gateway: LiveGateway, sent: bytes) -> None:
    with connected(gateway) as connection:
        connection.sendall(sent)
        assert b"HTTP" not in rest(connection)
    assert predict(gateway) == 200


@pytest.mark.parametrize("sent", [b"", HALF_A_HELLO], ids=["silent", "half a hello"])
def test_a_handshake_that_never_ends_is_ended_by_the_request_timeout(gateway: LiveGateway, sent: bytes) -> None:
    with connected(gateway) as connection:
        connection.settimeout(10)  # uvloop's own patience would be 60 s
        connection.sendall(sent)
        assert predict(gateway) == 200, "others are served meanwhile"
        assert rest(connection) == b""


def test_a_client_that_vanishes_without_a_goodbye_is_forgotten(gateway: LiveGateway) -> None:
    connection = spoken(gateway)
    pid = gateway.child_pids("worker")[0]
    before = sockets_of(pid)
    connection.close()  # the TCP connection alone
    eventually(lambda: sockets_of(pid) < before, "the worker lets the connection go")


def sockets_of(pid: int) -> int:
    links = [fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(str(link).startswith("socket:") for link in links)


def test_neither_idle_clients_nor_unfinished_handshakes_hold_up_the_stop(tmp_path: Path) -> None:
    """A pooled connection is not read before its next use: it never answers the goodbye of TLS."""
    with (
        gateway_with(tmp_path, drain_timeout_s=3600, request_timeout_s=3600) as gateway,
        spoken(gateway),
        connected(gateway) as silent,
        connected(gateway) as half,
    ):
        half.sendall(HALF_A_HELLO)
        assert predict(gateway) == 200
        gateway.stop()
        assert rest(silent) == rest(half) == b""


def test_a_worker_that_cannot_read_its_key_any_more_says_so_and_is_tried_again(tmp_path: Path) -> None:
    with gateway_with(tmp_path) as gateway:
        key = tmp_path / "tls" / "server.key"
        kept = key.read_bytes()
        key.unlink()
        old_pid = gateway.signal_child("worker", 0, signal.SIGKILL)
        eventually(lambda: "'server.tls_key': there is no file" in gateway.log, "the log says what is missing")
        key.write_bytes(kept)
        gateway.wait_replaced("worker", 0, old_pid)
        assert predict(gateway) == 200
