"""How many users a load test has at which moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import SHAPES


@pytest.mark.parametrize(
    ("shape", "users"),
    [("steady", [50, 50, 50, 50, 50]), ("ramp", [1, 16, 31, 47, 50]), ("spike", [5, 5, 50, 5, 5])],
)
def test_a_shape_says_how_many_users_there_are(shape: str, users: list[int]) -> None:
    assert [SHAPES[shape](share, 50) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == users


@given(st.sampled_from(sorted(SHAPES)), st.floats(0, 1), st.integers(1, 10_000))
def test_there_is_always_a_user_and_never_more_than_asked_for(shape: str, share: float, users: int) -> None:
    assert 1 <= SHAPES[shape](share, users) <= users
