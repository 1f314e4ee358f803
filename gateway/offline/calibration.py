"""Whether probabilities mean what they say: of the rows that were given 0.8, are 8 of 10 true?

Bins hold about equally many rows (equal mass): Nguyen and O'Connor, Posterior calibration and exploratory analysis for
natural language processing models, EMNLP 2015. The error is that of Naeini, Cooper and Hauskrecht, Obtaining well
calibrated probabilities using Bayesian binning, AAAI 2015, in these bins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gateway.tensors import Array

MAX_BINS = 10
# With fewer rows in a bin, what one sees of it is chance.
_MIN_BIN_ROWS = 20


def calibration_of(chances: Array, is_true: Array, weights: Array) -> dict[str, Any]:
    """The calibration of *chances*, each of which says how likely the event *is_true* was.

    chances, weights (above 0): float64 of shape [n], is_true: bool of shape [n], n at least 1. Returns ece: the mean
    over bins, by their weight, of the distance between mean chance and share of true rows, 0..1; by_chance: about what
    it would be if every chance were right, since so few rows never agree exactly; bins: in the order of chances, each
    with its rows, weight (a share), predicted (mean chance) and observed (share of true rows).

    Equal chances are always in the same bin, so the order of rows does not matter.
    """
    count = max(1, min(MAX_BINS, len(chances) // _MIN_BIN_ROWS))
    bounds = np.unique(np.quantile(chances, np.arange(1, count) / count, method="inverted_cdf"))
    places = np.searchsorted(bounds, chances, side="left")
    total = float(weights.sum())
    bins: list[dict[str, Any]] = []
    ece = by_chance = 0.0
    for place in range(len(bounds) + 1):
        held = places == place
        own = weights[held]
        mass = float(own.sum())
        if not held.any():
            continue
        predicted, observed = (float(np.average(side[held], weights=own)) for side in (chances, is_true))
        bins.append({"rows": int(held.sum()), "weight": mass / total, "predicted": predicted, "observed": observed})
        ece += mass / total * abs(predicted - observed)
        # The share of true rows varies with this variance around the mean chance; the mean of its distance is
        # sqrt(2 / pi) deviations.
        variance = float(np.sum((own / mass) ** 2 * chances[held] * (1 - chances[held])))
        by_chance += mass / total * math.sqrt(2 / math.pi * max(variance, 0.0))
    return {"ece": ece, "by_chance": by_chance, "bins": bins}
