"""When the cache does not pay, and what that does to hot questions and to those that never come back."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.serving.cache_policy import CachePolicy


def ask(policy: CachePolicy, bodies: list[bytes], kept: set[bytes]) -> int:
    """Send bodies through the policy with a cache that keeps all; returns how many were looked up."""
    looked = 0
    for body in bodies:
        if policy.should_look(body):
            looked += 1
            policy.looked(hit=body in kept)
            kept.add(body)
    return looked


def unique(count: int, prefix: bytes = b"") -> list[bytes]:
    return [prefix + b"%d" % number for number in range(count)]


def test_questions_that_never_come_back_are_soon_neither_looked_up_nor_kept() -> None:
    policy = CachePolicy(lambda: 1e-6)
    assert ask(policy, unique(20_000), set()) < 3_000
    assert policy.is_wary


@pytest.mark.parametrize("hot_count", [1, 3, 500])
def test_a_hot_question_is_answered_from_the_cache_even_among_ever_new_ones(hot_count: int) -> None:
    policy, kept = CachePolicy(lambda: 1e-6), set[bytes]()
    ask(policy, unique(5_000), kept)
    assert policy.is_wary
    hot = unique(hot_count, b"hot ")
    looked = 0
    for turn in range(10):
        looked += ask(policy, hot, kept)
        ask(policy, unique(500, b"cold %d " % turn), kept)
    # All times but the first, less those when a cold question had taken the place: three in a hundred.
    assert looked >= 0.5 * 9 * hot_count


def test_where_most_questions_come_back_the_cache_is_open_again() -> None:
    policy, kept = CachePolicy(lambda: 1e-6), set[bytes]()
    ask(policy, unique(5_000), kept)
    assert policy.is_wary
    ask(policy, unique(500, b"hot ") * 40, kept)
    assert not policy.is_wary


@given(hits=st.integers(0, 2048), run_us=st.floats(0, 10_000))
def test_the_cache_pays_if_its_hits_save_more_than_its_misses_cost(hits: int, run_us: float) -> None:
    saved_us, cost_us = hits * (4 + run_us), (2048 - hits) * 10
    assume(abs(saved_us - cost_us) > 1e-6 * cost_us)
    policy = CachePolicy(lambda: run_us * 1e-6)
    for number in range(2048):
        policy.looked(hit=number < hits)
    assert policy.is_wary is (saved_us < cost_us)


@given(bodies=st.lists(st.binary(min_size=1, max_size=2), max_size=200))
def test_a_wary_policy_looks_up_nothing_that_was_not_asked_before(bodies: list[bytes]) -> None:
    policy = CachePolicy(lambda: 0.0)
    for _ in range(2048):
        policy.looked(hit=False)
    seen: set[bytes] = set()
    for body in bodies:
        is_looked_up = policy.should_look(body)
        assert body in seen or not is_looked_up
        assert policy.should_look(body)
        seen.add(body)
