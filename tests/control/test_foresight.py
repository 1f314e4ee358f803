"""What a plan is said to find, it finds in about nine of ten simulated rollouts; and no smaller rise."""

from __future__ import annotations

import pytest
from judge import ramp

from gateway.control.foresight import ExpectedStep, smallest_regression
from gateway.control.policy import Policy
from gateway.control.statistics.counts import WORSE, WORSE_FINE, CountTest

RAMP = ((0.01, 5_000), (0.05, 10_000), (0.20, 10_000), (0.50, 20_000))
PLANS = {"ramp": RAMP, "half": ((0.5, 8_000),), "small": ((0.05, 2_000),)}
POLICY = Policy()


def simulated(signal: str, plan: str, base: float, rate: float) -> float:
    rule = POLICY.signals[signal]
    test = CountTest(
        margin=rule.margin, tolerance=rule.tolerance, together=rule.together, lanes=(600,),
        guesses=WORSE if rule.margin > 1 else WORSE_FINE,
    )  # fmt: skip
    group = int(rule.together)
    return ramp(
        test, 600, base=base, rate=rate, threshold=POLICY.threshold(signal), window=200 * group, steps=PLANS[plan],
        group=group,
    ).share  # fmt: skip


@pytest.mark.parametrize(
    ("signal", "plan", "base"),
    [
        ("errors", "ramp", 0.005),
        ("errors", "ramp", 0.0),
        ("errors", "half", 0.1),
        ("errors", "small", 0.005),
        ("invalid", "half", 0.0001),
        ("accuracy", "ramp", 0.15),
        ("timeouts", "half", 0.01),
    ],
)
def test_the_smallest_rise_is_found_in_about_nine_of_ten_rollouts(signal: str, plan: str, base: float) -> None:
    steps = [ExpectedStep(weight, requests) for weight, requests in PLANS[plan]]
    (smallest,) = smallest_regression(POLICY, steps, {signal: base})
    assert smallest.rate is not None
    assert 0.83 <= simulated(signal, plan, base, smallest.rate) <= 0.985
    assert simulated(signal, plan, base, base + 0.6 * (smallest.rate - base)) < 0.75


def test_the_sentence_says_what_is_found() -> None:
    steps = [ExpectedStep(weight, requests) for weight, requests in RAMP]
    found = {s.signal: s for s in smallest_regression(POLICY, steps, {"errors": 0.005, "accuracy": 0.1})}
    assert list(found) == ["errors", "accuracy"]
    assert found["errors"].text.startswith("errors: a rise from 0.5 % to 1.")
    assert found["errors"].text.endswith("is found in 9 of 10 rollouts")
    assert found["errors"].ratio == pytest.approx((found["errors"].rate or 0) / 0.005)
    assert found["accuracy"].text.startswith("wrong answers: a rise from 10 % to ")


def test_more_requests_find_less_and_too_few_find_nothing() -> None:
    rates = []
    for requests in (3_000, 30_000, 300_000):
        (found,) = smallest_regression(POLICY, [ExpectedStep(0.1, requests)], {"errors": 0.005})
        rates.append(found.rate or 1.0)
    assert rates == sorted(rates, reverse=True)
    for steps in ([ExpectedStep(0.01, 100)], [ExpectedStep(1.0, 100_000)], []):
        (none,) = smallest_regression(POLICY, steps, {"errors": 0.005})
        assert none.rate is None
        assert "even a canary that always fails may be missed" in none.text
