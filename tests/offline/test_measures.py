"""The figures beside the tests: equal to scipy's, and defined where data are odd."""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from gateway.offline import measures
from gateway.offline.drift import Column
from gateway.offline.measures import OTHER, Measures, jensen_shannon, measure, psi, wasserstein
from gateway.tensors import Array

SHARES = st.lists(st.integers(0, 400), min_size=2, max_size=12).filter(lambda counts: sum(counts) > 0)


def numeric(reference: Array, current: Array, wrong_type: int = 0) -> Measures:
    return measure(Column("x", "input", "numeric", reference, current, wrong_type))


def categorical(reference: list[Any], current: list[Any]) -> Measures:
    return measure(Column("c", "input", "categorical", np.array(reference, object), np.array(current, object)))


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(measures) == doctest.TestResults(0, 1)


@given(SHARES, st.randoms(use_true_random=False))
def test_jensen_shannon_is_scipys(counts: list[int], random: Any) -> None:
    other = counts[:]
    random.shuffle(other)
    p, q = np.array(counts) / sum(counts), np.array(other) / sum(other)
    assert jensen_shannon(p, q) == pytest.approx(distance.jensenshannon(p, q, base=2), abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=2, max_size=12))
def test_psi_of_full_bins_is_scipys_relative_entropy_both_ways(pairs: list[tuple[int, int]]) -> None:
    then, now = np.array(pairs).T
    p, q = then / then.sum(), now / now.sum()
    expected = stats.entropy(p, q) + stats.entropy(q, p)
    assert psi(p, q, int(then.sum()), int(now.sum())) == pytest.approx(expected, abs=1e-6)


def test_wasserstein_is_scipys_in_standard_deviations_of_the_reference() -> None:
    rng = np.random.default_rng(3)
    reference, current = rng.normal(5, 3, 2000), rng.normal(6.5, 3, 800)
    expected = stats.wasserstein_distance(reference, current) / np.std(reference)
    assert wasserstein(reference, current) == pytest.approx(expected, abs=1e-6)
    assert wasserstein(reference * 100, current * 100) == pytest.approx(expected, rel=1e-6)
    assert wasserstein(np.append(reference, np.inf), current) == pytest.approx(expected, abs=1e-6)
    assert wasserstein(np.full(10, 2.0), current) is None
    assert wasserstein(reference, np.array([])) is None


def test_a_shift_shows_in_every_figure_and_none_where_nothing_moved() -> None:
    rng = np.random.default_rng(4)
    reference = rng.normal(size=5000)
    same, moved = numeric(reference, rng.normal(size=2000)), numeric(reference, rng.normal(1.0, size=2000))
    for name in ("psi", "wasserstein", "jensen_shannon"):
        assert getattr(moved, name) > 4 * getattr(same, name)
    assert moved.wasserstein == pytest.approx(1.0, abs=0.1)
    assert moved.psi == pytest.approx(1.0, abs=0.15)  # d squared for a shift by d standard deviations
    assert moved.outside > same.outside


def test_values_outside_of_the_reference_and_of_the_wrong_type_are_shares_of_the_window() -> None:
    found = numeric(np.arange(10.0), np.array([-1.0, 0.0, 9.0, 10.0, np.inf, np.nan, np.nan, np.nan]), wrong_type=2)
    assert (found.outside, found.wrong_type) == (3 / 5, 2 / 8)


def test_new_categories_are_named_the_most_frequent_first() -> None:
    found = categorical(["a"] * 60 + ["b"] * 40, ["a"] * 50 + ["y"] * 10 + ["z"] * 30 + [None] * 10)
    assert (found.new_categories, found.outside) == (("z", "y"), 40 / 90)
    assert found.wasserstein is None
    assert found.histogram.categories == ("a", "b", "z", "y")
    assert found.histogram.reference == (0.6, 0.4, 0.0, 0.0)


def test_many_categories_are_drawn_as_few_and_the_new_one_is_among_them() -> None:
    reference = [f"c{index % 40}" for index in range(4000)]
    found = categorical(reference, [*reference[:900], *["new"] * 100])
    shown = found.histogram
    assert len(shown.categories) == 13
    assert shown.categories[-1] == OTHER
    assert "new" in shown.categories
    assert sum(shown.reference) == pytest.approx(1, abs=1e-3)
    assert sum(shown.current) == pytest.approx(1, abs=1e-3)


ODD = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-15, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan, 3.5])


@given(st.lists(ODD, max_size=30), st.lists(ODD, max_size=30))
def test_odd_numbers_give_figures_that_json_can_hold_or_none(then: list[float], now: list[float]) -> None:
    found = numeric(np.array(then, dtype=np.float64), np.array(now, dtype=np.float64))
    for value in (found.psi, found.wasserstein, found.jensen_shannon, found.outside, *found.histogram.edges):
        assert value is None or math.isfinite(value)
    assert list(found.histogram.edges) == sorted(set(found.histogram.edges))
    present = sum(not math.isnan(value) for value in now)
    if found.histogram.edges and present:
        assert sum(found.histogram.current) == pytest.approx(1, abs=1e-3)
    assert 0 <= found.outside <= 1
