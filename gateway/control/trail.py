"""The audit trail held against its checkpoints: what was edited, taken out, put in, moved, cut off or made anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.control.checkpoints import Checkpoint, Keys, check_signature
from gateway.errors import AuditBroken
from gateway.flags.audit import GENESIS, AuditRow, Head, check_ending, verify
from gateway.flags.document import FlagDocument
from gateway.flags.store import FlagStore

_CHUNK_ROWS = 500  # so that a change of flags never waits long for the store


@dataclass(frozen=True, slots=True)
class Verified:
    """What held. checkpoints: how many, newest: the one that fixes most rows."""

    head: Head
    checkpoints: int
    newest: Checkpoint | None

    def to_json(self) -> dict[str, Any]:
        newest = None if self.newest is None else {"seq": self.newest.seq, "ts": self.newest.ts}
        return {
            "rows": self.head.seq,
            "head": self.head.hash,
            "checkpoints": self.checkpoints,
            "newest_checkpoint": newest,
        }


class TrailCheck:
    """Takes the rows of a trail piece by piece, oldest first.

    Every checkpoint must be signed by one of *keys*, and the row that it names must have the hash that it names. A
    checkpoint of a row before *start* says nothing of the rows that come. Every method raises AuditBroken.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint] = (), keys: Keys | None = None, start: Head = GENESIS) -> None:
        for checkpoint in checkpoints:
            check_signature(checkpoint, keys or {})
        self.head = start
        self._count = len(checkpoints)
        self._pending = sorted((each for each in checkpoints if each.seq >= start.seq), key=lambda each: each.seq)
        self._pending.reverse()  # the next one is at the end
        self._passed: Checkpoint | None = None
        self._compare()

    def add(self, rows: Iterable[AuditRow]) -> None:
        """The rows that come next."""
        for row in rows:
            self.head = verify((row,), self.head)
            self._compare()

    def finish(self) -> Verified:
        """There are no more rows."""
        if self._pending:
            missing = self._pending[0]
            raise AuditBroken(
                f"rows after {self.head.seq} were cut off: the checkpoint of {missing.ts} says that there was a row "
                f"{missing.seq}, with the hash {missing.hash}"
            )
        return Verified(self.head, self._count, self._passed)

    def _compare(self) -> None:
        while self._pending and self._pending[-1].seq <= self.head.seq:
            checkpoint = self._pending.pop()
            if checkpoint.hash != self.head.hash:
                low = 1 if self._passed is None else self._passed.seq + 1
                raise AuditBroken(
                    f"the chain was made anew from a row in {low} to {checkpoint.seq}: row {checkpoint.seq} has the "
                    f"hash {self.head.hash}, the checkpoint of {checkpoint.ts} says {checkpoint.hash}"
                )
            self._passed = checkpoint


def check_store(store: FlagStore, checkpoints: Sequence[Checkpoint], keys: Keys) -> tuple[Verified, FlagDocument]:
    """Check the whole trail in a store, and that it ends in the flags in force. Raises AuditBroken, StoreUnavailable.

    Blocks for some 30 us per row; changes may be written meanwhile.
    """
    check = TrailCheck(checkpoints, keys)
    written: dict[str, AuditRow] = {}
    while True:
        while rows := store.history(after=check.head.seq, limit=_CHUNK_ROWS):
            check.add(rows)
            written |= {row.target: row for row in rows}
        document = store.load() or FlagDocument()
        if not store.history(after=check.head.seq, limit=1):  # else a change came between the two
            check_ending(written.values(), document)
            return check.finish(), document
