"""What the guards promise, through the real controller: a healthy canary stays, a bad one goes soon."""

from __future__ import annotations

import pytest

from tests.control.simulated import Traffic, simulate


@pytest.mark.parametrize("seed", range(30))
def test_a_healthy_canary_is_promoted(seed: int) -> None:
    """The promise is at most one of a hundred; `benchmarks/false_rollbacks.py` counts a thousand."""
    outcome = simulate(Traffic(), seed)
    assert outcome.phase == "promoting", outcome


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("worse", "most_requests"), [(5.0, 5000), (20.0, 500)])
def test_a_canary_that_fails_more_often_is_taken_back_soon(worse: float, most_requests: int, seed: int) -> None:
    outcome = simulate(Traffic(worse=worse), seed)
    assert outcome.phase == "aborting", outcome
    assert outcome.requests <= most_requests


def test_a_slow_canary_is_taken_back() -> None:
    outcome = simulate(Traffic(slower=4.0), seed=1)
    assert outcome.phase == "aborting", outcome
    assert outcome.why.startswith("slow:")
