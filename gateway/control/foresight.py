"""What a plan can see before it is started: the smallest rise of each signal that it would find."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gateway.control.policy import CountSignal, Policy
from gateway.control.statistics.counts import FIRST, WORSE, WORSE_FINE, log_bets, log_sum

CHANCE = 0.9
_Z = 1.2816  # nine in ten lie above mean - 1.2816 sd
_FEW = 30.0


@dataclass(frozen=True, slots=True)
class ExpectedStep:
    """A step of a plan. weight: of the canary, 0..1. requests: that both variants together will have in it."""

    weight: float
    requests: float


@dataclass(frozen=True, slots=True)
class Smallest:
    """The smallest rise of *signal* that is found in nine of ten rollouts.

    base_rate: of stable, in shares of 1. rate: of the canary; None if even a total failure may be missed. ratio: of the
    two; None without a rate, or if the base rate is 0. text: a plain sentence.
    """

    signal: str
    base_rate: float
    rate: float | None
    ratio: float | None
    text: str


def smallest_regression(
    policy: Policy, steps: Sequence[ExpectedStep], base_rates: Mapping[str, float]
) -> list[Smallest]:
    """For each count signal of the policy that has a base rate (in shares of 1), what this plan can see at best."""
    return [
        _smallest(name, rule, 1 / policy.threshold(name), steps, base_rates[name])
        for name, rule in policy.signals.items()
        if name in base_rates
    ]


def _smallest(name: str, rule: CountSignal, alpha: float, steps: Sequence[ExpectedStep], base_rate: float) -> Smallest:
    low, high = min(rule.margin * base_rate + rule.tolerance, 1.0), 1.0
    if not is_found(rule, alpha, steps, base_rate, high):
        requests = round(sum(step.weight * step.requests for step in steps))
        text = f"{name}: even a canary that always fails may be missed, with {requests} requests on it"
        return Smallest(name, base_rate, None, None, text)
    for _ in range(30):
        middle = math.sqrt(max(low, 1e-9) * high)
        if is_found(rule, alpha, steps, base_rate, middle):
            high = middle
        else:
            low = middle
    what = "wrong answers" if name == "accuracy" else name
    text = f"{what}: a rise from {_percent(base_rate)} to {_percent(high)} is found in 9 of 10 rollouts"
    return Smallest(name, base_rate, high, high / base_rate if base_rate else None, text)


def is_found(rule: CountSignal, alpha: float, steps: Sequence[ExpectedStep], base: float, rate: float) -> bool:
    """Whether a canary with this rate is found with a probability of about 0.9 before the plan ends.

    The evidence of each guess is a sum of independent parts; its lower decile is taken (that of the canary's events
    from the Poisson distribution if they are few, else both arms' normal), after each step, with n requests of
    which k may go together counted as n/k. The evidence may have been enough before the end of a step, so this errs
    on the safe side, but not by much: see the tests, which compare it with simulated rollouts.
    """
    ratios = rule.margin * (WORSE if rule.margin > 1 else WORSE_FINE)
    mean, short, spread, events, variance = (np.zeros(len(ratios)) for _ in range(5))
    for step in steps:
        if not 0 < step.weight < 1:
            continue
        n_c, n_s = (n * step.requests / rule.together for n in (step.weight, 1 - step.weight))
        log_u, log_v = log_bets(step.weight, rule.margin, ratios)
        mean += n_c * rate * log_u + n_s * base * log_v - n_c * rule.tolerance * np.expm1(log_u)
        short += n_c * rate * log_u
        events += n_c * rate
        variance += n_c * rate * (1 - rate) * log_u**2
        spread += n_s * base * (1 - base) * log_v**2
        expected = float(events[0])
        if 0 < expected < _FEW and rate < 0.5:
            lost = ((expected - _lower_decile(expected)) / expected * short) ** 2
        else:
            lost = _Z**2 * variance
        lower = mean - np.sqrt(lost + _Z**2 * spread)
        if log_sum(lower) + math.log(FIRST / len(ratios)) >= -math.log(alpha):
            return True
    return False


def _lower_decile(mean: float) -> float:
    """The 0.1 quantile of a Poisson distribution, between whole numbers as if it were continuous."""
    term = total = math.exp(-mean)
    if total >= 1 - CHANCE:
        return 0.0
    count = 0
    while True:
        count += 1
        term *= mean / count
        if total + term >= 1 - CHANCE:
            return count - 1 + (1 - CHANCE - total) / term
        total += term


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"
