"""How much a request matters to who sent it: what may wait is turned away before what may not."""

from __future__ import annotations

from gateway.errors import InvalidInput

HEADER = "x-request-priority"
CRITICAL, NORMAL, SHEDDABLE = range(3)
NAMES = ("critical", "normal", "sheddable")


def priority_of(came: str) -> int:
    """The priority that a header names. Raises InvalidInput."""
    try:
        return NAMES.index(came.strip().lower())
    except ValueError:
        raise InvalidInput(f"header {HEADER}", repr(came[:40]), "critical, normal or sheddable") from None


def priority_of_number(number: int) -> int:
    """The priority that a number of the Open Inference Protocol means: 1 is its highest, 0 the default of the model."""
    return NORMAL if number == 0 else min(number - 1, SHEDDABLE)
