"""Performance by labels: what is told of variants, versions, slices and classes, and what is left out."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import metrics as sklearn_metrics

from gateway.samples.labels import Label
from gateway.tensors import Feature, Signature, TensorSpec
from tests.builders import classifier, regressor, write_bare, write_package
from tests.offline.labelled import IRIS, SECOND_NS, WAIT_S, Rig, close, label_all
from tests.offline.logs import Log, document
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample, sample_of


def test_variants_and_versions_are_told_apart_and_together(tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_package(tmp_path / "models", classifier(version=version))
    rig = Rig(tmp_path)
    label_all(rig, classifier(version="1"), 50, right=1.0)
    label_all(rig, classifier(version="1"), 50, right=0.5, variant="blue")
    label_all(rig, classifier(version="2"), 50, right=0.8, variant="canary")
    rig.run()
    section = rig.section()
    accuracy = {(each["version"], each["variant"]): each["scores"]["accuracy"] for each in section["variants"]}
    assert accuracy == {("1", "blue"): 0.5, ("1", "stable"): 1.0, ("2", "canary"): 0.8}
    assert {each["version"]: each["scores"]["accuracy"] for each in section["versions"]} == {"1": 0.75, "2": 0.8}
    found = section["variants"][0]
    assert (found["over"], found["waiting"], found["waiting_labelled"], found["coverage"]) == (0, 50, 50, None)
    assert found["delay_s"] == {"p50": 60.0, "p90": 60.0, "p99": 60.0}


def test_numbers_have_errors_and_a_bias(tmp_path: Path) -> None:
    house = regressor()
    write_package(tmp_path / "models", house)
    rig = Rig(tmp_path)
    label_all(rig, house, 20, right=1.0)
    rig.run()
    scores = rig.variant("house")["scores"]
    assert scores["rows"] == 20
    assert [round(scores[name], 6) for name in ("mae", "rmse", "bias")] == [2.0, 2.0, 2.0]


def test_slices_of_a_feature_are_told(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec("colour", "BYTES", (-1, 1)),),
        outputs=(TensorSpec("label", "INT64", (-1,), "label"),),
        features=(Feature("colour", "colour", 0, "categorical"),),
        classes=(0, 1),
    )
    package = write_package(tmp_path / "models", classifier(classes=(0, 1)))
    manifest = json.loads((package / "manifest.json").read_bytes())
    manifest["signature"]["features"] = []
    manifest["signature"]["outputs"] = [{"name": "label", "datatype": "INT64", "shape": [-1], "role": "label"}]
    (package / "manifest.json").write_text(json.dumps(manifest))
    rig = Rig(tmp_path, slice_feature="colour")
    for index in range(100):
        colour = b"red" if index < 40 else b"blue" if index < 95 else b"rare"
        outputs = {"label": np.array([1], np.int64)}
        inputs = {"colour": np.array([[colour]], object)}
        rig.log.write(sample_of(inputs, outputs, signature, rows=1, prediction_id=f"p{index}"))
        rig.label(Label(f"p{index}", int(colour == b"red" or index % 5 == 0), TEN_O_CLOCK_NS + SECOND_NS))
    rig.run()
    slices = {each["value"]: (each["rows"], each["accuracy"]) for each in rig.variant()["slices"]}
    assert slices == {"red": (40, 1.0), "blue": (55, 0.2)}


def test_rows_of_a_request_are_labelled_by_number_and_a_label_without_one_is_no_guess(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    table = iris_rows(3)
    rig.log.write(linear_sample(table, prediction_id="p"))
    predicted = [int(label) for label in IRIS.answer(table)["label"]]
    at_ns = TEN_O_CLOCK_NS + SECOND_NS
    rig.label(Label("p", 0, at_ns), Label("p", {"label": predicted[2]}, at_ns, row=2), Label("p", "x", at_ns, row=1))
    rig.label(Label("p", {"other": 1}, at_ns, row=0), Label("p", 1, at_ns, row=7))
    rig.run()
    found = rig.variant()
    assert (found["waiting"], found["waiting_labelled"], found["unusable"]) == (3, 3, 2)
    assert (found["scores"]["rows"], found["scores"]["accuracy"]) == (1, 1.0)
    rig.clock.advance(2 * WAIT_S)
    rig.run()
    counts = rig.section()["labels"]
    assert (counts["ambiguous"], counts["unmatched"]) == (1, 1)


def test_a_class_that_the_model_does_not_have_changes_no_score_and_is_told_by_name(tmp_path: Path) -> None:
    """4 of 1,000 rows are called "banana", one is called 7; the model knows 0 and 1."""
    linear = classifier(classes=(0, 1))
    write_package(tmp_path / "models", linear)
    rig = Rig(tmp_path)
    table = iris_rows(1000)
    predicted = [int(label) for label in linear.answer(table)["label"]]
    dice = random.Random(3)
    truth: list[Any] = [label if dice.random() < 0.8 else 1 - label for label in predicted]
    truth[10:50:10] = ["banana"] * 4
    truth[60] = 7
    at_ns = TEN_O_CLOCK_NS + SECOND_NS
    for index, row in enumerate(table):
        rig.log.write(linear_sample(row[np.newaxis], linear, prediction_id=f"p{index}", ts_ns=TEN_O_CLOCK_NS))
        rig.label(Label(f"p{index}", truth[index], at_ns))
    rig.run()
    usable = [index for index, label in enumerate(truth) if label in (0, 1)]
    names = (("precision", sklearn_metrics.precision_score), ("recall", sklearn_metrics.recall_score))
    wanted = {
        name: score([truth[index] for index in usable], [predicted[index] for index in usable], average="macro")
        for name, score in names
    }

    def check() -> dict[str, Any]:
        found = rig.variant()
        assert all(close(found["scores"][name], value) for name, value in wanted.items())
        assert [each["class"] for each in found["scores"]["classes"]] == ["0", "1"]
        assert (found["scores"]["rows"], found["unusable"]) == (995, 5)
        assert found["unknown_classes"] == [{"class": "banana", "rows": 4}, {"class": "7", "rows": 1}]
        return found

    assert check()["waiting"] == 1000
    rig.clock.advance(WAIT_S + 10)
    rig.run()
    assert check()["labelled"] == 995  # of the rows that are over
    rig.restart()
    rig.run()
    rig.label(Label("p0", 1, at_ns + 2 * int(WAIT_S * 1e9)))  # so that it is told anew
    rig.run()
    check()


def test_of_classes_that_the_model_does_not_have_only_some_are_kept_apart(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    for index, row in enumerate(iris_rows(30)):
        rig.log.write(linear_sample(row[np.newaxis], prediction_id=f"p{index}"))
        rig.label(Label(f"p{index}", f"{index}-{'x' * 200}", TEN_O_CLOCK_NS + SECOND_NS))
    rig.run()
    found = rig.variant()
    assert (found["unusable"], found["scores"], len(found["unknown_classes"])) == (30, None, 20)
    assert max(len(each["class"]) for each in found["unknown_classes"]) == 80


def test_rows_taken_as_columns_are_judged_as_those_taken_line_by_line(tmp_path: Path) -> None:
    """The same log twice, with a reference (its columns are shared with drift) and without one (each line by itself):
    splits, cache hits, errors, several rows, two workers, texts as labels; more rows than may wait, and restarts."""
    linear = classifier(classes=("no", "yes"))
    found = []
    for kind, reference_rows in (("columns", 200), ("lines", 0)):
        write_package(tmp_path / kind / "models", linear, reference_rows=reference_rows)
        rig = Rig(tmp_path / kind, max_waiting_rows=2000)
        logs = [rig.log, Log(rig.settings, boot="b2")]
        dice = random.Random(4)
        for request in range(900):
            ts_ns = TEN_O_CLOCK_NS + request * SECOND_NS
            rows = dice.choice([1, 1, 20])
            fields: dict[str, Any] = {
                "variant": dice.choice(["stable", "canary"]),
                "reason": dice.choice(["SPLIT", "STATIC"]),
                "cache": dice.choice(["hit", "miss"]),
                "flag_revision": dice.choice([3, 4]),
                "sample_reason": dice.choice(["random", "random", "outlier"]),
            }
            sample = linear_sample(iris_rows(rows, request), linear, prediction_id=f"p{request}", ts_ns=ts_ns, **fields)
            if dice.random() < 0.05:
                sample = replace(sample, outputs={}, error="run_failed")
            logs[dice.randrange(2)].write(sample)
            if dice.random() < 0.8:
                label = dice.choice(["no", "yes", "perhaps"])
                rig.label(Label(f"p{request}", label, ts_ns + dice.randrange(2 * int(WAIT_S * 1e9)), row=0))
            if request % 150 == 149:
                rig.clock.now_s = ts_ns / 1e9
                rig.monitor.step()
                (rig.restart, rig.kill, rig.run)[request // 150 % 3]()
        rig.run()
        waiting = rig.section()
        rig.clock.advance(2 * WAIT_S)
        rig.run()
        found.append([{**section, "counter": ""} for section in (waiting, rig.section())])
    assert found[0] == found[1]
    labels = found[0][1]["labels"]
    assert min(labels["matched"], labels["late"], labels["unmatched"]) > 20
    assert len(found[0][1]["arms"]) == 4
    assert {each["variant"]: each["unusable"] > 0 for each in found[0][1]["variants"]} == {
        "stable": True,
        "canary": True,
    }


def test_weights_count(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    table = iris_rows(2)
    predicted = [int(label) for label in IRIS.answer(table)["label"]]
    for index, row in enumerate(table):
        rig.log.write(linear_sample(row[np.newaxis], prediction_id=f"p{index}"))
    at_ns = TEN_O_CLOCK_NS + SECOND_NS
    rig.label(Label("p0", predicted[0], at_ns, weight=3.0), Label("p1", (predicted[1] + 1) % 3, at_ns))
    rig.run()
    assert rig.variant()["scores"]["accuracy"] == 0.75


def test_without_labels_nothing_is_told_and_a_model_that_says_nothing_of_itself_is_named(tmp_path: Path) -> None:
    write_bare(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    rig.log.write(linear_sample(iris_rows(1), prediction_id="p"))
    rig.run()
    rig.monitor.report()
    assert document(rig.settings, "iris").performance is None
    rig.label(Label("p", 1, TEN_O_CLOCK_NS + SECOND_NS))
    rig.run()
    found = rig.variant()
    assert (found["reason"], found["scores"]) == ("the package has no manifest.json", None)


def test_what_a_split_decided_is_counted_for_the_judge_once_per_request_and_survives_a_kill(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)

    def add(name: str, *, right: bool = True, rows: int = 1, **fields: Any) -> None:
        table = iris_rows(rows, len(name))
        rig.log.write(linear_sample(table, prediction_id=name, **{"reason": "SPLIT", "flag_revision": 7, **fields}))
        for row, predicted in enumerate(IRIS.answer(table)["label"].tolist()):
            label = predicted if right else (predicted + 1) % 3
            rig.label(Label(name, label, TEN_O_CLOCK_NS + SECOND_NS, row=row))

    add("a")
    add("b", right=False, rows=5)
    add("c", variant="canary")
    add("d", flag_revision=8)
    add("e", reason="STATIC")
    add("f", cache="hit")
    add("g", reason="FALLBACK")
    rig.run()
    assert rig.section()["arms"] == []  # they still wait
    rig.clock.advance(WAIT_S + 10)
    rig.run()
    rig.restart()
    rig.kill()
    rig.run()
    counter = rig.section()["counter"]
    arms = {(arm["variant"], arm["revision"]): (arm["labelled"], arm["correct"]) for arm in rig.section()["arms"]}
    assert arms == {("stable", 7): (2, 1), ("canary", 7): (1, 1), ("stable", 8): (1, 1)}
    (rig.settings.monitor_path / "labels.json").unlink()
    rig.kill()
    rig.run()
    assert rig.section()["counter"] != counter  # counted from the beginning, by somebody else
