"""Whether bad events are more frequent in one arm than in the other, by a bet that may be looked at at any moment.

One bet serves four questions: is the canary worse (roll back), is it not worse (promote), how large is the difference,
how large is the ratio. In a window the canary had n_c requests, b_c of them bad, and stable n_s and b_s. A bet pays
u per bad event of the canary and v per one of stable; it starts at 1 and after the window it is

    E = u^b_c * v^b_s * exp(-n_c * tolerance * (u - 1)),   with   w * margin * (u - 1) + (1 - w) * (v - 1) = 0,

w = n_c / (n_c + n_s) being the share of the requests that were really made, not the configured one.

Why E is at most 1 on average if the canary's rate p_c <= margin * p_s + tolerance (u > 1), or >= (u < 1): with
independent requests E[u^b_c] = prod(1 + p_i (u - 1)) <= exp(n_c * p_c * (u - 1)), p_c being the mean of the rates in
the window, and the same for v. So

    log E[E] <= n_c * p_c * (u-1) + n_s * p_s * (v-1) - n_c * tolerance * (u-1)
             <= n_c * margin * p_s * (u-1) + n_s * p_s * (v-1) = 0.

Nothing else is assumed: the rates may be anything from 0 to 1 and change from window to window, the windows may be of
any size and the shares any; a window in which one arm had nothing says nothing. The product over windows is a
nonnegative supermartingale, so it ever reaches 1/alpha with probability at most alpha (Ville 1939).

u and v come from a guess rho of the ratio of the rates: given a bad event, the odds that it is the canary's are
w rho : (1 - w), so u and v are the likelihood ratios of rho against the margin. For rare events this is the conditional
binomial test of two Poisson streams: Lindon and Malek (2022), Anytime-valid inference for multinomial count data,
NeurIPS, arXiv 2011.03567. For common ones it is the limit, for a base rate that goes to 0, of the e-variable of
Turner, Ly and Gruenwald (2024), Generic E-variables for exact sequential k-sample tests, J. Statist. Plann. Inference
230, arXiv 2106.02693: valid all the same, and at rates near 1 less sharp than it could be.

Events that come together (all requests of one slow run): with k the largest number that can, counts are divided by k.
Since u^(m/k) <= 1 + (m/k)(u - 1) for 0 <= m <= k (Bernoulli), the proof holds for any dependence within such a group.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gateway.tensors import Array

# 16 guesses of how many times the margin the ratio may be: from little more to thirty times.
WORSE = np.geomspace(1.3, 30.0, 16)
BETTER = 1.0 / WORSE[::-1]
# For a margin in points: a rise of few per cent is what is looked for.
WORSE_FINE = np.geomspace(1.05, 10.0, 16)
BETTER_FINE = 1.0 / WORSE_FINE[::-1]

# The capital is 1. This part is put on the guesses at the start; when it is lost the next portion is put in.
FIRST = 0.8
_LOST = 0.1  # of the next portion
_MAX_LOG = 600.0


def log_bets(share: Array | float, margin: float, ratios: Array) -> tuple[Array, Array]:
    """(log u, log v) for each guess.

    share: of the canary among both, shape [...]. ratios: the guesses [k]. margin: above 0. Returns [..., k] each.
    """
    share = np.asarray(share, np.float64)[..., None]
    log_v = np.log(share * margin + 1 - share) - np.log(share * ratios + 1 - share)
    return np.log(ratios / margin) + log_v, log_v


def log_sum(logs: Array) -> Array:
    """log(sum(exp(logs))) over the last axis."""
    top: Array = logs.max(axis=-1)
    total: Array = top + np.log(np.exp(logs - top[..., None]).sum(axis=-1))
    return total


def in_groups(requests: Array | float, together: float) -> Array:
    """How many requests count as one: *together*, or all of the window if it has fewer; 1 for none. Shape as given."""
    return np.clip(np.asarray(requests, np.float64), 1.0, together)


class CountTest:
    """Evidence against "the canary's rate is at most margin * stable's + tolerance"; with guesses below 1, "at least".

    margin: a ratio above 0. tolerance: in shares of 1. together: how many events may come from one cause. guesses:
    multiples of the margin, all above 1 or all below. ceiling: evidence is not counted beyond this
    (giving money away is always allowed): for a test that should notice soon that things have changed.

    A part of the capital is kept back. Without it, an hour of good behaviour would lose so much that a canary which
    turns bad later would be found much too late; with it, evidence never falls below that part, and each time what was
    put in is lost, the next portion is put in: 0.8, then 0.2/(k(k+1)). All portions together are the 1 that was there.

    lanes: the shape of many tests that run side by side; counts have that shape then. The judge uses one.
    """

    def __init__(
        self,
        *,
        margin: float,
        tolerance: float = 0.0,
        together: float = 1.0,
        guesses: Array = WORSE,
        ceiling: float = math.exp(_MAX_LOG),
        lanes: tuple[int, ...] = (),
    ) -> None:
        self._margin, self._tolerance, self._together = margin, tolerance, together
        self._ratios = margin * guesses
        self._max_log = min(math.log(ceiling), _MAX_LOG)
        self._logs = np.full((*lanes, len(guesses)), math.log(FIRST / len(guesses)))
        self._portions = np.ones(lanes)

    def observe(
        self,
        n_c: Array | float,
        b_c: Array | float,
        n_s: Array | float,
        b_s: Array | float,
        *,
        worth: tuple[Array | float, Array | float] = (1.0, 1.0),
    ) -> None:
        """Take one window: requests and bad events of the canary, requests and bad events of stable.

        worth: how many requests one of the canary, one of stable counts for.
        """
        k_c, k_s = in_groups(n_c, self._together), in_groups(n_s, self._together)
        n_c, n_s = n_c * worth[0] / k_c, n_s * worth[1] / k_s
        b_c, b_s = np.asarray(b_c, np.float64) / k_c, np.asarray(b_s, np.float64) / k_s
        says = (n_c > 0) & (n_s > 0)
        share = np.where(says, n_c / np.where(says, n_c + n_s, 1.0), 0.5)
        log_u, log_v = log_bets(share, self._margin, self._ratios)
        won = b_c[..., None] * log_u + b_s[..., None] * log_v
        if self._tolerance:
            won = won - (n_c * self._tolerance)[..., None] * np.expm1(log_u)
        self._logs = self._logs + np.where(says[..., None], won, 0.0)
        self._put_in()

    def _put_in(self) -> None:
        invested = log_sum(self._logs)
        over = np.maximum(invested - self._max_log, 0.0)
        self._logs = self._logs - over[..., None]
        portion = np.log((1 - FIRST) / (self._portions * (self._portions + 1)))
        lost = invested < math.log(_LOST) + portion
        if lost.any():
            each = portion[..., None] - math.log(self._logs.shape[-1])
            self._logs = np.where(lost[..., None], np.logaddexp(self._logs, each), self._logs)
            self._portions = self._portions + lost

    @property
    def evidence(self) -> Array:
        """The e-value, in the shape of the lanes: what was put in has become this, with what was kept back."""
        total: Array = np.exp(log_sum(self._logs)) + (1 - FIRST) / self._portions
        return total

    def to_plain(self) -> dict[str, Any]:
        return {"logs": self._logs.tolist(), "portions": self._portions.tolist()}

    def take(self, plain: dict[str, Any]) -> None:
        """Go on from what to_plain gave. Raises KeyError, TypeError or ValueError."""
        logs, portions = np.array(plain["logs"], np.float64), np.array(plain["portions"], np.float64)
        if logs.shape != self._logs.shape or portions.shape != self._portions.shape:
            raise ValueError(f"a state of shape {logs.shape} is not one of shape {self._logs.shape}")
        self._logs, self._portions = logs, portions
