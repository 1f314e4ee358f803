"""The one who can still do something when a candidate's run holds the event loop: a thread that looks at the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable

# A run on the event loop was expected to take some hundred microseconds. Meanwhile nobody in this worker is answered.
LIMIT_S = 1.0
_LOOK_S = 0.1


class Overrun:
    """Calls *look* from its own thread, ten times a second while it is needed. look: gets LIMIT_S."""

    def __init__(self, look: Callable[[float], None]) -> None:
        self._look = look
        self._needed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def needed(self, yes: bool) -> None:
        """Start or stop looking."""
        if yes and self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._watch, name="overrun", daemon=True)
            self._thread.start()
        if yes:
            self._needed.set()
        else:
            self._needed.clear()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_S):
            self._needed.wait()
            if not self._closed.is_set():
                self._look(LIMIT_S)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._needed.set()
