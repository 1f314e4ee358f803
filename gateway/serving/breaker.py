"""Whether a candidate may be asked: not after failures, then by a few requests, and by all when those went well.

Pure: the clock is handed in with each call. What is counted is one run of the model, and of each run how many of its
requests went well; so that no more runs fail than the figures here say, however many requests share them.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

State = Literal["closed", "half_open", "open"]

# Runs in a row of which nothing was any good.
MAX_ROW = 5
# Or this share of so many requests in the window.
_WINDOW_S = 10
_MIN_REQUESTS = 20
# How long it stays open: at first, and at the most. It doubles each time, until it was closed for the longest time.
FIRST_OPEN_S = 10.0
MAX_OPEN_S = 300.0
# Half-open: 1, 2, 4 ... requests are let through; when the last round has gone well it closes.
LAST_ROUND = 8
# Requests that were let through and have not been heard of by then will not be: their callers left, say.
ROUND_S = 10.0


class Breaker:
    """One candidate's breaker. state, opened (how often) and reason (of the last time) are for reading."""

    __slots__ = (
        "_began_s",
        "_closed_s",
        "_current",
        "_let",
        "_open_s",
        "_passed",
        "_round",
        "_row",
        "_window",
        "opened",
        "reason",
        "state",
    )

    def __init__(self) -> None:
        self.state: State = "closed"
        self.opened = 0
        self.reason = ""
        self._row = 0
        self._window: deque[list[int]] = deque()  # second, good, bad; the last one is the current second's
        self._current = [-1, 0, 0]
        self._began_s = 0.0  # when it opened, or its round of probes began
        self._open_s = 0.0
        self._closed_s = float("-inf")
        self._round = self._let = self._passed = 0

    @property
    def patience(self) -> int:
        """Runs of which nothing is any good that it takes until it is open."""
        return MAX_ROW - self._row if self.state == "closed" else 1

    def admits(self, now_s: float) -> bool:
        """Whether one more request may go to the candidate. While half-open each yes is one of the few."""
        if self.state == "closed":
            return True
        if self.state == "open":
            if now_s < self._began_s + self._open_s:
                return False
            self.state = "half_open"
            self._begin_round(1, now_s)
        elif now_s >= self._began_s + ROUND_S:
            self._begin_round(self._round, now_s)
        if self._let >= self._round:
            return False
        self._let += 1
        return True

    def observe(self, good: int, bad: int, now_s: float, reason: str = "") -> None:
        """One run of the model: how many of its requests it answered well, and how many not, 1 if that is not known."""
        if self.state == "closed":
            if not bad and self._current[0] == int(now_s):  # nearly always
                self._row = 0
                self._current[1] += good
                return
            self._row = 0 if good or not bad else self._row + 1
            if self._row >= MAX_ROW:
                self.trip(now_s, f"{self._row} runs in a row failed: {reason}")
            elif self._is_bad_window(good, bad, now_s):
                self.trip(now_s, f"half of the requests of the last {_WINDOW_S} s or more failed: {reason}")
        elif self.state == "half_open":
            if bad and bad >= good:
                self.trip(now_s, f"it failed again when it was tried: {reason}")
            else:
                self._passed += good
                if self._passed >= self._round:
                    self._pass_round(now_s)

    def trip(self, now_s: float, reason: str) -> None:
        """Open now, whatever was counted."""
        if self.state == "open":
            return
        again = self.state == "half_open" or now_s - self._closed_s < MAX_OPEN_S
        self._open_s = min(2 * self._open_s, MAX_OPEN_S) if again else FIRST_OPEN_S
        self.state, self.reason, self._began_s = "open", reason, now_s
        self.opened += 1
        self._row = 0
        self._window.clear()
        self._current = [-1, 0, 0]

    def _is_bad_window(self, good: int, bad: int, now_s: float) -> bool:
        window, second = self._window, int(now_s)
        if self._current[0] != second:
            self._current = [second, 0, 0]
            window.append(self._current)
        self._current[1] += good
        self._current[2] += bad
        while window[0][0] <= second - _WINDOW_S:
            window.popleft()
        failed = sum([entry[2] for entry in window])
        if not failed:
            return False
        total = failed + sum([entry[1] for entry in window])
        return total >= _MIN_REQUESTS and 2 * failed >= total

    def _begin_round(self, size: int, now_s: float) -> None:
        self._round, self._let, self._passed, self._began_s = size, 0, 0, now_s

    def _pass_round(self, now_s: float) -> None:
        if self._round < LAST_ROUND:
            self._begin_round(2 * self._round, now_s)
        else:
            self.state, self._closed_s = "closed", now_s
