"""The garbage collector of a worker: what is loaded is not looked through again and again."""

from __future__ import annotations

import gc

# Container objects made and not freed before it looks at the young ones; Python's own value is 700.
_THRESHOLD = 50_000


def calm() -> None:
    """Take all that is there now as here to stay, and look at the rest seldom. Called once, when models are loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_THRESHOLD, 50, 100)
