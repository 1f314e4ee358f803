"""Whether a canary is worse than stable, and whether it may be promoted: evidence that may be looked at at any moment.

Pure: no clock, no I/O; all state goes to JSON and back exactly, so a controller that was restarted goes on with the
same evidence. What the tests are and why they hold: statistics/counts.py, shares.py, outputs.py; why these:
docs/decisions/0012-judge.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.control.evidence import Signal
from gateway.control.policy import OUTPUTS, SRM, Action, Policy
from gateway.control.statistics.matched import MatchedBins
from gateway.control.statistics.outputs import OutputTest
from gateway.control.statistics.shares import ShareTest
from gateway.control.window import MAX_RUN_BIN, Arm, Window, run_bin, run_seconds

SCHEMA = 1
_WORDS = {"accuracy": "wrong answers", "fallbacks": "fallbacks (stable: all its bad events)"}

# Runs of stable before what is slow can be taken from it, and runs from which on that is not done again within a step.
_MIN_RUNS, _ENOUGH_RUNS = 300, 10_000
_ONCE_PER_KEY = frozenset({"errors", "timeouts", "invalid", "fallbacks"})
_MAX_EPOCHS = 8
_SLOW_QUANTILE = 0.99


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one signal.

    e_value: evidence now, 1 for none. tripped: it has reached the threshold at some time, and for outputs the
    difference was large enough to matter. action: what the policy wants done then. text: a plain sentence.
    """

    signal: str
    e_value: float
    threshold: float
    tripped: bool
    action: Action
    text: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """ready: nothing speaks against a promotion, and enough speaks for it. why: a plain sentence."""

    ready: bool
    why: str


class Judge:
    """Judges one rollout by its windows, of which each is given once, in the order of time."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = Policy() if policy is None else policy
        self.signals = {name: Signal(name, self.policy) for name in self.policy.signals}
        self.shares = ShareTest()
        self.outputs = OutputTest()
        together = self.policy.signals["slow"].together if "slow" in self.policy.signals else 1.0
        self.run_s = MatchedBins(together=together, max_bins=MAX_RUN_BIN + 2)
        self.requests = [0, 0]  # eligible: canary, stable
        self._tripped: set[str] = set()  # of srm and outputs
        self._epochs: dict[str, list[int]] = {}  # requests of canary and stable, keys of canary and stable
        self._slow_bin = None if self.policy.slow_s is None else run_bin(self.policy.slow_s)
        self._slow_runs = 0  # from so many it was taken
        self._stable_runs: dict[str, int] = {}  # of this step, by run-time bin

    def begin_step(self) -> None:
        """A new step begins: what is slow is taken anew from stable's runs of the last step, if they were enough."""
        self._set_slow()
        self._stable_runs = {}

    def observe(self, window: Window) -> None:
        """Take one window."""
        canary, stable = window.canary, window.stable
        self.requests[0] += canary.eligible
        self.requests[1] += stable.eligible
        worth = self._worth(window)
        for name, signal in self.signals.items():
            counts = self._counts(name, canary, stable)
            signal.observe(counts, self.policy.threshold(name), worth if name in _ONCE_PER_KEY else (1.0, 1.0))
        self.run_s.observe(_run_bins(canary), _run_bins(stable))
        self.shares.observe(window.epoch, {"canary": canary.keys, "stable": stable.keys}, window.shares)
        if self.shares.evidence >= self.policy.threshold(SRM):
            self._tripped.add(SRM)
        self.outputs.observe(canary.outputs, stable.outputs)
        if self._outputs_differ():
            self._tripped.add(OUTPUTS)
        self._learn_slow(stable)

    def _worth(self, window: Window) -> tuple[float, float]:
        """What a request of the canary, and of stable, is worth as a chance of a bad event, at most 1.

        Bad events count once per key and epoch, requests always. So the requests of one heavy key are worth less than
        others: its arm looks better than it is. An arm with more than its share of requests, measured by its share
        of keys, has such keys; its requests are taken as so many as its keys would have made. That costs power where
        keys are few and of very different size, and nothing where each request has a key of its own.
        """
        seen = self._epochs.setdefault(window.epoch, [0, 0, 0, 0])
        canary, stable = window.canary, window.stable
        added = (canary.eligible, stable.eligible, sum(canary.keys.values()), sum(stable.keys.values()))
        seen[:] = [old + new for old, new in zip(seen, added, strict=True)]
        while len(self._epochs) > _MAX_EPOCHS:
            del self._epochs[next(iter(self._epochs))]
        if not all(seen):
            return 1.0, 1.0
        n_c, n_s, keys_c, keys_s = seen
        too_many = (n_c / n_s) / (keys_c / keys_s)  # of the canary's requests, if above 1
        return min(1.0, 1 / too_many), min(1.0, too_many)

    def _counts(self, name: str, canary: Arm, stable: Arm) -> tuple[int, int, int, int]:
        if name == "slow":
            return *_slow(canary, self._slow_bin), *_slow(stable, self._slow_bin)
        if name == "accuracy":
            return canary.labelled, canary.labelled - canary.correct, stable.labelled, stable.labelled - stable.correct
        if name == "fallbacks":
            # What makes a request of the canary fall back only fails one of stable.
            bad = stable.fallbacks + stable.errors + stable.timeouts + stable.invalid
            return canary.eligible, canary.fallbacks, stable.eligible, min(bad, stable.eligible)
        return canary.eligible, getattr(canary, name), stable.eligible, getattr(stable, name)

    def _learn_slow(self, stable: Arm) -> None:
        """Count stable's runs. The bound is set between windows only, from those that are over: were it taken from the
        window that it judges, stable would be measured by its own slowest runs, and the proof would not hold."""
        for bin_, count in _run_bins(stable).items():
            self._stable_runs[bin_] = self._stable_runs.get(bin_, 0) + count
        if self._slow_runs < _ENOUGH_RUNS and sum(self._stable_runs.values()) >= 2 * self._slow_runs:
            self._set_slow()

    def _set_slow(self) -> None:
        total = sum(self._stable_runs.values())
        if self.policy.slow_s is not None or total < _MIN_RUNS:
            return
        passed = 0
        for bin_ in sorted(map(int, self._stable_runs)):
            passed += self._stable_runs[str(bin_)]
            if passed >= _SLOW_QUANTILE * total:
                slow_s = max(run_seconds(str(bin_)) * self.policy.slow_factor, self.policy.slow_floor_s)
                self._slow_bin, self._slow_runs = run_bin(slow_s), total
                return

    @property
    def slow_s(self) -> float | None:
        """Runs that take longer are slow now; None before enough is known of stable. To within 5 %."""
        return None if self._slow_bin is None else run_seconds(str(self._slow_bin))

    def _outputs_differ(self) -> bool:
        enough = self.outputs.evidence >= self.policy.threshold(OUTPUTS)
        return enough and self.outputs.strongest()[1] >= self.policy.min_effect

    def acknowledge(self, signal: str) -> None:
        """A person has looked at *signal* and goes on: its evidence starts anew, with an alpha of its own again.

        Raises KeyError for a signal that is not looked at.
        """
        if signal == SRM:
            self.shares = ShareTest()
        elif signal == OUTPUTS:
            self.outputs = OutputTest()
        else:
            self.signals[signal].worse = Signal(signal, self.policy).worse
            self.signals[signal].tripped = False
        self._tripped.discard(signal)

    def findings(self) -> list[Finding]:
        """Every signal of which something can be known, those that tripped first."""
        known = [s for s in self.signals.values() if s.name != "accuracy" or s.counts[0]]  # there may never be labels
        found = [self._finding(signal) for signal in known]
        found += [self._srm_finding(), self._outputs_finding()]
        return sorted(found, key=lambda finding: not finding.tripped)

    def _finding(self, signal: Signal) -> Finding:
        threshold, e_value = self.policy.threshold(signal.name), float(signal.worse.evidence)
        n_c, b_c, n_s, b_s = signal.counts
        rule, name = signal.rule, signal.name
        what = _WORDS.get(name, name)
        if not n_c:
            text = f"{name}: {self._lacking(name)}"
        else:
            bound = _bound(rule.margin, rule.tolerance)
            text = (
                f"{what}: canary {_rate(b_c, n_c)}, stable {_rate(b_s, n_s)}; "
                f"evidence {_short(e_value)} of {_short(threshold)} that the canary's rate is above {bound}"
            )
        return Finding(name, e_value, threshold, signal.tripped, rule.action, text)

    def _lacking(self, name: str) -> str:
        """Why nothing is known of a signal."""
        if name == "slow" and self._slow_bin is None and self._stable_runs:
            return f"not compared before {_MIN_RUNS} runs of stable in one step, which tell what is slow"
        return "nothing to compare yet"

    def _srm_finding(self) -> Finding:
        threshold, e_value = self.policy.threshold(SRM), self.shares.evidence
        keys, shares = self.shares.totals()
        text = "srm: no keys counted yet"
        if sum(keys.values()):
            share = keys.get("canary", 0) / sum(keys.values())
            text = (
                f"srm: {_percent(share)} of the keys went to the canary, {_percent(shares.get('canary', 0.0))} were "
                f"configured; "
                f"evidence {_short(e_value)} of {_short(threshold)} that the split is not as configured"
            )
        return Finding(SRM, e_value, threshold, SRM in self._tripped, self.policy.srm_action, text)

    def _outputs_finding(self) -> Finding:
        threshold, e_value = self.policy.threshold(OUTPUTS), self.outputs.evidence
        column, effect = self.outputs.strongest()
        text = "outputs: none sampled from both arms yet"
        if column:
            size = "large enough to matter" if effect >= self.policy.min_effect else "too small to matter"
            text = (
                f"outputs: evidence {_short(e_value)} of {_short(threshold)} that {column} is distributed differently; "
                f"stability index {effect:.3f}, {size} (bound {self.policy.min_effect:g})"
            )
        tripped = OUTPUTS in self._tripped
        return Finding(OUTPUTS, e_value, threshold, tripped, self.policy.outputs_action, text)

    def may_promote(self) -> Promotion:
        """Whether the canary is shown to be good enough to become the default.

        That no alarm was raised is not enough: each signal must be shown to lie below margin * stable + tolerance, at
        error promote_alpha. All of them must, so no correction is needed (intersection-union: Berger 1982,
        Technometrics 24). With no bad event at all it is the tolerance that decides: evidence grows like
        exp(0.95 * tolerance * requests), so 0.5 points need about 650 requests; this is the rule of three.
        Signals of which nothing came (no labels, no run times) are not asked. A plan in which no signal has a
        promote_tolerance asks for no proof: that nothing stops it is enough then.
        """
        stopping = self._stopping()
        if stopping:
            return Promotion(False, f"stopped by {', '.join(stopping)}")
        if self.requests[0] < self.policy.min_requests:
            return Promotion(False, f"{self.requests[0]} of {self.policy.min_requests} canary requests")
        asking = [s for s in self.signals.values() if s.rule.promote_tolerance is not None]
        if not asking:
            return Promotion(
                True, f"after {self.requests[0]} canary requests; its plan asks for no proof of any signal"
            )
        asked = [s for s in asking if s.counts[0]]
        missing = [self._missing(s) for s in asked if float(s.better.evidence) < 1 / self.policy.promote_alpha]
        if missing:
            return Promotion(False, "not shown to be good enough: " + "; ".join(missing))
        if not asked:
            return Promotion(False, "nothing was compared: there was no traffic on both variants at the same time")
        sure = _percent(1 - self.policy.promote_alpha)
        shown = "; ".join(f"{s.name} below {_bound(s.rule.margin, s.rule.promote_tolerance or 0.0)}" for s in asked)
        return Promotion(True, f"after {self.requests[0]} canary requests, {sure} sure of each: {shown}")

    def _stopping(self) -> list[str]:
        return [finding.signal for finding in self.findings() if finding.tripped and finding.action != "notify"]

    def _missing(self, signal: Signal) -> str:
        evidence, need = float(signal.better.evidence), 1 / self.policy.promote_alpha
        n_c, b_c, n_s, b_s = signal.counts
        bound = _bound(signal.rule.margin, signal.rule.promote_tolerance or 0.0)
        text = f"{signal.name} below {bound} (canary {_rate(b_c, n_c)}, stable {_rate(b_s, n_s)}; "
        text += f"evidence {_short(evidence)} of {_short(need)}"
        if evidence > 1.5:  # it grows like an exponential
            text += (
                f", about {math.ceil(n_c * (math.log(need) / math.log(evidence) - 1))} more requests if it goes on so"
            )
        return text + ")"

    def to_json(self) -> dict[str, Any]:
        """All that this judge knows, its policy too, as JSON can hold it."""
        return {
            "schema": SCHEMA,
            "policy": self.policy.to_json(),
            "signals": {name: signal.to_plain() for name, signal in self.signals.items()},
            "srm": self.shares.to_plain(),
            "outputs": self.outputs.to_plain(),
            "run_s": self.run_s.to_plain(),
            "requests": list(self.requests),
            "tripped": sorted(self._tripped),
            "epochs": {epoch: list(seen) for epoch, seen in self._epochs.items()},
            "slow_bin": self._slow_bin,
            "slow_runs": self._slow_runs,
            "stable_runs": dict(self._stable_runs),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Judge:
        """The judge that to_json wrote. Raises ValueError if it is none."""
        try:
            if plain["schema"] != SCHEMA:
                raise ValueError(f"schema is {plain['schema']!r}, not {SCHEMA}")
            judge = cls(Policy.from_json(plain["policy"]))
            for name, signal in judge.signals.items():
                signal.take(plain["signals"][name])
            judge.shares.take(plain["srm"])
            judge.outputs.take(plain["outputs"])
            judge.run_s.take(plain["run_s"])
            judge.requests = list(plain["requests"])
            judge._tripped, judge._slow_bin = set(plain["tripped"]), plain["slow_bin"]
            judge._epochs = {epoch: list(seen) for epoch, seen in plain["epochs"].items()}
            judge._slow_runs, judge._stable_runs = plain["slow_runs"], dict(plain["stable_runs"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the state of a judge: {error}") from error
        return judge


def _run_bins(arm: Arm) -> dict[str, int]:
    bins: dict[str, int] = {}
    for bin_, count in arm.run_s.items():
        name = str(min(max(int(bin_), 0), MAX_RUN_BIN))
        bins[name] = bins.get(name, 0) + count
    return bins


def _slow(arm: Arm, slow_bin: int | None) -> tuple[int, int]:
    """Runs and slow ones of them; none while nobody knows what is slow."""
    if slow_bin is None:
        return 0, 0
    return sum(arm.run_s.values()), sum(count for bin_, count in arm.run_s.items() if int(bin_) > slow_bin)


def _bound(margin: float, tolerance: float) -> str:
    times = "stable's" if margin == 1 else f"{margin:g} x stable's"
    return f"{times} + {100 * tolerance:g} points" if tolerance else times


def _rate(bad: int, of: int) -> str:
    return f"{_percent(bad / of)} ({bad} of {of})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _short(e_value: float) -> str:
    return f"{e_value:.3g}" if e_value < 1000 else f"{e_value:.0f}" if e_value < 1e6 else f"{e_value:.1e}"


def acknowledged(judge: Judge) -> Judge:
    """A judge whose alarms that only pause were seen by a person, who goes on."""
    after = Judge.from_json(judge.to_json())
    for finding in after.findings():
        if finding.tripped and finding.action != "rollback":
            after.acknowledge(finding.signal)
    return after
