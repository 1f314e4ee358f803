"""The threads that run models for too long to do it on the event loop, and who gets the next one that is free."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

# A run waits for a thread, though the loop could do it, if one will be free within this many times its own duration:
# meanwhile it gathers company, and runs at the same time would only take the processor from each other. A much shorter
# run than the one in the thread does not wait.
_WORTH_WAITING = 4.0
# Runs that may hold a thread that is not counted any more: a thread more for each.
_MAX_LENT = 4


class RunPool:
    """A worker's run threads. All methods are called on the event loop.

    Who asks when no thread is free stands in line; a batch is formed only when its turn has come, so that it takes all
    that is queued by then.
    """

    def __init__(
        self, threads: int, *, clock: Callable[[], float] = time.monotonic, executor: Executor | None = None
    ) -> None:
        self._executor = executor or ThreadPoolExecutor(threads, thread_name_prefix="run")
        # Its threads start when they are first needed.
        self._spare = executor or ThreadPoolExecutor(threads + _MAX_LENT, thread_name_prefix="spare-run")
        self._lent: set[object] = set()
        self._free = threads
        self._clock = clock
        self._line: deque[Callable[[], None]] = deque()
        self._ends_s: dict[object, float] = {}  # when the runs that go on are expected to end

    @property
    def has_free(self) -> bool:
        """Whether a thread is free now."""
        return self._free > 0

    def describe(self) -> dict[str, int]:
        """Threads that are free, runs that go on, who stands in line, and runs whose threads were made up for."""
        return {"free": self._free, "running": len(self._ends_s), "in_line": len(self._line), "lent": len(self._lent)}

    def ask(self, use: Callable[[], None]) -> None:
        """Have *use* called once with a thread reserved, perhaps before this returns; it must `run` or `give_back`.

        Who stands in line stays there until its turn.
        """
        if self._free:
            self._free -= 1
            self._use(use)
        else:
            self._line.append(use)

    def _use(self, use: Callable[[], None]) -> None:
        try:
            use()
        except BaseException:
            self.give_back()  # a thread must not be lost with who asked for it
            raise

    def run(self, work: Callable[[], object], token: object, expected_s: float) -> None:
        """Do *work* in the reserved thread. *token* is given back with the thread when the work is done."""
        self._ends_s[token] = self._clock() + expected_s
        (self._spare if self._lent else self._executor).submit(work)

    def give_back(self, token: object = None) -> None:
        """The thread is free for who stands next in line."""
        self._ends_s.pop(token, None)
        if token in self._lent:
            self._lent.discard(token)
        else:
            self._pass_on()

    def lend(self, token: object) -> None:
        """The work of *token* may hold its thread for long: until it gives it back, others have one more."""
        if token in self._ends_s and len(self._lent) < _MAX_LENT:
            del self._ends_s[token]
            self._lent.add(token)
            self._pass_on()

    def _pass_on(self) -> None:
        if self._line:
            self._use(self._line.popleft())
        else:
            self._free += 1

    def is_worth_waiting_for(self, expected_s: float) -> bool:
        """Whether a run of *expected_s* seconds should rather wait for a thread than be done on the loop."""
        if self._free or self._line:  # or the next free thread is promised to somebody
            return False
        ends_s = self._ends_s.values()
        # A run that is overdue may be so for long.
        return bool(ends_s) and abs(min(ends_s) - self._clock()) <= _WORTH_WAITING * expected_s

    def close(self) -> None:
        """Take no more work. Python waits for what runs when the process ends."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._spare.shutdown(wait=False, cancel_futures=True)
