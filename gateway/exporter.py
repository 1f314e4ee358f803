"""The exporter process: tells metrics and health of one boot on a port of their own, to whoever reaches it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gateway import health, metric_files

_BEAT_INTERVAL_S = 1.0
_SOCKET_TIMEOUT_S = 10.0  # a page is asked for and read in milliseconds

_log = logging.getLogger(__name__)


def run_exporter(*, run_dir: Path, listener: socket.socket, report: Callable[[str], None], lifeline_fd: int) -> None:
    """Answer GET /metrics, /livez and /readyz on *listener* until SIGTERM, SIGINT or the end of the lifeline.

    Runs in the main thread of the exporter's process. Whoever reaches the port may read: it asks for no token, and
    probes come through where the public port asks for certificates.
    """
    wakeup_fd, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # its number comes through the pipe
    (run_dir / "metrics").mkdir(parents=True, exist_ok=True)
    report("ready")  # this makes the socket listen, which the server takes for granted
    with _Server(listener, run_dir) as server:
        pages = threading.Thread(target=server.serve_forever, name="pages", daemon=True)
        pages.start()
        poll = select.poll()
        poll.register(lifeline_fd, select.POLLIN)
        poll.register(wakeup_fd, select.POLLIN)
        while not poll.poll(_BEAT_INTERVAL_S * 1000):
            report("beat")
        server.shutdown()
        pages.join()
    _log.info("stopped")


class _Server(ThreadingHTTPServer):
    """http.server, on a socket that is bound and listens already. A page every few seconds needs no web framework."""

    daemon_threads = True
    block_on_close = False  # a client that is slow must not hold up the end

    def __init__(self, listener: socket.socket, run_dir: Path) -> None:
        super().__init__(("", 0), _Page, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.run_dir = run_dir

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.warning("a page of metrics could not be given", exc_info=True, extra={"client": str(client_address)})


class _Page(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    server: _Server
    timeout = _SOCKET_TIMEOUT_S

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                page = metric_files.render(self.server.run_dir / "metrics")
                self._answer(HTTPStatus.OK, metric_files.CONTENT_TYPE, page)
            case "/livez":  # the supervisor lives: without it this process would leave
                self._tell(HTTPStatus.OK, {"live": True})
            case "/readyz":
                document = health.read(self.server.run_dir)
                ready, told = health.is_ready(document), health.complaints(document)
                if document.get("is_stopping"):
                    told.insert(0, "draining: the gateway is stopping")
                answer = {"ready": ready, "live": True, **({"detail": told} if told else {})}
                self._tell(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, answer)
            case _:
                self.send_error(HTTPStatus.NOT_FOUND, "there are /metrics, /livez and /readyz")

    def _tell(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(answer).encode())

    def _answer(self, status: HTTPStatus, content_type: str, page: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked has left
            self.wfile.write(page)

    def version_string(self) -> str:
        return "sluicegate"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are no events."""
