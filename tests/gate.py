"""A gate in front of a TCP server: open, closed, or frozen, which is what a cut cable looks like from both ends."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self


class Gate:
    """Passes connections on to a port of this machine. A context manager.

    Frozen, it keeps every connection and passes nothing on; thawed, it passes on what has come meanwhile. Closed, it
    has ended all connections and refuses new ones. delay_s: how long each piece is on its way.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._passing = threading.Event()
        self._passing.set()
        self._is_open = True
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._word = b""
        self.delay_s = 0.0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def freeze(self) -> None:
        self._passing.clear()

    def freeze_at(self, word: bytes) -> None:
        """Freeze when the client says *word*, which is still passed on: the answer to it never comes."""
        self._word = word

    @property
    def is_frozen(self) -> bool:
        return not self._passing.is_set()

    def thaw(self) -> None:
        self._passing.set()

    def close(self) -> None:
        """End all connections and take no more."""
        with self._lock:
            self._is_open = False
            ended, self._sockets = self._sockets, []
        for each in ended:
            _end(each)
        self._passing.set()  # only now: what was held back is never said

    def open(self) -> None:
        with self._lock:
            self._is_open = True

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                _end(client)
                continue
            with self._lock:
                if not self._is_open:
                    _end(client)
                    _end(server)
                    continue
                self._sockets += [client, server]
            threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                self._passing.wait()
                time.sleep(self.delay_s)
                if is_client and self._word and self._word in block:
                    self._word = b""
                    self._passing.clear()
                target.sendall(block)
        _end(source)
        _end(target)


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
