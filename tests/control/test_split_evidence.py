"""A wrong split is found, a right one is left alone, whatever workers, restarts and epochs there are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import split
from scipy import stats

from gateway.control.statistics.shares import PRECISION, ShareTest, log_evidence

FIVE = {"canary": 5, "stable": 95}


@pytest.mark.parametrize(("canary", "of"), [(0, 0), (5, 100), (80, 1000), (20_000, 100_000)])
def test_evidence_is_the_beta_binomial_over_the_binomial(canary: int, of: int) -> None:
    oracle = stats.betabinom.logpmf(canary, of, 0.2 * PRECISION, 0.8 * PRECISION) - stats.binom.logpmf(canary, of, 0.2)
    counts = {"canary": canary, "stable": of - canary}
    found = log_evidence(counts, {"canary": 0.2, "stable": 0.8})
    assert found == pytest.approx(min(float(oracle), 600.0), rel=1e-6, abs=1e-6)


@given(st.floats(0.001, 0.999), st.integers(1, 200))
def test_evidence_is_1_on_average_if_the_split_is_right(share: float, keys: int) -> None:
    canary = np.arange(keys + 1)
    chance = stats.binom.pmf(canary, keys, share)
    shares = {"canary": share, "stable": 1 - share}
    mean = sum(
        float(p) * math.exp(log_evidence({"canary": int(c), "stable": keys - int(c)}, shares))
        for c, p in zip(canary, chance, strict=True)
    )
    assert mean == pytest.approx(1.0, rel=1e-6)


def test_six_percent_instead_of_five_are_found_after_about_nine_thousand_keys() -> None:
    found = split(100, configured=0.05, true=0.06, threshold=1000.0, keys=60_000)
    assert found.share == 1.0
    assert 6_000 < found.median < 12_000


@pytest.mark.parametrize("workers", [1, 4])
def test_a_right_split_is_left_alone_by_workers_restarts_and_epochs_that_see_the_same_keys(workers: int) -> None:
    """A thousand sticky keys come to every worker, again in the next epochs (nested), and again after a restart."""
    random = np.random.default_rng(3)
    alarms, rollouts = 0, 200
    for _ in range(rollouts):
        test = ShareTest()
        keys = random.random(1000)
        for epoch, share in enumerate((0.05, 0.2, 0.5)):
            on_canary = keys < share
            for life in range(2):
                for start in range(0, 1000, 250):
                    of = on_canary[start : start + 250]
                    names = [f"{worker}.{life}" for worker in range(workers)]
                    counts = {
                        "canary": dict.fromkeys(names, int(of.sum())),
                        "stable": dict.fromkeys(names, int(250 - of.sum())),
                    }
                    test.observe(str(epoch), counts, {"canary": share, "stable": 1 - share})
        alarms += test.evidence >= 20.0
    assert alarms / rollouts <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / rollouts)


def test_each_worker_and_each_epoch_has_a_part_of_alpha_that_later_ones_do_not_change() -> None:
    shares, counts = {"canary": 0.05, "stable": 0.95}, {"canary": 200, "stable": 800}
    alone = math.exp(log_evidence(counts, shares))
    test = ShareTest()
    keys = {arm: {"a": count, "b": 0} for arm, count in counts.items()}
    test.observe("1", keys, shares)
    assert test.evidence == pytest.approx(alone / 2 / 2)  # half for the first epoch, half of it for its first workers
    test.observe("1", {"canary": {"late": 1}, "stable": {"late": 19}}, shares)
    test.observe("2", {"canary": {"a": 1}, "stable": {"a": 19}}, shares)
    assert test.evidence == pytest.approx(alone / 2 / 2)
    second = ShareTest()
    second.observe("1", {"canary": {"a": 1, "b": 1}, "stable": {"a": 19, "b": 19}}, shares)
    second.observe("2", {arm: {"a": count} for arm, count in counts.items()}, shares)
    assert second.evidence == pytest.approx(alone / 6 / 2)


def test_all_keys_on_the_canary_are_found_soon_and_an_arm_of_weight_0_at_once() -> None:
    test = ShareTest()
    test.observe("7", {"canary": {"a": 60}, "stable": {"a": 40}}, {"canary": 50, "stable": 50})
    assert test.evidence < 1000
    test.observe("8", {"canary": {"a": 100}, "stable": {}}, FIVE)
    assert test.evidence > 1000
    fresh = ShareTest()
    fresh.observe("9", {"canary": {"a": 1}, "stable": {"a": 1}}, {"canary": 0, "stable": 1})
    assert fresh.evidence > 1000


def test_one_variant_alone_or_no_keys_say_nothing() -> None:
    test = ShareTest()
    test.observe("7", {"canary": {"a": 60}, "stable": {}}, {"canary": 1})
    test.observe("7", {"canary": {"a": 0}, "stable": {}}, FIVE)
    assert test.evidence == 1.0
    assert test.totals() == ({}, {})


def test_ten_thousand_workers_leave_a_bounded_state_and_their_largest_evidence() -> None:
    test = ShareTest()
    test.observe("1", {"canary": {"first": 2000}, "stable": {"first": 2000}}, FIVE)
    for worker in range(500):
        test.observe(f"{worker // 100}", {"canary": {f"w{worker}": 5}, "stable": {f"w{worker}": 95}}, FIVE)
    assert test.evidence > 1000
    assert len(json.dumps(test.to_plain())) < 20_000


Windows = st.lists(
    st.tuples(st.sampled_from("12"), st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 30)), max_size=12
)


@given(Windows)
@settings(deadline=None)
def test_the_state_goes_to_json_and_back_exactly(windows: list[tuple[str, str, int, int]]) -> None:
    whole, resumed = ShareTest(), ShareTest()
    for epoch, worker, canary, stable in windows:
        keys = {"canary": {worker: canary}, "stable": {worker: stable}}
        whole.observe(epoch, keys, FIVE)
        resumed.observe(epoch, keys, FIVE)
        plain = json.loads(json.dumps(resumed.to_plain(), allow_nan=False))
        resumed = ShareTest()
        resumed.take(plain)
    assert resumed.to_plain() == whole.to_plain()
    assert resumed.evidence == whole.evidence
