"""Which versions a change would send more traffic to than before."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.flags.compile import Route

_TOLERANCE = 1e-12  # shares are quotients; equal ones may differ in their last bit


def raised(before: Route | None, after: Route) -> frozenset[str]:
    """The versions that become reachable by going from *before* to *after*, or whose share rises.

    What the default variant takes over when another variant loses its share is no rise: a kill switch, a weight of 0
    and a removed rule never raise anything. A first route raises nothing for its default version, since nobody was
    served before it.
    """
    if before is None:
        return after.reachable - {after.default_version}
    return frozenset(version for version in after.reachable if _rises(version, before, after))


def _rises(version: str, before: Route, after: Route) -> bool:
    if version not in before.reachable:
        return True
    if version == after.default_version:
        return version != before.default_version
    old, new = before.shares.get(version, ()), after.shares.get(version, ())
    return _above(sum(new), sum(old)) or _above(_largest(new), _largest(old))


def _largest(shares: Iterable[float]) -> float:
    return max(shares, default=0.0)


def _above(new: float, old: float) -> bool:
    return new > old + _TOLERANCE
