"""Labels: what is one, how its line reads back, and how the lines of several writers are followed."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidInput
from gateway.samples.labels import OPEN_LABELS, Label, LabelLog, LabelMark, LabelReader, checked, from_line, items_in
from gateway.samples.segments import recover
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS

DAY_NS = 24 * 3600 * 10**9

scalars = (
    st.text(max_size=1024)
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
labels = st.builds(
    Label,
    prediction_id=st.text(string.printable, min_size=1, max_size=128),
    label=scalars | st.dictionaries(st.text(max_size=128), scalars, min_size=1, max_size=4),
    ts_ns=st.integers(0, 2**62),
    row=st.none() | st.integers(0, 2**31),
    event_ts_ns=st.none() | st.integers(0, 2**63 - 1),
    source=st.text(max_size=128),
    weight=st.none() | st.floats(1e-9, 1e9),
)


@given(labels)
def test_a_label_reads_back_from_its_line_and_its_line_is_one_line(label: Label) -> None:
    line = label.to_line()
    assert from_line(line) == label
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(json.dumps({**json.loads(line), "of_a_later_writer": 1}).encode()) == label


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["prediction_id", "label", "row", "x"]), inner),
    max_leaves=20,
)


@given(json_values | st.binary())
def test_whatever_comes_is_a_label_or_is_refused_by_name(came: Any) -> None:
    body = came if isinstance(came, bytes) else json.dumps(came).encode()
    refused = []
    try:
        is_bulk, items = items_in(body)
    except InvalidInput as error:
        is_bulk, items, refused = False, [], [error.field]
    for item in items:
        try:
            label = checked(item, ts_ns=1, where="items[0]." if is_bulk else "")
            assert from_line(label.to_line()) == label
        except InvalidInput as error:
            refused.append(error.field)
    known = ("items[0]",) if is_bulk else ("body", "prediction_id", "label", "row", "x")
    assert all(name.startswith(known) for name in refused)


def test_a_whole_number_may_be_written_as_a_fraction() -> None:
    label = checked({"prediction_id": "p", "label": 1, "row": 3.0, "event_ts_ns": 1e18}, ts_ns=1)
    assert (label.row, label.event_ts_ns) == (3, 10**18)
    assert b'"row":3,' in label.to_line()


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"label": 1}, "items[7].prediction_id"),
        ({"prediction_id": "p"}, "items[7].label"),
        ({"prediction_id": "", "label": 1}, "items[7].prediction_id"),
        ({"prediction_id": 5, "label": 1}, "items[7].prediction_id"),
        ({"prediction_id": "p" * 129, "label": 1}, "items[7].prediction_id"),
        ({"prediction_id": "p", "label": None}, "items[7].label"),
        ({"prediction_id": "p", "label": [1]}, "items[7].label"),
        ({"prediction_id": "p", "label": {}}, "items[7].label"),
        ({"prediction_id": "p", "label": {"a": {}}}, "items[7].label.a"),
        ({"prediction_id": "p", "label": float("inf")}, "items[7].label"),
        ({"prediction_id": "p", "label": 1, "row": -1}, "items[7].row"),
        ({"prediction_id": "p", "label": 1, "row": True}, "items[7].row"),
        ({"prediction_id": "p", "label": 1, "event_ts_ns": 1.5}, "items[7].event_ts_ns"),
        ({"prediction_id": "p", "label": 1, "weight": 0}, "items[7].weight"),
        ({"prediction_id": "p", "label": 1, "source": 1}, "items[7].source"),
        ({"prediction_id": "p", "labl": 1}, "items[7].labl"),
        ("p", "items[7]"),
        (b"{", "items[7]"),
    ],
)
def test_a_wrong_item_is_refused_and_its_field_named(item: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        checked(item, ts_ns=1, where="items[7].")
    assert caught.value.field == field


def test_an_object_is_one_label_a_list_and_lines_are_many() -> None:
    one, two = b'{"prediction_id": "p", "label": 1}', b'{"prediction_id": "q", "label": 2}'
    assert items_in(one) == (False, [json.loads(one)])
    assert items_in(b"[" + one + b"," + two + b"]") == (True, [json.loads(one), json.loads(two)])
    assert items_in(one + b"\r\n\n" + two + b"\n") == (True, [one, two])
    with pytest.raises(InvalidInput):
        items_in(one[:-1])


# -- the log ------------------------------------------------------------------------------------------


def log_of(root: Path, boot: str, *, max_bytes: int = 10**6) -> LabelLog:
    return LabelLog(root, boot=boot, max_bytes=max_bytes, max_age_s=3600)


def append(log: LabelLog, *names: str, ts_ns: int = TEN_O_CLOCK_NS) -> None:
    log.append([Label(name, 1, ts_ns).to_line() for name in names], ts_ns)
    log.sync()


def read(reader: LabelReader, max_bytes: int = 10**6) -> list[str]:
    return [from_line(line).prediction_id for block in reader.read(max_bytes) for line in block.splitlines()]


def test_labels_of_several_writers_and_days_are_read_once_each_also_after_they_are_closed(tmp_path: Path) -> None:
    one, two = log_of(tmp_path, "b1"), log_of(tmp_path, "b2")
    reader = LabelReader(tmp_path)
    append(one, "p0", "p1")
    append(two, "p2", ts_ns=TEN_O_CLOCK_NS + DAY_NS)
    assert read(reader) == ["p0", "p1", "p2"]
    append(one, "p3")
    one.close()
    two.close()
    assert read(reader) == ["p3"]
    assert read(reader) == []
    again = LabelReader(tmp_path, LabelMark(dict(reader.mark.offsets), reader.mark.finished))
    assert read(again) == []
    assert sorted(path.parent.name for path in tmp_path.glob("labels/*/*.jsonl")) == [
        "date=2026-03-01",
        "date=2026-03-02",
    ]


def test_a_reader_of_labels_says_whether_it_stopped_before_the_end(tmp_path: Path) -> None:
    names = [f"p{index:05}" for index in range(15_000)]  # more than the longest line, of which a read takes no part
    append(log_of(tmp_path, "b1", max_bytes=10**8), *names)
    reader = LabelReader(tmp_path)
    got, reads = read(reader, 1), 1
    while reader.has_more:
        got += read(reader, 1)
        reads += 1
    assert got == names
    assert reads > 1


def test_days_that_are_over_and_read_are_forgotten_and_no_label_is_read_again(tmp_path: Path) -> None:
    clock = FakeClock(TEN_O_CLOCK_NS / 1e9)
    reader = LabelReader(tmp_path, clock=clock)
    log = log_of(tmp_path, "b1")
    append(log, "p0")
    assert read(reader) == ["p0"]
    clock.advance(2 * 86_400)
    reader.forget_finished()
    assert reader.mark.finished == ""  # its writer has not closed it
    append(log, "p1")
    log.close()
    reader.forget_finished()
    assert reader.mark.finished == ""  # not all is read
    assert read(reader) == ["p1"]
    reader.forget_finished()
    assert (reader.mark.finished, reader.mark.offsets) == ("date=2026-03-01", {})
    assert read(reader) == []
    later = log_of(tmp_path, "b2")
    append(later, "p2", ts_ns=TEN_O_CLOCK_NS + 2 * DAY_NS)
    assert read(reader) == ["p2"]


def test_what_a_killed_writer_left_is_closed_and_its_torn_line_cut(tmp_path: Path) -> None:
    log = log_of(tmp_path, "dead")
    append(log, "p0")
    log.close()
    (path,) = tmp_path.glob("labels/*/*.jsonl")
    torn = path.with_name("dead-999999999-000001.jsonl.open")
    path.rename(torn)
    with torn.open("ab") as file:
        file.write(b'{"schema":1,"predic')
    reader = LabelReader(tmp_path)
    assert read(reader) == ["p0"]
    assert recover(tmp_path, boot="b1", pattern=OPEN_LABELS) == 1
    assert read(reader) == []
    assert read(LabelReader(tmp_path)) == ["p0"]
