"""Performance by labels: whatever way the labels come in, what is told of the rows that they cover is the truth."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from gateway.labelling import LabelSettings
from gateway.metrics import MonitorMetrics, process_registry
from gateway.offline.decay import band, is_outside
from gateway.offline.join import Join, Waiting
from gateway.offline.monitor import Monitor
from gateway.offline.page import page
from gateway.offline.scores import Judged, scores_of
from gateway.offline.targets import Target, UnknownClass, target_of
from gateway.samples.labels import Label, LabelLog
from gateway.settings import MonitorSettings, PathSettings, Settings
from gateway.tensors import Feature, Signature, TensorSpec
from tests.builders import Linear, classifier, regressor, write_bare, write_package
from tests.offline.logs import Log, document
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample, sample_of

SECOND_NS = 10**9
WAIT_S = 3600.0
IRIS = classifier()


def settings_in(root: Path, **labels: Any) -> Settings:
    return Settings(
        paths=PathSettings(root / "models", root / "state"),
        monitor=MonitorSettings(poll_s=0.05),
        labels=LabelSettings(**{"wait_s": WAIT_S, **labels}),
    )


class Rig:
    """A sample log and labels that are written by hand, and monitors that follow them by a clock of ours."""

    def __init__(self, root: Path, **labels: Any) -> None:
        self.settings = settings_in(root, **labels)
        self.clock = FakeClock(TEN_O_CLOCK_NS / 1e9)
        self.log = Log(self.settings)
        self.label_logs = [
            LabelLog(self.settings.sample_log_path, boot=f"w{index}", max_bytes=3000, max_age_s=3600)
            for index in range(2)
        ]
        self.monitor = self.start()

    def start(self) -> Monitor:
        self.registry = process_registry()
        return Monitor(self.settings, MonitorMetrics(self.registry), clock=self.clock)

    def restart(self) -> None:
        self.monitor.save()
        self.monitor = self.start()

    def kill(self) -> None:
        """A monitor that saved nothing since the last time."""
        self.monitor = self.start()

    def label(self, *labels: Label, worker: int = 0) -> None:
        for label in labels:
            self.label_logs[worker].append([label.to_line()], label.ts_ns)

    def run(self) -> None:
        while self.monitor.step():
            pass

    def section(self, model: str = "iris") -> dict[str, Any]:
        self.monitor.report()
        found = document(self.settings, model).performance
        assert found is not None
        return dict(found)

    def alarms(self, kind: str, model: str = "iris") -> float | None:
        """What the gauge says of version 1."""
        names = {"model": model, "version": "1", "kind": kind}
        return self.registry.get_sample_value("sluicegate_drift_alarms", names)

    def variant(self, model: str = "iris", variant: str = "stable") -> dict[str, Any]:
        return next(dict(each) for each in self.section(model)["variants"] if each["variant"] == variant)


def close(found: float | None, wanted: float) -> bool:
    return found is not None and abs(found - wanted) <= 1e-12


# -- the truth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_late_repeated_and_disordered_labels_give_the_truth_of_the_rows_they_cover(tmp_path: Path, seed: int) -> None:
    """10 % of the labels come after the end of the wait, 5 % twice, 5 % of the rows get none, all in any order; the
    monitor is killed and started anew in between."""
    dice = random.Random(seed)
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    table = iris_rows(600, seed)
    answers = IRIS.answer(table)
    truth: list[int] = [int(label) if dice.random() < 0.8 else dice.randrange(3) for label in answers["label"]]
    rig.log.write(
        *(
            linear_sample(row[np.newaxis], prediction_id=f"p{index}", ts_ns=TEN_O_CLOCK_NS + index * SECOND_NS)
            for index, row in enumerate(table)
        )
    )
    arriving: list[Label] = []
    covered: list[int] = []
    for index, label in enumerate(truth):
        at_ns = TEN_O_CLOCK_NS + index * SECOND_NS
        fate = dice.random()
        if fate < 0.05:
            continue
        if fate < 0.15:
            delay_s = dice.uniform(WAIT_S + 1, 3 * WAIT_S)
        else:
            covered.append(index)
            delay_s = dice.uniform(1, WAIT_S - 1)
        arrived = Label(f"p{index}", label, at_ns + int(delay_s * 1e9))
        arriving.append(arrived)
        if dice.random() < 0.05:
            arriving.append(Label(arrived.prediction_id, label, arrived.ts_ns + dice.randrange(SECOND_NS)))
    in_time = sum(
        label.ts_ns - TEN_O_CLOCK_NS - int(label.prediction_id[1:]) * SECOND_NS <= WAIT_S * SECOND_NS
        for label in arriving
    )
    late = len(arriving) - in_time
    arriving.append(Label("p0-of-another-host", 1, TEN_O_CLOCK_NS + 2 * int(WAIT_S) * SECOND_NS))
    arriving.sort(key=lambda label: label.ts_ns + dice.uniform(0, 600e9))
    for step, arrived in enumerate(arriving):
        # In the files in any order, but none is written later than it arrived.
        rig.clock.now_s = min(each.ts_ns for each in arriving[step:]) / 1e9
        rig.label(arrived, worker=dice.randrange(2))
        if step % 97 == 0:
            rig.run()
        if step % 211 == 0:
            (rig.restart if dice.random() < 0.5 else rig.kill)()
    rig.clock.advance(5 * WAIT_S)
    rig.run()
    found = rig.variant()

    assert (found["over"], found["labelled"], found["waiting"]) == (600, len(covered), 0)
    assert close(found["coverage"], len(covered) / 600)
    predicted = answers["label"][covered]
    wanted = np.array(truth)[covered]
    scores = found["scores"]
    assert close(scores["accuracy"], float(np.mean(predicted == wanted)))
    for name, score in (
        ("precision", sklearn_metrics.precision_score),
        ("recall", sklearn_metrics.recall_score),
        ("f1", sklearn_metrics.f1_score),
    ):
        assert close(scores[name], score(wanted, predicted, average="macro"))
        by_class = [each[name] for each in scores["classes"]]
        assert np.allclose(by_class, score(wanted, predicted, average=None), atol=1e-12, rtol=0)
    probabilities = np.array(
        [json.loads(line)["outputs"] for line in _lines(rig)]  # as they were logged, with 32 bits
    )[covered]
    p = np.array([[row[f"probabilities.{name}"] for name in range(3)] for row in probabilities])
    shares = p / p.sum(axis=1, keepdims=True)  # their sum is 1 to 32 bits; ours are taken as they were given
    assert abs(scores["auc"] - sklearn_metrics.roc_auc_score(wanted, shares, multi_class="ovr")) < 1e-6
    assert abs(scores["log_loss"] - sklearn_metrics.log_loss(wanted, shares)) < 1e-6
    assert close(scores["brier"], float(np.mean(((p - np.eye(3)[wanted]) ** 2).sum(axis=1))))
    labels = rig.section()["labels"]
    assert labels["read"] == len(arriving)
    assert labels["matched"] == len(covered)
    assert (labels["late"], labels["repeated"]) == (late, in_time - len(covered))
    assert labels["unmatched"] == 1  # that of another host
    assert labels["disputed"] == labels["ambiguous"] == 0


def _lines(rig: Rig) -> list[bytes]:
    paths = sorted(rig.settings.sample_log_path.glob("model=*/version=*/date=*/hour=*/*"))
    return [line for path in paths for line in path.read_bytes().splitlines()]


labels_of_one_row = st.lists(
    st.tuples(st.integers(0, 7200), st.sampled_from([0, 1, 2])),
    min_size=1,
    max_size=6,
    unique_by=lambda label: label[0],
)


@settings_of_hypothesis(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(labels_of_one_row, min_size=1, max_size=8), order=st.randoms())
def test_of_several_labels_the_latest_that_came_in_time_holds_in_whatever_order_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[tuple[int, int]]], order: random.Random
) -> None:
    root = tmp_path_factory.mktemp("latest")
    write_package(root / "models", IRIS)
    rig = Rig(root)
    table = iris_rows(len(rows))
    samples = [linear_sample(row[np.newaxis], prediction_id=f"p{index}") for index, row in enumerate(table)]
    labels = [
        Label(f"p{index}", value, TEN_O_CLOCK_NS + delay_s * SECOND_NS)
        for index, of_row in enumerate(rows)
        for delay_s, value in of_row
    ]
    order.shuffle(labels)
    writes: list[Callable[[], None]] = [lambda sample=sample: rig.log.write(sample) for sample in samples]  # type: ignore[misc]
    writes += [lambda label=label: rig.label(label, worker=order.randrange(2)) for label in labels]  # type: ignore[misc]
    order.shuffle(writes)
    for write in writes:
        write()
        if order.random() < 0.3:
            rig.run()
        if order.random() < 0.1:
            rig.restart()
    rig.clock.advance(3 * WAIT_S)
    rig.run()
    in_time = [[label for label in of_row if label[0] <= WAIT_S] for of_row in rows]
    latest = {index: max(of_row)[1] for index, of_row in enumerate(in_time) if of_row}
    found = rig.variant()
    assert (found["over"], found["labelled"]) == (len(rows), len(latest))
    if latest:
        predicted = IRIS.answer(table)["label"]
        assert close(
            found["scores"]["accuracy"], float(np.mean([predicted[i] == value for i, value in latest.items()]))
        )
    counts = rig.section()["labels"]
    assert counts["disputed"] == sum(len({value for _, value in of_row}) > 1 for of_row in in_time)
    assert counts["late"] == sum(map(len, rows)) - sum(map(len, in_time))
    assert counts["unmatched"] == 0


def test_a_label_of_a_row_that_waits_no_longer_is_late_and_no_other_one_is(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    rig.label(Label("nobody", 1, TEN_O_CLOCK_NS))
    for index, row in enumerate(iris_rows(50)):
        rig.log.write(linear_sample(row[np.newaxis], prediction_id=f"p{index}"))
    rig.run()
    rig.clock.advance(WAIT_S + 60)
    rig.run()
    assert rig.variant()["over"] == 50
    rig.restart()
    after_ns = TEN_O_CLOCK_NS + int((WAIT_S + 61) * 1e9)
    rig.label(*(Label(f"p{index}", 1, after_ns) for index in range(50)), Label("p50", 1, after_ns))
    rig.run()
    rig.clock.advance(120)
    rig.run()
    counts = rig.section()["labels"]
    assert (counts["read"], counts["late"], counts["unmatched"], counts["matched"]) == (52, 50, 2, 0)


def test_of_rows_that_wait_no_longer_only_so_many_are_remembered() -> None:
    join = Join(wait_ns=SECOND_NS, max_rows=100)
    for index in range(1000):
        join.add_row(Waiting(index, f"p{index}", 0, 1, ()))
        assert [row.prediction_id for row in join.over(10**12 + index)] == [f"p{index}"]
    for index in range(1000):
        join.add_label(Label(f"p{index}", 1, 10**12))
    join.forget_early(10**15)
    assert 50 <= join.counts["late"] <= 100
    assert join.counts["late"] + join.counts["unmatched"] == 1000
    again = Join(wait_ns=SECOND_NS, max_rows=100)
    again.take(join.to_plain(), [])
    again.add_label(Label("p999", 1, 10**12))
    again.add_label(Label("p1", 1, 10**12))
    assert again.counts["late"] == join.counts["late"] + 1


def test_rows_are_over_in_the_order_of_their_time_in_whatever_order_they_came() -> None:
    join, dice = Join(wait_ns=0, max_rows=1000), random.Random(1)
    for index in [*range(300), *dice.sample(range(300, 600), 300)]:
        join.add_row(Waiting(index % 450, f"p{index:03d}", 0, 1, ()))
    found = [(row.ts_ns, row.prediction_id) for row in join.over(10**15)]
    assert [ts_ns for ts_ns, _identity in found] == sorted(index % 450 for index in range(600))
    assert len(set(found)) == 600


# -- what is told -------------------------------------------------------------------------------------


def label_all(rig: Rig, linear: Linear, rows: int, *, right: float, variant: str = "stable", **fields: Any) -> None:
    """Predictions of *linear*, and a label for each; a share of them is confirmed."""
    table = np.random.default_rng(7).normal(size=(rows, len(linear.features))).astype(np.float32)
    answers = linear.answer(table)
    for index, row in enumerate(table):
        name = f"{linear.model}-{linear.version}-{variant}-{index}"
        rig.log.write(linear_sample(row[np.newaxis], linear, prediction_id=name, variant=variant, **fields))
        if linear.classes is None:
            label: Any = float(answers["value"][index, 0]) - 2.0
        else:
            predicted = int(answers["label"][index])
            label = predicted if index < right * rows else (predicted + 1) % len(linear.classes)
        rig.label(Label(name, label, TEN_O_CLOCK_NS + 60 * SECOND_NS))


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


def test_labels_of_a_backlog_that_takes_several_steps_find_their_rows(tmp_path: Path) -> None:
    """One segment larger than a step, and labels that are older than a label without a row is kept."""
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    for request in range(90):
        sample = linear_sample(iris_rows(100, request), prediction_id=f"p{request}", ts_ns=TEN_O_CLOCK_NS)
        rig.log.write(sample)
        rig.label(*(Label(f"p{request}", 1, TEN_O_CLOCK_NS + SECOND_NS, row) for row in range(100)))
    rig.log.close()
    segments = [path.stat().st_size for path in rig.settings.sample_log_path.glob("model=*/**/*.jsonl")]
    assert max(segments) > 4.5 * 2**20
    rig.clock.advance(600)
    rig.run()
    labels = rig.section()["labels"]
    assert (labels["matched"], labels["unmatched"]) == (9000, 0)


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


@pytest.mark.parametrize("slice_feature", ["sepal_width", "colour"])
def test_a_backlog_beyond_what_may_wait_is_followed_by_its_columns_and_each_row_is_counted_once(
    tmp_path: Path, slice_feature: str
) -> None:
    """Several steps, of which the join can take only some before it has read the labels; "colour" is in no row."""
    write_package(tmp_path / "models", IRIS, reference_rows=200)
    rig = Rig(tmp_path, max_waiting_rows=3000, slice_feature=slice_feature)
    for request in range(240):
        at_ns = TEN_O_CLOCK_NS + request * SECOND_NS
        rig.log.write(linear_sample(iris_rows(100, request), prediction_id=f"p{request}", ts_ns=at_ns))
        rig.label(*(Label(f"p{request}", row % 3, at_ns + SECOND_NS, row) for row in range(0, 100, 10)))
    rig.log.close()
    assert sum(path.stat().st_size for path in rig.settings.sample_log_path.glob("model=*/**/*.jsonl")) > 10 * 2**20
    rig.clock.now_s = TEN_O_CLOCK_NS / 1e9 + 300
    rig.monitor.step()
    rig.restart()
    rig.run()
    rig.clock.advance(2 * WAIT_S)
    rig.run()
    found, labels = rig.variant(), rig.section()["labels"]
    assert found["over"] == 24_000
    assert labels["matched"] + labels["unmatched"] == labels["read"] == 2400
    assert labels["let_go"] > 20_000
    assert labels["matched"] > 2000
    assert found["labelled"] == labels["matched"]
    rig.clock.advance(10 * WAIT_S)
    rig.run()
    rig.monitor.tidy()
    rig.monitor.save()
    remembered = json.loads((rig.settings.monitor_path / "labels.json").read_bytes())
    assert list(remembered["finished"]) == ["model=iris/version=1"]  # it has seen the ends of all segments
    assert remembered["offsets"] == {}


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


def test_memory_is_bounded_and_what_is_let_go_is_counted(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path, max_waiting_rows=100, recent_rows=50)
    rig.label(Label("p", 1, TEN_O_CLOCK_NS))
    label_all(rig, IRIS, 500, right=0.5)
    rig.run()
    found = rig.variant()
    assert found["waiting"] < 100
    assert found["over"] + found["waiting"] == 500
    assert found["scores"]["rows"] == 50
    assert rig.section()["labels"]["let_go"] == found["over"]


def test_lines_that_are_no_labels_are_passed_over(tmp_path: Path) -> None:
    write_package(tmp_path / "models", IRIS)
    rig = Rig(tmp_path)
    rig.log.write(linear_sample(iris_rows(1), prediction_id="p"))
    for line in (b"{\n", b"[]\n", b'{"schema": 2}\n', b'{"schema": 1, "ts_ns": "x"}\n', b'{"schema": 1, "ts_ns": 1}\n'):
        rig.label_logs[0].append([line], TEN_O_CLOCK_NS)
    rig.label(Label("p", 1, TEN_O_CLOCK_NS + SECOND_NS))
    rig.run()
    assert rig.variant()["waiting_labelled"] == 1
    rig.monitor.save()
    (rig.settings.monitor_path / "labels.json").write_text("{")
    rig.kill()  # a memory that cannot be read: all is read again
    rig.run()
    assert rig.variant()["waiting_labelled"] == 1


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


# -- decay --------------------------------------------------------------------------------------------


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


# -- the numbers --------------------------------------------------------------------------------------


def judged(truth: Any, predicted: Any, scores: list[float] | None = None) -> Judged:
    return Judged(0, "p", 0, predicted, scores, truth, 1.0, "", 0.0)


def test_two_classes_have_one_auc_and_a_brier_score_of_the_second() -> None:
    target = Target("label", "label", True, ("no", "yes"), ("p.no", "p.yes"))
    chances = np.array([0.1, 0.4, 0.35, 0.8])
    truth = ["no", "no", "yes", "yes"]
    rows = [judged(t, "yes" if p > 0.5 else "no", [1 - p, p]) for t, p in zip(truth, chances.tolist(), strict=True)]
    found = scores_of(rows, target)
    is_yes = [each == "yes" for each in truth]
    assert close(found["auc"], sklearn_metrics.roc_auc_score(is_yes, chances))
    assert close(found["brier"], sklearn_metrics.brier_score_loss(is_yes, chances))
    assert close(found["log_loss"], sklearn_metrics.log_loss(is_yes, chances))


def test_what_cannot_be_told_is_none_and_not_a_number() -> None:
    target = Target("label", "label", True, ("no", "yes"), ("p.no", "p.yes"))
    only_one = scores_of([judged("no", "no", [0.9, 0.1])], target)
    assert (only_one["accuracy"], only_one["auc"]) == (1.0, None)
    unknown = scores_of([judged("perhaps", "no", [0.9, 0.1])], target)
    assert (unknown["accuracy"], unknown["auc"], unknown["brier"], unknown["log_loss"]) == (0.0, None, None, None)
    sure_and_wrong = scores_of([judged("yes", "no", [1.0, 0.0])], target)
    assert 30 < sure_and_wrong["log_loss"] < 40


@pytest.mark.parametrize(
    ("outputs", "classes", "wanted"),
    [
        ((TensorSpec("value", "FP32", (-1, 1)),), None, Target("value", "value", False)),
        ((TensorSpec("y", "FP32", (-1,)),), None, Target("y", "y", False)),
        ((TensorSpec("y", "FP32", (-1, 2)),), None, None),
        ((TensorSpec("y", "BYTES", (-1,)),), None, None),
        ((TensorSpec("label", "INT64", (-1,), "label"),), None, Target("label", "label", True)),
        ((TensorSpec("label", "INT64", (-1,), "label"),), ("a", "b"), Target("label", "label", True)),
        ((TensorSpec("label", "INT64", (-1,), "label"),), (-1, 1), Target("label", "label", True, ("-1", "1"))),
        (
            (TensorSpec("p", "FP32", (-1, 2), "probabilities"),),
            ("a", "b"),
            Target("p", "", True, ("a", "b"), ("p.a", "p.b")),
        ),
        ((TensorSpec("p", "FP32", (-1, 2), "probabilities"),), None, None),
    ],
)
def test_what_labels_are_about(
    outputs: Sequence[TensorSpec], classes: tuple[str | int, ...] | None, wanted: Target
) -> None:
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    assert target_of(Signature(inputs, tuple(outputs), classes=classes)) == wanted


def test_labels_are_equal_to_classes_wherever_they_come_from() -> None:
    numbers = Target("label", "label", True, ("0", "1"))
    assert [numbers.truth(label) for label in (1, 1.0, "1", True, False, {"label": 0})] == ["1"] * 4 + ["0"] * 2
    booleans = Target("label", "label", True, ("false", "true"))
    assert booleans.truth(True) == "true"
    for unknown in ("banana", 2, -0.5):
        with pytest.raises(UnknownClass, match="the model has no class"):
            numbers.truth(unknown)
    assert Target("label", "label", True).truth("banana") == "banana"  # the package names no classes
    price = Target("value", "value", False)
    assert price.truth("2.5") == 2.5
    for wrong in ("much", True, {"other": 1}):
        with pytest.raises((ValueError, TypeError)):
            price.truth(wrong)
