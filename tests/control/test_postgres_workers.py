"""Workers of many hosts, as control counts them; and what it does when it cannot know them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control.changes import Desk
from gateway.control.status import WorkerStatus, not_warm, with_hosts
from gateway.errors import StoreUnavailable
from gateway.flags.audit import SYSTEM
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import HostStatus
from gateway.models.source import DirectorySource
from tests.control.process import route, split


def document(slot: int, state: str = "warm", *, boot: str = "b", pid: int = 1) -> dict[str, Any]:
    versions = {"2": {"state": state, "reason": "", "digest": "d"}}
    return {"slot": slot, "boot": boot, "pid": pid, "models": {"iris": {"versions": versions}}}


def test_a_worker_that_is_known_by_its_file_and_by_the_database_is_told_of_once() -> None:
    pushed = [HostStatus("east", document(0), 2.0), HostStatus("west", document(0, boot="c"), 0.1)]
    here = [WorkerStatus(document(0, "loading"), 0.5), WorkerStatus(document(1), 0.5)]
    found = with_hosts(here, pushed)
    assert [(status.name, status.age_s) for status in found] == [("1", 0.5), ("east/0", 0.5), ("west/0", 0.1)]
    assert found[1].version("iris", "2") == ("loading", ""), "the younger one says so"


@pytest.mark.parametrize("plain", [None, [], "text", {}, {"slot": "x"}, {"boot": "b"}])
def test_what_another_version_of_the_gateway_pushed_harms_nobody(plain: Any) -> None:
    found = with_hosts([], [HostStatus("east", plain, 0.0), HostStatus("west", document(0), 0.0)])
    assert [status.name for status in found] == ["west/0"]


def test_a_host_that_was_not_heard_of_is_not_waited_for() -> None:
    pushed = [HostStatus("east", document(0, "loading"), 3.5), HostStatus("west", document(0, "failed", pid=2), 2.5)]
    blocking = not_warm(with_hosts([], pushed), "iris", ["2"])
    assert blocking == [{"host": "west", "worker": 0, "version": "2", "state": "failed", "reason": ""}]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with contextlib.closing(SqliteStore(tmp_path / "flags.sqlite")) as opened:
        yield opened


def test_without_knowing_the_workers_traffic_is_lowered_and_never_raised(store: SqliteStore, models: Path) -> None:
    def workers() -> list[WorkerStatus]:
        if unknown:
            raise StoreUnavailable("nobody knows")
        return []

    def put(plain: dict[str, Any]) -> None:
        desk.change_flag(
            "iris.route", lambda _before: plain, expected_revision=None, author=SYSTEM, verb="put", reason="a test"
        )

    path = models.parent / "flags.lkg.json"
    desk = Desk(store, last_known_good=path, source=DirectorySource(models), workers=workers)
    unknown = False
    put(route(targeting=split(50)))
    unknown = True
    put(route(targeting=split(10)))
    with pytest.raises(StoreUnavailable, match="nobody knows"):
        put(route(targeting=split(11)))
    put({**route(targeting=split(10)), "state": "DISABLED"})
