"""`sluicegate demo` as a process of its own, and that it would notice wrong answers and drift that is not found."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gateway.cli.demo_gateway import Metrics
from gateway.cli.demo_report import Outcome, problems
from gateway.cli.demo_traffic import CANCER, DIGITS, SHIFTS, Counts, Stream, Subject
from tests.builders import Linear, classifier, write_package
from tests.live import LiveGateway

TIMEOUT_S = 170


@pytest.mark.timeout(TIMEOUT_S + 10)
def test_the_demo_walks_from_training_to_drift_and_leaves_nothing_behind(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "gateway", "demo", "--seconds", "8"],
        env={**os.environ, "TMPDIR": str(tmp_path), "SLUICEGATE_SERVER__WORKERS": "7"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "every prediction was right, and the drift was found" in found.stdout
    assert "static int8" in found.stdout
    assert "0 failed, 0 wrong" in found.stdout
    drifted = [line for line in found.stdout.splitlines() if "at the end" in line and "drifted" in line]
    assert len(drifted) == 2, found.stdout
    for line in drifted:
        assert all(name in line for name in SHIFTS), line
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_something_in_it_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gateway.cli import main

    (tmp_path / "precious").touch()
    assert main(["demo", "--seconds", "5", "--keep-dir", str(tmp_path)]) == 1
    assert "there already and not empty" in capsys.readouterr().err


def subject_of(linear: Linear, random: np.random.Generator) -> Subject:
    rows = random.normal(size=(2, 50, len(linear.features))).astype(np.float32)
    answers = linear.answer(rows.reshape(-1, len(linear.features)))
    expected = {name: array.reshape(2, 50, *array.shape[1:]) for name, array in answers.items()}
    return Subject(linear.model, linear.features, rows, {linear.version: expected}, linear.classes or (), 1e-5)


def answered(gateway: LiveGateway, *subjects: Subject) -> Counts:
    """What comes back from a second of traffic."""
    stream = Stream(gateway.data_url, subjects)

    async def run() -> None:
        sending = asyncio.create_task(stream.run())
        await asyncio.sleep(0.5)
        stream.shifted = True
        await asyncio.sleep(0.5)
        stream.stop()
        await sending

    asyncio.run(run())
    return stream.counts


def test_the_stream_knows_right_answers_from_wrong_ones(models: Path, state: Path) -> None:
    random = np.random.default_rng(1)
    linears = [classifier(CANCER, classes=(0, 1)), classifier(DIGITS, classes=(0, 1, 2))]
    for linear in linears:
        write_package(models, linear)
    cancer, digits = (subject_of(linear, random) for linear in linears)
    with LiveGateway(models, state) as gateway:
        right = answered(gateway, cancer, digits)
        assert right.requests > 20
        assert (right.failed, right.wrong, right.messages) == (0, 0, [])
        assert sum(right.rows_by_model.values()) == right.rows > right.requests
        off = {
            version: {**all_, "probabilities": all_["probabilities"] + 1e-3}
            for version, all_ in digits.expected.items()
        }
        wrong = answered(gateway, cancer, dataclasses.replace(digits, expected=off))
        assert wrong.wrong == sum(count for (_, model, _), count in wrong.variants.items() if model == DIGITS) > 0
        assert "is off by 0.001" in wrong.messages[0]
    gone = answered(gateway, cancer, digits)
    assert gone.failed > 0
    assert gone.requests == 0


def outcome(counts: Counts, *, written: int, drifted: tuple[str, ...] = tuple(SHIFTS)) -> Outcome:
    columns = [{"name": name, "verdict": "drifted", "effect": 0.5} for name in drifted]
    report = {"versions": [{"version": "1", "status": "drifted", "columns": columns}]}
    page = f"# a comment\nsluicegate_samples_written_total {written}.0\n"
    return Outcome(8, ("all",), counts, Metrics(page), None, {CANCER: report})


def test_the_demo_fails_for_each_thing_that_must_not_happen() -> None:
    good = Counts(requests=10, rows=20)
    assert problems(outcome(good, written=20)) == []
    assert problems(outcome(Counts(), written=0)) == ["no prediction was answered"]
    assert problems(outcome(dataclasses.replace(good, wrong=1, messages=["oh"]), written=20)) == [
        "0 requests failed, 1 answers were wrong",
        "  for example oh",
    ]
    assert problems(outcome(good, written=0)) == ["0 of 20 rows are in the sample log"]
    assert problems(outcome(good, written=20, drifted=("mean radius",))) == [
        "breast-cancer 1: the monitor missed the shift of mean texture"
    ]
    unseen = dataclasses.replace(outcome(good, written=20), drift={})
    assert problems(unseen) == ["the drift monitor has not seen enough rows of breast-cancer"]


def test_metrics_are_read_by_name_and_labels() -> None:
    page = (
        "# HELP h help\n"
        'h_bucket{le="1.0",version="1"} 3.0\n'
        'h_bucket{le="2.0",version="1"} 5.0\n'
        'h_bucket{le="+Inf",version="1"} 6.0\n'
        'h_bucket{le="1.0",version="2"} 1.0\n'
        'h_bucket{le="2.0",version="2"} 1.0\n'
        'h_bucket{le="+Inf",version="2"} 1.0\n'
        "plain 4.0\n"
    )
    metrics = Metrics(page)
    assert metrics.total("plain") == 4.0
    assert metrics.total("h_bucket", version="2") == 3.0
    assert metrics.buckets("h", version="1") == {"1.0": 3, "2.0": 2, "+Inf": 1}
    assert metrics.buckets("h") == {"1.0": 4, "2.0": 2, "+Inf": 1}
