"""Whom a queue that fills turns away first, and whom last."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs.codec import Request
from gateway.errors import GatewayError, InvalidInput, OverShare, QueueFull, Shed
from gateway.serving.adaptive import BEGIN_ROWS, QueueLimit
from gateway.serving.call import Call
from gateway.serving.entry import Entry, Run
from gateway.serving.priority import CRITICAL, NORMAL, SHEDDABLE
from gateway.serving.room import QueueRoom
from gateway.serving.shares import Shares
from gateway.serving.target import Target
from gateway.settings import BatchSettings, ServerSettings
from tests.serving.rig import CODECS, Rig, meant, run


async def keep_busy(rig: Rig) -> None:
    """A row of the default version is in the pool until the rig settles."""
    rig.ask(1.0)
    await rig.turn()
    await rig.turn()
    assert rig.pool.is_busy


def waiting(rows: int, priority: int = NORMAL) -> Entry:
    entry = Entry(Request(rows, flat=b""), 1.0, None)  # type: ignore[arg-type]  # nobody is told anything here
    entry.priority = priority
    return entry


@given(max_rows=st.integers(1, 1000), rows=st.integers(1, 1200), queued=st.integers(0, 1000))
def test_lower_priorities_are_turned_away_first_and_an_empty_queue_takes_what_fits(
    max_rows: int, rows: int, queued: int
) -> None:
    room = QueueRoom(max_rows)
    found = [room.refusal(waiting(rows, priority), queued) for priority in (CRITICAL, NORMAL, SHEDDABLE)]
    assert [error is None for error in found] == sorted([error is None for error in found], reverse=True)
    if rows > max_rows:
        assert all(isinstance(error, InvalidInput) for error in found)
    elif queued + rows > max_rows:
        assert all(isinstance(error, QueueFull) for error in found)
    else:
        assert found[CRITICAL] is None
        assert isinstance(found[NORMAL], Shed) == (queued >= 0.9 * max_rows)
        assert isinstance(found[SHEDDABLE], Shed) == (queued >= 0.5 * max_rows and queued > 0)
    if queued + rows <= room.easy_rows:
        assert found == [None, None, None]


@given(
    bound=st.integers(200, 2000),
    asks=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=300),
)
def test_whoever_has_little_finds_room_however_much_the_others_ask_for(bound: int, asks: list[tuple[str, int]]) -> None:
    room, shares, queued = QueueRoom(bound), Shares(), 0
    held = dict.fromkeys("abc", 0)
    for client, rows in [*asks, *[("a", 5), ("b", 5)] * bound]:
        entry = waiting(rows)
        shares.join(entry, client, "m")
        shares.grow(entry)
        error = room.refusal(entry, queued)
        if error is None:
            queued += rows
            held[client] += rows
        else:
            assert queued + rows > room.easy_rows
            if isinstance(error, OverShare):
                assert held[client] > 8 * (0.9 * bound - queued - rows)
                assert held[client] > 0, "whoever has nothing is asked for no share"
            shares.leave(entry)
    assert len(shares) == sum(count > 0 for count in held.values())
    assert queued <= 24 / 25 * 0.9 * bound + 5, "three that ask without end leave a twenty-fifth"
    newcomer = waiting(1)
    shares.join(newcomer, "newcomer", "m")
    assert room.refusal(newcomer, queued) is None
    critical = waiting(1, CRITICAL)
    shares.join(critical, "a", "m")
    assert room.refusal(critical, queued) is None, "who is critical is asked for no share"


def test_shares_end_with_the_calls_that_hold_them() -> None:
    shares = Shares()
    entries = [waiting(rows) for rows in (1, 3, 2)]
    for entry, client in zip(entries, ("a", "a", "b"), strict=True):
        shares.join(entry, client, "m")
    assert [entry.share and entry.share.rows for entry in entries] == [2, 2, 1]
    shares.grow(entries[1])
    assert [entry.share and entry.share.rows for entry in entries] == [4, 4, 1]
    entries[1].rows = 1  # it starts again somewhere else, and has not been read there yet
    for entry in entries:
        shares.leave(entry)
        shares.leave(entry)  # nobody is counted off twice
    assert len(shares) == 0


def test_calls_are_let_in_by_their_priority_and_before_they_are_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False, max_queue_rows=10)
        await keep_busy(rig)
        rig.ask(*[1.0] * 5)
        await rig.turn()
        shed = rig.ask(1.0, priority="sheddable", body=b"{")
        assert isinstance(shed.error, Shed), "and not the InvalidInput that a look at its body would have given"
        rig.ask(*[1.0] * 4)
        await rig.turn()
        assert isinstance(rig.ask(1.0).error, Shed)
        assert isinstance(rig.ask(1.0, priority="normal").error, Shed)
        last = rig.ask(1.0, priority="Critical")
        await rig.turn()
        assert isinstance(rig.ask(1.0, priority="critical").error, QueueFull)
        await rig.settle()
        assert last.error is None
        with pytest.raises(InvalidInput, match="header x-request-priority"):
            rig.ask(1.0, priority="urgent")
        assert rig.ask(1.0, priority="sheddable") is rig.callers[-1]
        await rig.settle()
        assert rig.callers[-1].error is None
        rig.check_nothing_is_held()

    run(scenario)


def test_whom_those_of_the_same_turn_leave_no_room_is_not_read_either(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False, max_queue_rows=10)
        unread = [rig.ask(*[1.0] * 5), rig.ask(1.0, priority="sheddable", body=b"{")]
        await rig.settle()
        assert isinstance(unread[1].error, InvalidInput), "nobody had to wait"
        await keep_busy(rig)
        first, early = rig.ask(*[1.0] * 4), rig.ask(1.0, priority="sheddable", body=b"{")
        second, late = rig.ask(1.0), rig.ask(1.0, priority="sheddable", body=b"{")
        await rig.turn()
        assert isinstance(early.error, InvalidInput), "there was room for it"
        assert isinstance(late.error, Shed)
        await rig.settle()
        assert (first.error, second.error) == (None, None)
        rig.check_nothing_is_held()

    run(scenario)


@pytest.mark.parametrize("too_many", [12, 8])
def test_who_is_refused_takes_no_room_from_those_behind(tmp_path: Path, too_many: int) -> None:
    """One has more rows than the queue takes at all, the other more than are left: their rows are counted nowhere."""

    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False, max_queue_rows=10)
        await keep_busy(rig)
        rig.ask(*[1.0] * 3)
        large = rig.ask(*[1.0] * too_many)
        others = [rig.ask(1.0, body=json.dumps({"id": name, **meant("oip", (1.0,))}).encode()) for name in "ab"]
        await rig.settle()
        assert isinstance(large.error, InvalidInput if too_many > 10 else QueueFull)
        assert [other.error for other in others] == [None, None]
        rig.check_nothing_is_held()

    run(scenario)


def test_a_call_that_waits_for_an_equal_one_is_not_turned_away_by_the_others_priority(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path, max_queue_rows=10)
        await keep_busy(rig)
        rig.ask(*[2.0, 3.0, 4.0, 5.0])
        await rig.turn()
        rig.ask(6.0)  # with it the queue is half full when the next one joins
        sheddable, critical = rig.ask(7.0, priority="sheddable"), rig.ask(7.0, priority="critical")
        await rig.settle()
        assert (sheddable.error, critical.error) == (None, None)
        rig.check_nothing_is_held()

    run(scenario)


def test_a_room_that_learns_takes_less_once_its_rows_wait_too_long() -> None:
    room = QueueRoom(1000, QueueLimit(0.02, 1000, 0.0))
    assert room.refusal(waiting(1, NORMAL), 99) is None
    room.ran(Run(10, 10, "drained", 0.025, 0.01), 90, 8, 0.2)
    assert room.bound_rows == 70
    assert isinstance(room.refusal(waiting(1, NORMAL), 70), QueueFull)
    assert isinstance(room.refusal(waiting(1, NORMAL), 63), Shed)
    assert room.refusal(waiting(1, CRITICAL), 999) is None, "what is learned is the others' business"
    assert isinstance(room.refusal(waiting(1, CRITICAL), 1000), QueueFull)
    assert room.refusal(waiting(900, NORMAL), 0) is None, "an empty queue takes what fits"


def test_a_row_of_each_connection_finds_room_where_nothing_is_learned() -> None:
    """Who is refused asks again at once, mostly, and a refusal costs as much as a cheap answer."""
    room = QueueRoom(BatchSettings().max_queue_rows)
    assert room.refusal(waiting(1), ServerSettings().max_connections - 1) is None


def test_what_is_learned_begins_lower_and_is_none_of_the_critical_ones_business() -> None:
    most_rows = BatchSettings().max_queue_rows
    room = QueueRoom(most_rows, QueueLimit(0.005, BEGIN_ROWS, 0.0))
    assert room.bound_rows == BEGIN_ROWS < most_rows
    assert isinstance(room.refusal(waiting(1), BEGIN_ROWS), QueueFull)
    assert room.refusal(waiting(1, CRITICAL), BEGIN_ROWS) is None


def test_versions_have_limits_of_their_own(tmp_path: Path) -> None:
    """A candidate that is slow must not take the stable version's room."""

    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False, max_queue_rows=1000, max_batch_rows=8, adaptive="on")
        for _ in range(4):
            for _ in range(20):
                rig.ask(1.0, pinned="2", timeout_s=60.0)
                await rig.turn()
            rig.advance(0.3)
            rig.pool.run_one()
            await rig.turn()
            await rig.turn()
        await rig.settle()
        assert rig.versions["2"].batcher.room.bound_rows < 100
        assert rig.versions["1"].batcher.room.bound_rows == 1000

    run(scenario)


@pytest.mark.parametrize(
    ("error", "priority", "body"),
    [(QueueFull, "critical", b""), (Shed, "sheddable", b""), (InvalidInput, "critical", b"{")],
)
def test_who_is_refused_is_freed_without_the_garbage_collector(
    tmp_path: Path, error: type[GatewayError], priority: str, body: bytes
) -> None:
    """It comes thousands of times a second under overload, and everybody waits while the collector clears up."""

    async def scenario() -> None:
        rig = Rig(tmp_path, cache=False, max_queue_rows=10)
        rig.ask(1.0)
        await rig.turn()
        await rig.turn()
        rig.ask(*[1.0] * (10 if error is QueueFull else 8))
        await rig.turn()
        found: list[type[object]] = []

        def on_reply(call: Call, error: GatewayError | None, *_: object) -> None:
            found.append(type(error))
            rig.admission.close(call)

        def refused() -> weakref.ref[Call]:
            (codec,) = [one for one in CODECS if one.name == "oip"]
            call = rig.admission.open(Target(codec, "m", None), {"x-request-priority": priority}, len(body))
            call.body = body
            rig.pipeline.begin(call, on_reply)
            return weakref.ref(call)

        gc.collect()
        gc.disable()
        try:
            calls = [refused() for _ in range(3)]
            await rig.turn()
            await rig.turn()
            assert found == [error] * 3
            assert [call() for call in calls] == [None] * 3
        finally:
            gc.enable()
        await rig.settle()
        rig.check_nothing_is_held()

    run(scenario)
