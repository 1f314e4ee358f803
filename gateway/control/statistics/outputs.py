"""Whether the canary's outputs are distributed like stable's of the same minutes, and how far apart they are.

A bet on the arm, given the bin. Of a window, one value of bin b pays u_b if it is the canary's and v_b if it is
stable's, with w u_b + (1 - w) v_b = 1 for every bin, w being the canary's share of the values. u and v come from the
windows before this one:

    u_b = c_b / (w c_b + (1 - w) s_b),   v_b = s_b / (w c_b + (1 - w) s_b),

c_b and s_b being the shares of bin b in either arm so far, drawn towards each other by PULL values of the pool. A bin
that was never seen pays 1. If both arms draw from one distribution f in this window, the product over its values has

    log E <= n_c log(sum f u) + n_s log(sum f v) <= n (w log(sum f u) + (1 - w) log(sum f v)) <= n log 1 = 0

by Jensen's inequality: a supermartingale whatever f is, however it changes from window to window, and whatever bins
appear. Betting against a two-sample null with past data: Shekhar and Ramdas (2024), Nonparametric two-sample testing by
betting, IEEE Trans. Inf. Theory 70, arXiv 2112.09162; Pandeva et al. (2024), E-valuating classifier two-sample tests,
arXiv 2210.13027.

Values of one run come together (rows of one request may be alike): with k the most that can, each counts as 1/k. A
geometric mean is at most the arithmetic one, so the proof holds for any dependence within a run.

Not covered: arms whose *inputs* differ, as when one heavy sticky key brings rows of its own. Then outputs do differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from gateway.control.statistics.matched import OTHER, Bins, MatchedBins
from gateway.control.statistics.portions import Portions

PULLS = (4.0, 16.0, 64.0, 256.0)  # weights of the pool that are tried side by side
# A run is sampled at most once per flush, at most 64 rows of it.
RUN_ROWS = 64
_MAX_BINS = 48
_MAX_STREAMS = 16
_REMEMBERED = 4096.0  # runs; then what is known is given half its weight, so that a later change is learned in time
_RARE = 0.02  # bins with less of the pool are one bin when the effect is measured
_MAX_LOG = 600.0
_COLUMN = re.compile(r"(\d{1,2}):(.*)", re.DOTALL)


class BinTest:
    """One column: evidence for a difference, and its size.

    Counts of the canary, and those of stable as if it had had the canary's traffic: each window's shares times the
    canary's number of values there, so that a ramp does not compare the morning's stable with the evening's canary.
    """

    def __init__(self) -> None:
        self.bins: dict[str, list[float]] = {}  # bin: [canary, stable]
        self.logs = [0.0] * len(PULLS)
        self.matched = MatchedBins(together=RUN_ROWS)

    def observe(self, canary: Bins, stable: Bins) -> None:
        n_c, n_s = sum(canary.values()), sum(stable.values())
        if not n_c or not n_s:
            return
        self.matched.observe(canary, stable)
        k_c, k_s = min(n_c, RUN_ROWS), min(n_s, RUN_ROWS)
        share = (n_c / k_c) / (n_c / k_c + n_s / k_s)
        names = sorted(canary.keys() | stable.keys())
        seen = sum(counts[0] for counts in self.bins.values())
        if seen:
            self._bet(names, canary, stable, share, seen, (k_c, k_s))
        for name in names:
            cell = name if name in self.bins or len(self.bins) < _MAX_BINS else OTHER
            counts = self.bins.setdefault(cell, [0.0, 0.0])
            counts[0] += canary.get(name, 0) / k_c
            counts[1] += stable.get(name, 0) / n_s * n_c / k_c
        if seen > _REMEMBERED:
            self.bins = {name: [c / 2, s / 2] for name, (c, s) in self.bins.items()}

    def _bet(
        self, names: list[str], canary: Bins, stable: Bins, share: float, seen: float, k: tuple[float, float]
    ) -> None:
        for name in names:
            known = self.bins.get(name, self.bins.get(OTHER))
            if known is None or not sum(known):
                continue
            pool = sum(known) / (2 * seen)
            for index, pull in enumerate(PULLS):
                c = (known[0] + pull * pool) / (seen + pull)
                s = (known[1] + pull * pool) / (seen + pull)
                mixed = share * c + (1 - share) * s
                won = canary.get(name, 0) / k[0] * math.log(c / mixed) + stable.get(name, 0) / k[1] * math.log(
                    s / mixed
                )
                self.logs[index] = min(self.logs[index] + won, _MAX_LOG)

    @property
    def evidence(self) -> float:
        return sum(map(math.exp, self.logs)) / len(PULLS)

    def effect(self) -> float:
        """The population stability index: sum (c - s) ln(c / s) over the bins, rare ones as one.

        0 for equal distributions; 0.1 is commonly called moderate, 0.25 large (Siddiqi 2006, Credit Risk Scorecards).
        What sampling alone gives on average, (bins - 1) * (1/n_c + 1/n_s) (Yurdakul and Naranjo 2020, J. Risk Model
        Validation 14), is taken off; n counts runs, and stable's is taken to be no larger than the canary's.
        """
        total = sum(counts[0] for counts in self.bins.values())
        if not total:
            return 0.0
        merged: dict[str, list[float]] = {}
        for name, (c, s) in self.bins.items():
            into = merged.setdefault(name if c + s >= _RARE * 2 * total else "", [0.0, 0.0])
            into[0] += c
            into[1] += s
        psi = 0.0
        for c, s in merged.values():
            c, s = (c + 0.5) / (total + 0.5 * len(merged)), (s + 0.5) / (total + 0.5 * len(merged))
            psi += (c - s) * math.log(c / s)
        return max(psi - (len(merged) - 1) * 2 / total, 0.0)

    def to_plain(self) -> dict[str, Any]:
        return {"bins": self.bins, "logs": self.logs, "matched": self.matched.to_plain()}

    def take(self, plain: dict[str, Any]) -> None:
        self.bins = {name: [float(c), float(s)] for name, (c, s) in plain["bins"].items()}
        self.logs = [float(log) for log in plain["logs"]]
        self.matched.take(plain["matched"])


class OutputTest:
    """All columns of all outputs, at most 16: evidence is their mean, weighted by fixed portions."""

    def __init__(self) -> None:
        self.columns: dict[str, BinTest] = {}
        self._portions = Portions()

    def observe(self, canary: Mapping[str, Bins], stable: Mapping[str, Bins]) -> None:
        """Take one window: per output, values per bin. "<column>:<bin>" is a bin of that column."""
        of_canary, of_stable = by_column(canary), by_column(stable)
        both = sorted(of_canary.keys() & of_stable.keys())
        fresh = [name for name in both if name not in self.columns][: max(_MAX_STREAMS - len(self.columns), 0)]
        if fresh:
            self._portions.admit(fresh)
            self.columns.update((name, BinTest()) for name in fresh)
        for name in both:
            if name in self.columns:
                self.columns[name].observe(of_canary[name], of_stable[name])

    @property
    def evidence(self) -> float:
        given = self._portions.given
        kept = 1 - sum(given.values())
        return kept + sum(given[name] * column.evidence for name, column in self.columns.items())

    def strongest(self) -> tuple[str, float]:
        """The column that says most, and how far apart its distributions are; ("", 0) if there is none."""
        if not self.columns:
            return "", 0.0
        name = max(self.columns, key=lambda name: self._portions.given[name] * self.columns[name].evidence)
        return name, self.columns[name].effect()

    def to_plain(self) -> dict[str, Any]:
        columns = {name: column.to_plain() for name, column in self.columns.items()}
        return {"columns": columns, "portions": self._portions.given, "newcomers": self._portions.newcomers}

    def take(self, plain: dict[str, Any]) -> None:
        """Go on from what to_plain gave. Raises KeyError, TypeError or ValueError."""
        self._portions = Portions(dict(plain["portions"]), plain["newcomers"])
        self.columns = {}
        for name, column in plain["columns"].items():
            self.columns[name] = BinTest()
            self.columns[name].take(column)


def by_column(outputs: Mapping[str, Bins]) -> dict[str, dict[str, int]]:
    """Counts per column: {"output": {bin: n}} or {"output/3": {bin: n}} where bins name their column."""
    found: dict[str, dict[str, int]] = {}
    for output, bins in outputs.items():
        for bin_, count in bins.items():
            if count <= 0:
                continue
            split = _COLUMN.fullmatch(bin_)
            name, bin_ = (f"{output}/{split[1]}", split[2]) if split else (output, bin_)
            column = found.setdefault(name, {})
            column[bin_] = column.get(bin_, 0) + count
    return found
