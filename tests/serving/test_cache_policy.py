"""When the cache is passed by, and when it is looked into again."""

from __future__ import annotations

from hypothesis import given
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


def test_unique_questions_soon_pass_the_cache_by() -> None:
    policy = CachePolicy()
    looked = ask(policy, unique(20_000), set())
    assert policy.bypassing
    assert looked < 3_000


def test_hot_questions_are_looked_up_and_bring_the_cache_back_after_unique_ones() -> None:
    policy, kept = CachePolicy(), set[bytes]()
    hot = unique(500, b"hot ")
    assert ask(policy, hot * 10, kept) == 5_000
    ask(policy, unique(5_000), kept)
    assert policy.bypassing
    ask(policy, hot * 40, kept)
    assert not policy.bypassing


@given(rate=st.floats(0, 1), seed=st.integers(0, 1000))
def test_the_decision_follows_the_share_of_hits(rate: float, seed: int) -> None:
    policy = CachePolicy()
    hits = 0
    for number in range(2048):
        hit = (number * 7919 + seed) % 2048 < rate * 2048
        hits += hit
        policy.looked(hit=hit)
    assert policy.bypassing is (hits < 0.05 * 2048)
