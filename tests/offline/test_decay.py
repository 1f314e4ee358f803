"""A model that gets worse is found by its windows of labelled rows, and one that does not is not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from gateway.offline.decay import band, is_outside
from gateway.offline.page import page
from gateway.samples.labels import Label
from tests.builders import classifier, write_package
from tests.offline.labelled import SECOND_NS, WAIT_S, Rig
from tests.offline.logs import document
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample


def test_a_model_that_gets_worse_is_found_by_its_windows_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window_rows=40, reference_windows=6)
    for model in ("good", "bad"):
        write_package(tmp_path / "models", classifier(model))
    dice = random.Random(5)

    def add(model: str, first: int, windows: int, accuracy: float) -> None:
        linear = classifier(model)
        table = iris_rows(40 * windows, first)
        for index, (row, predicted) in enumerate(zip(table, linear.answer(table)["label"], strict=True), first):
            at_ns = TEN_O_CLOCK_NS + index * SECOND_NS
            name = f"{model}-{index}"
            rig.log.write(linear_sample(row[np.newaxis], linear, prediction_id=name, ts_ns=at_ns))
            label = int(predicted) if dice.random() < accuracy else (int(predicted) + 1) % 3
            rig.label(Label(name, label, at_ns + SECOND_NS))

    def verdict(model: str) -> str:
        rig.clock.now_s = TEN_O_CLOCK_NS / 1e9 + 3 * WAIT_S
        rig.run()
        (version,) = rig.section(model)["versions"]
        return str(next(metric["verdict"] for metric in version["metrics"] if metric["name"] == "accuracy"))

    for model in ("good", "bad"):
        add(model, 0, 6, 0.9)
        assert verdict(model) == "insufficient"
    rig.restart()
    add("good", 240, 3, 0.9)
    add("bad", 240, 1, 0.5)
    assert (verdict("good"), verdict("bad")) == ("stable", "stable")  # one window may be chance
    add("bad", 280, 1, 0.5)
    assert (verdict("good"), verdict("bad")) == ("stable", "drifted")
    assert (rig.alarms("labels", "good"), rig.alarms("labels", "bad")) == (0, 2)  # accuracy and AUC
    content = page(document(rig.settings, "bad"))
    window_ns = [TEN_O_CLOCK_NS + second * SECOND_NS for second in (280, 319)]
    assert "<strong>accuracy</strong> (by labels) got worse: " in content
    assert f"and ts_ns between {window_ns[0]} and {window_ns[1]} order by ts_ns" in content
    assert "<h3>Alarms</h3>" not in page(document(rig.settings, "good"))
    add("bad", 320, 2, 0.95)
    assert verdict("bad") == "stable"
    (of_bad,) = rig.section("bad")["versions"]
    assert rig.alarms("labels", "bad") == sum(metric["verdict"] == "drifted" for metric in of_bad["metrics"]) < 2


def test_of_models_that_do_not_change_few_are_ever_called_decayed_and_a_drop_of_six_points_is_found() -> None:
    """Windows of 500 rows, 12 of them as reference, 50 after it; accuracy 0.9."""
    dice = np.random.default_rng(2)
    false_alarms = found = 0
    for _stream in range(500):
        clean = dice.binomial(500, 0.9, 62) / 500
        _mean, bound = band(clean[:12].tolist(), more_is_better=True)
        ends = range(13, 63)
        false_alarms += any(is_outside(clean[12:end].tolist(), bound, more_is_better=True) for end in ends)
        worse = [*clean[12:40].tolist(), *(dice.binomial(500, 0.84, 4) / 500).tolist()]
        found += is_outside(worse, bound, more_is_better=True)
    print(f"decay: {false_alarms} of 500 unchanged streams, {found} of 500 drops of 6 points after 4 windows")
    assert false_alarms <= 15
    assert found >= 400


def test_errors_decay_upwards_and_equal_windows_leave_room() -> None:
    mean, bound = band([2.0, 2.0, 2.0], more_is_better=False)
    assert mean == 2.0
    assert 2.0 < bound < 2.1
    assert is_outside([1.0, 2.2, 2.2], bound, more_is_better=False)
    assert not is_outside([2.2, 1.0, 1.0], bound, more_is_better=False)
