"""When the connections of a port are looked at: by their clocks, and never so many in one turn that others wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.port import Port
from gateway.settings import ServerSettings
from tests.puppet import FakeClock

BOUNDS = ServerSettings(keep_alive_s=1000, request_timeout_s=1000.0, write_timeout_s=1000.0)


class Looked:
    """A connection that is late at a time that the test says, and tells who looks at it."""

    def __init__(self, name: str, seen: list[str], due_s: float = float("inf")) -> None:
        self.name, self.due_s = name, due_s
        self.look_by = 0
        self._seen = seen

    def end_if_late(self, now_s: float) -> float:
        self._seen.append(self.name)
        return self.due_s


def run(scenario: Callable[[Port[Any], FakeClock], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario beside a port that watches its connections."""

    async def begin() -> None:
        clock = FakeClock()
        port: Port[Any] = Port(BOUNDS, owner="test", refusal=lambda *_: b"", on_refused=lambda: None, clock=clock)
        watching = asyncio.create_task(port.watch())
        async with asyncio.timeout(60):
            await scenario(port, clock)
        watching.cancel()

    asyncio.run(begin())


async def until(check: Callable[[], bool]) -> None:
    while not check():
        await asyncio.sleep(0.001)


def test_a_connection_is_looked_at_when_it_may_be_late_and_now_and_then() -> None:
    async def scenario(port: Port[Any], clock: FakeClock) -> None:
        seen: list[str] = []
        port.enter(late := Looked("late", seen, clock() + 110))
        port.enter(Looked("other", seen))
        for seconds, names in ((101, {"late", "other"}), (10, {"late"}), (101, {"late", "other"})):
            seen.clear()
            clock.advance(seconds)
            late.due_s = float("inf") if seconds == 10 else late.due_s
            await until(lambda names=names: set(seen) >= names)  # type: ignore[misc]
            assert sorted(seen) == sorted(names)

    run(scenario)


def test_one_whose_clocks_fail_does_not_stop_those_of_the_others() -> None:
    class Broken(Looked):
        def end_if_late(self, now_s: float) -> float:
            super().end_if_late(now_s)
            raise RuntimeError("a clock that fails")

    async def scenario(port: Port[Any], clock: FakeClock) -> None:
        seen: list[str] = []
        port.enter(Broken("broken", seen))
        port.enter(Looked("other", seen))
        for _ in range(3):
            seen.clear()
            clock.advance(101)
            await until(lambda: set(seen) == {"broken", "other"})

    run(scenario)


def test_a_deadline_that_comes_before_the_next_look_is_seen_and_a_later_one_changes_nothing() -> None:
    async def scenario(port: Port[Any], clock: FakeClock) -> None:
        seen: list[str] = []
        connections = {name: Looked(name, seen) for name in ("soon", "later", "gone")}
        for connection in connections.values():
            port.enter(connection)
        port.look_before(connections["soon"], clock() + 5)
        port.look_before(connections["later"], clock() + 500)
        port.look_before(connections["gone"], clock() + 5)
        port.leave_out(connections["gone"])
        port.look_before(connections["gone"], clock() + 5)
        clock.advance(6)
        await until(lambda: bool(seen))
        clock.advance(95)
        await until(lambda: len(seen) == 2)
        assert seen == ["soon", "later"]
        assert port.open == {connections["soon"], connections["later"]}

    run(scenario)


def test_thousands_that_are_late_together_do_not_hold_up_the_others() -> None:
    async def scenario(port: Port[Any], clock: FakeClock) -> None:
        seen: list[str] = []

        class Slow(Looked):
            def end_if_late(self, now_s: float) -> float:
                clock.advance(100e-6)
                return super().end_if_late(now_s)

        for _ in range(3000):
            port.enter(Slow("", seen))
        leaving = [Slow("", seen) for _ in range(10)]
        for connection in leaving:
            port.enter(connection)
        clock.advance(101)
        most = before = 0
        while len(seen) < 2990:
            await asyncio.sleep(0)
            most, before = max(most, len(seen) - before), len(seen)
            if len(seen) > 100:  # in the midst of it
                for connection in leaving:
                    port.leave_out(connection)
        assert 0 < most <= 20

    run(scenario)
