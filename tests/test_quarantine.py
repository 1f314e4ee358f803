"""The quarantine list: written by two processes, read by many, and never half."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from gateway import quarantine
from gateway.errors import QuarantineUnavailable, StoreUnavailable
from gateway.quarantine import Follower, Quarantined


def entry(version: str, digest: str = "d1") -> Quarantined:
    return Quarantined("iris", version, digest, "two deaths", "2026-01-01T00:00:00.000Z")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quarantine.json"


def test_what_is_added_is_read_and_what_is_lifted_is_not(path: Path) -> None:
    assert quarantine.read(path) == []
    quarantine.add(path, [entry("1")])
    quarantine.add(path, [entry("2"), entry("2", "d2")])
    quarantine.add(path, [entry("1")])
    assert {one.key for one in quarantine.read(path)} == {
        ("iris", "1", "d1"), ("iris", "2", "d1"), ("iris", "2", "d2")
    }  # fmt: skip
    assert quarantine.lift(path, "iris", "2") == [entry("2"), entry("2", "d2")]
    assert quarantine.read(path) == [entry("1")]
    assert quarantine.lift(path, "iris", "2") == []
    document = json.loads(path.read_text())
    assert document["schema"] == 1
    assert document["versions"][0].keys() == {"model", "version", "digest", "reason", "ts"}


def test_nothing_is_lifted_that_cannot_be_announced(path: Path) -> None:
    quarantine.add(path, [entry("1")])

    def refuse(lifted: list[Quarantined]) -> None:
        assert lifted == [entry("1")]
        raise StoreUnavailable("no disk")

    with pytest.raises(StoreUnavailable):
        quarantine.lift(path, "iris", "1", announce=refuse)
    assert quarantine.read(path) == [entry("1")]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"schema": 2, "versions": []}', '{"schema": 1, "versions": [{"model": "iris"}]}',
                '{"schema": 1, "versions": [{"model": 1, "version": "", "digest": "", "reason": "", "ts": ""}]}']
)  # fmt: skip
def test_a_list_that_makes_no_sense_is_told_and_replaced_by_the_next_death(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(QuarantineUnavailable, match="no list of quarantined versions"):
        quarantine.read(path)
    quarantine.add(path, [entry("1")])
    assert quarantine.read(path) == [entry("1")]


def test_a_follower_is_told_once_of_each_change(path: Path) -> None:
    follower = Follower(path)
    assert follower.news() == []
    assert follower.news() is None
    quarantine.add(path, [entry("1")])
    assert follower.news() == [entry("1")]
    assert follower.news() is None
    quarantine.add(path, [entry("1", "d2")])
    assert follower.news() == [entry("1"), entry("1", "d2")]
    path.write_text("{")
    with pytest.raises(QuarantineUnavailable):
        follower.news()
    assert follower.news() is None
    path.unlink()
    assert follower.news() == []


def test_a_lock_that_is_never_let_go_holds_up_a_lift_but_no_quarantine(path: Path) -> None:
    quarantine.add(path, [entry("1")])
    fd = os.open(path.with_name(".quarantine.json.lock"), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(QuarantineUnavailable, match="holds the lock"):
            quarantine.lift(path, "iris", "1")
        quarantine.add(path, [entry("2")])
    finally:
        os.close(fd)
    assert quarantine.read(path) == [entry("1"), entry("2")]


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(QuarantineUnavailable, match="cannot lock"):
        quarantine.add(tmp_path / "missing" / "quarantine.json", [entry("1")])


def test_a_list_that_cannot_be_written_is_told_and_leaves_no_draft(path: Path) -> None:
    path.mkdir()
    with pytest.raises(QuarantineUnavailable, match="cannot write"):
        quarantine.add(path, [entry("1")])
    assert {each.name for each in path.parent.iterdir()} == {path.name, ".quarantine.json.lock"}


def add_many(path: Path, name: str) -> None:
    for number in range(40):
        quarantine.add(path, [entry(f"{name}-{number}")])


def test_writers_in_several_processes_lose_nothing_of_each_other(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    quarantine.add(path, [entry(f"old-{number}") for number in range(40)])
    writers = [context.Process(target=add_many, args=(path, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for number in range(40):
        assert quarantine.lift(path, "iris", f"old-{number}")
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    expected = {f"{name}-{number}" for name in ("a", "b") for number in range(40)}
    assert {one.version for one in quarantine.read(path)} == expected
