"""The limit of a queue that is learned from how long rows wait in it."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.adaptive import INTERVAL_S, QueueLimit
from tests.puppet import FakeClock

TARGET_S = 0.02
MOST_ROWS = 8192
# Of one run: what its oldest entry waited, how long it took, rows in the queue, rows of a best batch, time since then.
RUNS = st.lists(
    st.tuples(st.floats(0, 10), st.floats(0, 2), st.integers(1, MOST_ROWS), st.integers(1, 512), st.floats(0.0001, 3)),
    max_size=60,
)


@given(runs=RUNS)
def test_the_limit_stays_in_its_bounds_and_moves_only_as_the_waits_say(
    runs: list[tuple[float, float, int, int, float]],
) -> None:
    clock = FakeClock()
    limit = QueueLimit(TARGET_S, MOST_ROWS, clock())
    waits: list[float] = []
    runs_s: list[float] = []
    last_run_s = 0.0  # of the interval before
    for wait_s, run_s, rows, batch_rows, pause_s in runs:
        clock.advance(pause_s)
        before = limit.rows
        waits.append(wait_s)
        runs_s.append(run_s)
        if not limit.observe(wait_s, run_s, rows, batch_rows, clock()):
            assert limit.rows == before
            continue
        least = max(8, batch_rows)
        assert least <= limit.rows <= MOST_ROWS
        too_long_s = max(TARGET_S, sum(runs_s) / len(runs_s), 1.1 * last_run_s)
        if min(waits) > too_long_s:
            assert limit.rows <= max(least, 0.7 * before, before * too_long_s / min(waits))
        else:
            assert limit.rows > before or limit.rows in (least, MOST_ROWS)
        waits, runs_s, last_run_s = [], [], run_s


def test_two_callers_in_turn_whose_runs_are_long_are_no_overload() -> None:
    """Each waits for the other's run, which is longer than its own."""
    clock = FakeClock()
    limit = QueueLimit(TARGET_S, MOST_ROWS, clock())
    runs_s = (0.2, 0.28)
    for number in range(40):
        clock.advance(runs_s[number % 2])
        limit.observe(runs_s[(number + 1) % 2], runs_s[number % 2], 2, 1, clock())
    assert limit.rows == MOST_ROWS


class Server:
    """A queue in front of a model with a fixed cost per row, in simulated time."""

    def __init__(self, row_s: float, batch_rows: int) -> None:
        self.clock = FakeClock(0.0)
        self.limit = QueueLimit(TARGET_S, MOST_ROWS, 0.0)
        self.row_s, self.batch_rows = row_s, batch_rows
        self.waiting: deque[float] = deque()  # when each came
        self.waits: list[float] = []  # of the rows that have run
        self.refused = 0
        self._next_s = 0.0

    def run(self, rows_per_s: float, seconds: float) -> None:
        """Rows come at that rate for so long."""
        end_s = self.clock() + seconds
        self.waits, self.refused, self._next_s = [], 0, self.clock()
        while self.clock() < end_s:
            while self._next_s <= self.clock():
                if len(self.waiting) < self.limit.rows:
                    self.waiting.append(self._next_s)
                else:
                    self.refused += 1
                self._next_s += 1 / rows_per_s
            queued = len(self.waiting)
            batch = [self.waiting.popleft() for _ in range(min(queued, self.batch_rows))]
            if not batch:
                self.clock.now_s = self._next_s
                continue
            now_s, run_s = self.clock(), len(batch) * self.row_s
            self.waits += [now_s - came_s for came_s in batch]
            self.clock.advance(run_s)
            self.limit.observe(now_s - batch[0], run_s, queued, self.batch_rows, self.clock(), row_s=self.row_s)


@pytest.mark.parametrize("row_s", [500e-6, 5e-3])
@pytest.mark.parametrize("batch_rows", [1, 8, 32])
@pytest.mark.parametrize("overload", [1.5, 5.0])
def test_an_overload_keeps_waits_short_loses_no_throughput_and_is_forgotten(
    row_s: float, batch_rows: int, overload: float
) -> None:
    server = Server(row_s, batch_rows)
    peak = 1 / row_s
    server.run(0.5 * peak, 0.5)
    assert server.refused == 0
    server.run(overload * peak, max(2.5, 25 * batch_rows * row_s))  # what came before the limit was found runs off
    server.run(overload * peak, 2)
    assert len(server.waits) >= 2 * peak - batch_rows
    settled = sorted(server.waits)[int(0.99 * len(server.waits))]
    assert settled <= 2 * max(TARGET_S, batch_rows * row_s, 8 * row_s)
    server.run(0.7 * peak, 8)
    assert server.limit.rows == MOST_ROWS
    assert server.refused == 0


def test_what_runs_within_the_target_may_always_wait() -> None:
    """However long it waits for something else than runs: refusing a cheap row takes as long as running it."""
    clock = FakeClock()
    limit = QueueLimit(TARGET_S, MOST_ROWS, clock())
    row_s = 4 * TARGET_S / MOST_ROWS
    for _ in range(50):
        clock.advance(INTERVAL_S)
        limit.observe(1.0, 8 * row_s, MOST_ROWS, 8, clock(), row_s=row_s)
    assert limit.rows == MOST_ROWS / 4


def test_a_quiet_time_brings_the_limit_back_though_nothing_runs() -> None:
    clock = FakeClock()
    limit = QueueLimit(TARGET_S, MOST_ROWS, clock())
    clock.advance(INTERVAL_S)
    limit.observe(1.0, 0.001, 100, 8, clock())
    assert limit.rows == 8
    clock.advance(8.0)
    limit.observe(0.0, 0.001, 1, 8, clock())
    assert limit.rows == MOST_ROWS


def test_a_limit_far_too_high_comes_down_to_what_may_wait_at_once() -> None:
    """Step by step it would take a second, and whoever is let in meanwhile waits behind all that stands there."""
    server = Server(row_s=500e-6, batch_rows=8)
    server.run(5 / server.row_s, 0.5)
    assert server.limit.rows <= 2 * TARGET_S / server.row_s


@pytest.mark.parametrize(("wait_s", "is_too_long"), [(0.03, False), (0.05, True)])
def test_waiting_as_long_as_a_run_is_not_too_long_and_one_that_was_held_up_does_not_change_that(
    wait_s: float, is_too_long: bool
) -> None:
    clock = FakeClock()
    limit = QueueLimit(TARGET_S, MOST_ROWS, clock())
    for run_s in (0.03, 0.03, 0.03, 0.06):  # 0.0375 on average
        clock.advance(0.3 * INTERVAL_S)
        limit.observe(wait_s, run_s, 100, 8, clock())
    assert (limit.rows < MOST_ROWS) == is_too_long
