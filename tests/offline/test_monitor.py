"""The monitor: which rows it counts, what it leaves out, and what it finds in them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gateway.offline.page import page
from gateway.offline.windows import load_memory
from gateway.settings import Settings
from gateway.tensors import Feature, Signature, TensorSpec
from tests.builders import classifier, regressor, write_bare, write_package
from tests.offline.logs import Log, document, monitor_settings, verdicts, write_reference_package
from tests.offline.monitors import OUTPUTS, clean, run, samples, shifted, start
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample, sample_of


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
