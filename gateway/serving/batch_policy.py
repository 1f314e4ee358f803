"""What a run will cost, learned from the runs before it: t(rows) = b + a * rows."""

from __future__ import annotations

# Weight that an older run keeps for each newer one: about the last 100 runs count.
_KEEP = 0.99
# A run longer than this many times the expectation was disturbed (another process, a page fault): it counts as this.
_SPIKE = 4.0
# Runs to see before a prediction is trusted.
MIN_RUNS = 30


class RunCost:
    """Exponentially weighted least-squares fit of a version's run time over the rows of its batch. Pure.

    The sums are those of ordinary linear regression with weights _KEEP**age.
    """

    __slots__ = ("_n", "_t", "_x", "_xt", "_xx", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self._n = self._x = self._t = self._xx = self._xt = 0.0

    def observe(self, rows: int, run_s: float) -> None:
        """Learn from one run of *rows* rows that took *run_s* seconds."""
        if self.runs >= MIN_RUNS:
            run_s = min(run_s, _SPIKE * max(self.expected_s(rows), 1e-6))
        self.runs += 1
        self._n = self._n * _KEEP + 1.0
        self._x = self._x * _KEEP + rows
        self._t = self._t * _KEEP + run_s
        self._xx = self._xx * _KEEP + rows * rows
        self._xt = self._xt * _KEEP + rows * run_s

    def expected_s(self, rows: int) -> float:
        """Seconds that a run of *rows* rows is expected to take; infinity before the first run."""
        if self.runs == 0:
            return float("inf")
        spread = self._n * self._xx - self._x * self._x
        if spread <= 1e-9 * self._n * self._xx:  # all runs had the same number of rows
            return self._t / self._n * max(1.0, rows * self._n / self._x)
        slope = max(0.0, (self._n * self._xt - self._x * self._t) / spread)
        base = max(0.0, (self._t - slope * self._x) / self._n)
        return base + slope * rows

    def is_short(self, rows: int, budget_s: float) -> bool:
        """Whether a run of *rows* rows is known to fit into *budget_s*."""
        return self.runs >= MIN_RUNS and self.expected_s(rows) <= budget_s
