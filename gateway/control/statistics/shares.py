"""Whether the split gave each arm its share of the keys (sample ratio mismatch).

The numbers n_i of distinct keys per arm are multinomial with the configured shares q_i if the split is right. Against
it stands a mixture of all other shares, Dirichlet with parameters PRECISION * q_i, around the configured ones:

    E = B(a + n) / B(a) / prod q_i^n_i,   a_i = PRECISION * q_i,   B the multivariate beta function.

E is a martingale of mean 1 in each stream of keys that are new to it, at every look: Lindon and Malek (2022),
Anytime-valid inference for multinomial count data, NeurIPS, arXiv 2011.03567.

A stream is one worker in one epoch. What the streams say must not be multiplied: the same sticky keys come to several
workers, and again in the next epoch and after a worker's restart, with the same variants. Nor may it be averaged: an
average of e-values is one at a time fixed beforehand, but not at the first time it is large, unless each stream is
fair given all others, and a stream of keys that another worker has seen is not. So each stream has a portion of alpha
of its own, and the evidence is the largest E_i * portion_i: Bonferroni, right under any dependence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gateway.control.statistics.portions import Portions

# How sharply the mixture is drawn around the configured shares: that of 1,000 keys, so deviations of about
# sqrt(q(1-q)/1000) are expected: 0.7 points for 5 %, 1.6 points for 50 %.
PRECISION = 1000.0
_MAX_STREAMS = 64
_MAX_LOG = 600.0


def log_evidence(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """log E of distinct keys per arm. shares: sum to 1, above 0 for each arm that is counted.

    A key of an arm with share 0 is proof: the answer is then the largest there is.
    """
    total = sum(counts.values())
    log_e = math.lgamma(PRECISION) - math.lgamma(PRECISION + total)
    for arm, count in counts.items():
        if not count:
            continue
        share = shares.get(arm, 0.0)
        if share <= 0:
            return _MAX_LOG
        prior = PRECISION * share
        log_e += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return min(log_e, _MAX_LOG)


class ShareTest:
    """Evidence that keys are not split as configured. The newest 64 streams are kept, of the others the largest."""

    def __init__(self) -> None:
        self._epochs = Portions()
        self._workers: dict[str, Portions] = {}
        self._counts: dict[str, dict[str, dict[str, int]]] = {}  # epoch, worker, arm
        self._shares: dict[str, dict[str, float]] = {}
        self._peak = 0.0  # largest log evidence of streams that were dropped

    def observe(self, epoch: str, keys: Mapping[str, Mapping[str, int]], shares: Mapping[str, float]) -> None:
        """Take one window: keys that were new, by arm and worker, and the shares of the arms in this epoch.

        shares: any positive scale. An epoch keeps the shares that it came with. One arm alone says nothing.
        """
        names = sorted({worker for of_arm in keys.values() for worker, count in of_arm.items() if count})
        if not names or len(shares) < 2:
            return
        if epoch not in self._shares:
            # Portions by order of appearance: an epoch's share of alpha is fixed when it begins.
            self._epochs.newcomers += 1
            self._epochs.given[epoch] = 1 / (self._epochs.newcomers * (self._epochs.newcomers + 1))
            whole = sum(shares.values())
            self._shares[epoch] = {arm: share / whole for arm, share in shares.items()}
            self._workers[epoch], self._counts[epoch] = Portions(), {}
        self._workers[epoch].admit(names)
        for arm, of_arm in keys.items():
            for worker, count in of_arm.items():
                if count:
                    stream = self._counts[epoch].setdefault(worker, {})
                    stream[arm] = stream.get(arm, 0) + count
        self._forget()

    def _log(self, epoch: str, worker: str) -> float:
        portion = self._epochs.given[epoch] * self._workers[epoch].given[worker]
        return log_evidence(self._counts[epoch][worker], self._shares[epoch]) + math.log(portion)

    def _forget(self) -> None:
        while sum(map(len, self._counts.values())) > _MAX_STREAMS:
            epoch = next(iter(self._counts))
            worker = next(iter(self._counts[epoch]))
            self._peak = max(self._peak, self._log(epoch, worker))
            del self._counts[epoch][worker], self._workers[epoch].given[worker]
            if not self._counts[epoch] and len(self._counts) > 1:
                del self._counts[epoch], self._workers[epoch], self._shares[epoch], self._epochs.given[epoch]

    @property
    def evidence(self) -> float:
        logs = [self._log(epoch, worker) for epoch, workers in self._counts.items() for worker in workers]
        return math.exp(min(max([self._peak, *logs]), _MAX_LOG))

    def totals(self) -> tuple[dict[str, int], dict[str, float]]:
        """Keys per arm in the newest epoch, added over the workers (a key may be known to several), and the shares."""
        if not self._counts:
            return {}, {}
        epoch = next(reversed(self._counts))
        total: dict[str, int] = dict.fromkeys(self._shares[epoch], 0)
        for stream in self._counts[epoch].values():
            for arm, count in stream.items():
                total[arm] = total.get(arm, 0) + count
        return total, dict(self._shares[epoch])

    def to_plain(self) -> dict[str, Any]:
        epochs = {
            epoch: {
                "portion": self._epochs.given[epoch],
                "shares": self._shares[epoch],
                "workers": self._workers[epoch].given,
                "newcomers": self._workers[epoch].newcomers,
                "counts": workers,
            }
            for epoch, workers in self._counts.items()
        }
        return {"epochs": epochs, "begun": self._epochs.newcomers, "peak": self._peak}

    def take(self, plain: dict[str, Any]) -> None:
        """Go on from what to_plain gave. Raises KeyError, TypeError or ValueError."""
        epochs = plain["epochs"]
        self._epochs = Portions({epoch: of["portion"] for epoch, of in epochs.items()}, plain["begun"])
        self._workers = {epoch: Portions(dict(of["workers"]), of["newcomers"]) for epoch, of in epochs.items()}
        self._counts = {epoch: {w: dict(c) for w, c in of["counts"].items()} for epoch, of in epochs.items()}
        self._shares = {epoch: dict(of["shares"]) for epoch, of in epochs.items()}
        self._peak = plain["peak"]
