"""How often the judge is wrong, and how soon it finds what is wrong: simulated rollouts, as a table.

`python benchmarks/judge.py` prints it in two or three minutes; `--rollouts` says how many are simulated for each line.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from gateway.control.foresight import ExpectedStep, smallest_regression
from gateway.control.policy import OUTPUTS, SRM, Policy
from gateway.control.statistics.counts import CountTest
from gateway.control.statistics.outputs import BinTest
from gateway.control.statistics.shares import ShareTest

Array = npt.NDArray[np.float64]

# The ramp of the figures: weight of the canary, requests of both variants.
RAMP = ((0.01, 20_000), (0.05, 40_000), (0.20, 40_000), (0.50, 60_000))


@dataclass(frozen=True, slots=True)
class Found:
    """share: of the rollouts in which the threshold was reached. median: canary requests until then, NaN for never."""

    share: float
    median: float


def ramp(
    test: CountTest,
    rollouts: int,
    *,
    base: float,
    rate: float,
    threshold: float,
    window: int = 100,
    steps: Sequence[tuple[float, int]] = RAMP,
    heavy: float = 0.0,
    group: int = 1,
    seed: int = 1,
) -> Found:
    """Rollouts side by side over *steps*, looked at after each *window* requests.

    base, rate: chance that a request of stable, of the canary, is bad. heavy: share of all requests that one sticky key
    has. group: so many requests are bad together or not at all.
    """
    random = np.random.default_rng(seed)
    of_key = random.random(rollouts)
    found, served = np.full(rollouts, np.nan), np.zeros(rollouts)
    for weight, requests in steps:
        on_canary = of_key < weight
        for _ in range(requests // window):
            of_heavy = random.binomial(window // group, heavy, rollouts)
            n_c = random.binomial(window // group - of_heavy, weight) + np.where(on_canary, of_heavy, 0)
            n_s = window // group - n_c
            b_c, b_s = random.binomial(n_c, rate), random.binomial(n_s, base)
            served += n_c * group
            test.observe(n_c * group, b_c * group, n_s * group, b_s * group)
            hit = np.isnan(found) & (test.evidence >= threshold)
            found[hit] = served[hit]
    return told(found)


def broken_keys(
    rollouts: int, *, keys: int, once_per_epoch: bool, threshold: float, minutes: int = 60, seed: int = 1
) -> Found:
    """A healthy canary while some sticky keys always fail, in either arm, and others fail once in a thousand.

    Each broken key's failure is counted once a minute, or once per epoch. 3,000 requests a minute, an hour per step.
    """
    random = np.random.default_rng(seed)
    test = CountTest(margin=1.25, lanes=(rollouts,))
    of_key = random.random((rollouts, keys))
    found, served = np.full(rollouts, np.nan), np.zeros(rollouts)
    for weight, _requests in RAMP:
        on_canary = (of_key < weight).sum(axis=1)
        for minute in range(minutes):
            counted = keys if minute == 0 or not once_per_epoch else 0
            share = on_canary if counted else np.zeros(rollouts, int)
            n_c = random.binomial(3000, weight, rollouts)
            b_c, b_s = random.binomial(n_c, 0.001) + share, random.binomial(3000 - n_c, 0.001) + counted - share
            served += n_c
            test.observe(n_c + share, b_c, 3000 - n_c + counted - share, b_s)
            hit = np.isnan(found) & (test.evidence >= threshold)
            found[hit] = served[hit]
    return told(found)


def split(
    rollouts: int, *, configured: float, true: float, threshold: float, keys: int = 200_000, seed: int = 1
) -> Found:
    """Keys that one worker sees in one epoch, looked at after each 200. The median is of keys of both arms."""
    random = np.random.default_rng(seed)
    found = np.full(rollouts, np.nan)
    shares = {"canary": configured, "stable": 1 - configured}
    for rollout in range(rollouts):
        test = ShareTest()
        for look, count in enumerate(random.binomial(200, true, keys // 200).tolist(), 1):
            test.observe("1", {"canary": {"w": count}, "stable": {"w": 200 - count}}, shares)
            if test.evidence >= threshold:
                found[rollout] = look * 200
                break
    return told(found)


def outputs(
    rollouts: int, *, stable: Array, canary: Array, threshold: float, runs: tuple[int, int] = (6, 60), seed: int = 1
) -> Found:
    """Sampled values per window of canary and stable, 400 windows. The median is of the canary's values."""
    random = np.random.default_rng(seed)
    found = np.full(rollouts, np.nan)
    names = [f"p{index}" for index in range(len(stable))]
    for rollout in range(rollouts):
        test = BinTest()
        of_canary, of_stable = random.multinomial(runs[0], canary, 400), random.multinomial(runs[1], stable, 400)
        for look, (c, s) in enumerate(zip(of_canary.tolist(), of_stable.tolist(), strict=True), 1):
            test.observe(dict(zip(names, c, strict=True)), dict(zip(names, s, strict=True)))
            if test.evidence >= threshold:
                found[rollout] = look * runs[0]
                break
    return told(found)


def told(found: Array) -> Found:
    share = float(np.mean(~np.isnan(found)))
    return Found(share, float(np.nanmedian(found)) if share else float("nan"))


def lines(rollouts: int) -> list[tuple[str, Found]]:
    """All that is printed: a healthy canary first (the share is that of false alarms), then what is to be found."""
    policy = Policy()
    errors = policy.signals["errors"]
    limit = policy.threshold("errors")
    found: list[tuple[str, Found]] = []

    def counted(what: str, threshold: float, margin: float, base: float, rate: float, **more: float) -> None:
        test = CountTest(margin=margin, lanes=(rollouts,), together=float(more.pop("together", 1)))
        told = ramp(test, rollouts, base=base, rate=rate, threshold=threshold, **more)  # type: ignore[arg-type]  # all of it numbers, of what `ramp` takes
        found.append((what, told))

    counted("healthy, base 0.5 %, no margin, all of alpha", 100.0, 1.0, 0.005, 0.005)
    counted("healthy, base 0.5 %, default policy", limit, errors.margin, 0.005, 0.005)
    counted("healthy, base 50 %, no margin, all of alpha", 100.0, 1.0, 0.5, 0.5)
    counted("healthy, one key has 30 % of the requests", 100.0, 1.0, 0.005, 0.005, heavy=0.3)
    counted("healthy, 10 bad together, counted as 10", 100.0, 1.0, 0.005, 0.005, group=10)
    counted("healthy, 10 bad together, together = 10", 100.0, 1.0, 0.005, 0.005, group=10, together=10)
    for keys in (1, 3, 30):
        for once in (False, True):
            how = "once per epoch" if once else "once a minute"
            told = broken_keys(rollouts, keys=keys, once_per_epoch=once, threshold=limit)
            found.append((f"healthy, {keys} of the keys always fail, counted {how}", told))
    for ratio in (20, 10, 5, 3, 2, 1.5):
        for what, threshold in (("all of alpha", 100.0), ("default policy", limit)):
            rate = 0.005 * ratio
            counted(f"errors x{ratio:g} at 0.5 %, {what}", threshold, errors.margin, 0.005, rate)
    srm = policy.threshold(SRM)
    for true in (0.05, 0.055, 0.06):
        told = split(min(rollouts, 300), configured=0.05, true=true, threshold=srm)
        found.append((f"split: {100 * true:g} % instead of 5 % (keys)", told))
    base = np.array([0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05])
    some, much = np.array([0.02, 0.06, 0.15, 0.3, 0.25, 0.14, 0.08]), np.array([0.01, 0.04, 0.1, 0.2, 0.3, 0.2, 0.15])
    for what, canary in (("as stable's", base), ("stability index 0.10", some), ("stability index 0.43", much)):
        told = outputs(
            min(rollouts, 100), stable=base, canary=canary, threshold=policy.threshold(OUTPUTS), runs=(6, 60)
        )
        found.append((f"outputs {what} (canary values)", told))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    rollouts = parser.parse_args().rollouts
    began = time.monotonic()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, {rollouts} rollouts")
    print("ramp: " + ", ".join(f"{100 * weight:g} % of {requests}" for weight, requests in RAMP) + " requests\n")
    print(f"{'what':58} {'found':>8} {'median':>8}")
    for what, told in lines(rollouts):
        print(f"{what:58} {told.share:8.2%} {told.median:8.0f}")
    print("\nsmallest rise that this ramp finds in 9 of 10 rollouts:")
    steps = [ExpectedStep(weight, requests) for weight, requests in RAMP]
    for smallest in smallest_regression(
        Policy(), steps, {"errors": 0.005, "invalid": 0.0, "slow": 0.01, "accuracy": 0.1}
    ):
        print(f"  {smallest.text}")
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
