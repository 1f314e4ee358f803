"""The breaker as a pure machine: what opens it, how few requests it risks, and that it finds its way back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.breaker import FIRST_OPEN_S, LAST_ROUND, MAX_OPEN_S, MAX_ROW, ROUND_S, Breaker

RUNS = st.tuples(st.just("run"), st.integers(0, 30), st.integers(0, 30))
STEPS = st.lists(
    st.one_of(
        RUNS,
        RUNS,
        st.tuples(st.just("bad"), st.just(0), st.integers(1, 3)),
        st.tuples(st.just("ask"), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 9.9, 10.0, 60.0, 400.0]), st.just(0)),
    ),
    max_size=120,
)


@given(STEPS)
def test_an_open_breaker_admits_nobody_in_its_time_and_a_half_open_one_only_its_round(steps: list[Any]) -> None:
    breaker, now_s = Breaker(), 1000.0
    opened_at_s, let, row = 0.0, 0, 0
    for kind, first, second in steps:
        before, opened = breaker.state, breaker.opened
        if kind == "wait":
            now_s += first
        elif kind == "ask":
            admitted = breaker.admits(now_s)
            assert admitted or before != "closed"
            if before == "open" and admitted:
                assert now_s >= opened_at_s + FIRST_OPEN_S
                assert breaker.state == "half_open"
                let = 0
            let += admitted
            if breaker.state == "open":
                assert not admitted
                assert now_s < opened_at_s + MAX_OPEN_S
        else:
            good, bad = first, second
            patience = breaker.patience
            breaker.observe(good, bad, now_s, "why")
            row = row + 1 if bad and not good else 0
            if before == "closed" and bad and not good and patience == 1:
                assert breaker.state == "open"
            if before == "open":
                assert breaker.state == "open"
            if good and not bad:
                assert breaker.opened == opened
        if breaker.opened > opened:
            opened_at_s, row = now_s, 0
            assert "why" in breaker.reason
        assert breaker.state != "closed" or row < MAX_ROW
        assert let <= (2 * LAST_ROUND) * (1 + breaker.opened) + now_s / ROUND_S


def test_five_failures_in_a_row_open_it_and_not_one_less() -> None:
    breaker = Breaker()
    for _ in range(MAX_ROW - 1):
        breaker.observe(0, 1, 0.0, "boom")
    breaker.observe(1, 0, 0.0)
    assert breaker.patience == MAX_ROW
    for left in range(MAX_ROW, 0, -1):
        assert (breaker.state, breaker.patience) == ("closed", left)
        breaker.observe(0, 1, 0.0, "boom")
    assert (breaker.state, breaker.opened, breaker.reason) == ("open", 1, "5 runs in a row failed: boom")


@pytest.mark.parametrize(("seconds_apart", "state"), [(0.1, "open"), (2.0, "closed")])
def test_half_of_twenty_requests_in_ten_seconds_open_it(seconds_apart: float, state: str) -> None:
    breaker = Breaker()
    for number in range(10):
        breaker.observe(1, 0, number * seconds_apart)
        breaker.observe(0, 1, number * seconds_apart, "boom")
        assert number == 9 or breaker.state == "closed"
    assert breaker.state == state


def test_a_few_bad_requests_among_many_do_not_open_it() -> None:
    breaker = Breaker()
    for number in range(1000):
        breaker.observe(12, 4, number * 0.01, "boom")
    assert breaker.state == "closed"


def open_it(breaker: Breaker, now_s: float) -> None:
    while breaker.state != "open":
        breaker.observe(0, 1, now_s, "boom")


def open_for_s(breaker: Breaker, now_s: float) -> float:
    """How long from *now_s* until it admits somebody, in steps of a second."""
    waited_s = 0.0
    while not breaker.admits(now_s + waited_s):
        waited_s += 1.0
    return waited_s


def test_it_tries_one_two_four_and_eight_requests_and_then_closes() -> None:
    breaker = Breaker()
    open_it(breaker, 0.0)
    let = []
    now_s = FIRST_OPEN_S
    while breaker.state != "closed":
        round_size = 0
        while breaker.admits(now_s):
            round_size += 1
        let.append(round_size)
        breaker.observe(round_size, 0, now_s)
    assert let == [1, 2, 4, 8]


def test_the_time_that_it_is_open_doubles_up_to_five_minutes_and_starts_anew_after_long_health() -> None:
    breaker, now_s = Breaker(), 0.0
    waits = []
    for _ in range(7):
        open_it(breaker, now_s)
        waits.append(open_for_s(breaker, now_s))
        now_s += waits[-1]
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    for size in (1, 2, 4, 8):
        breaker.observe(size, 0, now_s)
    assert breaker.state == "closed"
    open_it(breaker, now_s + MAX_OPEN_S - 1)
    assert open_for_s(breaker, now_s + MAX_OPEN_S - 1) == 300
    for size in (1, 2, 4, 8):
        breaker.observe(size, 0, 10_000.0)
    open_it(breaker, 10_000.0 + MAX_OPEN_S)
    assert open_for_s(breaker, 10_000.0 + MAX_OPEN_S) == FIRST_OPEN_S


def test_a_try_of_which_nothing_is_heard_does_not_keep_it_half_open_for_ever() -> None:
    breaker = Breaker()
    open_it(breaker, 0.0)
    assert breaker.admits(FIRST_OPEN_S)
    assert not breaker.admits(FIRST_OPEN_S + ROUND_S - 1)
    assert breaker.admits(FIRST_OPEN_S + ROUND_S)
