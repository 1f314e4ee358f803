"""The audit trail read as an outbox: row after row, past those that were touched."""

from __future__ import annotations

from gateway.errors import AuditBroken
from gateway.flags.audit import AuditRow
from gateway.flags.store import FlagStore

PAGE_ROWS = 100


def read(store: FlagStore, after: int, limit: int = PAGE_ROWS) -> tuple[list[AuditRow], int]:
    """The next rows after a seq, and the seq up to which the trail has now been read. Raises StoreUnavailable.

    A row that was touched says nothing that may be passed on: it is left out, and the rest goes on behind it.
    """
    while True:
        try:
            rows = store.history(after=after, limit=limit)
        except AuditBroken:
            if limit == 1:
                return [], after + 1
            limit //= 2
        else:
            return rows, rows[-1].seq if rows else after


def newest_seq(store: FlagStore, known: int = 0) -> int:
    """The seq of the newest row, 0 if there is none. known: one that was there, to look on from if the newest was
    touched. Raises StoreUnavailable.
    """
    try:
        rows = store.history(limit=1, newest_first=True)
        return rows[0].seq if rows else 0
    except AuditBroken:
        while True:
            _, seq = read(store, known)
            if seq == known:
                return seq
            known = seq
