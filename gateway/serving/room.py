"""Who may still join the queue of a version, and when those who may not should ask again."""

from __future__ import annotations

from gateway.errors import GatewayError, InvalidInput, OverShare, QueueFull, Shed
from gateway.serving.adaptive import QueueLimit
from gateway.serving.batch_policy import DrainRate
from gateway.serving.entry import Entry, Run
from gateway.serving.priority import CRITICAL, NAMES, SHEDDABLE
from gateway.serving.shares import GREED

# Up to which share of the queue's bound requests of each priority are let in.
_SHARES = (1.0, 0.9, 0.5)


class QueueRoom:
    """The room in one version's queue.

    max_rows: what it takes at the most. limit: what it shall take, if that is learned. bound_rows: what it takes now.
    easy_rows: with no more than these, nobody is refused, and nothing else need be looked at. busy_since_s: since when
    the rows that wait have been waiting for nothing but other runs.
    """

    __slots__ = ("_drain", "_limit", "_limits", "_max_rows", "bound_rows", "busy_since_s", "easy_rows")

    def __init__(self, max_rows: int, limit: QueueLimit | None = None) -> None:
        self._max_rows = max_rows
        self._limit = limit
        self._drain = DrainRate()
        self.busy_since_s = 0.0
        self._follow(max_rows if limit is None else int(limit.rows))

    def _follow(self, bound_rows: int) -> None:
        self.bound_rows = bound_rows
        self._limits = tuple([share * bound_rows for share in _SHARES])
        self.easy_rows = self._limits[SHEDDABLE]

    def ran(self, run: Run, queued_rows: int, batch_rows: int, now_s: float) -> None:
        """A batch has run that was waited for, or others wait behind it. batch_rows: of a batch of the best size."""
        if queued_rows:  # the pace of an idle queue says nothing
            self._drain.observe(run.rows, now_s - self.busy_since_s)
            self.busy_since_s = now_s
        limit = self._limit
        if limit is None:
            return
        waited, row_s = run.rows + queued_rows, run.run_s / run.rows
        if limit.observe(run.oldest_wait_s, run.run_s, waited, batch_rows, now_s, row_s=row_s):
            self._follow(int(limit.rows))

    def retry_after_s(self, queued_rows: int) -> float:
        """The time after which so many rows will have left, as it looks now."""
        return min(60.0, max(1.0, self._drain.wait_s(queued_rows)))

    def check(self, entry: Entry, queued_rows: int) -> None:
        """Refuse an entry of which its head alone is known, if it finds no room. Raises QueueFull, Shed, OverShare."""
        if queued_rows >= self.easy_rows:
            error = self.refusal(entry, queued_rows)
            if error is not None:
                try:
                    raise error
                finally:
                    # It holds this frame, which would hold it, and with it the call and its body: thousands a second
                    # until the garbage collector comes, which then takes some ten milliseconds.
                    del error

    def refusal(self, entry: Entry, queued_rows: int) -> GatewayError | None:
        """Why an entry may not join *queued_rows* others; None if it may. An empty queue takes what fits."""
        rows, priority, share = entry.rows, entry.priority, entry.share
        if rows > self._max_rows:
            return InvalidInput("rows", f"{rows} rows", f"at most {self._max_rows} in one request")
        limit = self._limits[priority]
        bound_rows = (
            self._max_rows if priority == CRITICAL else self.bound_rows
        )  # what is learned is the others' business
        if queued_rows + rows > self._max_rows or queued_rows >= bound_rows:
            text = f"{queued_rows} rows are queued and {bound_rows} may be"
            return QueueFull(text, retry_after_s=self.retry_after_s(queued_rows))
        if queued_rows and queued_rows >= limit and priority != CRITICAL:
            text = f"{queued_rows} rows are queued, and with priority {NAMES[priority]} one may join up to {limit:g}"
            return Shed(text, retry_after_s=self.retry_after_s(queued_rows))
        if share is not None and queued_rows and priority != CRITICAL:
            held = share.rows - rows
            if held and held > GREED * (limit - queued_rows - rows):
                text = (
                    f"{queued_rows} rows are queued, one may join up to {limit:g}, and this client has {held} rows in "
                    f"flight: more than {GREED:g} times the room that would be left"
                )
                return OverShare(text, retry_after_s=self.retry_after_s(queued_rows))
        return None
