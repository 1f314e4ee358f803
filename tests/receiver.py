"""A receiver of webhooks for a test: a real HTTP server in a thread, which checks signatures and answers as told."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

ATTRIBUTES = {"specversion", "id", "type", "source", "subject", "time", "datacontenttype", "data"}


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it came: also those that were answered with an error."""

    id: str
    headers: Mapping[str, str]
    body: bytes
    path: str

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def seq(self) -> int:
        return int(self.event["data"]["seq"])

    def check(self, secret: str) -> None:
        """That the signature is right, as the manual tells receivers to do, and that the body is a CloudEvent 1.0."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        assert hmac.compare_digest(self.headers["webhook-signature"], expected)
        assert abs(time.time() - int(self.headers["webhook-timestamp"])) < 300
        check_cloud_event(self)


def check_cloud_event(arrival: Arrival) -> None:
    """The rules of the CloudEvents 1.0 specification, its JSON format and its HTTP binding, as far as they touch us."""
    event = arrival.event
    assert arrival.headers["content-type"] == "application/cloudevents+json"
    assert event["specversion"] == "1.0"
    for name in ("id", "type", "source", "subject"):
        assert isinstance(event[name], str)
        assert event[name]
    assert event["id"] == arrival.headers["webhook-id"] == arrival.id
    parts = urlsplit(event["source"])  # a URI reference: no space, no control character, nothing beyond ASCII
    assert re.fullmatch(r"[!-~]+", event["source"])
    assert parts.path.startswith("/sluicegate/")
    assert event["type"].startswith("dev.sluicegate.")
    assert event["time"].endswith("Z")
    assert datetime.fromisoformat(event["time"]).utcoffset() is not None
    assert event["datacontenttype"] == "application/json"
    assert isinstance(event["data"], dict)
    assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in event)
    assert set(event) == ATTRIBUTES


# What a reply consists of: status, headers, body; or None to answer nothing and cut the connection.
Reply = tuple[int, Mapping[str, str], bytes] | None
OK: Reply = (204, {}, b"")


class Receiver:
    """A context manager. answer: called for each arrival, in the server's thread; may be replaced at any time."""

    def __init__(self, answer: Callable[[Arrival], Reply] = lambda _: OK, *, port: int = 0) -> None:
        self.answer = answer
        self.arrivals: list[Arrival] = []
        self.taken: list[Arrival] = []  # those that were answered with 2xx
        self.strays: list[str] = []  # paths that were asked for with GET, as who follows a redirect does
        receiver = self

        class Door(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                arrival = Arrival(headers.get("webhook-id", ""), headers, body, self.path)
                receiver.arrivals.append(arrival)
                reply = receiver.answer(arrival)
                if reply is None:
                    self.close_connection = True
                    return
                status, more, content = reply
                if 200 <= status < 300:
                    receiver.taken.append(arrival)
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                receiver.strays.append(self.path)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the other side left, as it may

        self._server = Server(("127.0.0.1", port), Door)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/Tr0ub4dor?token=pssst"

    @property
    def seqs(self) -> list[int]:
        """Of what was taken, in the order in which it came."""
        return [arrival.seq for arrival in self.taken if "seq" in arrival.event["data"]]

    @property
    def types(self) -> list[str]:
        return [arrival.event["type"].removeprefix("dev.sluicegate.") for arrival in self.taken]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Mute:
    """A context manager: a port that takes connections and never answers, or answers with *words* that are no HTTP.

    endless: sends the last of the words again and again, as long as somebody reads; sent_bytes says how much that was.
    """

    def __init__(self, *words: bytes, endless: bool = False) -> None:
        self._words = words
        self._endless = endless
        self.sent_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self.connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            if self._words:
                connection.recv(65536)
                with contextlib.suppress(OSError):  # the other side has read enough
                    self._answer(connection)
                connection.close()

    def _answer(self, connection: socket.socket) -> None:
        connection.sendall(b"".join(self._words))
        while self._endless:
            self.sent_bytes += connection.send(self._words[-1])
