"""Samples and labels that the disk did not take: told once, with what is missing when it is over, over all workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control.disk_alarms import RECOVERED_AFTER_S, LostSamples
from gateway.control.status import WorkerStatus
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import verify_trail


def worker(
    slot: int = 0, *, full: int = 0, errors: int = 0, trouble: str = "", host: str = "", age_s: float = 0.0, **more: Any
) -> WorkerStatus:
    """A worker that lost so many samples, and no label."""
    samples = {"lost": {"disk_full": full, "write_error": errors}, "trouble": trouble}
    labels = {"lost": {"disk_full": 0, "write_error": 0}, "trouble": ""}
    document = {"slot": slot, "boot": "b", "pid": 100 + slot, "logs": {"samples": samples, "labels": labels}}
    return WorkerStatus({**document, **more}, age_s, host)


class Rig:
    def __init__(self, root: Path) -> None:
        self.now_s = 1_800_000_000.0
        self.store = SqliteStore(root / "flags.sqlite", clock=lambda: self.now_s)
        self.statuses: list[WorkerStatus] = []
        self.restart()

    def restart(self) -> None:
        self.check = LostSamples(self.store, lambda: self.statuses, clock=lambda: self.now_s)

    def see(self, *statuses: WorkerStatus, seconds: float = 1.0) -> list[tuple[str, str, dict[str, int]]]:
        """One look, and what has been said by then: log, state, what was lost."""
        self.statuses = [*statuses]
        self.check.look()
        self.now_s += seconds
        return [(row.after["log"], row.after["state"], row.after["lost"]) for row in self.rows]

    @property
    def rows(self) -> list[Any]:
        return self.store.history(limit=1000)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    verify_trail(rig.store)
    rig.store.close()


def test_a_loss_is_told_once_and_its_end_with_all_that_is_missing(rig: Rig) -> None:
    assert rig.see(worker(0), worker(1)) == []
    opened = ("samples", "open", {"disk_full": 3})
    assert rig.see(worker(0, full=3, trouble="disk_full: no room"), worker(1)) == [opened]
    assert rig.see(worker(0, full=5, trouble="disk_full: no room"), worker(1, full=2, trouble="x")) == [opened]
    assert rig.see(worker(0, full=5), worker(1, full=2, errors=1), seconds=RECOVERED_AFTER_S - 1) == [opened]
    assert rig.see(worker(0, full=5), worker(1, full=2, errors=1)) == [opened]
    over = ("samples", "recovered", {"disk_full": 7, "write_error": 1})
    assert rig.see(worker(0, full=5), worker(1, full=2, errors=1)) == [opened, over]
    assert len(rig.see(worker(0, full=5), worker(1, full=2, errors=1), seconds=1000)) == 2
    assert rig.see(worker(0, full=6), worker(1, full=2, errors=1))[2:] == [("samples", "open", {"disk_full": 1})]
    row, end = rig.rows[:2]
    assert (row.verb, row.target, row.after["workers"]) == ("alarm.samples", "log:samples", [0])
    assert row.reason == "samples are being dropped on worker 0: disk_full: no room"
    assert end.reason == "samples are written again; 8 samples were lost (7 disk_full, 1 write_error)"


def test_it_is_not_over_while_a_worker_has_trouble_even_if_nothing_comes_that_could_be_lost(rig: Rig) -> None:
    troubled = worker(0, full=1, trouble="disk_full: no room")
    for _ in range(5):
        rig.see(troubled, seconds=RECOVERED_AFTER_S)
    assert len(rig.rows) == 1
    for _ in range(3):
        rig.see(seconds=RECOVERED_AFTER_S)  # no worker is there to say anything
        rig.see(worker(0, full=1, age_s=60.0), seconds=RECOVERED_AFTER_S)
    assert len(rig.rows) == 1


def test_a_disk_at_its_bound_is_one_alarm(rig: Rig) -> None:
    for number in range(50):
        rig.see(worker(0, full=number // 2, trouble="disk_full: no room" if number % 2 else ""), seconds=5.0)
    assert len(rig.rows) == 1


def test_trouble_that_cost_nothing_yet_is_told_too(rig: Rig) -> None:
    assert rig.see(worker(0, trouble="write_error: fdatasync")) == [("samples", "open", {})]
    rig.see(worker(0), seconds=RECOVERED_AFTER_S)
    rig.see(worker(0))
    assert rig.rows[1].reason == "samples are written again; nothing was lost that was counted"


def test_a_restart_of_control_says_nothing_again_and_misses_nothing(rig: Rig) -> None:
    rig.see(worker(0, full=3, trouble="x"))
    rig.restart()
    assert len(rig.see(worker(0, full=4, trouble="x"))) == 1
    rig.see(worker(0, full=4), seconds=RECOVERED_AFTER_S)
    assert rig.see(worker(0, full=4))[1:] == [("samples", "recovered", {"disk_full": 4})]
    rig.restart()
    assert len(rig.see(worker(0, full=4))) == 2
    rig.restart()
    assert rig.see(worker(0, full=9))[2:] == [("samples", "open", {"disk_full": 5})]  # lost while control was away


def test_what_a_worker_lost_that_died_since_is_counted_and_its_successor_begins_at_none(rig: Rig) -> None:
    rig.see(worker(0, full=3, trouble="x"))
    rig.see(worker(0, full=4, trouble="x"))
    rig.see(worker(0, full=1, pid=999), seconds=RECOVERED_AFTER_S)
    assert rig.see(worker(0, full=1, pid=999))[1:] == [("samples", "recovered", {"disk_full": 5})]


def test_logs_and_hosts_are_told_apart(rig: Rig) -> None:
    lost = {"lost": {"disk_full": 2, "write_error": 0}, "trouble": "no room"}
    fine = {"lost": {"disk_full": 0, "write_error": 0}, "trouble": ""}
    rig.see(worker(0, host="a", logs={"samples": fine, "labels": lost}), worker(0, host="b", full=1))
    whys = sorted(row.reason for row in rig.rows)
    both = (
        "labels are being refused on host a, worker 0: no room; samples are being dropped on host b: lost: 1 disk_full"
    )
    assert whys == [both, both]  # one reason for what was found in one look
    assert [row.after["host"] for row in rig.rows] == ["a", "b"]


@pytest.mark.parametrize("logs", [None, 3, {}, {"samples": 3}, {"samples": {"lost": {"disk_full": "x"}}}, {"new": {}}])
def test_what_another_version_says_is_passed_by(rig: Rig, logs: Any) -> None:
    assert rig.see(worker(0, logs=logs), worker(1, full=1)) == [("samples", "open", {"disk_full": 1})]
