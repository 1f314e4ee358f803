"""Run threads: never more at once than there are, in the order of asking, and waited for only if that pays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.runpool import RunPool
from tests.puppet import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pool(clock: FakeClock) -> Iterator[RunPool]:
    threads = RunPool(1, clock=clock)
    yield threads
    threads.close()


def test_who_asks_while_all_threads_are_taken_gets_the_next_free_one_in_order(pool: RunPool) -> None:
    got: list[str] = []
    for name in ("first", "second", "third"):
        pool.ask(lambda name=name: got.append(name))  # type: ignore[misc]  # a default argument binds the name
    assert got == ["first"]
    pool.give_back()
    assert got == ["first", "second"]
    pool.give_back()
    pool.give_back()
    pool.ask(lambda: got.append("fourth"))
    assert got == ["first", "second", "third", "fourth"]


def test_work_is_done_in_another_thread_than_the_loops(pool: RunPool) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()

        def work() -> None:
            loop.call_soon_threadsafe(done.set_result, threading.get_ident())

        pool.ask(lambda: pool.run(work, "token", 0.001))
        async with asyncio.timeout(20):
            assert await done != threading.get_ident()
        pool.give_back("token")

    asyncio.run(scenario())


def test_a_run_waits_for_a_thread_that_is_soon_free_and_a_far_shorter_one_does_not(
    pool: RunPool, clock: FakeClock
) -> None:
    assert not pool.is_worth_waiting_for(100e-6)  # a thread is free
    pool.ask(lambda: pool.run(lambda: None, "long", 400e-6))
    assert pool.is_worth_waiting_for(150e-6)
    assert not pool.is_worth_waiting_for(5e-6)
    clock.advance(390e-6)
    assert pool.is_worth_waiting_for(5e-6)
    pool.give_back("long")
    assert not pool.is_worth_waiting_for(150e-6)


def test_a_run_does_not_wait_for_an_overdue_one_nor_behind_others(pool: RunPool, clock: FakeClock) -> None:
    pool.ask(lambda: pool.run(lambda: None, "long", 400e-6))
    clock.advance(1.0)
    assert not pool.is_worth_waiting_for(150e-6)
    clock.advance(-1.0)
    assert pool.is_worth_waiting_for(150e-6)
    pool.ask(lambda: None)
    assert not pool.is_worth_waiting_for(150e-6)


def test_a_thread_is_not_lost_with_who_fails_to_use_it(pool: RunPool) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        pool.ask(fail)
    used: list[bool] = []
    pool.ask(lambda: used.append(True))
    assert used == [True]


def test_a_run_of_unknown_length_is_not_waited_for(pool: RunPool) -> None:
    pool.ask(lambda: pool.run(lambda: None, "unknown", float("inf")))
    assert not pool.is_worth_waiting_for(1.0)


@given(threads=st.integers(1, 4), steps=st.lists(st.booleans(), max_size=60))
def test_never_more_than_all_threads_are_taken_and_none_is_lost(threads: int, steps: list[bool]) -> None:
    pool = RunPool(threads, clock=FakeClock())
    taken = asked = 0

    def use() -> None:
        nonlocal taken
        taken += 1

    for is_asking in steps:
        if is_asking:
            asked += 1
            pool.ask(use)
        elif taken:
            taken -= 1
            asked -= 1
            pool.give_back()
        assert taken == min(asked, threads)
    pool.close()


def test_work_that_holds_its_thread_for_long_lends_others_one_until_it_is_done(clock: FakeClock) -> None:
    pool = RunPool(1, clock=clock)
    held, done = threading.Event(), threading.Event()
    got: list[str] = []

    def hold() -> None:
        held.wait(60)

    pool.ask(lambda: pool.run(hold, "long", 0.001))
    pool.ask(lambda: pool.run(done.set, "next", 0.001))
    try:
        pool.lend("long")
        assert done.wait(20)  # in a thread of its own, since the first one is held
    finally:
        held.set()
    pool.lend("long")  # once is enough
    pool.ask(lambda: got.append("third"))
    assert got == []
    pool.give_back("next")
    assert got == ["third"]
    pool.give_back("long")  # what was lent does not become a thread more
    pool.ask(lambda: got.append("fourth"))
    assert got == ["third"]
    pool.give_back()
    assert got == ["third", "fourth"]
    pool.close()
