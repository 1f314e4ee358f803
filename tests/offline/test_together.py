"""The figure for all features together: scikit-learn's, calm on clean windows, and it sees what single columns hide."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from gateway.offline.drift import Column, compare
from gateway.offline.together import EXPLAINED_SHARE, Fit, Together, reconstruction_errors
from gateway.tensors import Array
from tests.offline.test_drift import RULES

MIX = np.random.default_rng(0).normal(size=(3, 8))


def table(rows: int, seed: int) -> Array:
    """Eight features that follow three things nobody sees."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 3)) @ MIX + 0.3 * rng.normal(size=(rows, 8))


def columns(reference: Array, current: Array) -> list[Column]:
    return [
        Column(f"x{index}", "input", "numeric", reference[:, index], current[:, index])
        for index in range(reference.shape[1])
    ]


def judged(reference: Array, current: Array) -> Together:
    every = columns(reference, current)
    return Fit(every).judge(every)


def test_errors_are_those_of_scikit_learn() -> None:
    then, now = table(800, 1), table(300, 2)
    pca = PCA(n_components=EXPLAINED_SHARE, svd_solver="full").fit(then)
    expected = np.linalg.norm(now - pca.inverse_transform(pca.transform(now)), axis=1)
    errors, components = reconstruction_errors(then, now, EXPLAINED_SHARE)
    assert components == pca.n_components_
    assert errors == pytest.approx(expected, abs=1e-6)


def test_features_that_no_longer_go_together_are_seen_though_each_alone_is_as_ever() -> None:
    reference, window = table(5000, 1), table(1000, 2)
    assert not judged(reference, window).is_outside
    rng = np.random.default_rng(3)
    apart = window.copy()
    for index in range(0, 8, 2):
        apart[:, index] = rng.permutation(apart[:, index])
    assert {one.verdict for one in compare(columns(reference, apart), RULES)} == {"stable"}
    found = judged(reference, apart)
    assert found.is_outside
    assert found.error > found.high > found.expected > found.low


@pytest.mark.parametrize("rows", [200, 1000, 5000])
def test_clean_windows_are_seldom_outside_of_the_band(rows: int) -> None:
    outside = 0
    for seed in range(8):
        reference = table(5000, 1000 + seed)
        fit = Fit(columns(reference, reference))
        for window in range(5):
            outside += fit.judge(columns(reference, table(rows, 10 * seed + window))).is_outside
    assert outside <= 2


def test_a_reference_whose_neighbours_are_alike_gets_a_wider_band() -> None:
    reference = table(5000, 1)
    errors, _ = reconstruction_errors(reference, reference, EXPLAINED_SHARE)
    mixed, sorted_by_error = judged(reference, table(500, 2)), judged(reference[np.argsort(errors)], table(500, 2))
    assert sorted_by_error.high - sorted_by_error.low > 5 * (mixed.high - mixed.low)


def test_missing_infinite_and_new_values_are_borne() -> None:
    rng = np.random.default_rng(5)
    colours = rng.choice(["red", "blue", "green"], size=1500, p=[0.5, 0.3, 0.2]).astype(object)
    numbers = table(1500, 6)
    numbers[0, :3] = [np.nan, np.inf, -np.inf]
    window = np.array(["red", "new", None] * 100, object)
    every = [*columns(numbers, numbers[:300]), Column("c", "input", "categorical", colours, window)]
    found = Fit(every).judge(every)
    assert np.isfinite([found.error, found.low, found.high]).all()
    assert found.columns == 9


def test_too_little_to_say_is_said() -> None:
    few = table(399, 1)
    with pytest.raises(ValueError, match="399 rows of at least 400"):
        Fit(columns(few, few))
    constant = np.ones((1000, 3))
    with pytest.raises(ValueError, match="insufficient features: fewer than two features that vary"):
        Fit(columns(constant, constant))


def test_two_features_that_say_nothing_of_each_other_are_not_judged_by_rounding() -> None:
    """Both components are needed to explain enough, and what these leave of a row is some 1e-16."""
    apart = np.random.default_rng(1).normal(size=(2000, 2))
    with pytest.raises(ValueError, match="insufficient features: 2 that vary"):
        Fit(columns(apart, apart))
    follows = np.stack([apart[:, 0], apart[:, 0] + 0.3 * apart[:, 1]], axis=1)
    found = judged(follows, follows[:300])
    assert (found.components, found.columns) == (1, 2)
    assert found.error > 0.01
    assert judged(follows, apart[:300]).is_outside
