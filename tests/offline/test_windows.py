"""Finished windows and alarms: each row in one window, and no alarm from one window alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.offline.cuts import Cut, Uncut
from gateway.offline.drift import Column, Verdict, compare
from gateway.offline.history import AlarmRule, Finding, FinishedWindow, alarms, examples
from gateway.offline.rows import Field, Key, Rows, objects
from gateway.offline.windows import Window
from tests.offline.test_drift import RULES, categorical, numeric

S = 10**9


def rows(count: int, *, start: int = 0, step_ns: int = S) -> list[Key]:
    return [(index * step_ns, f"p{index}", 0) for index in range(start, start + count)]


def held(*keys: Key) -> Rows:
    """Rows with one column, their number."""
    ts_ns, ids, row = zip(*keys, strict=True)
    numbers = np.array([[-1.0 if name == "late" else float(name[1:]) for name in ids]])
    return Rows(
        (Field("input", "x", "numeric", "FP64"),), np.array(ts_ns), objects(ids), np.array(row), numbers,
        np.zeros(numbers.shape, np.bool_), np.empty((0, len(ids)), object),
    )  # fmt: skip


def ids(cuts: list[Cut]) -> list[list[str]]:
    for cut in cuts:  # values stay with their row
        assert cut.rows.numbers[0].tolist() == [float(name[1:]) for _ts_ns, name, _row in cut.rows]
    return [[name for _ts_ns, name, _row in cut.rows] for cut in cuts]


# -- by count -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(10, 20), st.randoms(use_true_random=False))
def test_by_count_every_row_is_in_one_window_at_most_and_none_is_lost(
    portions: list[int], limit: int, order: random.Random
) -> None:
    uncut, cuts, written = Uncut(limit), [], 0
    for portion in portions:
        fresh = rows(portion, start=written)
        order.shuffle(fresh)
        for row in fresh:
            uncut.add(held(row))
        written += portion
        cuts += list(uncut.cut(0, is_all_read=order.random() < 0.5))
    cuts += list(uncut.cut(0, is_all_read=True))
    assert all(len(cut.rows) == limit for cut in cuts)
    seen = [name for window in ids(cuts) for name in window] + [row[1] for row in uncut.rows()]
    assert sorted(seen) == sorted(row[1] for row in rows(written))
    assert len(cuts) == written // limit


def test_by_count_a_backlog_that_comes_file_by_file_is_put_into_the_order_of_time() -> None:
    uncut, cuts = Uncut(10), []
    every = rows(30)
    for row in every[::2] + every[1::2]:  # two workers, one file after the other
        uncut.add(held(row))
        cuts += list(uncut.cut(0, is_all_read=False))
    cuts += list(uncut.cut(0, is_all_read=True))
    assert ids(cuts) == [[f"p{index}" for index in range(start, start + 10)] for start in (0, 10, 20)]


# -- by time ------------------------------------------------------------------------------------------


def test_by_time_a_window_is_finished_a_moment_after_its_end_and_later_rows_are_counted_as_late() -> None:
    uncut = Uncut(100, window_ns=60 * S)
    for row in rows(90):
        uncut.add(held(row))
    assert list(uncut.cut(64 * S, is_all_read=True)) == []
    assert list(uncut.cut(70 * S, is_all_read=False)) == []
    (cut,) = uncut.cut(66 * S, is_all_read=True)
    assert [row[0] // S for row in cut.rows] == list(range(60))
    uncut.add(held((59 * S, "late", 0)))
    assert (uncut.late_rows, len(uncut.rows())) == (1, 30)
    (cut,) = uncut.cut(200 * S, is_all_read=True)
    assert [row[0] // S for row in cut.rows] == list(range(60, 90))


def test_by_time_a_full_window_keeps_a_random_draw_that_does_not_depend_on_the_order() -> None:
    every, drawn = rows(5000, step_ns=10**6), []
    for seed in range(3):
        random.Random(seed).shuffle(every)
        uncut = Uncut(200, window_ns=60 * S)
        for row in every:
            uncut.add(held(row))
            assert len(uncut.rows()) < 400
        (cut,) = uncut.cut(100 * S, is_all_read=True)
        drawn.append(ids([cut])[0])
        assert cut.rows_seen == 5000
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0]) == 200
    assert 2000 < np.mean([int(name[1:]) for name in drawn[0]]) < 3000


def test_a_backlog_of_days_holds_no_more_than_its_bound() -> None:
    uncut, cuts = Uncut(10, window_ns=60 * S), []
    for row in rows(200, step_ns=60 * S):
        uncut.add(held(row))
        cuts += list(uncut.cut(10**6 * S, is_all_read=False))
        assert len(uncut.rows()) <= 49
    assert ids(cuts) == [[f"p{index}"] for index in range(152)]


def test_what_is_saved_goes_on_where_it_was() -> None:
    first, second = (Uncut(100, window_ns=3600 * S) for _ in range(2))
    for row in rows(1000):
        first.add(held(row))
    second.restore(first.rows(), first.seen())
    for row in rows(500, start=1000):
        first.add(held(row))
        second.add(held(row))
    (one,), (other,) = first.cut(3700 * S, is_all_read=True), second.cut(3700 * S, is_all_read=True)
    assert (ids([one]), one.rows_seen) == (ids([other]), other.rows_seen)


def test_windows_wait_to_be_judged_as_long_as_there_is_room_and_no_more_of_them_than_are_told_of() -> None:
    window = Window(10, "d1")
    cuts = [Cut(held(*rows(10, start=start)), 10) for start in range(0, 400, 10)]
    size_bytes = cuts[0].rows.size_bytes
    assert window.set_aside(cuts[:3], 3 * size_bytes) == []
    assert window.set_aside(cuts[3:5], 3 * size_bytes) == cuts[:2]
    assert window.set_aside([], 0) == cuts[2:5]
    assert window.set_aside(cuts, 100 * size_bytes) == []
    assert window.set_aside([], 0) == cuts[-32:]


# -- alarms -------------------------------------------------------------------------------------------


def history(**columns: str) -> list[FinishedWindow]:
    """Windows from one letter each: d drifted, s stable, i insufficient."""
    words: dict[str, Verdict] = {"d": "drifted", "s": "stable", "i": "insufficient"}
    return [
        FinishedWindow(
            index * S,
            index * S + 1,
            500,
            500,
            tuple(
                Finding(name, "output" if name == "y" else "input", words[letters[index]], 2000, 500, "ks", 0.2, 1e-6,
                        1e-5, 0.2 + index / 100, "because", (f"p{index}",))
                for name, letters in columns.items()
            ),
        )
        for index in range(len(next(iter(columns.values()))))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("letters", "alarmed", "quiet"),
    [
        ("d", False, False),
        ("s", False, False),
        ("dd", True, False),
        ("ds", False, False),
        ("ss", False, True),
        ("dsd", True, False),
        ("dss", False, True),
        ("ddss", False, True),
        ("didid", True, False),
        ("diii", False, False),
        ("ddiii", True, False),
        ("iii", False, False),
    ],
)
def test_an_alarm_needs_two_of_the_three_newest_windows_that_could_be_judged(
    letters: str, alarmed: bool, quiet: bool
) -> None:
    found, calm = alarms(history(x=letters), AlarmRule(drifted=2, windows=3))
    assert ([alarm.name for alarm in found], calm) == (["x"] * alarmed, ["x"] * quiet)


def test_an_alarm_says_how_much_of_what_when_and_shows_rows() -> None:
    found, _ = alarms(history(x="dds", y="ddd", z="sdd"), AlarmRule(2, 3))
    assert [(alarm.name, alarm.window_from_ns) for alarm in found] == [("y", 2 * S), ("z", 2 * S), ("x", S)]
    output = found[0]
    assert (output.drifted_windows, output.judged_windows, output.n_ref, output.n_cur) == (3, 3, 2000, 500)
    assert (output.test, output.statistic, output.p, output.q, output.effect) == ("ks", 0.2, 1e-6, 1e-5, 0.22)
    assert [top.name for top in output.top_features] == ["z"]  # x was stable in that window, y is no feature
    assert output.prediction_ids == ("p2",)


def test_examples_are_rows_that_show_the_drift() -> None:
    rng = np.random.default_rng(1)
    shifted = rng.normal(1.0, size=500)
    cases: list[tuple[Column, object]] = [
        (numeric(rng.normal(size=2000), shifted), shifted > 0.2),
        (numeric(-rng.normal(size=2000), -shifted), shifted > 0.2),
        (categorical(["a", "b"] * 500, ["a"] * 100 + ["b"] * 300), np.arange(400) >= 100),
        (numeric(rng.normal(size=500), np.where(np.arange(500) < 200, np.nan, 0.0)), np.arange(500) < 200),
    ]
    for column, expected in cases:
        (drift,) = compare([column], RULES)
        shown = examples(column, drift.test, [str(index) for index in range(len(column.current))])
        assert len(shown) == 5
        assert np.asarray(expected)[[int(name) for name in shown]].all()
