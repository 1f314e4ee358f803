"""Clients that hold connections and mean no good: python benchmarks/slow_clients.py HOST PORT COUNT.

Opens COUNT connections, opens each anew that the gateway ends, and so goes on until its standard input is closed.
Writes one line of JSON on standard output once all are open, and one at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import heapq
import json
import os
import resource
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Literal

Kind = Literal["silent", "head", "body", "reader"]
# In turn: a quarter of each.
KINDS: tuple[Kind, ...] = ("silent", "head", "body", "reader")
# One byte of a head or a body in so long; a connection that sends none would be taken for a silent one.
PACE_S = 5.0
# A reader's answer is never read, so it never sees the end of its connection: it begins anew by itself.
READER_LIFE_S = 40.0
SOURCES = 200  # addresses of 127.0.0.0/8 that they come from
READER_ROWS = 200  # in the answer: some 7 KB, which are more than the small window of the client takes
_RECEIVE_BYTES = 4096
# Connections that may be opening at the same time: the others wait here and not in the gateway's backlog.
_OPENING = 200
_DESCRIPTORS_BESIDE = 100


@dataclass(slots=True)
class Told:
    """What they did so far. ended: by the gateway, by kind; refused: with 503, beyond its limit."""

    opened: int = 0
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    refused: int = 0
    timed_out: int = 0  # with 408
    bytes_sent: int = 0


@dataclass(slots=True)
class Client:
    """One connection. slot: its place, which a successor takes."""

    slot: int
    kind: Kind
    socket: socket.socket
    is_connected: bool = False


class SlowClients:
    """All of them, on one epoll. model: whose named features are *features*; count: how many connections."""

    def __init__(self, host: str, port: int, count: int, model: str, features: list[str]) -> None:
        self._to = (host, port)
        self._waiting = list(range(count))[::-1]  # slots that have no connection
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._opening = 0
        self._due: list[tuple[float, int, Client]] = []  # when the next byte is sent, or a reader begins anew
        self._number = 0
        self.told = Told()
        head = f"POST /predict/{model} HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 60000\r\n"
        row = [0.5] * len(features)
        body = json.dumps({"columns": features, "rows": [row] * READER_ROWS}).encode()
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self._first = {
            "silent": b"",
            "head": f"{head}x-name: ".encode(),
            "body": f"{head}content-length: 5000\r\n\r\n".encode(),
            "reader": request,
        }

    @property
    def is_full(self) -> bool:
        return not self._waiting and not self._opening

    def step(self) -> None:
        """Open, send and notice what is due now; waits at most 50 ms."""
        while self._waiting and self._opening < _OPENING:
            self._open(self._waiting.pop())
        for fd, event in self._poll.poll(0.05, 1000):
            client = self._clients.get(fd)
            if client is not None:
                self._turn(client, event)
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            _, _, client = heapq.heappop(self._due)
            if client.socket.fileno() < 0:
                continue
            if client.kind == "reader":
                self._end(client)
            else:
                self._send(client, b"a")
                self._later(client, PACE_S)

    def close(self) -> None:
        for client in list(self._clients.values()):
            client.socket.close()

    def _open(self, slot: int) -> None:
        kind = KINDS[slot % len(KINDS)]
        made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if kind == "reader":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        made.bind((f"127.0.{1 + slot % SOURCES}.1", 0))
        if made.connect_ex(self._to) not in (0, errno.EINPROGRESS):
            made.close()
            self._waiting.insert(0, slot)
            return
        self._opening += 1
        self._clients[made.fileno()] = Client(slot, kind, made)
        self._poll.register(made.fileno(), select.EPOLLOUT)

    def _turn(self, client: Client, event: int) -> None:
        if not client.is_connected and event & (select.EPOLLERR | select.EPOLLHUP):
            self._opening -= 1
            self._end(client)
        elif not client.is_connected:
            client.is_connected = True
            self._opening -= 1
            self.told.opened += 1
            # A reader looks at nothing that comes, not even at the end.
            self._poll.modify(client.socket.fileno(), 0 if client.kind == "reader" else select.EPOLLIN)
            self._send(client, self._first[client.kind])
            if client.kind != "silent":
                self._later(client, READER_LIFE_S if client.kind == "reader" else PACE_S)
        else:
            came = b""
            with contextlib.suppress(OSError):
                came = client.socket.recv(4096)
            self.told.refused += came.startswith(b"HTTP/1.1 503")
            self.told.timed_out += came.startswith(b"HTTP/1.1 408")
            self.told.ended[client.kind] += 1
            self._end(client)

    def _send(self, client: Client, what: bytes) -> None:
        with contextlib.suppress(OSError):  # ended just now: the next look will tell
            self.told.bytes_sent += client.socket.send(what)

    def _later(self, client: Client, pause_s: float) -> None:
        self._number += 1
        heapq.heappush(self._due, (time.monotonic() + pause_s, self._number, client))

    def _end(self, client: Client) -> None:
        del self._clients[client.socket.fileno()]
        client.socket.close()  # which takes it out of the epoll, too
        self._waiting.insert(0, client.slot)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--model", default="iris")
    parser.add_argument("--features", default="sepal_length,sepal_width,petal_length,petal_width")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.count + _DESCRIPTORS_BESIDE
    if hard < wanted:
        parser.error(
            f"{options.count} connections need {wanted} descriptors, and the limit is {hard}: raise ulimit -Hn"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # They share a core with those whose answers are timed, and these must not wait for it: what is then measured is how
    # long a client gets no processor.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    clients = SlowClients(options.host, options.port, options.count, options.model, options.features.split(","))
    end = select.poll()
    end.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    is_told = False
    while not end.poll(0):
        clients.step()
        if clients.is_full and not is_told:
            is_told = True
            print(json.dumps(asdict(clients.told)), flush=True)
    clients.close()
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
        print(json.dumps(asdict(clients.told)), flush=True)


if __name__ == "__main__":
    main()
