"""When a column alarms, and what the monitor tells others: gauges and the document."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline.alarmed import KINDS
from gateway.offline.monitor import Monitor
from gateway.offline.page import page
from gateway.settings import Settings
from tests.builders import classifier, regressor, write_package
from tests.offline.logs import Log, document, monitor_settings
from tests.offline.monitors import clean, run, samples, shifted, start
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, sample_of


def test_a_column_alarms_once_it_drifted_in_two_windows_without_a_row_in_common_and_a_restart_forgets_nothing(
    settings: Settings, log: Log
) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    monitor = start(settings)
    log.write(*samples(clean()), *samples(shifted(), start_row=300))
    run(monitor)
    found = document(settings, "iris").versions[0]
    assert (found.status, found.alarms) == ("drifted", ())
    assert [len(point.drifted) > 0 for point in found.timeline] == [False, True]
    monitor.save()

    monitor = start(settings)
    log.write(*samples(shifted(5), start_row=600))
    run(monitor)
    found = document(settings, "iris").versions[0]
    alarm = next(alarm for alarm in found.alarms if alarm.name == "sepal_width")
    assert (alarm.drifted_windows, alarm.judged_windows, alarm.n_ref, alarm.n_cur) == (2, 3, 2000, 300)
    assert (alarm.window_from_ns, alarm.window_to_ns) == (
        TEN_O_CLOCK_NS + 600 * 10**9,
        TEN_O_CLOCK_NS + 899 * 10**9,
    )
    (column,) = (column for column in found.columns if column.name == "sepal_width")
    assert (alarm.statistic, alarm.p, alarm.q) == (column.statistic, column.p, column.q)
    assert alarm.top_features[0].name == "sepal_width"
    assert {int(name[1:]) // 300 for name in alarm.prediction_ids} == {2}
    assert "petal_length" in found.quiet

    for window, seed in enumerate((8, 9), 3):
        log.write(*samples(clean(seed), start_row=300 * window))
    run(monitor)
    assert document(settings, "iris").versions[0].alarms == ()


def test_windows_by_time_are_judged_when_their_time_is_over_and_short_ones_are_no_verdict(
    models: Path, state: Path
) -> None:
    settings = monitor_settings(models, state, window_rows=300, window_s=600.0)
    write_package(models, classifier(), reference_rows=2000)
    written, clock = Log(settings), FakeClock(TEN_O_CLOCK_NS / 1e9)
    monitor = start(settings, clock)
    written.write(*samples(clean(rows=600)), *samples(shifted(rows=650), start_row=600))
    run(monitor)
    assert document(settings, "iris").versions[0].timeline == ()
    clock.advance(1206)
    run(monitor)
    found = document(settings, "iris").versions[0]
    assert [(point.rows, len(point.drifted) > 0) for point in found.timeline] == [(300, False), (300, True)]
    clock.advance(600)
    monitor.save()
    monitor = start(settings, clock)
    run(monitor)
    last = document(settings, "iris").versions[0].timeline[-1]
    assert (last.rows, last.effects, last.drifted) == (50, {}, ())
    written.write(*samples(clean(rows=20)))
    run(monitor)
    assert document(settings, "iris").versions[0].late_rows == 20
    written.close()


def test_the_gauges_say_what_the_document_says(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    registry = process_registry()
    monitor = Monitor(settings, MonitorMetrics(registry))
    log.write(*samples(shifted()))
    run(monitor)
    monitor.save()
    found = document(settings, "iris").versions[0]
    version = {"model": "iris", "version": "1"}
    assert registry.get_sample_value("sluicegate_drift_window_rows", version) == 300
    assert registry.get_sample_value("sluicegate_drift_features", version) == len(found.drifted)
    assert registry.get_sample_value("sluicegate_monitor_rows_total") == 300
    alarms = {kind: registry.get_sample_value("sluicegate_drift_alarms", {**version, "kind": kind}) for kind in KINDS}
    assert alarms == dict.fromkeys(KINDS, 0)
    for column in found.columns:
        labels = {**version, "feature": column.name}
        assert registry.get_sample_value("sluicegate_drift_detected", labels) == (column.verdict == "drifted")
        assert registry.get_sample_value("sluicegate_drift_q_value", labels) == column.q
        assert registry.get_sample_value("sluicegate_drift_effect", labels) == column.effect
        statistic = registry.get_sample_value("sluicegate_drift_statistic", {**labels, "test": column.test})
        assert statistic == column.statistic


def test_the_gauges_count_alarms_and_take_them_back_with_the_package(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    registry = process_registry()
    monitor = Monitor(settings, MonitorMetrics(registry), clock=FakeClock(TEN_O_CLOCK_NS / 1e9))
    log.write(*samples(shifted()), *samples(shifted(5), start_row=300))
    run(monitor)
    names = {"model": "iris", "version": "1"}
    found = document(settings, "iris").versions[0].alarms
    assert "sepal_width" in {alarm.name for alarm in found}
    assert registry.get_sample_value("sluicegate_drift_alarms", {**names, "kind": "reference"}) == len(found)
    shutil.rmtree(settings.paths.models / "iris")
    monitor.tidy()
    assert registry.get_sample_value("sluicegate_drift_alarms", {**names, "kind": "reference"}) == 0
    assert registry.get_sample_value("sluicegate_drift_detected", {**names, "feature": "sepal_width"}) == 0


def test_an_answer_far_from_all_of_the_reference_is_told_though_its_inputs_are_as_ever(
    settings: Settings, log: Log
) -> None:
    """Seven answers of 300 are a thousand times what the model ever says: too few to be drift of the column."""
    house = regressor(features=("rooms", "age", "rent"))
    write_package(settings.paths.models, house, reference_rows=2000)
    rows = iris_rows(300, 5)[:, :3]
    answers = house.answer(rows)["value"]
    answers[::50] *= 1000
    answers[299] = 1e30
    inputs = ({"input": row[np.newaxis]} for row in rows)
    every = (
        sample_of(each, {"value": answer[np.newaxis]}, house.signature, rows=1, model="house", prediction_id=f"p{n}")
        for n, (each, answer) in enumerate(zip(inputs, answers, strict=True))
    )
    log.write(*every)
    registry = process_registry()
    monitor = Monitor(settings, MonitorMetrics(registry))
    run(monitor)
    found = document(settings, "house").versions[0]
    assert "value" not in {column.name for column in found.drifted}
    assert found.outside is not None
    assert not found.outside.is_above
    odd = found.outside_outputs
    assert odd is not None
    assert odd.is_above
    assert {"p299", "p250", "p200"} <= set(odd.prediction_ids)
    assert 7 <= odd.rows <= 9
    assert (found.timeline[0].outside, found.timeline[0].outside_outputs) == (found.outside.share, odd.share)
    version = {"model": "house", "version": "1"}
    for name, told in {"outside": found.outside, "outside_outputs": odd}.items():
        assert registry.get_sample_value(f"sluicegate_{name}_ratio", version) == told.share
        assert registry.get_sample_value(f"sluicegate_{name}_bound_ratio", version) == told.bound
    assert "have a number among their outputs that is beyond its range: more than chance explains" in page(
        document(settings, "house")
    )
    assert "share of rows with an output outside, window by window" in page(document(settings, "house"))
    shutil.rmtree(settings.paths.models / "house")
    monitor.tidy()
    assert registry.get_sample_value("sluicegate_outside_outputs_ratio", version) == 0


def test_the_document_is_plain_json_with_a_schema_number(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    log.write(*samples(shifted()))
    run(start(settings))
    plain = json.loads((settings.drift_path / "iris.json").read_bytes(), parse_constant=lambda name: pytest.fail(name))
    assert (plain["schema"], plain["model"]) == (1, "iris")
    assert plain["alarm_rule"] == {"drifted": 2, "windows": 3}
    assert plain["versions"][0]["columns"][1]["measures"]["wasserstein"] > 0.5
    assert plain["versions"][0]["together"]["columns"] == 4
    assert plain["rules"] == {"min_rows": 100, "max_false_discovery_rate": 0.05, "min_effect": 0.08}
    column = plain["versions"][0]["columns"][1]
    assert (column["name"], column["role"], column["kind"], column["test"]) == (
        "sepal_width",
        "input",
        "numeric",
        "mann-whitney",
    )
    assert document(settings, "iris").to_json() == (settings.drift_path / "iris.json").read_bytes()
