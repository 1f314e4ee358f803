"""Leases: one holder at a time, for its time, over both stores."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import RevisionConflict
from gateway.flags import lease
from gateway.flags.audit import SYSTEM
from gateway.flags.postgres import PostgresStore
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import FlagStore, Record, RecordWrite
from tests.live import eventually


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[FlagStore]:
    with contextlib.closing(SqliteStore(tmp_path / "flags.sqlite", clock=clock)) as opened:
        yield opened


def test_one_holds_a_lease_until_its_time_is_over(store: FlagStore, clock: FakeClock) -> None:
    first = lease.take(store, "rollouts", "a", 10)
    assert first == lease.Lease("rollouts", "a", 1010.0, 1)
    clock.now_s += 9
    assert lease.take(store, "rollouts", "b", 10) is None
    assert lease.take(store, "webhooks", "b", 10) is not None, "another lease is another matter"
    assert lease.take(store, "rollouts", "a", 10) == lease.Lease("rollouts", "a", 1019.0, 2), "held for longer"
    clock.now_s += 9.5
    assert lease.take(store, "rollouts", "b", 10) is None
    clock.now_s += 1
    assert lease.take(store, "rollouts", "b", 10) is not None
    assert lease.take(store, "rollouts", "a", 10) is None
    assert store.history() == [], "a trail of leases would bury everything else"


def test_a_turn_is_kept_while_its_holder_looks_and_passes_on_when_it_does_not(
    store: FlagStore, clock: FakeClock
) -> None:
    one, other = (lease.Turn(store, "rollouts", holder, ttl_s=9, clock=clock) for holder in "ab")
    assert (one.is_ours(), other.is_ours()) == (True, False)
    for _ in range(30):
        clock.now_s += 1
        assert (one.is_ours(), other.is_ours()) == (True, False)
    clock.now_s += 10  # the one has gone
    assert other.is_ours()
    assert not one.is_ours()


def test_a_lease_that_was_let_go_is_free_at_once(store: FlagStore) -> None:
    first = lease.take(store, "rollouts", "a", 10)
    assert first is not None
    lease.release(store, first)
    second = lease.take(store, "rollouts", "b", 10)
    assert second is not None
    lease.release(store, first)  # it is not a's any more
    assert lease.take(store, "rollouts", "a", 10) is None


def test_what_is_written_under_a_lease_that_was_lost_meanwhile_is_not_written(
    store: FlagStore, clock: FakeClock
) -> None:
    def write(held: lease.Lease, step: int) -> None:
        rollout = RecordWrite("rollout", "iris", {"step": step})
        store.commit(author=SYSTEM, verb="v", reason="r", records=[held.fence(), rollout])

    first = lease.take(store, "rollouts", "a", 10)
    assert first is not None
    write(first, 1)
    first = lease.take(store, "rollouts", "a", 10)
    assert first is not None
    clock.now_s += 11
    assert lease.take(store, "rollouts", "b", 10) is not None
    with pytest.raises(RevisionConflict):
        write(first, 2)  # it slept for too long to notice
    assert store.record("rollout", "iris") == Record("rollout", "iris", 1, {"step": 1})


def test_of_many_controls_on_a_database_one_gets_the_lease_and_its_time_is_the_databases(database: str) -> None:
    won: list[str] = []
    start = threading.Barrier(4)

    def compete(holder: str) -> None:
        with contextlib.closing(PostgresStore(database)) as mine:
            mine.load()
            start.wait()
            if lease.take(mine, "rollouts", holder, 0.3):
                won.append(holder)

    threads = [threading.Thread(target=compete, args=(f"control-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    with contextlib.closing(PostgresStore(database)) as store:
        eventually(lambda: lease.take(store, "rollouts", "late", 60), "the lease ends by itself")
        assert lease.take(store, "rollouts", won[0], 60) is None
