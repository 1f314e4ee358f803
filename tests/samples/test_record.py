"""Which predictions are drawn: by their id alone, and as many as the rate says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.samples.record import sample_hash, sampling_limit


@given(st.uuids(), st.floats(0, 1), st.floats(0, 1))
def test_what_a_lower_rate_samples_a_higher_one_samples_too(identity: object, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert not is_sampled(str(identity), low) or is_sampled(str(identity), high)
    assert is_sampled(str(identity), 1.0)
    assert not is_sampled(str(identity), 0.0)


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_a_rate_samples_that_share(rate: float) -> None:
    share = sum(is_sampled(f"id-{index}", rate) for index in range(20_000)) / 20_000
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / 20_000)


def is_sampled(identity: str, rate: float) -> bool:
    return sample_hash(identity) < sampling_limit(rate)
