"""Labels find their rows: late, repeated, in any order, in bounded memory, whoever reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from gateway.offline.join import Join, Waiting
from gateway.samples.labels import Label
from tests.builders import write_package
from tests.offline.labelled import IRIS, SECOND_NS, WAIT_S, Rig, close, label_all
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample


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
