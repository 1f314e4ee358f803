"""The drift rule: what it finds, what it leaves alone, and how often it is wrong."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gateway.offline import drift
from gateway.offline.drift import Column, ColumnDrift, Expected, Rules, chi_square, compare, count_table, cramers_v, ks
from gateway.tensors import Array

RULES = Rules(min_rows=100, max_false_discovery_rate=0.05, min_effect=0.08)


def numeric(reference: Array, current: Array, name: str = "x") -> Column:
    return Column(name, "input", "numeric", reference.astype(np.float64), current.astype(np.float64))


def categorical(reference: list[Any], current: list[Any], name: str = "c") -> Column:
    return Column(name, "input", "categorical", np.array(reference, object), np.array(current, object))


def only(column: Column, rules: Rules = RULES) -> ColumnDrift:
    return compare([column], rules)[0]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(drift).failed == 0
    assert doctest.testmod(drift).attempted >= 2


# -- numeric ----------------------------------------------------------------------------------------


def test_a_shifted_column_is_found_and_its_neighbours_are_not(rng: np.random.Generator) -> None:
    columns = [numeric(rng.normal(size=2000), rng.normal(size=500), f"x{index}") for index in range(9)]
    columns.insert(4, numeric(rng.normal(size=2000), rng.normal(0.5, size=500), "shifted"))
    found = compare(columns, RULES)
    assert [column.name for column in found] == [column.name for column in columns]
    assert [column.name for column in found if column.verdict == "drifted"] == ["shifted"]
    shifted = found[4]
    reference, current = columns[4].reference, columns[4].current
    ranked = stats.mannwhitneyu(current, reference, method="asymptotic")
    assert (shifted.test, shifted.statistic) == ("mann-whitney", ranked.statistic / (2000 * 500))
    assert shifted.p == pytest.approx(2 * ranked.pvalue)
    assert shifted.effect == stats.ks_2samp(reference, current, method="asymp").statistic
    assert (shifted.n_ref, shifted.n_cur) == (2000, 500)


def test_q_is_the_p_value_after_benjamini_and_hochberg_over_all_columns(rng: np.random.Generator) -> None:
    columns = [numeric(rng.normal(size=500), rng.normal(index / 20, size=300)) for index in range(12)]
    found = compare(columns, RULES)
    assert [column.q for column in found] == pytest.approx(stats.false_discovery_control([c.p or 0 for c in found]))


def test_a_difference_too_small_to_matter_is_stable_however_many_rows_prove_it(rng: np.random.Generator) -> None:
    found = only(numeric(rng.normal(size=100_000), rng.normal(0.1, size=100_000)))
    assert found.q is not None
    assert found.q < 1e-20
    assert (found.verdict, found.reason) == ("stable", f"effect {found.effect:.2g} is below 0.08")


@pytest.mark.parametrize(("reference", "window"), [(99, 5000), (5000, 99)])
def test_too_few_rows_on_either_side_are_no_verdict(rng: np.random.Generator, reference: int, window: int) -> None:
    found = only(numeric(rng.normal(size=reference), rng.normal(5.0, size=window)))
    assert (found.verdict, found.test, found.p, found.q) == ("insufficient", "", None, None)
    assert "99 rows of at least 100" in found.reason


def test_infinities_are_values_like_others(rng: np.random.Generator) -> None:
    current = rng.normal(size=500)
    current[:200] = np.inf
    assert only(numeric(rng.normal(size=500), current)).verdict == "drifted"


def test_a_constant_that_stays_is_stable_and_one_that_moves_is_found() -> None:
    assert only(numeric(np.full(500, 3.0), np.full(500, 3.0))).verdict == "stable"
    assert only(numeric(np.full(500, 3.0), np.full(500, 4.0))).verdict == "drifted"


# -- missing values -----------------------------------------------------------------------------------


def test_a_column_that_goes_missing_is_found_though_its_values_look_the_same(rng: np.random.Generator) -> None:
    current = rng.normal(size=1000)
    current[:150] = np.nan
    found = only(numeric(rng.normal(size=2000), current))
    assert (found.verdict, found.test, found.missing_ref, found.missing_cur) == ("drifted", "missing", 0.0, 0.15)
    assert found.reason == "missing 15.0% of the window, 0.0% of the reference"


def test_a_column_that_was_always_missing_as_often_is_stable(rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=2000), rng.normal(size=1000)
    reference[::5] = np.nan
    current[::5] = np.nan
    assert only(numeric(reference, current)).verdict == "stable"


def test_a_column_without_any_value_is_told_apart_from_one_that_lost_them(rng: np.random.Generator) -> None:
    gone = np.full(500, np.nan)
    assert only(numeric(gone, gone)).verdict == "stable"
    lost = only(numeric(rng.normal(size=500), gone))
    assert (lost.verdict, lost.test, lost.effect) == ("drifted", "missing", 1.0)
    assert only(categorical([None] * 500, [None] * 500)).reason == "missing everywhere"


def test_a_column_enters_the_family_once_at_the_p_of_its_clearest_test_times_their_number(
    rng: np.random.Generator,
) -> None:
    values = rng.normal(0.4, size=600)
    values[:60] = np.nan
    holes = numeric(np.where(np.arange(2000) % 10 < 1, np.nan, rng.normal(size=2000)), values, "holes")
    others = [numeric(rng.normal(size=2000), rng.normal(size=600), f"x{index}") for index in range(4)]
    found = compare([holes, *others], RULES)
    distributions = stats.ks_2samp(holes.reference, values, method="asymp", nan_policy="omit")
    ranked = stats.mannwhitneyu(holes.reference, values, method="asymptotic", nan_policy="omit")
    least = min((distributions.pvalue, "ks"), (ranked.pvalue, "mann-whitney"))
    assert found[0].test == least[1]
    assert found[0].p == pytest.approx(3 * least[0], rel=1e-6)
    assert found[0].effect == pytest.approx(distributions.statistic, rel=1e-12)
    assert [one.q for one in found] == pytest.approx(stats.false_discovery_control([one.p or 0 for one in found]))


def test_a_difference_without_a_shift_is_found_by_the_distributions_and_a_shift_in_few_rows_by_ranks(
    rng: np.random.Generator,
) -> None:
    wider = only(numeric(rng.normal(size=5000), rng.normal(0, 2, size=500)))
    assert (wider.test, wider.verdict) == ("ks", "drifted")
    shifted = only(numeric(rng.normal(size=5000), rng.normal(0.4, size=120)))
    assert (shifted.test, shifted.verdict) == ("mann-whitney", "drifted")


def test_a_small_but_sure_difference_does_not_hide_a_large_one(rng: np.random.Generator) -> None:
    reference, current = rng.normal(size=20_000), rng.normal(0.12, size=20_000)
    current[:30] = np.nan
    reference[:10] = np.nan
    before = only(numeric(reference, current))
    assert (before.test, before.verdict) == ("mann-whitney", "stable")
    current[: 20_000 // 50] = np.nan
    after = only(numeric(reference, current))
    assert (after.test, after.verdict) == ("missing", "drifted")


# -- categories ---------------------------------------------------------------------------------------


def test_shares_of_categories_that_change_are_found(rng: np.random.Generator) -> None:
    reference = rng.choice(["a", "b", "c"], size=3000, p=[0.5, 0.3, 0.2]).tolist()
    same = rng.choice(["a", "b", "c"], size=500, p=[0.5, 0.3, 0.2]).tolist()
    other = rng.choice(["a", "b", "c"], size=500, p=[0.3, 0.3, 0.4]).tolist()
    stable, drifted = compare([categorical(reference, same, "same"), categorical(reference, other, "other")], RULES)
    assert (stable.verdict, drifted.verdict, drifted.test) == ("stable", "drifted", "chi2")


def test_a_new_category_is_found_as_soon_as_it_is_frequent_enough() -> None:
    reference = ["a", "b"] * 2500
    assert only(categorical(reference, ["a", "b"] * 499 + ["new"] * 2)).verdict == "stable"
    assert only(categorical(reference, ["a", "b"] * 480 + ["new"] * 40)).verdict == "drifted"


def test_identifiers_are_no_categories_and_give_no_verdict() -> None:
    found = only(categorical([f"id{n}" for n in range(500)], [f"id{n}" for n in range(500, 1000)]))
    assert (found.verdict, found.reason) == (
        "insufficient",
        "no two categories are frequent enough to be compared",
    )


def test_one_category_everywhere_is_stable() -> None:
    assert only(categorical(["a"] * 500, ["a"] * 500)).reason == "the same value everywhere"


def test_a_small_two_by_two_table_is_tested_exactly() -> None:
    table = np.array([[2000.0, 2.0], [195.0, 5.0]])
    assert chi_square(table)[0] == "fisher"
    assert chi_square(table)[2] == pytest.approx(stats.fisher_exact(table).pvalue)
    assert chi_square(table * 100)[0] == "chi2"


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=6))
def test_cramers_v_is_scipys_for_samples_of_equal_size_and_does_not_depend_on_their_sizes(
    pairs: list[tuple[int, int]],
) -> None:
    table = np.array([pair for pair in pairs if sum(pair)]).T
    if table.size == 0 or table.shape[1] < 2 or not table.sum(axis=1).all():
        return
    effect = cramers_v(table)
    assert 0 <= effect <= 1 + 1e-12
    assert cramers_v(table * [[7], [3]]) == pytest.approx(effect)
    equal = table * table.sum(axis=1)[::-1, np.newaxis]
    assert stats.contingency.association(equal, method="cramer") == pytest.approx(effect)


@given(
    st.lists(st.sampled_from("aaaabbbccdefghij"), min_size=1, max_size=400),
    st.lists(st.sampled_from("aaaabbbccdefghijk"), min_size=1, max_size=400),
)
def test_pooling_loses_no_row_and_leaves_no_cell_too_small_to_test(then: list[str], now: list[str]) -> None:
    table = count_table(then, now)
    assert table.sum(axis=1).tolist() == [len(then), len(now)]
    if table.shape[1] > 1:
        expected = stats.contingency.expected_freq(table)
        assert np.sum(expected.min(axis=0) < 5) <= 1
        assert expected.min() >= 1 - 1e-9


# -- beyond what is expected ----------------------------------------------------------------------------


def test_only_what_lies_beyond_an_expected_difference_is_drift(rng: np.random.Generator) -> None:
    expected = Expected(ks(rng.normal(size=5000), rng.normal(0.8, size=5000))[0], 5000, 5000)
    wrong = 0
    for _ in range(60):
        as_ever = numeric(rng.normal(size=1000), rng.normal(0.8, size=300))
        assert only(as_ever).verdict == "drifted"
        wrong += only(replace(as_ever, expected=expected)).verdict == "drifted"
    assert wrong <= 3
    moved = replace(numeric(rng.normal(size=1000), rng.normal(1.6, size=300)), expected=expected)
    assert only(moved).verdict == "drifted"
    certain = replace(RULES, max_false_discovery_rate=1.0)
    assert "less the expected 0.3" in only(replace(as_ever, expected=expected), certain).reason


def test_the_same_holds_for_categories(rng: np.random.Generator) -> None:
    def draw(share: float, rows: int) -> list[str]:
        return ["yes" if number < share else "no" for number in rng.random(rows)]

    expected = Expected(cramers_v(count_table(draw(0.5, 5000), draw(0.7, 5000))), 5000, 5000)
    wrong = sum(
        only(replace(categorical(draw(0.5, 1000), draw(0.7, 300)), expected=expected)).verdict == "drifted"
        for _ in range(60)
    )
    assert wrong <= 3
    moved = categorical(draw(0.5, 1000), draw(0.95, 300))
    assert only(replace(moved, expected=expected)).verdict == "drifted"


# -- how often it is wrong ----------------------------------------------------------------------------


def _alarms(windows: int, rows: int, shift: float) -> int:
    """In how many of *windows* some of 20 columns is called drifted, if the first is shifted by *shift*."""
    rng = np.random.default_rng(42)
    alarms = 0
    for index in range(windows):
        if index % 15 == 0:
            reference = np.concatenate([rng.normal(size=(10, 5000)), rng.lognormal(size=(10, 5000))])
        current = np.concatenate([rng.normal(size=(10, rows)), rng.lognormal(size=(10, rows))])
        current[0] += shift
        columns = [numeric(then, now) for then, now in zip(reference, current, strict=True)]
        alarms += any(column.verdict == "drifted" for column in compare(columns, RULES))
    return alarms


@pytest.mark.parametrize("rows", [200, 1000])
def test_clean_windows_of_20_columns_seldom_alarm(rows: int) -> None:
    assert _alarms(60, rows, 0.0) <= 5  # 8 %


def test_a_shift_of_a_third_of_a_deviation_in_one_of_20_columns_is_found() -> None:
    assert _alarms(30, 500, 0.3) >= 29
    assert _alarms(30, 200, 0.3) >= 18
