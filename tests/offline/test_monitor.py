"""The monitor: what it counts, what it leaves out, what it remembers, and what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from gateway.metrics import MonitorMetrics, process_registry
from gateway.offline.alarmed import KINDS
from gateway.offline.monitor import Monitor
from gateway.offline.page import page
from gateway.offline.windows import load_memory
from gateway.samples.record import Sample
from gateway.settings import Settings
from gateway.tensors import Array, Feature, Signature, TensorSpec
from tests.builders import classifier, regressor, write_bare, write_package
from tests.offline.logs import Log, document, monitor_settings, verdicts, write_reference_package
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample, sample_of

OUTPUTS = {"label", "probabilities.0", "probabilities.1", "probabilities.2"}


@pytest.fixture
def settings(models: Path, state: Path) -> Settings:
    return monitor_settings(models, state, window_rows=300)


@pytest.fixture
def log(settings: Settings) -> Iterator[Log]:
    written = Log(settings)
    yield written
    written.close()


def start(settings: Settings, clock: FakeClock | None = None) -> Monitor:
    return Monitor(settings, MonitorMetrics(process_registry()), clock=clock or FakeClock(TEN_O_CLOCK_NS / 1e9))


def run(monitor: Monitor) -> None:
    """Read all there is, then report."""
    while monitor.step():
        pass
    monitor.report()


def clean(seed: int = 1, rows: int = 300) -> Array:
    return iris_rows(rows, seed)


def shifted(seed: int = 2, rows: int = 300) -> Array:
    table = iris_rows(rows, seed)
    table[:, 1] += 1.0
    return table


def samples(table: Array, *, start_row: int = 0, **fields: Any) -> list[Sample]:
    """One request per row, one second apart."""
    return [
        linear_sample(
            row[np.newaxis],
            **{"prediction_id": f"p{index:06d}", "ts_ns": TEN_O_CLOCK_NS + index * 10**9, **fields},
        )
        for index, row in enumerate(table, start_row)
    ]


# -- verdicts ---------------------------------------------------------------------------------------


def test_rows_like_the_reference_are_stable_and_a_shifted_feature_is_found(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    monitor = start(settings)
    log.write(*samples(clean()))
    run(monitor)
    assert set(verdicts(settings, "iris").values()) == {"stable"}
    assert document(settings, "iris").versions[0].status == "stable"

    log.write(*samples(shifted(), start_row=300))
    run(monitor)
    found = document(settings, "iris").versions[0]
    assert found.status == "drifted"
    assert {column.name for column in found.drifted} - OUTPUTS == {"sepal_width"}
    assert found.drifted[0].effect == max(column.effect or 0 for column in found.columns)
    assert (found.window_rows, found.rows_total, found.reference_rows) == (300, 600, 2000)
    assert found.window_from_ns == TEN_O_CLOCK_NS + 300 * 10**9
    assert found.window_to_ns == TEN_O_CLOCK_NS + 599 * 10**9


def test_few_rows_are_no_verdict(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    log.write(*samples(shifted(rows=99)))
    run(start(settings))
    found = document(settings, "iris").versions[0]
    assert (found.status, found.reason) == ("insufficient", "the window has 99 rows of at least 100")


def test_features_that_are_too_few_to_be_looked_at_together_are_said_to_be(settings: Settings, log: Log) -> None:
    """Two features that have nothing to do with each other, and a window that is too short."""
    write_package(settings.paths.models, regressor(), reference_rows=2000)
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    log.write(*samples(iris_rows(300)[:, :2], linear=regressor()), *samples(clean(rows=20)))
    run(start(settings))
    house, iris = (document(settings, model) for model in ("house", "iris"))
    assert house.versions[0].together is None
    assert house.versions[0].together_reason.startswith("insufficient features: 2 that vary")
    assert "All features together" in page(house)
    assert "insufficient features: 2 that vary, of which none can be told from the others." in page(house)
    assert iris.versions[0].together is None
    assert iris.versions[0].together_reason == "insufficient rows: the window has 20 rows of at least 100"


def test_versions_are_watched_apart(settings: Settings, log: Log) -> None:
    for version in ("1", "2"):
        write_package(settings.paths.models, classifier(version=version), reference_rows=2000)
    one, two = clean(), shifted()
    log.write(*samples(one), *(linear_sample(row[np.newaxis], classifier(version="2")) for row in two))
    run(start(settings))
    assert [(found.version, found.status) for found in document(settings, "iris").versions] == [
        ("1", "stable"),
        ("2", "drifted"),
    ]


def test_a_model_without_a_reference_is_reported_as_such(settings: Settings, log: Log) -> None:
    write_bare(settings.paths.models, classifier())
    log.write(*samples(clean(rows=150)))
    run(start(settings))
    found = document(settings, "iris").versions[0]
    assert (found.status, found.reason) == ("no reference", "the package has no manifest.json")
    assert (found.rows_total, found.columns) == (150, ())


def test_a_reference_that_is_not_the_one_of_the_manifest_is_not_believed(settings: Settings, log: Log) -> None:
    package = write_package(settings.paths.models, classifier(), reference_rows=200)
    other = write_package(settings.paths.models, classifier(version="9"), reference_rows=200)
    shutil.copy(other / "reference.parquet", package / "reference.parquet")
    log.write(*samples(clean(rows=150)))
    run(start(settings))
    found = document(settings, "iris").versions[0]
    assert found.status == "no reference"
    assert "sha256" in found.reason


def test_a_reference_that_comes_later_is_used_from_then_on(settings: Settings, log: Log) -> None:
    clock = FakeClock(TEN_O_CLOCK_NS / 1e9)
    monitor = start(settings, clock)
    log.write(*samples(clean(rows=150)))
    run(monitor)
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    clock.advance(60)
    log.write(*samples(clean(rows=1), start_row=150))
    run(monitor)
    log.write(*samples(clean(), start_row=151))
    run(monitor)
    assert set(verdicts(settings, "iris").values()) == {"stable"}


def test_categories_and_short_decimals_compare_equal_though_log_and_reference_write_them_differently(
    settings: Settings, log: Log
) -> None:
    """The log holds float32 and text, the reference float64 and its own integers: neither is drift."""
    signature = Signature(
        inputs=(
            TensorSpec("dose", "FP32", (-1, 1)),
            TensorSpec("colour", "BYTES", (-1, 1)),
            TensorSpec("level", "INT64", (-1, 1)),
        ),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"),),
        features=(
            Feature("dose", "dose", 0, missing_allowed=True),
            Feature("colour", "colour", 0, "categorical", ("blue", "red")),
            Feature("level", "level", 0, "categorical"),
        ),
    )
    rng = np.random.default_rng(5)
    reference = {
        "dose": [float(value) if value else None for value in rng.choice([0.0, 0.1, 1 / 3, 2 / 3], 2000)],
        "colour": rng.choice(["blue", "red"], 2000).tolist(),
        "level": rng.choice([1, 2, 3], 2000).tolist(),
        "label": rng.choice([0, 1], 2000).tolist(),
    }
    write_reference_package(settings.paths.models, "dosing", "1", signature, reference)
    dose = rng.choice([np.nan, 0.1, 1 / 3, 2 / 3], 300).astype(np.float32).reshape(-1, 1)
    colour = np.array([text.encode() for text in rng.choice(["blue", "red"], 300)], object).reshape(-1, 1)
    level = rng.choice([1, 2, 3], 300, p=[0.8, 0.1, 0.1]).reshape(-1, 1)
    inputs = {"dose": dose, "colour": colour, "level": level}
    outputs = {"label": rng.choice([0, 1], 300)}
    log.write(sample_of(inputs, outputs, signature, rows=300, model="dosing"))
    run(start(settings))
    assert verdicts(settings, "dosing") == {
        "dose": "stable",
        "colour": "stable",
        "level": "drifted",
        "label": "stable",
    }


def test_a_text_that_misses_as_often_as_ever_is_no_drift_though_a_tensor_has_no_null(
    settings: Settings, log: Log
) -> None:
    signature = Signature(
        inputs=(TensorSpec("colour", "BYTES", (-1, 1)),),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"),),
        features=(Feature("colour", "colour", 0, "categorical", ("blue", "red"), missing_allowed=True),),
    )
    reference: dict[str, list[Any]] = {"colour": ["red", "blue", "red", "blue", None] * 400, "label": [0, 1] * 1000}
    write_reference_package(settings.paths.models, "dosing", "1", signature, reference)
    colour = np.array([b"red", b"blue", b"red", b"blue", b""] * 60, object).reshape(-1, 1)
    outputs = {"label": np.array([0, 1] * 150)}
    log.write(sample_of({"colour": colour}, outputs, signature, rows=300, model="dosing"))
    run(start(settings))
    found = next(column for column in document(settings, "dosing").versions[0].columns if column.name == "colour")
    assert (found.missing_ref, found.missing_cur, found.verdict) == (0.2, 0.2, "stable")


def test_a_backlog_that_takes_several_steps_is_read_whole_before_a_window_by_time_is_over(tmp_path: Path) -> None:
    """Two workers at the same time, a segment larger than a step each: neither's rows are late for the other's."""
    settings = monitor_settings(tmp_path / "models", tmp_path / "state", window_s=60.0)
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    for worker in ("b1", "b2"):
        log = Log(settings, boot=worker)
        for request in range(90):
            ts_ns = TEN_O_CLOCK_NS + request * 10**10
            log.write(linear_sample(clean(request, 100), prediction_id=f"{worker}-{request}", ts_ns=ts_ns))
        log.close()
    segments = [path.stat().st_size for path in settings.sample_log_path.rglob("*.jsonl")]
    assert min(segments) > 4.5 * 2**20
    monitor = start(settings, FakeClock(TEN_O_CLOCK_NS / 1e9 + 3600))
    run(monitor)
    found = document(settings, "iris").versions[0]
    assert (found.rows_total, found.late_rows, len(found.timeline)) == (18_000, 0, 15)


# -- alarms -------------------------------------------------------------------------------------------


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


# -- which rows ---------------------------------------------------------------------------------------


def test_only_rows_that_were_drawn_at_random_are_counted_and_cache_hits_are_among_them(
    settings: Settings, log: Log
) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    log.write(*samples(clean(rows=100)), *samples(clean(3, 100), start_row=100, cache="hit", batch_rows=0))
    log.write(*samples(shifted(), start_row=200, sample_reason="error"))
    run(start(settings))
    found = document(settings, "iris").versions[0]
    assert (found.status, found.rows_total) == ("stable", 200)


def test_the_window_holds_the_newest_rows_whichever_worker_wrote_them_and_in_whatever_order_they_are_read(
    settings: Settings, log: Log
) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=200)
    every = samples(clean(rows=900))
    np.random.default_rng(3).shuffle(every)
    workers = [log, Log(settings, boot="b2", max_bytes=20_000), Log(settings, boot="b3")]
    monitor = start(settings)
    for index, sample in enumerate(every):
        workers[index % 3].write(sample)
        if index % 100 == 0:
            monitor.step()
    run(monitor)
    monitor.save()
    memory = load_memory(settings.monitor_path / "memory.json", limit_rows=300)
    assert [row[1] for row in memory.windows["iris", "1"].rows()] == [f"p{index:06d}" for index in range(600, 900)]


def test_a_line_that_is_no_sample_costs_nothing_but_itself(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=200)
    for line in (
        b"garbage",
        b"[]",
        b"{}",
        b'{"schema":2}',
        b'{"schema":1,"sample_reason":"random","model":"iris","version":"1","digest":"d1","ts_ns":"x","inputs":{}}',
        b'{"schema":1,"sample_reason":"random","model":"../x","version":"1","digest":"d1","ts_ns":1,"inputs":{}}',
    ):
        log.write_raw("iris", "1", TEN_O_CLOCK_NS, line + b"\n")
    log.write(*samples(clean(rows=120)))
    run(start(settings))
    assert document(settings, "iris").versions[0].rows_total == 120
    assert sorted(path.name for path in settings.drift_path.iterdir()) == ["iris.json"]


def test_rows_of_a_replaced_package_do_not_mix_with_those_of_the_new_one(settings: Settings, log: Log) -> None:
    package = write_package(settings.paths.models, classifier(), reference_rows=2000)
    monitor = start(settings)
    log.write(*samples(shifted()))
    run(monitor)
    assert document(settings, "iris").versions[0].status == "drifted"
    shutil.rmtree(package)
    write_package(settings.paths.models, classifier(), reference_rows=1000)
    log.write(*samples(clean(), start_row=300, digest="d2"))
    log.write(*samples(shifted(rows=10)))  # a late row of the old package
    run(monitor)
    found = document(settings, "iris").versions[0]
    assert (found.status, found.digest, found.window_rows, found.reference_rows) == ("stable", "d2", 300, 1000)


# -- memory -------------------------------------------------------------------------------------------


def test_a_new_monitor_goes_on_where_the_saved_one_was(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    first = start(settings)
    log.write(*samples(clean(rows=200)))
    run(first)
    first.save()
    log.write(*samples(clean(rows=50), start_row=200))
    first.step()  # read, but never saved: as lost as if it had been killed
    second = start(settings)
    log.close()
    log.write(*samples(clean(rows=50), start_row=250))
    run(second)
    found = document(settings, "iris").versions[0]
    assert (found.rows_total, found.window_rows) == (300, 300)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 30)),
            *(st.tuples(st.just(word)) for word in ("close", "step", "save", "kill", "tidy")),
        ),
        max_size=30,
    )
)
@settings_of_hypothesis(max_examples=40, deadline=None)
def test_whenever_it_dies_every_row_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """A monitor that is dropped without saving stands for one that was killed."""
    root = tmp_path_factory.mktemp("gateway")
    settings = monitor_settings(root / "models", root / "state", window_rows=20)
    workers = [Log(settings, boot=f"w{index}", max_bytes=3000) for index in range(2)]
    monitor, written = start(settings), 0
    for step in (*steps, ("write", 0, 1)):
        match step:
            case ("write", worker, rows):
                workers[worker].write(*samples(clean(rows=rows), start_row=written))
                written += rows
            case ("close",):
                workers[0].close()
            case ("step",):
                monitor.step()
            case ("save",):
                monitor.save()
            case ("tidy",):
                monitor.tidy()
            case ("kill",):
                monitor = start(settings)
    while monitor.step():
        pass
    monitor.save()
    for worker in workers:
        worker.close()
    window = load_memory(settings.monitor_path / "memory.json", limit_rows=20).windows["iris", "1"]
    assert window.rows_total == written
    assert [row[1] for row in window.rows()] == [f"p{index:06d}" for index in range(max(0, written - 20), written)]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"schema":99}', b'{"schema":1,"offsets":{}}'])
def test_a_memory_that_cannot_be_read_is_made_anew_from_the_log(settings: Settings, log: Log, content: bytes) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=200)
    log.write(*samples(clean(rows=150)))
    settings.monitor_path.mkdir(parents=True)
    (settings.monitor_path / "memory.json").write_bytes(content)
    run(start(settings))
    assert document(settings, "iris").versions[0].rows_total == 150


def test_a_new_monitor_reports_what_it_remembers_before_anything_new_comes(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=200)
    log.write(*samples(clean(rows=150)))
    monitor = start(settings)
    run(monitor)
    monitor.save()
    (settings.drift_path / "iris.json").unlink()
    assert (monitor.has_unsaved, monitor.has_reports_due) == (False, False)
    again = start(settings)
    assert again.has_reports_due
    run(again)
    assert document(settings, "iris").versions[0].rows_total == 150


def test_versions_whose_package_is_gone_are_forgotten(settings: Settings, log: Log) -> None:
    for version in ("1", "2"):
        write_package(settings.paths.models, classifier(version=version), reference_rows=200)
    log.write(*samples(clean(rows=10)), *samples(clean(rows=10), version="2"))
    monitor = start(settings)
    run(monitor)
    shutil.rmtree(settings.paths.models / "iris" / "1")
    monitor.tidy()
    run(monitor)
    assert [found.version for found in document(settings, "iris").versions] == ["2"]
    shutil.rmtree(settings.paths.models / "iris")
    monitor.tidy()
    run(monitor)
    assert list(settings.drift_path.iterdir()) == []


# -- what others see ------------------------------------------------------------------------------------


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
    run(start(settings))
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
    assert "have a number among their outputs that is beyond its range: more than chance explains" in page(
        document(settings, "house")
    )
    assert "share of rows with an output outside, window by window" in page(document(settings, "house"))


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
