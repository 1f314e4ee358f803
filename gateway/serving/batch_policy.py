"""When a batch leaves and how large it is: decided from what the runs before it have cost. Pure; no clock, no queue."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

# Weight that an older run keeps for each newer one that is learned from: about the last 100 of these count.
_KEEP = 0.99
# A run longer than this many times the expectation was disturbed (another process, a page fault): it counts as this.
_SPIKE = 4.0
# A run that takes so long, and was not expected to, holds the event loop noticeably. Once may be the machine's doing; a
# second one within so many that are learned from is the model's, whose cost depends on more than the rows: then so many
# are made in threads.
LONG_RUN_S = 0.05
_NEAR_RUNS = 64
_APART_RUNS = 256
# Runs to see before a prediction is trusted.
MIN_RUNS = 30
# The line is fitted anew after each run at first, later after this many: it moves slowly then.
_FIT_ALWAYS_RUNS = 100
_FIT_EVERY_RUNS = 8
# A larger batch must make a row cheaper by this share, or the smaller one, which answers sooner, is the better one.
_WORTH = 0.1
# The same for a batch that takes longer than anybody shall wait for a run: who comes meanwhile waits for its end.
_WORTH_WAITING = 0.25
# Runs of one size to see before they say something, and how many batches of the best size pass between two larger ones
# that look whether the larger size is still the worse, and between two smaller ones: what was learned of them when the
# machine was slower makes them look dear for ever.
_MIN_RUNS_OF_A_SIZE = 3
_PROBE_EVERY = 256
_PROBE_SMALLER_EVERY = 64
# What a batch costs beside its run: forming it and writing answers; in a thread also the hop there and back, and the
# wait for the interpreter.
_LOOP_OVERHEAD_S = 35e-6
_THREAD_OVERHEAD_S = 100e-6


class Reason(StrEnum):
    """Why a batch left with the rows that it had."""

    DRAINED = "drained"  # the model was free, and nothing else waited
    FULL = "full"  # the row limit of the settings or the flag
    BEST_SIZE = "best_size"  # more rows at once would cost more per row
    DEADLINE = "deadline"  # with more rows the earliest deadline in it would pass
    SHAPE = "shape"  # the next request has another shape
    ALONE = "alone"  # batching is off, or rows of this version may not mix


class RunCost:
    """Exponentially weighted least-squares fit of a version's run time over the rows of its batch. Pure.

    The sums are those of ordinary linear regression with weights _KEEP**age / rows: the time of a large run also
    varies more, and must not drown what the small ones say.
    """

    __slots__ = ("_apart_until", "_base_s", "_last_long", "_least_s", "_n", "_row_s", "_t", "_x", "_xt", "_xx", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self._last_long, self._apart_until = -_NEAR_RUNS, 0  # by the count of runs
        self._n = self._x = self._t = self._xx = self._xt = 0.0
        self._base_s, self._row_s, self._least_s = float("inf"), 0.0, 0.0

    def observe(self, rows: int, run_s: float) -> None:
        """Learn from one run of *rows* rows that took *run_s* seconds."""
        if self.runs >= MIN_RUNS:
            most_s = _SPIKE * max(self.expected_s(rows), 1e-6)
            if run_s > max(LONG_RUN_S, most_s):
                if self.runs - self._last_long < _NEAR_RUNS:
                    self._apart_until = self.runs + _APART_RUNS
                self._last_long = self.runs
            run_s = min(run_s, most_s)
        self.runs += 1
        weight = 1.0 / rows
        self._n = self._n * _KEEP + weight
        self._x = self._x * _KEEP + 1.0
        self._t = self._t * _KEEP + weight * run_s
        self._xx = self._xx * _KEEP + rows
        self._xt = self._xt * _KEEP + run_s
        if self.runs < _FIT_ALWAYS_RUNS or self.runs % _FIT_EVERY_RUNS == 0:
            self._fit()

    def _fit(self) -> None:
        spread = self._n * self._xx - self._x * self._x
        self._least_s = 0.0
        if spread <= 1e-9 * self._n * self._xx:  # all runs had as many rows: more cost more, fewer perhaps the same
            self._base_s, self._row_s = 0.0, self._xt / self._xx
            self._least_s = self._t / self._n
            return
        row_s = max(0.0, (self._n * self._xt - self._x * self._t) / spread)
        base_s = (self._t - row_s * self._x) / self._n
        if base_s < 0.0:  # through the origin, then
            base_s, row_s = 0.0, self._xt / self._xx
        self._base_s, self._row_s = base_s, row_s

    @property
    def is_sure(self) -> bool:
        """Whether what is expected can be relied upon."""
        return self.runs >= MIN_RUNS and self.runs >= self._apart_until

    def describe(self) -> dict[str, float]:
        """The fit: a run of n rows takes base_s + n * row_s, and least_s at the least."""
        return {"runs": self.runs, "base_s": self._base_s, "row_s": self._row_s, "least_s": self._least_s}

    def expected_s(self, rows: int) -> float:
        """Seconds that a run of *rows* rows is expected to take; infinity before the first run."""
        return max(self._least_s, self._base_s + self._row_s * rows)


class BestSize:
    """The batch size at which a row is cheapest, learned from runs of all sizes. Pure.

    A straight line cannot tell it: trees get dearer per row in large batches, matrix products cheaper. Sizes are kept
    by powers of two, each with an exponentially weighted mean of the time per row.
    inline_budget_s: a run that takes no longer is done on the event loop.
    """

    __slots__ = ("_batches", "_best", "_inline_budget_s", "_per_row_s", "_runs", "_wait_s")

    def __init__(self, inline_budget_s: float = 0.0) -> None:
        self._inline_budget_s = inline_budget_s
        self._wait_s = 0.0
        self._best: int | None = None  # None: no larger size is known to be worse
        self._per_row_s: dict[int, float] = {}  # by the exponent of the next power of two
        self._runs: dict[int, int] = {}
        self._batches = 0

    def observe(self, rows: int, run_s: float) -> None:
        """Learn from one run of *rows* rows that took *run_s* seconds."""
        overhead_s = _LOOP_OVERHEAD_S if run_s <= self._inline_budget_s else _THREAD_OVERHEAD_S
        size, per_row_s = (rows - 1).bit_length(), (run_s + overhead_s) / rows
        before_s = self._per_row_s.get(size)
        if before_s is None:
            self._per_row_s[size], self._runs[size] = per_row_s, 1
            return
        runs = self._runs[size] = self._runs[size] + 1
        self._per_row_s[size] = before_s + 0.1 * (min(per_row_s, _SPIKE * before_s) - before_s)
        if runs % _FIT_EVERY_RUNS == _MIN_RUNS_OF_A_SIZE:
            self._choose()

    def wait_at_most(self, wait_s: float) -> None:
        """Hold the largest size whose run takes *wait_s* at the most for better, if it is not much dearer."""
        self._wait_s = wait_s
        self._choose()

    def _choose(self) -> None:
        known = {size: cost_s for size, cost_s in self._per_row_s.items() if self._runs[size] >= _MIN_RUNS_OF_A_SIZE}
        if not known:
            return
        cheapest_s = min(known.values())
        best = min(size for size, cost_s in known.items() if cost_s * (1 - _WORTH) <= cheapest_s)
        if self._wait_s:
            good = [size for size, cost_s in known.items() if cost_s * (1 - _WORTH_WAITING) <= cheapest_s]
            short = [size for size in good if size <= best and known[size] * (1 << size) <= self._wait_s]
            best = max(short, default=best)
        self._best = None if best == max(known) else 1 << best

    def describe(self, most: int) -> dict[str, Any]:
        """What it holds to be best now, and the seconds per row by the largest size of a class of sizes."""
        return {"best_rows": self.best_rows(most), "per_row_s": {1 << size: s for size, s in self._per_row_s.items()}}

    def best_rows(self, most: int) -> int:
        """The rows that a batch should have at the most, 1 to *most*; *most* while larger sizes may still be better."""
        return most if self._best is None else min(most, self._best)

    def next_rows(self, most: int) -> int:
        """The limit of the next batch: the best size, and now and then twice or half of it, since machines change."""
        best = self.best_rows(most)
        self._batches += 1
        if self._batches % _PROBE_EVERY == 0:
            return min(most, 2 * best)
        if self._batches % _PROBE_SMALLER_EVERY == 0:
            return max(1, best // 2)
        return best


class DrainRate:
    """Rows per second that a queue has lately let out while it was busy. Pure."""

    __slots__ = ("_rows", "_span_s")

    def __init__(self) -> None:
        self._rows = self._span_s = 0.0

    def observe(self, rows: int, span_s: float) -> None:
        """*rows* rows left, *span_s* seconds after the batch before them or after the queue was last empty."""
        self._rows = self._rows * _KEEP + rows
        self._span_s = self._span_s * _KEEP + span_s

    def wait_s(self, rows: int) -> float:
        """Seconds until *rows* rows will have left; 1 s while nothing is known."""
        return rows * self._span_s / self._rows if self._rows else 1.0


def finish_s(cost: RunCost, rows_ahead: int, rows: int, batch_rows: int) -> float:
    """Seconds until *rows* rows will be answered that come now, behind *rows_ahead* others, in batches of *batch_rows*.

    0 while the cost is not known: nobody is turned away on a guess. Source of the idea: Clockwork (arXiv 2006.02464).
    """
    if cost.runs < MIN_RUNS:
        return 0.0
    total = rows_ahead + rows
    whole, rest = divmod(total, batch_rows)
    run_s = whole * cost.expected_s(batch_rows) + (cost.expected_s(rest) if rest else 0.0)
    return run_s + (whole + (rest > 0)) * _THREAD_OVERHEAD_S
