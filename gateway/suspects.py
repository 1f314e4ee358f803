"""Who was in flight when workers died: two deaths within a minute, and a version must go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.marks import LOADING, InFlight
from gateway.quarantine import Key

WINDOW_S = 60.0
DEATHS = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """A version that was in flight at too many deaths. is_spared: its route gives it by default, so it stays."""

    key: Key
    deaths: int
    is_spared: bool


@dataclass(frozen=True, slots=True)
class _Sight:
    """A version, seen in flight at one death. alone: no other was."""

    at_s: float
    alone: bool


class Suspects:
    """The deaths of the last minute by version. Used by one thread; times are of one monotonic clock, in seconds.

    All that was in flight at a death is suspect. Who is a suspect for the second time is guilty, with two exceptions.
    If one of them was once alone at a death, who never was is a bystander. And a version that a route gives by default
    is spared: without it nobody would answer. Unless the worker crashed while it loaded that version alone: then it has
    never answered, and would for ever keep all other models from being served.
    """

    def __init__(self) -> None:
        self._sights: dict[Key, list[_Sight]] = {}

    def note(
        self, found: Iterable[InFlight], now_s: float, *, silent_s: float = 0.0, was_killed: bool = False
    ) -> list[Verdict]:
        """A worker died at *now_s* with *found* in flight; returns those that must go, or would have to.

        silent_s: for how long it had hung before; that time does not count. was_killed: it did not crash by itself, it
        was killed, as the kernel does when memory is short.
        """
        self._forget_old(now_s - silent_s)
        suspects: dict[Key, InFlight] = {}
        for one in found:
            suspects.setdefault((one.model, one.version, one.digest), one)
        alone = len(suspects) == 1
        for key in suspects:
            self._sights.setdefault(key, []).append(_Sight(now_s, alone))
        reached = [key for key in suspects if len(self._sights[key]) >= DEATHS]
        killers = [key for key in reached if any(sight.alone for sight in self._sights[key])]
        could_never_answer = alone and not was_killed and next(iter(suspects.values())).doing == LOADING
        return [
            Verdict(key, len(self._sights[key]), suspects[key].is_default and not could_never_answer)
            for key in killers or reached
        ]

    def forget(self, key: Key) -> None:
        """It is quarantined: once lifted, it starts anew."""
        self._sights.pop(key, None)

    def names(self, now_s: float) -> frozenset[tuple[str, str]]:
        """Model and version of all that are under suspicion now."""
        self._forget_old(now_s)
        return frozenset((model, version) for model, version, _ in self._sights)

    def _forget_old(self, now_s: float) -> None:
        for key, sights in list(self._sights.items()):
            recent = [sight for sight in sights if now_s - sight.at_s <= WINDOW_S]
            if recent:
                self._sights[key] = recent
            else:
                del self._sights[key]
