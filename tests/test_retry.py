"""How long clients are asked to wait: within bounds, and not all as long."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import QueueFull
from gateway.retry import retry_after
from gateway.serving.replies import error_headers

DRAWN = st.floats(0.0, 1.0, exclude_max=True)


@given(wait_s=st.floats(0.0, 1e6), drawn=DRAWN)
@example(wait_s=1.0, drawn=math.nextafter(1.0, 0.0))
def test_the_wait_is_between_what_is_due_and_half_as_much_more(wait_s: float, drawn: float) -> None:
    asked_s = retry_after(wait_s, drawn)
    due_s = max(1.0, wait_s)
    assert math.ceil(due_s) <= asked_s <= math.ceil(1.5 * due_s)


@given(wait_s=st.integers(1, 100))
def test_each_whole_second_within_the_bounds_is_asked_for_by_some(wait_s: int) -> None:
    found = {retry_after(wait_s, number / 1000) for number in range(1000)}
    assert found == set(range(wait_s, math.ceil(1.5 * wait_s) + 1))


def test_who_is_refused_together_does_not_come_back_together() -> None:
    error = QueueFull("full", retry_after_s=20.0)
    waits = {int(value) for _ in range(500) for name, value in error_headers(error) if name == b"retry-after"}
    assert waits == set(range(20, 31))
