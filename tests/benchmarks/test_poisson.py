"""The open-loop generator: when requests fall due, what counts as latency, and a short run on the empty app."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from speed import asks, poisson

from tests.live import eventually

BENCHMARKS = Path(poisson.__file__).parents[1]
REQUEST = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@given(st.floats(10, 5000), st.integers(0, 2**32 - 1))
def test_a_schedule_rises_and_has_about_as_many_requests_as_its_rate_says(rate: float, seed: int) -> None:
    seconds = 1000 / rate
    due = poisson.schedule(rate, seconds, seed)
    assert due == sorted(due)
    assert due[0] >= 0
    assert due[-1] < seconds
    assert abs(len(due) - 1000) < 7 * math.sqrt(1000)
    assert due == poisson.schedule(rate, seconds, seed)


def test_the_gaps_of_a_schedule_are_exponential() -> None:
    due = poisson.schedule(1000, 50, seed=7)
    gaps = [after - before for before, after in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    longer = sum(gap > mean for gap in gaps) / len(gaps)
    assert abs(mean * 1000 - 1) < 0.02
    assert abs(longer - math.exp(-1)) < 0.01  # a metronome would have half of them or none


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.floats(0, 1))
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = poisson.percentile(sorted(values), share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) <= share * len(values)


@pytest.mark.parametrize(
    ("received", "wanted"),
    [
        (ANSWER, len(ANSWER)),
        (ANSWER[:-1], len(ANSWER)),
        (ANSWER[:30], 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length:10\r\nx: y\r\n\r\n", 54),
    ],
)
def test_an_answer_is_as_long_as_its_head_says(received: bytes, wanted: int) -> None:
    assert poisson.answer_bytes(received) == wanted


@pytest.mark.parametrize("received", [ANSWER.replace(b"200", b"503"), b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"])
def test_an_answer_that_is_no_success_or_has_no_length_ends_the_run(received: bytes) -> None:
    with pytest.raises(poisson.BadAnswer):
        poisson.answer_bytes(received)


def test_requests_that_fall_due_while_the_server_stalls_count_their_wait() -> None:
    due = [0.0, 0.01, 0.02, 0.03]
    with server(stall_s=0.3) as port:
        outcome = poisson.run("127.0.0.1", port, [REQUEST], due, connections=1)
    # One connection: the second request is sent only after the first answer, and was due 10 ms after the first.
    assert outcome.requests == 4
    assert outcome.no_connection == 3
    assert outcome.max_ms >= 300
    assert outcome.p50_ms >= 280


def test_a_server_that_leaves_ends_the_run() -> None:
    with server(answers=1) as port, pytest.raises(poisson.BadAnswer, match="closed"):
        poisson.run("127.0.0.1", port, [REQUEST], [0.0, 0.01], connections=1)


def test_every_request_of_a_schedule_is_answered_by_a_real_server(tmp_path: Path) -> None:
    requests = tmp_path / "requests.json"
    with empty_app() as port:
        ask = asks.one_row("/", (5.1, 3.5, 1.4, 0.2))
        whole = asks.whole(ask, f"http://127.0.0.1:{port}", 20, start=0)
        requests.write_text(json.dumps([request.decode("latin-1") for request in whole]))
        command = [sys.executable, "-m", "speed.poisson", "127.0.0.1", str(port), str(requests)]
        told = subprocess.run(
            [*command, "--rate", "400", "--seconds", "0.5", "--connections", "8", "--seed", "3"],
            check=True, capture_output=True, text=True, cwd=BENCHMARKS)  # fmt: skip
    outcome = poisson.Outcome(**json.loads(told.stdout))
    assert outcome.requests == len(poisson.schedule(400, 0.5, 3))
    assert 0 < outcome.p50_ms <= outcome.p99_ms <= outcome.p999_ms <= outcome.max_ms


@contextlib.contextmanager
def empty_app() -> Iterator[int]:
    """The benchmark's own yardstick on a port that the system picked."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "bare_app:app", "--app-dir", str(BENCHMARKS),
                   "--log-level", "error", "--fd", str(listener.fileno())]  # fmt: skip
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as process:
            try:
                eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/").status_code == 200, "the empty app answers")
                yield port
            finally:
                process.terminate()


@contextlib.contextmanager
def server(*, stall_s: float = 0.0, answers: int = 1000) -> Iterator[int]:
    """A server for one connection: it stalls before its first answer, and leaves after so many."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for number in range(answers):
                    if not connection.recv(65536):
                        return
                    if number == 0:
                        time.sleep(stall_s)
                    connection.sendall(ANSWER)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()
