"""Calibration: the figure is that of the textbook, in whatever order rows come, and chance is told beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.offline.calibration import calibration_of
from gateway.offline.groups import told_of
from gateway.offline.scores import Judged, calibration_in, scores_of
from gateway.offline.targets import Target

YES_NO = Target("label", "label", True, ("no", "yes"), ("p.no", "p.yes"))
THREE = Target("label", "label", True, ("a", "b", "c"), ("p.a", "p.b", "p.c"))


def judged(target: Target, scores: np.ndarray, truth: int, weight: float = 1.0) -> Judged:
    predicted = target.classes[int(np.argmax(scores))]
    return Judged(0, "p", 0, predicted, scores.tolist(), target.classes[truth], weight, "", 1.0)


def of_two(chances: np.ndarray, seed: int = 0, power: float = 1.0) -> list[Judged]:
    """Rows whose second class comes true with its chance to the power of *power*."""
    true = np.random.default_rng(seed).random(len(chances)) < chances**power
    return [judged(YES_NO, np.array([1 - p, p]), int(t)) for p, t in zip(chances, true, strict=True)]


def test_two_classes_are_judged_by_the_second_as_plain_numpy_does() -> None:
    chances = np.random.default_rng(1).beta(2, 2, 1000)
    rows = of_two(chances, power=2.0)
    # Ten bins of a hundred rows each, in the order of chances.
    true = np.array([row.truth == "yes" for row in rows])
    order = np.argsort(chances)
    bins = np.array_split(order, 10)
    wanted = sum(len(b) / 1000 * abs(chances[b].mean() - true[b].mean()) for b in bins)
    found = calibration_in(rows, YES_NO)
    assert found is not None
    assert found["of"] == "yes"
    assert [each["rows"] for each in found["bins"]] == [100] * 10
    assert np.allclose([each["predicted"] for each in found["bins"]], [chances[b].mean() for b in bins], atol=1e-12)
    assert np.allclose([each["observed"] for each in found["bins"]], [true[b].mean() for b in bins], atol=1e-12)
    assert abs(found["ece"] - wanted) <= 1e-12
    assert found["ece"] > 4 * found["by_chance"]
    assert scores_of(rows, YES_NO)["ece"] == found["ece"]
    assert told_of(rows, YES_NO)["calibration"] == found


def test_more_classes_are_judged_by_the_highest_chance_of_each_row_as_plain_numpy_does() -> None:
    dice = np.random.default_rng(2)
    table = dice.dirichlet([1.0, 1.0, 1.0], 600)
    truth = dice.integers(0, 3, 600)
    rows = [judged(THREE, scores, int(label)) for scores, label in zip(table, truth, strict=True)]
    top, is_right = table.max(axis=1), table.argmax(axis=1) == truth
    bins = np.array_split(np.argsort(top), 10)
    wanted = sum(len(b) / 600 * abs(top[b].mean() - is_right[b].mean()) for b in bins)
    found = calibration_in(rows, THREE)
    assert found is not None
    assert found["of"] == ""
    assert abs(found["ece"] - wanted) <= 1e-12


def test_weights_count_as_if_a_row_came_so_often() -> None:
    chances = np.repeat([0.2, 0.6, 0.9], 100)
    is_true = np.random.default_rng(3).random(300) < 0.5
    weights = np.random.default_rng(4).integers(1, 4, 300).astype(np.float64)
    found = calibration_of(chances, is_true, weights)
    times = weights.astype(int)
    repeated = calibration_of(np.repeat(chances, times), np.repeat(is_true, times), np.ones(times.sum()))
    assert abs(found["ece"] - repeated["ece"]) <= 1e-12
    assert [each["rows"] for each in found["bins"]] == [100, 100, 100]  # equal chances are never torn apart


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.93, 1.0]), st.booleans()), min_size=1, max_size=400),
    st.randoms(),
)
def test_the_order_of_rows_does_not_matter_and_all_are_in_one_bin(
    rows: list[tuple[float, bool]], order: np.random.Generator
) -> None:
    def found(listed: list[tuple[float, bool]]) -> dict[str, object]:
        chances, is_true = (np.array(side) for side in zip(*listed, strict=True))
        return calibration_of(chances, is_true, np.ones(len(listed)))

    first = found(rows)
    assert sum(each["rows"] for each in first["bins"]) == len(rows)  # type: ignore[attr-defined]
    shuffled = list(rows)
    order.shuffle(shuffled)
    again = found(shuffled)
    assert first["ece"] == pytest.approx(again["ece"], abs=1e-12)
    assert 0.0 <= first["ece"] <= 1.0  # type: ignore[operator]


def test_chances_that_are_right_have_about_the_error_that_is_told_to_be_chance() -> None:
    for rows in (100, 500, 2000):
        every = [
            calibration_of(
                chances := np.random.default_rng(seed).beta(1, 2, rows),
                np.random.default_rng(seed + 1000).random(rows) < chances,
                np.ones(rows),
            )
            for seed in range(200)
        ]
        ece, by_chance = (float(np.mean([found[name] for found in every])) for name in ("ece", "by_chance"))
        print(f"calibrated, {rows} rows: error {ece:.4f}, told {by_chance:.4f}")
        assert abs(ece - by_chance) < 0.1 * ece


def test_without_probabilities_or_known_classes_nothing_is_told() -> None:
    bare = Judged(0, "p", 0, "no", None, "no", 1.0, "", 0.0)
    unknown = Judged(0, "p", 0, "no", [0.6, 0.4], "perhaps", 1.0, "", 0.0)
    assert calibration_in([bare, unknown], YES_NO) is None
    assert scores_of([bare], YES_NO)["ece"] is None
    assert told_of((), "no manifest")["calibration"] is None
