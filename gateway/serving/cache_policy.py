"""Whether looking into the cache pays for a version: learned from how often it was worth it."""

from __future__ import annotations

# Below this share of hits a lookup and a kept answer cost more than the hits save.
MIN_HIT_RATE = 0.05
# Long enough that the first time of a few hundred hot questions is not taken for a sign.
_WINDOW_LOOKUPS = 2048
# While the cache is passed by, one body in this many is still looked up and kept, to notice that hits have come back.
# It is chosen by its hash, so that an equal body is chosen again: the rate among the chosen is the rate of all.
_PROBE_ONE_IN = 32
_PROBE_LOOKUPS = 64


class CachePolicy:
    """Hits of one version, in windows of lookups. Pure; used on the event loop only."""

    __slots__ = ("_hits", "_lookups", "bypassing")

    def __init__(self) -> None:
        self.bypassing = False
        self._hits = 0
        self._lookups = 0

    def should_look(self, body: bytes) -> bool:
        """Whether this request shall go through the cache."""
        return not self.bypassing or hash(body) % _PROBE_ONE_IN == 0

    def looked(self, *, hit: bool) -> None:
        """One lookup was a hit or not; decides anew at the end of each window."""
        self._lookups += 1
        self._hits += hit
        if self._lookups >= (_PROBE_LOOKUPS if self.bypassing else _WINDOW_LOOKUPS):
            self.bypassing = self._hits < MIN_HIT_RATE * self._lookups
            self._lookups = self._hits = 0
