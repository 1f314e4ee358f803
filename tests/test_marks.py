"""The notes of a worker, written as it runs and read when it is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import marks
from gateway.marks import IDLE, IN_THREAD, LOADING, ON_LOOP, InFlight, Marks

DIGEST = "d" * 64


@pytest.fixture
def fd() -> Iterator[int]:
    found = marks.create("test")
    yield found
    os.close(found)


def test_what_is_being_done_is_read_and_what_is_done_is_not(fd: int) -> None:
    notes = Marks(fd)
    loading, running, idle, unnamed = (notes.take() for _ in range(4))
    loading.name("iris", "1", DIGEST)
    loading.set_default(True)
    loading.doing[loading.place] = LOADING
    running.name("wine", "2.0-rc.1", DIGEST)
    running.doing[running.place] = IN_THREAD
    idle.name("iris", "3", DIGEST)
    idle.doing[idle.place] = ON_LOOP
    idle.doing[idle.place] = IDLE
    unnamed.doing[unnamed.place] = ON_LOOP
    assert marks.read(fd) == (
        InFlight("iris", "1", DIGEST, LOADING, True),
        InFlight("wine", "2.0-rc.1", DIGEST, IN_THREAD, False),
    )
    running.name("wine", "2.0-rc.1", "another")
    loading.set_default(False)
    assert [(one.digest, one.is_default) for one in marks.read(fd)] == [(DIGEST, False), ("another", False)]


def test_the_longest_names_fit_and_longer_ones_are_nobodys(fd: int) -> None:
    notes = Marks(fd)
    longest, too_long = notes.take(), notes.take()
    longest.name("m" * 64, "v" * 64, "d" * 64)
    longest.doing[longest.place] = ON_LOOP
    too_long.name("m" * 300, "v", "d")
    too_long.doing[too_long.place] = ON_LOOP
    assert [one.model for one in marks.read(fd)] == ["m" * 64]


def test_the_notes_outlive_a_killed_process(fd: int) -> None:
    script = (
        "import os, signal, sys\nfrom gateway.marks import Marks, ON_LOOP\n"
        f"mark = Marks(int(sys.argv[1])).take()\nmark.name('iris', '1', '{DIGEST}')\n"
        "mark.doing[mark.place] = ON_LOOP\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(fd)], pass_fds=[fd])
    assert done.returncode == -signal.SIGKILL
    assert marks.read(fd) == (InFlight("iris", "1", DIGEST, ON_LOOP, False),)


def test_who_has_nobody_to_tell_may_write_all_the_same() -> None:
    mark = Marks(None).take()
    mark.name("iris", "1", DIGEST)
    mark.set_default(True)
    mark.doing[mark.place] = ON_LOOP


def test_when_all_places_are_taken_the_others_stay(fd: int) -> None:
    notes = Marks(fd)
    first = notes.take()
    first.name("iris", "1", DIGEST)
    first.doing[first.place] = ON_LOOP
    for _ in range(marks.PLACES):
        last = notes.take()
    last.name("wine", "1", DIGEST)
    last.doing[last.place] = ON_LOOP
    assert [one.model for one in marks.read(fd)] == ["iris"]


@given(st.dictionaries(st.integers(0, 40), st.integers(0, 255)), st.lists(st.binary(max_size=60), max_size=8))
def test_notes_that_make_no_sense_are_passed_over(states: dict[int, int], records: list[bytes]) -> None:
    fd = marks.create("torn")
    try:
        for place, state in states.items():
            os.pwrite(fd, bytes([state]), place)
        for place, record in enumerate(records):
            os.pwrite(fd, record, 2 * marks.PLACES + place * marks.RECORD_BYTES)
        assert len(marks.read(fd)) <= len(states)
        os.ftruncate(fd, 100)
        marks.read(fd)
    finally:
        os.close(fd)
