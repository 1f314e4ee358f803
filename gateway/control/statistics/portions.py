"""How a test's capital is given out to parts of which nobody knows beforehand how many will come."""

from __future__ import annotations

FOUNDERS = 0.5  # what those share who are there from the start; newcomers share the rest


class Portions:
    """Fixed portions of 1, so that what any parts win never has to be divided again.

    Those that come with the first call of `of` share FOUNDERS equally, the k-th newcomer gets (1 - FOUNDERS)/(k(k+1));
    all portions together are at most 1, however many come. A portion that depended on how many parts there are now
    would hand evidence from one to the other after it was seen.
    """

    def __init__(self, given: dict[str, float] | None = None, newcomers: int = 0) -> None:
        self.given = {} if given is None else given
        self.newcomers = newcomers

    def admit(self, names: list[str]) -> None:
        """Give each name that is new its portion."""
        if not self.given and not self.newcomers:
            self.given.update((name, FOUNDERS / len(names)) for name in names)
            return
        for name in names:
            if name not in self.given:
                self.newcomers += 1
                self.given[name] = (1 - FOUNDERS) / (self.newcomers * (self.newcomers + 1))
