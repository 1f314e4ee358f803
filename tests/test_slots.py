"""The pause between the deaths of a child and its next start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import SupervisorSettings
from gateway.slots import Backoff, Death

SETTINGS = SupervisorSettings(backoff_min_s=0.1, backoff_max_s=10.0, stable_after_s=30.0)


def test_the_pause_doubles_with_each_death_in_a_row_up_to_its_bound() -> None:
    backoff = Backoff(SETTINGS)
    pauses = [backoff.after(1.0) for _ in range(10)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0])
    assert backoff.deaths == 10


def test_a_long_life_starts_the_count_again() -> None:
    backoff = Backoff(SETTINGS)
    for _ in range(5):
        backoff.after(1.0)
    assert backoff.after(30.0) == pytest.approx(0.1)
    assert backoff.deaths == 1


@given(st.lists(st.floats(0, 1e6), max_size=200), st.floats(0.001, 3600), st.floats(0.001, 3600), st.floats(0, 86_400))
def test_every_pause_is_within_its_bounds(
    lives_s: list[float], min_s: float, max_s: float, stable_after_s: float
) -> None:
    backoff = Backoff(SupervisorSettings(backoff_min_s=min_s, backoff_max_s=max_s, stable_after_s=stable_after_s))
    for lived_s in lives_s:
        assert min_s <= backoff.after(lived_s) <= max(min_s, max_s)


def test_who_was_asked_to_end_or_ended_by_itself_has_not_crashed() -> None:
    crashes = {code: Death(1, 2, code, 4.0, 0.1).is_crash for code in (0, 1, -15, -2, -1, -6, -8, -9, -11)}
    assert [code for code, is_crash in crashes.items() if is_crash] == [-6, -8, -9, -11]


def test_a_death_says_how() -> None:
    assert str(Death(1, 2, 3, 4.0, 0.1)) == "exit code 3"
    assert str(Death(1, 2, -9, 4.0, 0.1)) == "killed by SIGKILL"
