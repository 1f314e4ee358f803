"""When those who were refused shall ask again: not all at once."""

from __future__ import annotations

import math

# What a client is asked to wait beyond the wait itself, at the most, as a share of it.
_MOST = 0.5


def retry_after(wait_s: float, drawn: float) -> int:
    """The Retry-After for a wait, in whole seconds: *wait_s* to half as much more, both rounded up, and at least 1.

    drawn: by chance, from 0 up to but not 1. Clients that were refused together would else come back together.
    """
    wait_s = max(1.0, wait_s)
    least, most = math.ceil(wait_s), math.ceil((1 + _MOST) * wait_s)
    return least + int(drawn * (most - least + 1))
