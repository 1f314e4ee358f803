"""Whether looking into the cache pays for a version: learned from how often it does, and from what a run costs."""

from __future__ import annotations

from array import array
from collections.abc import Callable

# What a lookup that finds nothing and an answer that is kept cost, and what a hit saves beside the run of the model.
# Measured by benchmarks/speed; only their order of size matters.
_MISS_COSTS_S = 10e-6
_HIT_SAVES_S = 4e-6
# Long enough that the first time of a few hundred hot questions is not taken for a sign.
_WINDOW = 2048
# Questions remembered while the policy is wary, the latest of each place in a table: 128 KiB per version.
_PLACES = 1 << 14


class NeverLook:
    """For a version whose answers are not to be kept: one that carries state between calls, or draws random numbers."""

    __slots__ = ()
    is_wary = True

    def should_look(self, _body: bytes) -> bool:
        """Never."""
        return False

    def looked(self, *, hit: bool) -> None:
        """Nothing is looked up, so nothing is learned."""


class CachePolicy:
    """One version's balance, in windows of requests. Used on the event loop only.

    While the cache does not pay, the policy is wary: a question is looked up and kept only from the second time on that
    it is asked, so that one that never comes back costs a look into a table. Hot questions are answered from the cache
    in both states. Source: the doorkeeper of TinyLFU (Einziger, Friedman, Manes, arXiv 1512.00727).
    run_s: what the model's share of an answer costs, in seconds.
    """

    __slots__ = ("_hits", "_misses", "_run_s", "_seen", "is_wary")

    def __init__(self, run_s: Callable[[], float]) -> None:
        self._run_s = run_s
        self.is_wary = False
        self._hits = self._misses = 0
        # Hashes are enough: two bodies with one hash only make the second one be looked up at once. 0 stands for none.
        self._seen = array("q", [0])

    def should_look(self, body: bytes) -> bool:
        """Whether this request shall go through the cache."""
        if not self.is_wary:
            return True
        seen, digest = self._seen, hash(body)
        place = digest & (_PLACES - 1)
        if seen[place] == digest:
            return True
        seen[place] = digest
        self._misses += 1
        return False

    def looked(self, *, hit: bool) -> None:
        """One lookup was a hit or not."""
        if hit:
            self._hits += 1
        else:
            self._misses += 1
        if self._hits + self._misses >= _WINDOW:
            self._judge()

    def _judge(self) -> None:
        pays = self._hits * (_HIT_SAVES_S + self._run_s()) >= self._misses * _MISS_COSTS_S
        self._hits = self._misses = 0
        if pays is self.is_wary:
            self.is_wary = not pays
            self._seen = array("q", [0]) * (_PLACES if self.is_wary else 1)
