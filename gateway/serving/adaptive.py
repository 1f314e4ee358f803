"""How many rows may wait at a version: fewer while they wait too long, more while they do not. Pure; no clock.

Additive increase, multiplicative decrease, as TCP does it; what is looked at is the wait in the queue and not the time
of the whole answer, which for a batching server also holds runs that are long on purpose.
"""

from __future__ import annotations

# The waits of so long a time are looked at together. The shortest of them counts (as in CoDel, RFC 8289): only a queue
# that stands makes everybody wait, a burst does not.
INTERVAL_S = 0.1
_DECREASE = 0.7
# Where the limit begins, and what it never exceeds: until it is learned an overload fills the queue that far, and those
# requests wait for all of it. More may wait where nothing is learned, since there nobody counts how long.
BEGIN_ROWS = 8192
# What an interval adds: a share of one batch while the limit is made use of, so that the queue stays near its target;
# a share of the bound while it is not, so that what an overload has left behind is gone after some seconds.
_STEP_OF_A_BATCH = 1 / 8
_STEP_OF_THE_BOUND = 1 / 50
# A wait for a run may take so many times as long as the run: its batch is formed, and its answers are written.
_ABOUT = 1.1
# The least that may wait, beside a whole batch: where rows run one by one, some clients must still find room.
_LEAST_ROWS = 8


class QueueLimit:
    """The limit of one version.

    target_s: a wait above it is too long, unless a run takes as long: whoever comes while one runs waits for its end.
    most_rows: the bound of the queue, where the limit begins.
    """

    __slots__ = (
        "_before_s",
        "_has_waits",
        "_most_rows",
        "_peak_rows",
        "_runs",
        "_runs_s",
        "_shortest_s",
        "_since_s",
        "_target_s",
        "rows",
    )

    def __init__(self, target_s: float, most_rows: int, now_s: float) -> None:
        self.rows = float(most_rows)
        self._target_s = target_s
        self._most_rows = most_rows
        self._since_s = now_s
        self._before_s = 0.0  # what the last run of the interval before took
        self._begin()

    def _begin(self) -> None:
        self._has_waits, self._shortest_s, self._peak_rows, self._runs, self._runs_s = False, 0.0, 0, 0, 0.0

    def observe(
        self, wait_s: float, run_s: float, rows: int, batch_rows: int, now_s: float, *, row_s: float = 0.0
    ) -> bool:
        """A batch has run. Returns whether an interval is over, and the limit may be another one.

        wait_s: of its oldest entry; run_s: of the batch; rows: that were in the queue with it; batch_rows: of a batch
        of the best size; row_s: what a row of the batch took of its run. What runs within the target may always wait:
        where a row is cheaper than a refusal, refusing it helps nobody.
        """
        self._shortest_s = min(self._shortest_s, wait_s) if self._has_waits else wait_s
        self._has_waits = True
        self._peak_rows = max(self._peak_rows, rows)
        self._runs += 1
        self._runs_s += run_s
        intervals = int((now_s - self._since_s) / INTERVAL_S)
        if intervals < 1:
            return False
        within_target = self._target_s / row_s if row_s > 0 else 0.0
        least = min(self._most_rows, max(_LEAST_ROWS, batch_rows, within_target))
        # The mean, since one run of many was held up, perhaps; where runs are as long as intervals, the one waited for.
        too_long_s = max(self._target_s, self._runs_s / self._runs, _ABOUT * self._before_s)
        if self._shortest_s > too_long_s:
            # From what has really waited: a limit far above it would be lowered for long without any effect. And to
            # what would have waited as long as one may, at once: who is let in meanwhile waits behind all the others.
            share = min(_DECREASE, too_long_s / self._shortest_s)
            self.rows = max(least, share * min(self.rows, self._peak_rows))
        else:
            is_used = 2 * self._peak_rows >= self.rows
            used = max(1.0, batch_rows * _STEP_OF_A_BATCH)
            unused = max(1.0, self._most_rows * _STEP_OF_THE_BOUND)
            step = (used if is_used else unused) + (intervals - 1) * unused
            self.rows = min(float(self._most_rows), max(least, self.rows + step))
        self._since_s = now_s
        self._before_s = run_s
        self._begin()
        return True
