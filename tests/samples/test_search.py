"""Finding rows again in the log: the newest ones, and those of a span of time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.samples.search import Selection, newest, select
from gateway.samples.segments import SegmentWriter
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS

MINUTE_NS = 60 * 10**9


def _write(root: Path, minutes: list[int], *, model: str = "iris", version: str = "1", boot: str = "b1") -> None:
    writer = SegmentWriter(root, boot, max_bytes=500, max_age_s=60.0, clock=FakeClock())
    for minute in minutes:
        ts_ns = TEN_O_CLOCK_NS + minute * MINUTE_NS
        writer.write(model, version, ts_ns, b'{"ts_ns":%d,"minute":%d,"pad":"%s"}\n' % (ts_ns, minute, b"p" * 99))
    if boot != "open":
        writer.close()


def _minutes(found: object) -> list[int]:
    assert isinstance(found, list)
    return [record["minute"] for record, _line in found]


@given(st.lists(st.integers(0, 300), max_size=40), st.lists(st.integers(0, 300), max_size=40), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_the_newest_rows_are_found_over_hours_workers_and_open_segments(
    tmp_path_factory: pytest.TempPathFactory, closed: list[int], still_open: list[int], rows: int
) -> None:
    root = tmp_path_factory.mktemp("log")
    _write(root, sorted(closed))
    _write(root, sorted(still_open), boot="open")
    assert _minutes(newest(root, rows, Selection())) == sorted(closed + still_open)[-rows:]


def test_the_end_of_a_segment_much_longer_than_one_step_is_found(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "b1", max_bytes=10**9, max_age_s=60.0, clock=FakeClock())
    line = b'{"ts_ns":%d,"n":%d,"pad":"%s"}\n'
    lines = [line % (TEN_O_CLOCK_NS + n, n, b"p" * 5000) for n in range(200)]
    writer.write("iris", "1", TEN_O_CLOCK_NS, b"".join(lines))
    assert [raw for _record, raw in newest(tmp_path, 50, Selection())] == lines[-50:]
    writer.close()


@given(st.integers(-10, 310), st.integers(-10, 310))
@settings(max_examples=30, deadline=None)
def test_a_span_of_time_holds_its_start_and_not_its_end(
    tmp_path_factory: pytest.TempPathFactory, since: int, until: int
) -> None:
    root = tmp_path_factory.mktemp("log")
    every = list(range(0, 300, 10))
    _write(root, every)
    span = Selection(since_ns=TEN_O_CLOCK_NS + since * MINUTE_NS, until_ns=TEN_O_CLOCK_NS + until * MINUTE_NS)
    wanted = [minute for minute in every if since <= minute < until]
    assert _minutes(list(select(root, span))) == wanted
    assert _minutes(newest(root, 5, span)) == wanted[-5:]


def test_a_model_and_a_version_can_be_chosen(tmp_path: Path) -> None:
    _write(tmp_path, [1], model="iris", version="1")
    _write(tmp_path, [2], model="iris", version="2", boot="b2")
    _write(tmp_path, [3], model="house", version="2", boot="b3")
    assert _minutes(list(select(tmp_path, Selection(model="iris")))) == [1, 2]
    assert _minutes(list(select(tmp_path, Selection(model="iris", version="2")))) == [2]
    assert _minutes(list(select(tmp_path, Selection(version="2")))) == [3, 2]


def test_strangers_and_torn_lines_in_the_log_are_passed_over(tmp_path: Path) -> None:
    _write(tmp_path, [1, 2], boot="open")
    (tmp_path / "model=iris" / "version=1" / "date=never" / "hour=99").mkdir(parents=True)
    with next(tmp_path.rglob("*.open")).open("ab") as torn:
        torn.write(b'no json\n[]\n{"ts_ns":1')
    assert _minutes(list(select(tmp_path, Selection()))) == [1, 2]
    assert _minutes(newest(tmp_path, 10, Selection())) == [1, 2]
