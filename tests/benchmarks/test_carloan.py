"""The monitor on a log of whole chunks: its figures are scipy's and scikit-learn's, from the log to the document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from carloan import START_NS, TRUTH, Told, claims, differences_to_scipy, follow, signature_of, write_package

from gateway.samples.labels import FOLDER

ROWS, CHUNKS, FIRST_SHIFTED = 600, 4, 2


def made(random: np.random.Generator, rows: int, *, shift: float = 0.0) -> Any:
    """Rows of a model that is right in nine of ten, less with *shift*, by which a number and a category move."""
    scores = random.random(rows)
    predicted = (scores > 0.5).astype(np.int64)
    return pd.DataFrame(
        {
            "amount": random.lognormal(shift, size=rows),
            "years": random.integers(1, 8, rows).astype(np.float64),  # few different numbers: ties
            "income": random.choice(["low", "middle", "high"], rows, p=[0.3 - shift / 4, 0.4, 0.3 + shift / 4]),
            "owner": random.choice(["True", "False"], rows, p=[0.7, 0.3]),
            "label": predicted,
            "probabilities.0": 1.0 - scores,
            "probabilities.1": scores,
            TRUTH: np.where(random.random(rows) < 0.9 - shift / 4, predicted, 1 - predicted),
        }
    )


@pytest.fixture(scope="module")
def chunks() -> list[Any]:
    random = np.random.default_rng(3)
    return [made(random, ROWS, shift=0.6 * (number >= FIRST_SHIFTED)) for number in range(CHUNKS)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("carloan")
    return folder, write_package(folder / "models", made(np.random.default_rng(4), 7000))


@pytest.fixture(scope="module")
def told(reference: tuple[Path, Any], chunks: list[Any]) -> list[Told]:
    return list(follow(reference[0], chunks, signature_of(chunks[0]), window_rows=100, reference_windows=12))


def test_all_figures_in_the_document_are_those_of_scipy_and_scikit_learn(
    told: list[Told], reference: tuple[Path, Any], chunks: list[Any]
) -> None:
    assert len(reference[1]) == 5000
    for one, rows in zip(told, chunks, strict=True):
        found = differences_to_scipy(one, reference[1], rows)
        assert len(found) == 7
        assert max(found.values()) <= 1e-9, found


def test_what_moved_drifts_in_its_chunks_and_alarms_from_the_second_one_on(told: list[Told]) -> None:
    moved = {"amount", "income"}
    assert [one.drifted for one in told] == [set(), set(), moved, moved]
    assert [set(one.alarms) for one in told] == [set(), set(), set(), moved]
    assert set(told[3].alarms.values()) == {START_NS + FIRST_SHIFTED * 3600 * 10**9}


def test_the_log_of_labels_has_all_of_them_and_they_show_that_the_accuracy_falls(
    told: list[Told], reference: tuple[Path, Any]
) -> None:
    assert [one.scores["rows"] for one in told] == [ROWS] * CHUNKS
    assert [one.scores["accuracy"] > 0.83 for one in told] == [True, True, False, False]
    assert [one.accuracy for one in told[1:]] == ["insufficient", "drifted", "drifted"]
    assert list((reference[0] / "state" / "samples" / FOLDER).glob("date=*/carloan-*.jsonl"))


def test_other_columns_than_those_of_the_car_loans_break_the_claims(told: list[Told]) -> None:
    assert not all(holds for _claim, holds in claims([*told, *told]))
