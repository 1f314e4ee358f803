"""Detectors on single errors: they find what river finds, tell it calmly, and a restart changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import drift

from gateway.cli import main
from gateway.labelling import DETECTORS, parse_detectors
from gateway.offline.detectors import MAX_ERRORS, SCALE_ROWS, ErrorWatch
from gateway.offline.page import page
from gateway.offline.scores import Judged
from gateway.samples.labels import Label
from tests.builders import classifier, write_package
from tests.offline.labelled import SECOND_NS, Rig
from tests.offline.logs import document
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample

IRIS = classifier()


def stream(*parts: tuple[int, float], seed: int = 0) -> list[bool]:
    """Independent errors: so many rows with such a rate, one part after the other."""
    dice = np.random.default_rng(seed)
    return [bool(each) for rows, rate in parts for each in dice.random(rows) < rate]


def row(index: int, is_wrong: bool) -> Judged:
    return Judged(index * SECOND_NS, f"p{index}", 0, "a", None, "b" if is_wrong else "a", 1.0, "", 0.0)


def number_row(index: int, error: float) -> Judged:
    return Judged(index * SECOND_NS, f"p{index}", 0, 5.0 + error, None, 5.0, 1.0, "", 0.0)


def watch(*names: str, cool_down_s: float = 1e6, is_classes: bool = True) -> ErrorWatch:
    return ErrorWatch("d1", names or DETECTORS, cool_down_s, is_classes=is_classes)


def restarted(before: ErrorWatch, cool_down_s: float = 1e6, *, is_classes: bool = True) -> ErrorWatch:
    after = watch(cool_down_s=cool_down_s, is_classes=is_classes)
    after.restore(json.loads(json.dumps(before.to_plain())))
    return after


@pytest.mark.parametrize(
    ("name", "of_river"),
    [
        ("adwin", drift.ADWIN()),  # type: ignore[no-untyped-call]
        ("page_hinkley", drift.PageHinkley(mode="up")),
        ("ddm", drift.binary.DDM()),
    ],
)
def test_a_detector_finds_a_change_at_the_row_at_which_river_does(name: str, of_river: Any) -> None:
    errors = stream((3000, 0.1), (2000, 0.4), seed=5)
    expected = next(index for index, error in enumerate(errors) if of_river.update(error) or of_river.drift_detected)
    assert expected >= 3000
    own = watch(name)
    for index, error in enumerate(errors):
        own.add(row(index, error))
    found = own.told(name)
    assert (found["verdict"], found["rows"]) == ("drifted", 5000)
    (change,) = found["changes"]
    assert change.ts_ns == expected * SECOND_NS
    assert change.before < 0.2
    assert change.after > change.before + 0.1


def test_a_change_for_the_better_is_none() -> None:
    own = watch()
    for index, error in enumerate(stream((3000, 0.5), (3000, 0.05), seed=1)):
        own.add(row(index, error))
    assert [own.told(name)["found"] for name in DETECTORS] == [0, 0, 0]


def test_within_the_cool_down_changes_are_counted_and_not_told() -> None:
    errors = stream((2000, 0.05), (1000, 0.3), (1000, 0.05), (1000, 0.6), (2000, 0.05), seed=2)
    calm, every = watch("adwin", cool_down_s=4000), watch("adwin", cool_down_s=0)
    for index, error in enumerate(errors):
        calm.add(row(index, error))
        every.add(row(index, error))
    assert calm.told("adwin")["found"] == every.told("adwin")["found"] >= 2
    assert len(every.told("adwin")["changes"]) == every.told("adwin")["found"]
    assert len(calm.told("adwin")["changes"]) == 1
    assert calm.told("adwin")["verdict"] == "stable"  # the last change is longer ago than the cool-down


@pytest.mark.parametrize("is_classes", [True, False])
def test_a_restart_at_any_row_changes_nothing_however_long_the_stream(is_classes: bool) -> None:
    """Long enough that detectors begin anew with the newer half of what is kept."""
    dice = np.random.default_rng(3)
    wrong = stream((MAX_ERRORS + 2000, 0.1), (1000, 0.3), (1000, 0.1), (1000, 0.5), seed=3)
    rows = [
        row(index, error) if is_classes else number_row(index, float(dice.exponential(4.0 if error else 1.0)))
        for index, error in enumerate(wrong)
    ]
    straight, often = (watch(cool_down_s=500, is_classes=is_classes) for _ in range(2))
    for index, each in enumerate(rows):
        straight.add(each)
        often.add(each)
        if index % 1999 == 50:
            often = restarted(often, 500, is_classes=is_classes)
    assert often.to_plain() == straight.to_plain()
    assert straight.told("adwin")["found"] >= 1
    assert len(straight.to_plain()["errors"]) == MAX_ERRORS


def test_errors_of_numbers_are_held_against_the_first_ones_in_any_unit() -> None:
    """A price in cents drifts as it does in euros; an outlier alone is no change; ddm is for classes."""
    dice = np.random.default_rng(4)
    errors = np.concatenate([dice.exponential(1.0, 3000), dice.exponential(3.0, 1000)])
    errors[1000] = 1e300
    found = []
    for unit in (1.0, 1e4):
        own = watch(is_classes=False)
        for index, error in enumerate(errors):
            own.add(number_row(index, float(error) * unit))
        (change,) = own.told("adwin")["changes"]
        found.append(change.ts_ns)
        assert change.ts_ns > 3000 * SECOND_NS
        assert 1.5 * unit < change.after < 5 * unit
    assert found[0] == found[1]
    assert (own.told("ddm")["verdict"], own.told("ddm")["reason"]) == ("insufficient", "for classes only")


def test_numbers_without_any_error_at_first_and_few_rows_say_nothing() -> None:
    own = watch(is_classes=False)
    for index in range(SCALE_ROWS + 50):
        own.add(number_row(index, 0.0))
        if index == 20:
            assert own.told("adwin")["verdict"] == "insufficient"
    assert own.told("adwin")["verdict"] == "stable"


def test_detectors_are_named_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert parse_detectors(" adwin,ddm ") == ("adwin", "ddm")
    assert parse_detectors("") == ()
    for wrong in ("adwin,adwin", "eddm", "adwin,"):
        with pytest.raises(ValueError, match=r"twice|no detector"):
            parse_detectors(wrong)
    (tmp_path / "models").mkdir()
    config = tmp_path / "sluicegate.toml"
    serve = ["serve", "--models", str(tmp_path / "models"), "--state", str(tmp_path / "s"), "--config", str(config)]
    config.write_text('[labels]\ndetectors = "eddm"\n')
    assert main(serve) != 0
    assert "known are adwin, page_hinkley, ddm" in capsys.readouterr().err
    config.write_text('[labels]\ndetectors = "adwin"\n')
    monkeypatch.setitem(sys.modules, "river", None)  # as if it were not installed
    assert main(serve) != 0
    assert "pip install 'sluicegate[detectors]'" in capsys.readouterr().err


@pytest.mark.parametrize("tell", ["report", "alarm"])
def test_the_monitor_watches_the_errors_of_rows_whose_wait_is_over_in_the_order_of_time(
    tmp_path: Path, tell: str
) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path, detectors="adwin,ddm", detectors_cool_down_s=1e6, detectors_tell=tell)
    errors = stream((400, 0.05), (200, 0.7), seed=6)
    table = iris_rows(len(errors), 6)
    predictions = IRIS.answer(table)["label"].tolist()
    for index, values in enumerate(table):
        at_ns = TEN_O_CLOCK_NS + index * SECOND_NS
        rig.log.write(linear_sample(values[np.newaxis], prediction_id=f"p{index}", ts_ns=at_ns))
    for index in np.random.default_rng(1).permutation(len(errors)).tolist():  # labels come in another order
        label = (predictions[index] + 1) % 3 if errors[index] else predictions[index]
        rig.label(Label(f"p{index}", label, TEN_O_CLOCK_NS + 700 * SECOND_NS))
    rig.run()
    assert rig.section()["versions"][0]["detectors"] == []  # all still wait
    rig.clock.advance(3 * 3600)
    rig.run()
    rig.restart()
    rig.run()
    section = rig.section()
    assert section["detectors_alarm"] == (tell == "alarm")
    drifted = sum(each["verdict"] == "drifted" for each in section["versions"][0]["detectors"])
    assert drifted >= 1
    assert rig.alarms("detectors") == (drifted if tell == "alarm" else 0)
    names = {"model": "iris", "version": "1", "detector": "adwin"}
    assert rig.registry.get_sample_value("sluicegate_error_drift", names) == 1
    listed = "<strong>adwin</strong> (by labels) found a change for the worse at "
    assert (listed in page(document(rig.settings, "iris"))) == (tell == "alarm")
    found = {each["name"]: each for each in section["versions"][0]["detectors"]}
    assert found["adwin"]["verdict"] == "drifted"
    assert found["adwin"]["rows"] == 600
    own = watch("adwin")
    for index, error in enumerate(errors):
        own.add(row(index, error))
    assert [change["ts_ns"] - TEN_O_CLOCK_NS for change in found["adwin"]["changes"]] == [
        change.ts_ns for change in own.told("adwin")["changes"]
    ]
