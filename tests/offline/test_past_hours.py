"""Columns by hour and by day: as close to the rows as sketches are, of bounded size, and each row counted once."""

from __future__ import annotations

import logging
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline.course import QUANTILES, Courses
from gateway.offline.hours import Bounds, Hours
from gateway.offline.monitor import Monitor
from gateway.offline.rows import Field, Rows, Shape, objects
from gateway.offline.sketches import Sketches, rank_error, sketches_of
from gateway.samples.record import Sample
from gateway.settings import Settings
from gateway.tensors import Array
from tests.builders import classifier, write_package
from tests.offline.logs import Log, document, monitor_settings
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample

TEN_S = TEN_O_CLOCK_NS // 10**9
HOUR_S, DAY_S = 3600, 86_400
DICE = random.Random(7)


def made_rows(numbers: Array, texts: Array | None = None, *, datatype: str = "FP64", ts_s: Any = TEN_S) -> Rows:
    """Rows with these columns, numeric [columns, n] and categorical; ts_s: of all, or of each."""
    columns, rows = numbers.shape
    texts = np.empty((0, rows), object) if texts is None else texts
    shape = (
        *(Field("input", f"n{index}", "numeric", datatype) for index in range(columns)),
        *(Field("input", f"c{index}", "categorical", "BYTES") for index in range(len(texts))),
    )
    ts_ns = np.broadcast_to(np.asarray(ts_s, dtype=np.int64) * 10**9, rows).copy()
    ids = objects([str(index) for index in range(rows)])
    return Rows(shape, ts_ns, ids, np.zeros(rows, np.int64), numbers, np.isnan(numbers), texts)


def values(kind: str, rows: int, rng: np.random.Generator) -> Array:
    if kind == "lognormal":
        return rng.lognormal(sigma=2.0, size=rows)
    if kind == "few":
        return rng.integers(0, 5, rows).astype(np.float64)
    if kind == "rising":
        return np.arange(rows, dtype=np.float64)
    normal = rng.normal(size=rows)
    return np.where(rng.random(rows) < 0.1, np.inf, normal) if kind == "ends" else normal


def ranks_off(values: Array, quantiles: tuple[float, ...]) -> list[float]:
    """How far each is off, as a share of the rows: 0 if the wanted rank lies among those of equal values."""
    ordered, off = np.sort(values), []
    for rank, value in zip(QUANTILES, quantiles, strict=True):
        low, high = (np.searchsorted(ordered, value, side=side) / len(ordered) for side in ("left", "right"))
        off.append(float(max(0.0, low - rank, rank - high)))
    return off


# -- one time ---------------------------------------------------------------------------------------------


def test_quantiles_are_as_close_as_the_sketch_promises_in_whatever_portions_rows_come() -> None:
    """The promise holds for 99 of 100 columns: twice as much is allowed to one, and more than 3 % must not use it."""
    rng, off = np.random.default_rng(1), []
    for case in range(80):
        portions = rng.choice([1, 30, 799, 800, 3000, 17_000], rng.integers(1, 9))
        kind, datatype = ("normal", "lognormal", "few", "rising", "ends")[case % 5], ("FP32", "FP64")[case % 2]
        column = values(kind, int(portions.sum()), rng)
        if datatype == "FP32":
            column = column.astype(np.float32).astype(np.float64)
        column[rng.random(len(column)) < 0.05] = np.nan
        sketched = [Sketches(made_rows(column[np.newaxis, :1], datatype=datatype).shape) for _ in range(3)]
        for index, portion in enumerate(np.split(column, np.cumsum(portions)[:-1])):
            sketched[index % 3].add(made_rows(portion[np.newaxis], datatype=datatype), DICE)
        sketched[0].merge(sketched[1])
        sketched[0].merge(sketched[2])
        shape = made_rows(column[np.newaxis, :1], datatype=datatype).shape
        found = sketches_of(sketched[0].to_bytes(), shape).numbers[0]
        present = column[~np.isnan(column)]
        assert (found.rows, found.missing) == (len(column), len(column) - len(present))
        off += ranks_off(present, found.quantiles()) if len(present) else []
    assert max(off) <= 2 * rank_error()
    assert np.mean(np.array(off) > rank_error()) <= 0.03


def test_few_rows_have_their_exact_quantiles_and_infinity_is_a_value() -> None:
    column = np.array([3.0, -np.inf, np.nan, 1.0, 2.0, 9.0])
    sketched = Sketches(made_rows(column[np.newaxis]).shape)
    sketched.add(made_rows(column[np.newaxis]), DICE)
    assert sketched.numbers[0].quantiles() == (-np.inf, 2.0, 9.0)
    assert (sketched.numbers[0].rows, sketched.numbers[0].missing) == (6, 1)


def test_few_categories_are_counted_exactly_and_of_many_the_frequent_ones_nearly() -> None:
    rng = np.random.default_rng(3)
    few = rng.choice(np.array(["a", "b", None], object), 5000)
    many = objects([f"{'x' * 90}{index % 2000:09}" + "y" * 500 if index % 3 else "often" for index in range(5000)])
    sketched = Sketches(made_rows(np.empty((0, 1)), np.array([["a"], ["b"]], object)).shape)
    for start in range(0, 5000, 1000):
        texts = np.stack([few[start : start + 1000], many[start : start + 1000]])
        sketched.add(made_rows(np.empty((0, 1000)), texts), DICE)
    exact, bounded = sketched.categories
    counts = Counter(few.tolist())
    assert exact.missing == counts.pop(None)
    assert exact.counts() == counts
    often = Counter(many.tolist())["often"]
    assert 0.9 * often <= bounded.counts()["often"] <= often
    assert bounded.rows == exact.rows == 5000
    assert len(sketched.to_bytes()) < 192 * 150 * 4 / 3 + 1000


def test_a_million_rows_need_no_more_room_than_some_thousand() -> None:
    rng = np.random.default_rng(4)
    texts = np.array([["a", "b"] * 25_000], object)
    sketched = Sketches(made_rows(np.empty((3, 1)), texts[:, :1]).shape)
    sizes = []
    for _ in range(20):
        sketched.add(made_rows(rng.normal(size=(3, 50_000)), texts), DICE)
        sizes.append(len(sketched.to_bytes()))
    assert sketched.rows == sketched.numbers[2].rows == 10**6
    assert max(sizes) < 3 * 6000 * 4 / 3 + 500
    assert max(sizes) < 1.3 * sizes[0]


# -- hours and days ---------------------------------------------------------------------------------------


def spans(hours: Hours) -> dict[Any, int]:
    return {place: sketches.rows for place, sketches in hours.spans.items()}


def test_rows_go_to_the_hour_of_their_own_time_or_to_its_day_and_what_is_too_old_or_to_come_is_counted() -> None:
    now_hour, today = TEN_S // HOUR_S, TEN_S // DAY_S
    ages_s = np.array([0, 0, 3599, 3601, 3 * HOUR_S, 2 * DAY_S, 5 * DAY_S, -HOUR_S, -3 * HOUR_S])
    rows = made_rows(np.arange(9.0)[np.newaxis], ts_s=TEN_S - ages_s)
    hours = Hours("d1", rows.shape, Bounds(3, 4), DICE)
    hours.add(rows, TEN_S)
    assert spans(hours) == {
        ("hour", now_hour): 2,
        ("hour", now_hour - 1): 1,
        ("hour", now_hour - 2): 1,
        ("hour", now_hour + 1): 1,
        ("day", today): 1,
        ("day", today - 2): 1,
    }
    assert (hours.too_late_rows, hours.ahead_rows) == (1, 1)
    hours.age(TEN_S + 3 * HOUR_S)
    assert spans(hours) == {("hour", now_hour + 1): 1, ("day", today): 5, ("day", today - 2): 1}
    hours.add(rows.part(0, 1), TEN_S + 3 * HOUR_S)  # too late for its hour, not for its day
    assert spans(hours)["day", today] == 6
    hours.age(TEN_S + 3 * DAY_S)
    assert spans(hours) == {("day", today): 7}


def test_a_clock_that_is_set_back_brings_no_hour_back_that_was_given_up() -> None:
    rows = made_rows(np.arange(3.0)[np.newaxis])
    hours = Hours("d1", rows.shape, Bounds(2, 4), DICE)
    hours.add(rows, TEN_S + 5 * HOUR_S)
    hours.add(rows, TEN_S)
    assert spans(hours) == {("day", TEN_S // DAY_S): 6}


# -- in the monitor -----------------------------------------------------------------------------------------


@pytest.fixture
def settings(models: Path, state: Path) -> Settings:
    return monitor_settings(models, state, window_rows=100, min_window_rows=50, history_hours=3, history_days=4)


def start(settings: Settings, clock: FakeClock) -> Monitor:
    return Monitor(settings, MonitorMetrics(process_registry()), clock=clock)


def run(monitor: Monitor) -> None:
    while monitor.step():
        pass
    monitor.report()


def samples(rows: int, at_s: int, *, shift: float = 0.0, **fields: Any) -> list[Sample]:
    """One request per row, all in one second."""
    table = iris_rows(rows, at_s % 1000) + shift
    return [
        linear_sample(row[np.newaxis], **{"prediction_id": f"p{at_s}-{index}", "ts_ns": at_s * 10**9, **fields})
        for index, row in enumerate(table)
    ]


def courses(settings: Settings) -> Courses:
    found = document(settings, "iris").versions[0].courses
    assert found is not None
    return found


def counted(found: Courses) -> tuple[dict[int, int], dict[int, int]]:
    """Rows by the beginning of the day, and of the hour."""
    days, hours = ({span.from_s: span.rows for span in spans} for spans in (found.days, found.hours))
    return days, hours


def test_the_document_tells_each_column_by_hour_and_day_beside_the_reference(settings: Settings, log: Log) -> None:
    package = write_package(settings.paths.models, classifier(), reference_rows=2000)
    clock = FakeClock(TEN_S)
    monitor = start(settings, clock)
    now, before = samples(120, TEN_S, shift=2.0), samples(80, TEN_S - HOUR_S)
    log.write(*now, *before, *samples(30, TEN_S - DAY_S), *samples(20, TEN_S, sample_reason="error"))
    run(monitor)
    found = courses(settings)
    midnight = TEN_S // DAY_S * DAY_S
    assert counted(found) == ({midnight - DAY_S: 30, midnight: 200}, {TEN_S - HOUR_S: 80, TEN_S: 120})
    column = next(column for column in found.columns if column.name == "sepal_width")
    truth = [np.sort(np.concatenate([np.asarray(one.inputs["input"])[:, 1] for one in part])) for part in (before, now)]
    assert [column.hours.low, column.hours.median, column.hours.high] == [
        tuple(float(f"{part[int(np.ceil(rank * len(part))) - 1]:.6g}") for part in truth) for rank in QUANTILES
    ]
    then = pyarrow.parquet.read_table(package / "reference.parquet")["sepal_width"].to_numpy().astype(np.float32)
    assert [column.reference.low, column.reference.median, column.reference.high] == [
        (float(f"{np.sort(then)[int(np.ceil(rank * 2000)) - 1]:.6g}"),) for rank in QUANTILES
    ]
    assert column.hours.missing == (0.0, 0.0)
    label = next(column for column in found.columns if column.name == "label")
    assert [round(sum(shares), 4) for shares in zip(*label.hours.shares, strict=True)] == [1.0, 1.0]

    log.write(*samples(10, TEN_S - 2 * HOUR_S), *samples(7, TEN_S - 9 * DAY_S), *samples(5, TEN_S + DAY_S))
    run(monitor)
    found = courses(settings)
    assert counted(found)[1] == {TEN_S - 2 * HOUR_S: 10, TEN_S - HOUR_S: 80, TEN_S: 120}
    assert (counted(found)[0][midnight], found.too_late_rows, found.ahead_rows) == (210, 7, 5)

    clock.advance(2 * HOUR_S)
    log.write(*samples(1, TEN_S + 2 * HOUR_S))
    run(monitor)
    found = courses(settings)
    assert counted(found) == ({midnight - DAY_S: 30, midnight: 211}, {TEN_S: 120, TEN_S + 2 * HOUR_S: 1})


def test_a_restart_goes_on_with_what_was_saved_and_a_lost_file_costs_only_its_own_rows(
    settings: Settings, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=200)
    clock = FakeClock(TEN_S)
    monitor = start(settings, clock)
    log.write(*samples(60, TEN_S), *samples(40, TEN_S - HOUR_S))
    run(monitor)
    monitor.save()
    told = courses(settings)
    log.write(*samples(25, TEN_S))
    run(monitor)  # and never saved: as lost as if it had been killed
    monitor = start(settings, clock)
    run(monitor)
    assert counted(courses(settings))[1] == {TEN_S - HOUR_S: 40, TEN_S: 85}
    assert courses(settings).columns[0].hours.median[0] == told.columns[0].hours.median[0]
    monitor.save()
    files = sorted((settings.monitor_path / "history").iterdir())
    assert len(files) == 2  # no file is left of what was there before

    now = max(files, key=lambda path: path.read_bytes().count(b'"rows":85'))
    now.write_bytes(now.read_bytes().replace(b'"rows":85', b'"rows":86'))
    with caplog.at_level(logging.WARNING):
        monitor = start(settings, clock)
    assert "a part of the history is lost" in caplog.text
    log.write(*samples(1, TEN_S))
    run(monitor)
    assert counted(courses(settings))[1] == {TEN_S - HOUR_S: 40, TEN_S: 1}


def test_another_package_begins_anew_and_one_that_is_gone_leaves_no_file(settings: Settings, log: Log) -> None:
    package = write_package(settings.paths.models, classifier(), reference_rows=200)
    monitor = start(settings, FakeClock(TEN_S))
    log.write(*samples(60, TEN_S), *samples(50, TEN_S + 1, digest="d2"))
    run(monitor)
    assert counted(courses(settings))[1] == {TEN_S: 50}
    monitor.save()
    assert list((settings.monitor_path / "history").iterdir())
    shutil.rmtree(package)
    monitor.tidy()
    monitor.save()
    assert not list((settings.monitor_path / "history").iterdir())


def test_history_takes_no_more_bytes_than_it_may_and_loses_the_oldest_first(models: Path, state: Path) -> None:
    limits = {"history_hours": 48, "history_days": 60, "history_max_bytes": 30_000}
    settings = monitor_settings(models, state, window_rows=100, **limits)
    write_package(models, classifier(), reference_rows=200)
    log, monitor = Log(settings), start(settings, FakeClock(TEN_S))
    for hours_ago in (*range(20), 48, 72):
        log.write(*samples(30, TEN_S - hours_ago * HOUR_S))
    run(monitor)
    assert len(courses(settings).hours) == 20
    monitor.save()
    monitor.report()
    kept = list((settings.monitor_path / "history").iterdir())
    assert sum(path.stat().st_size for path in kept) <= 30_000
    log.write(*samples(1, TEN_S))
    run(monitor)
    days, hours = counted(courses(settings))
    assert TEN_S in hours
    assert 1 < len(hours) < 20
    assert hours.keys() == {TEN_S - ago * HOUR_S for ago in range(len(hours))}
    assert sum(days.values()) == 22 * 30 + 1  # nothing is forgotten while hours can become days
    log.close()


def test_without_datasketches_all_else_is_told_and_the_log_says_so_once(
    settings: Settings, log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("sketches", "hours", "past_hours"):
        monkeypatch.delitem(sys.modules, f"gateway.offline.{name}")
    monkeypatch.setitem(sys.modules, "datasketches", None)
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    with caplog.at_level(logging.WARNING):
        monitor = start(settings, FakeClock(TEN_S))
        log.write(*samples(100, TEN_S))
        run(monitor)
        monitor.save()
    found = document(settings, "iris").versions[0]
    assert (found.status, found.courses) == ("stable", None)
    assert caplog.text.count("needs datasketches") == 1


def test_a_shape_of_other_columns_is_not_read_as_this_one() -> None:
    one: Shape = made_rows(np.ones((2, 5))).shape
    sketched = Sketches(one)
    sketched.add(made_rows(np.ones((2, 5))), DICE)
    for content, shape in ((sketched.to_bytes(), one[:1]), (b"{}", one), (b"[", one)):
        with pytest.raises(ValueError, match=r"."):
            sketches_of(content, shape)
