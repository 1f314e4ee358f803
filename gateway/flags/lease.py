"""Leases: of all the controls that share a store, one does a thing at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import RevisionConflict
from gateway.flags.audit import SYSTEM
from gateway.flags.store import FlagStore, Record, RecordWrite

KIND = "lease"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as it stands. until_s: by the clock of the store. revision: of its record."""

    name: str
    holder: str
    until_s: float
    revision: int

    def fence(self) -> RecordWrite:
        """To be committed with what its holder writes: fails with RevisionConflict if the lease was taken since.

        It counts the record on, so that the holder must `take` the lease anew before the next such write.
        """
        return RecordWrite(KIND, self.name, {"holder": self.holder, "until_s": self.until_s}, self.revision)


def take(store: FlagStore, name: str, holder: str, ttl_s: float) -> Lease | None:
    """Take the lease, or hold it for longer; None if somebody else holds it.

    holder: a name that nobody else has, of this process and not of its host. The holder may count on the lease for
    *ttl_s* from before the call, by a monotonic clock of its own; a write that must not happen without it carries its
    `fence`. A lease has no audit row. Raises StoreUnavailable.
    """
    found = store.record(KIND, name)
    now_s = store.now_s()
    held = None if found is None else _lease(found)
    if held is not None and held.holder != holder and held.until_s > now_s:
        return None
    wanted = Lease(name, holder, now_s + ttl_s, found.revision if found is not None else 0)
    return _write(store, wanted)


def release(store: FlagStore, lease: Lease) -> None:
    """Let go of a lease before its time; does nothing if somebody else holds it by now. Raises StoreUnavailable."""
    found = store.record(KIND, lease.name)
    if found is not None and _lease(found).holder == lease.holder:
        _write(store, Lease(lease.name, lease.holder, 0.0, found.revision))


class Turn:
    """Whose turn it is, for a part that looks again and again: asked often, taken seldom. One thread at a time.

    clock: monotonic seconds.
    """

    def __init__(
        self,
        store: FlagStore,
        name: str,
        holder: str,
        *,
        ttl_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._name = name
        self._holder = holder
        self._ttl_s = ttl_s
        self._clock = clock
        self._until_s = 0.0
        self._ask_at_s = 0.0

    def is_ours(self) -> bool:
        """Whether it is ours now; asks the store when a third of the time is over. Raises StoreUnavailable."""
        now_s = self._clock()
        if now_s >= self._ask_at_s:
            self._ask_at_s = now_s + self._ttl_s / 3
            if take(self._store, self._name, self._holder, self._ttl_s) is not None:
                self._until_s = now_s + self._ttl_s
        return now_s < self._until_s


def _write(store: FlagStore, wanted: Lease) -> Lease | None:
    try:
        store.commit(author=SYSTEM, verb="lease", reason="", records=[wanted.fence()])
    except RevisionConflict:  # somebody else was faster
        return None
    return Lease(wanted.name, wanted.holder, wanted.until_s, wanted.revision + 1)


def _lease(record: Record) -> Lease:
    return Lease(record.id, str(record.body["holder"]), float(record.body["until_s"]), record.revision)
