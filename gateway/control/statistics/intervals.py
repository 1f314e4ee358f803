"""How large a difference is, as intervals that hold at all looks together (confidence sequences).

Rates (errors, wrong answers): exact. The bet of statistics/counts.py is made with margin 1 for every difference delta
at once, since delta enters its logarithm linearly; the differences that it does not refute are the interval. It is of
the mean of (canary - stable) over the canary's requests, each window's canary compared with the same window's stable.
The ratio is had likewise from the likelihood curve of the conditional counts.

Means (run times, outputs, shares of classes; statistics/matched.py): asymptotic, for many observations. With D the sum
over windows of n_c (mean_c - mean_s) and V its variance, D/sqrt(V) a sum of small independent parts, mixing
exp(l D - l^2 V / 2) over l ~ N(0, 1/h) gives sqrt(h/(h + V)) exp(D^2 / (2 (h + V))), a martingale, so that at all
times at once

    |D - N delta| <= sqrt((V + h) log((V + h) / (h alpha^2)))   with probability 1 - alpha,  N = sum of n_c,

(Robbins 1970; asymptotic: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), Time-uniform central limit theory
and asymptotic confidence sequences, Ann. Statist. 52, arXiv 2103.06476, theorem 2.2 with rho^2 = 1/h). The product
h alpha^2 is right: a sum, as in some printed forms, is not what the mixture gives. h sets where it is narrowest;
it is fixed beforehand, as that for EXPECTED requests of the canary: V* / (-2 log alpha + log(1 - 2 log alpha)).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gateway.control.statistics.counts import in_groups, log_bets, log_sum
from gateway.tensors import Array

EXPECTED = 5000.0
# Guesses of the ratio, from 1.01 to 30, dense at 1, where many events tell small differences.
_UP = np.exp(np.geomspace(0.01, math.log(30.0), 16))
_CURVE = np.exp(0.1 * np.sinh(np.linspace(-1.0, 1.0, 81) * math.asinh(10 * math.log(64.0))))


class RateInterval:
    """Difference and ratio of two rates, exact at all times: see above. together, lanes: as for CountTest."""

    def __init__(self, *, together: float = 1.0, lanes: tuple[int, ...] = ()) -> None:
        self._together = together
        self._won = np.zeros((*lanes, 2, len(_UP)))  # up, down
        self._paid = np.zeros((*lanes, 2, len(_UP)))
        self._curve = np.zeros((*lanes, len(_CURVE)))

    def observe(self, n_c: Array | float, b_c: Array | float, n_s: Array | float, b_s: Array | float) -> None:
        """Take one window, as CountTest.observe does."""
        k_c, k_s = in_groups(n_c, self._together), in_groups(n_s, self._together)
        n_c, b_c, n_s, b_s = (
            np.asarray(x, np.float64) / k for x, k in ((n_c, k_c), (b_c, k_c), (n_s, k_s), (b_s, k_s))
        )
        says = ((n_c > 0) & (n_s > 0))[..., None]
        share = np.where(says[..., 0], n_c / np.where(says[..., 0], n_c + n_s, 1.0), 0.5)
        b_c, b_s, n_c = b_c[..., None], b_s[..., None], n_c[..., None]
        for side, ratios in enumerate((_UP, 1 / _UP)):
            log_u, log_v = log_bets(share, 1.0, ratios)
            self._won[..., side, :] += np.where(says, b_c * log_u + b_s * log_v, 0.0)
            self._paid[..., side, :] += np.where(says, n_c * np.expm1(log_u), 0.0)
        log_u, log_v = log_bets(share, 1.0, _CURVE)
        self._curve += np.where(says, b_c * log_u + b_s * log_v, 0.0)

    def difference(self, alpha: float) -> tuple[Array, Array]:
        """(low, high) for canary - stable, within -1..1, wrong at any time with probability alpha at most."""
        limit = math.log(2 / alpha)
        low = _root(lambda delta: self._log(0, delta) >= limit)
        high = -_root(lambda delta: self._log(1, -delta) >= limit)
        return low, high

    def refutes(self, delta: float, alpha: float) -> Array:
        """Whether the interval excludes *delta*."""
        limit = math.log(2 / alpha)
        found: Array = (self._log(0, np.asarray(delta)) >= limit) | (self._log(1, np.asarray(delta)) >= limit)
        return found

    def _log(self, side: int, delta: Array) -> Array:
        logs = self._won[..., side, :] - delta[..., None] * self._paid[..., side, :]
        return log_sum(logs) - math.log(len(_UP))

    def ratio(self, alpha: float) -> tuple[float, float]:
        """(low, high) for canary / stable; 0 and infinity where nothing is known. One lane only.

        The guess 1/81 * sum exp(curve) over the likelihood at a ratio is evidence against that ratio. Between the
        points of the curve the interval is taken outwards.
        """
        mixed = float(log_sum(self._curve)) - math.log(len(_CURVE))
        kept = np.flatnonzero(mixed - self._curve < math.log(1 / alpha))
        first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (int(self._curve.argmax()),) * 2
        low = 0.0 if first == 0 else float(_CURVE[first - 1])
        high = math.inf if last == len(_CURVE) - 1 else float(_CURVE[last + 1])
        return low, high

    def to_plain(self) -> dict[str, Any]:
        return {"won": self._won.tolist(), "paid": self._paid.tolist(), "curve": self._curve.tolist()}

    def take(self, plain: dict[str, Any]) -> None:
        """Go on from what to_plain gave. Raises KeyError, TypeError or ValueError."""
        won, paid, curve = (np.array(plain[name], np.float64) for name in ("won", "paid", "curve"))
        if (won.shape, paid.shape, curve.shape) != (self._won.shape, self._paid.shape, self._curve.shape):
            raise ValueError("a state of other shapes")
        self._won, self._paid, self._curve = won, paid, curve


def _root(refuted: Any) -> Array:
    """The largest delta in -1..1 that is refuted, to 2**-40; -1 if none is. refuted: true below, false above."""
    low = np.full(np.shape(refuted(np.asarray(-1.0))), -1.0)
    high = np.ones_like(low)
    for _ in range(41):
        middle = (low + high) / 2
        below = refuted(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def mixture_half_width(variance: float, n: float, alpha: float) -> float:
    """Half the width of the asymptotic interval of a mean of n observations with this variance each."""
    h = EXPECTED / (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha)))
    return math.sqrt(variance * (n + h) * math.log((n + h) / (h * alpha * alpha))) / n
