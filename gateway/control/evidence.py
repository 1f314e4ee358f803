"""What counts say of one kind of bad event: is the canary worse, is it shown not to be, how large is the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gateway.control.policy import Policy
from gateway.control.statistics.counts import BETTER, BETTER_FINE, WORSE, WORSE_FINE, CountTest
from gateway.control.statistics.intervals import RateInterval

# Evidence for a promotion is not counted beyond this many times what is needed, so that a canary which turns bad loses
# it soon.
_ENOUGH = math.exp(3.0)


class Signal:
    """The tests of one signal of *policy*. counts: requests and bad events of the canary, and of stable."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.name, self.rule = name, policy.signals[name]
        rule = self.rule
        worse, better = (WORSE, BETTER) if rule.margin > 1 else (WORSE_FINE, BETTER_FINE)
        margin, together = rule.margin, rule.together
        self.worse = CountTest(margin=margin, tolerance=rule.tolerance, together=together, guesses=worse)
        self.better = CountTest(
            margin=margin,
            tolerance=rule.promote_tolerance or 0.0,
            together=together,
            guesses=better,
            ceiling=_ENOUGH / policy.promote_alpha,
        )
        self.interval = RateInterval(together=together)
        self.counts = [0, 0, 0, 0]  # requests and bad events of the canary, of stable
        self.tripped = False

    def observe(self, counts: tuple[int, int, int, int], threshold: float, worth: tuple[float, float]) -> None:
        """Take one window. worth: what a request of the canary, of stable, is worth beside one of the other arm, at
        most 1: each test takes the one that could make it see too much. Without the other arm nothing is compared."""
        if not (counts[0] and counts[2]):
            return
        n_c, b_c, n_s, b_s = counts
        self.worse.observe(n_c, b_c, n_s, b_s, worth=(1.0, worth[1]))
        self.better.observe(n_c, b_c, n_s, b_s, worth=(worth[0], 1.0))
        self.interval.observe(*counts)
        self.counts = [old + new for old, new in zip(self.counts, counts, strict=True)]
        self.tripped = self.tripped or float(self.worse.evidence) >= threshold

    def to_plain(self) -> dict[str, Any]:
        return {
            "counts": list(self.counts),
            "tripped": self.tripped,
            "worse": self.worse.to_plain(),
            "better": self.better.to_plain(),
            "interval": self.interval.to_plain(),
        }

    def take(self, plain: Mapping[str, Any]) -> None:
        self.worse.take(plain["worse"])
        self.better.take(plain["better"])
        self.interval.take(plain["interval"])
        self.counts, self.tripped = list(plain["counts"]), bool(plain["tripped"])
