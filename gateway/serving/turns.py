"""Whose load may begin: that of a version under suspicion last, and one at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Set

# How often a load that may only run alone looks whether the others are done.
_RETRY_S = 0.02
# How long it waits for them, and again for those of its own kind: one that hangs must not keep the others out.
_WAIT_S = 2.5


class Turns:
    """The order of a worker's loads. suspects: versions that were in flight when a worker died.

    If this worker dies too while it loads one of them, it is plain of which. others_load: whether one that is no
    suspect is being loaded; called in threads.
    """

    def __init__(self, suspects: Set[tuple[str, str]], others_load: Callable[[], bool]) -> None:
        self._suspects = suspects
        self._others_load = others_load
        self._alone = threading.Lock()

    def is_suspect(self, key: tuple[str, str]) -> bool:
        return key in self._suspects

    @contextlib.contextmanager
    def turn(self, key: tuple[str, str], dismissed: threading.Event) -> Iterator[None]:
        """In the load's thread, around the load: a suspect waits until all others are loaded, and then for its turn.

        Not for ever, and not once it is dismissed.
        """
        if key not in self._suspects:
            yield
            return
        until_s = time.monotonic() + _WAIT_S
        while self._others_load() and time.monotonic() < until_s and not dismissed.wait(_RETRY_S):
            pass
        is_alone = self._alone.acquire(timeout=_WAIT_S)
        try:
            yield
        finally:
            if is_alone:
                self._alone.release()
