"""Open-loop load: requests fall due at random times drawn beforehand, and latency counts from when they were due.

A server that stalls is asked on, and each request that should have been sent meanwhile counts its wait, so there is no
coordinated omission. python -m speed.poisson HOST PORT REQUESTS.json --rate R --seconds S prints an Outcome as JSON.
It says itself how late it sent: one process on a core of its own manages some ten thousands of requests per second.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import math
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

MAX_LATE_MS = 1.0  # a generator whose 99th percentile is later than this has fallen behind its schedule
_LEAD_S = 0.05
_PATIENCE_S = 10.0  # for answers that are still to come when all is sent
_BLOCK_BYTES = 256 * 1024
_EVENTS = 16  # answers read before the schedule is looked at again


class BadAnswer(Exception):
    """The server closed a connection, or answered something else than 200."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    no_connection: requests for which no connection was free when they were due; their latency counts from then all the
    same. late: how long the generator itself took to send what was due and had a connection.
    """

    requests: int
    rate_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    late_p99_ms: float
    no_connection: int

    @property
    def fell_behind(self) -> bool:
        """Whether the generator, not the server, is what the latencies tell of."""
        return self.late_p99_ms > MAX_LATE_MS


def schedule(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """When requests fall due, in seconds from the start, rising: a Poisson process, cut off at *seconds*."""
    drawn = np.random.default_rng(seed)
    count = int(rate_per_s * seconds + 10 * math.sqrt(rate_per_s * seconds) + 10)
    due = np.cumsum(drawn.exponential(1 / rate_per_s, count))
    return [float(moment) for moment in due[due < seconds]]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values, which rise, that at least this share of all does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class _Connection:
    """One keep-alive connection. due_s: when the request that it is busy with fell due; free_s: when it became free."""

    __slots__ = ("due_s", "free_s", "received", "socket", "wanted")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due_s = self.free_s = 0.0
        self.received = b""
        self.wanted = 0  # bytes of the answer, once its head is there

    def is_complete(self) -> bool:
        """Read what has come; whether the answer is whole. Raises BadAnswer."""
        try:
            block = self.socket.recv(_BLOCK_BYTES)
        except BlockingIOError:
            return False
        if not block:
            raise BadAnswer("the server closed a connection")
        self.received += block
        if not self.wanted:
            self.wanted = answer_bytes(self.received)
        if not self.wanted or len(self.received) < self.wanted:
            return False
        if len(self.received) > self.wanted:
            raise BadAnswer(f"more than one answer: {self.received[:200]!r}")
        self.received, self.wanted = b"", 0
        return True


def answer_bytes(received: bytes) -> int:
    """The length of an answer and head, 0 while the head is not whole. Raises BadAnswer if its status is not 200."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = received[:end].lower()
    if head[9:12] != b"200":
        raise BadAnswer(f"not a success: {received[:200]!r}")
    start = head.find(b"content-length:")
    if start < 0:
        raise BadAnswer(f"no content-length: {received[:200]!r}")
    return end + 4 + int(head[start + 15 :].split(b"\r\n", 1)[0])


def run(host: str, port: int, requests: Sequence[bytes], due_s: Sequence[float], connections: int) -> Outcome:
    """Send a request whenever one is due, over connections that are free in turn. Raises BadAnswer, TimeoutError."""
    free = collections.deque(_Connection(host, port) for _ in range(connections))
    by_fd = {connection.socket.fileno(): connection for connection in free}
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    gc.collect()
    gc.disable()  # a pause of ours would count as one of the server's
    try:
        latencies_s, late_s, blocked = _loop(poll, by_fd, free, requests, due_s)
    finally:
        gc.enable()
        poll.close()
        for connection in by_fd.values():
            connection.socket.close()
    latencies_s.sort()
    late_s.sort()
    p50, p99, p999, longest = (percentile(latencies_s, share) * 1000 for share in (0.5, 0.99, 0.999, 1.0))
    late_p99_ms = percentile(late_s, 0.99) * 1000
    return Outcome(len(due_s), len(due_s) / due_s[-1], p50, p99, p999, longest, late_p99_ms, blocked)


def _loop(
    poll: select.epoll,
    by_fd: dict[int, _Connection],
    free: collections.deque[_Connection],
    requests: Sequence[bytes],
    due_s: Sequence[float],
) -> tuple[list[float], list[float], int]:
    """Latencies and latenesses of all requests in seconds, and how many found no free connection. Never sleeps."""
    clock = time.perf_counter
    latencies_s: list[float] = []
    late_s: list[float] = []
    sent, count, kinds, blocked, last_blocked = 0, len(due_s), len(requests), 0, -1
    began_s = clock() + _LEAD_S
    give_up_s = due_s[-1] + _PATIENCE_S
    while len(latencies_s) < count:
        now_s = clock() - began_s
        while sent < count and due_s[sent] <= now_s:
            if not free:
                if sent != last_blocked:
                    blocked, last_blocked = blocked + 1, sent
                break
            connection = free.popleft()
            connection.due_s = due_s[sent]
            if connection.socket.send(requests[sent % kinds]) != len(requests[sent % kinds]):
                raise BadAnswer("the server does not read")
            sent += 1
            now_s = clock() - began_s
            late_s.append(now_s - max(connection.due_s, connection.free_s))
        for fd, _ in poll.poll(0, _EVENTS):
            connection = by_fd[fd]
            if connection.is_complete():
                connection.free_s = clock() - began_s
                latencies_s.append(connection.free_s - connection.due_s)
                free.append(connection)
        if now_s > give_up_s:
            raise TimeoutError(f"{count - len(latencies_s)} of {count} requests were not answered")
    return latencies_s, late_s, blocked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=Path, help="a JSON array of whole requests, a character per byte")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    requests = [text.encode("latin-1") for text in json.loads(options.requests.read_text())]
    due_s = schedule(options.rate, options.seconds, options.seed)
    print(json.dumps(asdict(run(options.host, options.port, requests, due_s, options.connections))))


if __name__ == "__main__":
    main()
