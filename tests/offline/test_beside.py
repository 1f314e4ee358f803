"""A canary beside the stable version: blamed for what it alone does, not for what the traffic does to both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline.alarmed import KINDS
from gateway.offline.monitor import Monitor
from gateway.offline.page import page
from gateway.offline.report import BesideReport
from gateway.settings import Settings
from gateway.tensors import Array
from tests.builders import classifier, write_package
from tests.offline.logs import Log, document, monitor_settings
from tests.offline.monitors import clean, run, samples, shifted, start
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, linear_sample

CANARY = classifier(version="2")
SPLIT = {"reason": "SPLIT"}
FEATURES = {"sepal_length", "sepal_width", "petal_length", "petal_width"}


@pytest.fixture
def settings(models: Path, state: Path) -> Settings:
    for version in ("1", "2"):
        write_package(models, classifier(version=version), reference_rows=2000)
    return monitor_settings(models, state, window_rows=300)


def write(
    log: Log,
    monitor: Monitor,
    stable: Array,
    canary: Array,
    *,
    start_row: int,
    stable_is: Mapping[str, str] = SPLIT,
    canary_is: Mapping[str, str] = SPLIT,
) -> None:
    """Both at the same time; the first row of each is read before the others, as of a log that goes on. The stable
    version's rows count from the canary's first on: that one row is not among them. stable_is, canary_is: fields of
    their samples."""
    for rows in (slice(0, 1), slice(1, None)):
        log.write(*samples(stable[rows], start_row=start_row + (rows.start or 0), **stable_is))
        for index, row in enumerate(canary[rows], start_row + (rows.start or 0)):
            ts_ns = TEN_O_CLOCK_NS + index * 10**9
            fields = {"variant": "canary", "prediction_id": f"c{index:06d}", "ts_ns": ts_ns, **canary_is}
            log.write(linear_sample(row[None], CANARY, **fields))
        run(monitor)


def beside(settings: Settings) -> BesideReport:
    found = next(found for found in document(settings, "iris").versions if found.version == "2").beside
    assert found is not None
    return found


def drifted(found: BesideReport) -> set[str]:
    return {column.name for column in found.columns if column.verdict == "drifted"}


def test_a_canary_that_answers_the_same_traffic_is_stable_though_its_answers_are_not_those_of_the_stable_version(
    settings: Settings, log: Log
) -> None:
    monitor = start(settings)
    write(log, monitor, clean(1, 250), clean(2, 250), start_row=0)
    found = beside(settings)
    assert (found.baseline, found.status, found.window_rows, found.baseline_rows) == ("1", "stable", 250, 249)
    assert {column.name for column in found.columns} > FEATURES | {"label"}
    assert document(settings, "iris").versions[0].beside is None  # the stable version is beside nothing


def test_a_change_of_the_traffic_blames_the_reference_and_not_the_canary(settings: Settings, log: Log) -> None:
    monitor = start(settings)
    write(log, monitor, shifted(1, 250), shifted(2, 250), start_row=0)
    stable, canary = document(settings, "iris").versions
    for version in (stable, canary):
        assert "sepal_width" in {column.name for column in version.drifted}
    assert not drifted(beside(settings)) & FEATURES


def test_what_the_canary_alone_shows_is_an_alarm_after_two_windows_and_survives_a_restart(
    settings: Settings, log: Log
) -> None:
    monitor = start(settings)
    for window in range(2):
        if window:
            assert beside(settings).alarms == ()
        write(log, monitor, clean(10 + window, 310), shifted(20 + window, 310), start_row=400 * window)
        monitor.save()
        monitor = start(settings)
    registry = process_registry()
    monitor = Monitor(settings, MonitorMetrics(registry), clock=FakeClock(TEN_O_CLOCK_NS / 1e9))
    run(monitor)
    (alarm,) = (alarm for alarm in beside(settings).alarms if alarm.name == "sepal_width")
    assert (alarm.drifted_windows, alarm.judged_windows) == (2, 2)
    assert alarm.since_ns == TEN_O_CLOCK_NS  # all that it takes came after that: the first window
    assert all(name.startswith("c") for name in alarm.prediction_ids)
    by_kind = {
        kind: registry.get_sample_value("sluicegate_drift_alarms", {"model": "iris", "version": "2", "kind": kind})
        for kind in KINDS
    }
    own = document(settings, "iris").versions[1].alarms
    wanted = {"reference": len(own), "beside": len(beside(settings).alarms), "labels": 0, "detectors": 0}
    assert by_kind == wanted
    (listed,) = re.findall(r"<h3>Alarms</h3><ul.*?</ul>", page(document(settings, "iris")))
    assert "sepal_width</strong> (feature) has other values than in version 1 at the same time" in listed
    ids = " ".join(f"--prediction-id {name}" for name in alarm.prediction_ids)
    span = "--since 2026-03-01T10:06 --until 2026-03-01T10:12"
    assert f"sluicegate samples tail --model iris --version 2 {span} {ids}</code>" in listed
    raw = (settings.drift_path / "iris.json").read_bytes()
    assert document(settings, "iris").to_json() == raw
    assert json.loads(raw)["versions"][1]["beside"]["baseline"] == "1"


def test_rows_of_another_time_are_not_compared(settings: Settings, log: Log) -> None:
    monitor = start(settings)
    write(log, monitor, clean(1, 5), clean(2, 200), start_row=0)
    write(log, monitor, shifted(3, 200), clean(4, 1)[:0], start_row=5000)
    found = beside(settings)
    assert (found.status, found.baseline_rows, found.window_rows) == ("insufficient", 4, 200)


def test_a_canary_that_became_stable_is_beside_nothing(settings: Settings, log: Log) -> None:
    monitor = start(settings)
    write(log, monitor, clean(1, 150), clean(2, 150), start_row=0)
    assert beside(settings).status == "stable"
    log.write(linear_sample(clean(3, 1), CANARY, ts_ns=TEN_O_CLOCK_NS + 10**13))
    run(monitor)
    assert all(found.beside is None for found in document(settings, "iris").versions)


def test_a_third_window_moves_the_moment_that_an_alarm_needs(settings: Settings, log: Log) -> None:
    monitor = start(settings)
    for window in range(3):
        write(log, monitor, clean(10 + window, 310), shifted(20 + window, 310), start_row=400 * window)
    (alarm,) = (alarm for alarm in beside(settings).alarms if alarm.name == "sepal_width")
    assert (alarm.drifted_windows, alarm.judged_windows) == (3, 3)
    assert TEN_O_CLOCK_NS < alarm.since_ns < alarm.window_from_ns  # two of the three are enough


def test_the_stable_version_is_the_one_that_is_given_by_default_under_whatever_name(
    settings: Settings, log: Log
) -> None:
    monitor = start(settings)
    log.write(*samples(clean(9, 1), variant="green", reason="STATIC"))
    log.write(linear_sample(clean(8, 1), CANARY, variant="blue", reason="TARGETING_MATCH", ts_ns=TEN_O_CLOCK_NS))
    run(monitor)
    monitor.save()
    monitor = start(settings)  # it remembers
    green = {**SPLIT, "variant": "green"}
    write(
        log,
        monitor,
        clean(1, 250),
        shifted(2, 250),
        start_row=10,
        stable_is=green,
        canary_is={**SPLIT, "variant": "blue"},
    )
    assert (beside(settings).baseline, "sepal_width" in drifted(beside(settings))) == ("1", True)
    assert document(settings, "iris").versions[0].beside is None


def test_after_a_flip_the_new_version_is_the_stable_one(settings: Settings, log: Log) -> None:
    monitor = start(settings)
    old, new = {"variant": "blue", "reason": "DEFAULT"}, {"variant": "green", "reason": "TARGETING_MATCH"}
    write(log, monitor, clean(1, 150), clean(2, 150), start_row=0, stable_is=old, canary_is=new)
    assert beside(settings).baseline == "1"
    log.write(linear_sample(clean(3, 1), CANARY, variant="green", reason="STATIC", ts_ns=TEN_O_CLOCK_NS + 10**13))
    run(monitor)
    assert all(found.beside is None for found in document(settings, "iris").versions)


def test_requests_that_name_the_version_blame_no_canary(settings: Settings, log: Log) -> None:
    monitor = start(settings)
    pinned = {"variant": "pinned", "reason": "PINNED"}
    write(log, monitor, clean(1, 250), shifted(2, 250), start_row=0, canary_is=pinned)
    assert all(found.beside is None for found in document(settings, "iris").versions)


def test_rows_that_a_rule_sends_to_one_version_are_not_held_against_the_split(settings: Settings, log: Log) -> None:
    """Gold customers are of another kind: a rule keeps them with the stable version, and gives testers the canary."""
    monitor = start(settings)
    write(log, monitor, clean(1, 120), clean(2, 120), start_row=0)
    ruled = {"reason": "TARGETING_MATCH"}
    write(log, monitor, shifted(3, 120), shifted(4, 120) * 3, start_row=120, stable_is=ruled, canary_is=ruled)
    write(log, monitor, clean(5, 120), clean(6, 120), start_row=240)
    found = beside(settings)
    assert (found.status, found.window_rows) == ("stable", 240)
    later = 10**5  # seconds: the split is over, and the rule alone goes on
    write(log, monitor, clean(7, 150), shifted(8, 150), start_row=later, stable_is=ruled, canary_is=ruled)
    assert "sepal_width" in drifted(beside(settings))
