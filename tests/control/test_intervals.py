"""Intervals hold the truth at all looks together, and are exact where they say so."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import integrate, stats

from gateway.control.statistics.intervals import EXPECTED, RateInterval, mixture_half_width
from gateway.control.statistics.matched import MatchedBins
from gateway.control.window import output_value, run_bin, run_seconds
from gateway.tensors import Array

LANES = 400


def three_sd(alpha: float) -> float:
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / LANES)


@pytest.mark.parametrize(
    ("base", "rate"), [(0.005, 0.005), (0.005, 0.02), (0.5, 0.5), (0.3, 0.25), (0.0, 0.0), (1.0, 1.0)]
)
def test_the_difference_of_two_rates_is_inside_at_every_look(base: float, rate: float) -> None:
    """Over a ramp, with a base rate that halves when the share of the canary rises (what pooling would get wrong)."""
    random = np.random.default_rng(4)
    interval, missed = RateInterval(lanes=(LANES,)), np.zeros(LANES, bool)
    for look in range(120):
        n_c, n_s = (10, 190) if look < 60 else (100, 100)
        extra = 0.2 if 0.1 < base < 0.6 and look < 60 else 0.0
        b_c, b_s = random.binomial(n_c, rate + extra, LANES), random.binomial(n_s, base + extra, LANES)
        interval.observe(np.full(LANES, n_c), b_c, np.full(LANES, n_s), b_s)
        missed |= interval.refutes(rate - base, 0.1)
    assert missed.mean() <= three_sd(0.1)


def test_the_ratio_of_two_rates_is_inside_at_every_look() -> None:
    random = np.random.default_rng(8)
    missed = 0
    for _ in range(60):
        interval, outside = RateInterval(), False
        for _ in range(40):
            interval.observe(50, random.binomial(50, 0.06), 200, random.binomial(200, 0.03))
            low, high = interval.ratio(0.1)
            outside = outside or not low <= 2.0 <= high
        missed += outside
    assert missed / 60 <= 0.1 + 3 * math.sqrt(0.09 / 60)


def test_intervals_shrink_to_the_truth() -> None:
    random = np.random.default_rng(8)
    interval = RateInterval()
    for _ in range(400):
        interval.observe(500, random.binomial(500, 0.06), 500, random.binomial(500, 0.03))
    low, high = interval.difference(0.05)
    assert 0.027 < low < 0.03 < high < 0.033
    ratio = interval.ratio(0.05)
    assert 1.8 < ratio[0] < 2.0 < ratio[1] < 2.25


def test_without_bad_events_the_difference_is_bounded_by_the_rule_of_three_and_the_ratio_not_at_all() -> None:
    interval = RateInterval()
    interval.observe(1000, 0, 1000, 0)
    assert float(interval.difference(0.05)[1]) < 12 / 1000
    assert interval.ratio(0.05) == (0.0, math.inf)
    empty = RateInterval()
    assert [float(bound) for bound in empty.difference(0.05)] == [-1.0, 1.0]


@pytest.mark.parametrize(("variance", "n", "alpha"), [(1.0, 500.0, 0.05), (0.2, 20_000.0, 0.01)])
def test_the_half_width_is_where_the_gaussian_mixture_reaches_one_over_alpha(
    variance: float, n: float, alpha: float
) -> None:
    """The mixture integrated by scipy: the product h * alpha^2 is right, the sum that some print is not."""
    h = EXPECTED / (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha)))
    standard = mixture_half_width(variance, n, alpha) / math.sqrt(variance) * n

    def mixed(by: float) -> float:
        density = stats.norm(scale=1 / math.sqrt(h)).pdf
        peak = standard / (n + h)
        wide = 12 / math.sqrt(n + h)
        found, _ = integrate.quad(lambda x: math.exp(x * by - x * x * n / 2) * density(x), peak - wide, peak + wide)
        return float(found)

    assert mixed(standard) == pytest.approx(1 / alpha, rel=1e-4)
    summed = math.sqrt((n + h) * math.log((n + h) / (h + alpha**2)))
    assert mixed(summed) < 0.5 / alpha


def test_the_difference_of_two_means_is_inside_at_every_look() -> None:
    random = np.random.default_rng(2)
    missed = 0
    for _ in range(60):
        matched, outside = MatchedBins(together=1), False
        for look in range(60):
            n_c, n_s = (10, 90) if look < 30 else (50, 50)
            # Everything is slower in the second half, when the canary has more traffic.
            values_c = random.poisson(4 + (look >= 30), n_c)
            values_s = random.poisson(4 + (look >= 30), n_s)
            matched.observe(counted(values_c), counted(values_s))
            found = matched.mean(float, 0.1)
            assert found is not None
            outside = outside or (look > 5 and not found[1] <= 0.0 <= found[2])
        missed += outside
    assert missed / 60 <= 0.1 + 3 * math.sqrt(0.09 / 60)


def counted(values: Array) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def test_values_that_come_together_make_the_interval_wider() -> None:
    widths = []
    for together in (1, 16):
        matched = MatchedBins(together=together)
        for _ in range(100):
            matched.observe({"1": 30, "2": 34}, {"1": 300, "2": 340})
        found = matched.mean(float, 0.05)
        assert found is not None
        widths.append(found[2] - found[1])
    assert widths[1] == pytest.approx(4 * widths[0])


def test_shares_of_bins_and_their_differences() -> None:
    matched = MatchedBins(together=1)
    for _ in range(1000):
        matched.observe({"a": 30, "b": 70}, {"a": 500, "b": 500})
    shares = matched.shares()
    assert list(shares) == ["b", "a"]
    assert shares["b"] == pytest.approx((0.7, 0.5))
    assert shares["a"] == pytest.approx((0.3, 0.5))
    difference, low, high = matched.share("b", 0.05)
    assert difference == pytest.approx(0.2)
    assert 0.19 < low < 0.2 < high < 0.21
    assert matched.means(lambda name: None) is None


def test_states_go_to_json_and_back_exactly() -> None:
    interval, matched = RateInterval(), MatchedBins(together=2)
    interval.observe(100, 3, 900, 7)
    matched.observe({"a": 3}, {"a": 1, "b": 6})
    other, another = RateInterval(), MatchedBins(together=2)
    other.take(json.loads(json.dumps(interval.to_plain(), allow_nan=False)))
    another.take(json.loads(json.dumps(matched.to_plain(), allow_nan=False)))
    assert other.to_plain() == interval.to_plain()
    assert another.to_plain() == matched.to_plain()
    with pytest.raises(ValueError, match="shapes"):
        other.take({"won": [], "paid": [], "curve": []})


def test_bins_have_the_values_that_went_into_them() -> None:
    for run_s in (2e-6, 0.00137, 0.9, 7200.0):
        assert run_seconds(str(run_bin(run_s))) == pytest.approx(run_s, rel=0.06)
    assert (run_bin(0.0), run_bin(1e9)) == (0, 260)
    assert output_value("p-7") == pytest.approx(1.2**-6.5)
    assert output_value("m3") == pytest.approx(-(1.2**3.5))
    assert output_value("0") == 0.0
    assert [output_value(bin_) for bin_ in ("nan", "inf", "cat", "p")] == [None] * 4
