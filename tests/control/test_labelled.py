"""Counts of labels for the judge: from the drift document into windows, each once, and never below zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.control.labelled import LabelCounts
from gateway.control.signals import Counts, Cursor, merged


def write(directory: Path, counter: str, *arms: tuple[str, int, int, int], model: str = "iris") -> None:
    """A drift document as far as the judge reads it. arms: variant, revision, labelled, correct."""
    names = ("variant", "revision", "labelled", "correct")
    told = [{"version": "1", **dict(zip(names, arm, strict=True))} for arm in arms]
    document = {"schema": 1, "performance": {"counter": counter, "arms": told}}
    partial = directory / "partial"
    partial.write_text(json.dumps(document))
    partial.rename(directory / f"{model}.json")


class Look:
    """A controller's looks at the labels of iris."""

    def __init__(self, directory: Path) -> None:
        self._counts = LabelCounts(directory)
        self.cursor = Cursor()

    def take(self) -> list[tuple[int, Counts, Counts]]:
        epochs = self.cursor.take(
            self._counts.of("iris"), "iris", candidate="canary", stable="stable", since_revision=5
        )
        return [(epoch.revision, merged(epoch.candidate), merged(epoch.stable)) for epoch in epochs]


def counts(labelled: int, correct: int) -> dict[str, Any]:
    return {"labelled": labelled, "correct": correct}


def test_each_label_is_taken_once_in_its_epoch(tmp_path: Path) -> None:
    look = Look(tmp_path)
    assert look.take() == []
    write(tmp_path, "m1", ("stable", 4, 100, 90), ("stable", 5, 10, 9), ("canary", 5, 4, 1), ("other", 5, 3, 3))
    assert look.take() == [(5, counts(4, 1), counts(10, 9))]
    assert look.take() == []
    write(tmp_path, "m1", ("stable", 5, 12, 10), ("canary", 5, 4, 1), ("canary", 6, 2, 2))
    assert look.take() == [(5, {}, counts(2, 1)), (6, counts(2, 2), {})]
    again = Look(tmp_path)  # control was started anew
    again.cursor.read = json.loads(json.dumps(look.cursor.read))
    assert again.take() == []


def test_a_document_without_labels_or_that_is_none_counts_nothing(tmp_path: Path) -> None:
    look = Look(tmp_path)
    for raw in (
        '{"schema": 1}',
        '{"performance": null}',
        "{",
        "[]",
        '{"performance": {"counter": "m", "arms": [{}]}}',
        '{"performance": 3}',
    ):
        (tmp_path / "iris.json").write_text(raw)
        assert look.take() == []
    write(tmp_path, "m1", ("stable", 5, 1, 1))
    assert look.take() == [(5, {}, counts(1, 1))]
