"""How many users a load test has at which moment, as shares of its run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

RAMP_ENDS_AT = 0.8
SPIKE_FROM, SPIKE_UNTIL = 0.4, 0.6
USUAL_SHARE = 0.1  # of the users, before and after the spike


def steady(_share: float, users: int) -> int:
    """All users from the start."""
    return users


def ramp(share: float, users: int) -> int:
    """From one user to all of them, and the last fifth of the time with all."""
    return max(1, min(users, round(users * share / RAMP_ENDS_AT)))


def spike(share: float, users: int) -> int:
    """A tenth of the users, but all of them for a fifth of the time in the middle."""
    return users if SPIKE_FROM <= share < SPIKE_UNTIL else max(1, round(users * USUAL_SHARE))


# Name -> users wanted at that share (0 to 1) of the run time.
SHAPES: Mapping[str, Callable[[float, int], int]] = {"steady": steady, "ramp": ramp, "spike": spike}
