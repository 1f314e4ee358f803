"""The books of proposed changes: each decision about one is committed together with what it does."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable

from gateway.control.approvals import (
    APPLIED,
    APPROVED,
    EXPIRED,
    FLAG,
    KIND,
    OPEN,
    VOID,
    WAITING,
    Approvals,
    Change,
    change_from,
    closed,
    digest_of,
    is_author,
)
from gateway.control.changes import Desk
from gateway.errors import ChangeRefused, RevisionConflict, StoreUnavailable, UnknownChange, VersionNotWarm
from gateway.flags.audit import SYSTEM, Author
from gateway.flags.document import FlagDocument
from gateway.flags.store import FlagStore, Note, RecordWrite

_log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 5.0
KEPT_CLOSED = 200  # newest changes that are over; the audit trail has them all


class Review:
    """Takes decisions about changes, one at a time. Methods block on the disk; all raise StoreUnavailable.

    clock: unix seconds that never go back.
    """

    def __init__(self, store: FlagStore, desk: Desk, approvals: Approvals, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._desk = desk
        self._approvals = approvals
        self._clock = clock
        self._lock = threading.RLock()
        self._trouble = ""

    # -- looking --------------------------------------------------------------------------------

    def all(self) -> list[Change]:
        """All that are kept, newest first, as they stand now."""
        document = self._desk.document()
        found = [self._as_it_stands(change, document) for change in self._written()]
        return sorted(found, key=lambda change: (change.created_s, change.id), reverse=True)

    def find(self, change_id: str) -> Change:
        """One, as it stands now. Raises UnknownChange."""
        return self._as_it_stands(self._read(change_id), self._desk.document())

    # -- deciding -------------------------------------------------------------------------------

    def approve(self, change_id: str, by: Author, *, reason: str = "", digest: str | None = None) -> Change:
        """One more yes; the last one applies the change, in the same commit.

        digest: what the approver has seen, if he says so. A change whose version is not warm in every worker just now
        stays approved; `apply` tries again. Raises Forbidden, ChangeRefused, RevisionConflict, UnknownChange.
        """
        with self._lock:
            change = self._waiting(change_id, digest)
            after = self._approvals.approve(change, by, reason=reason, now_s=self._clock())
            if after.state == APPROVED and after.what == FLAG:
                try:
                    return self._apply(after, by, [after.note("change.approve", change)])
                except VersionNotWarm as error:
                    after = dataclasses.replace(after, state_reason=f"not applied yet: {error}")
            return self._decided(after, by, "change.approve", change, reason)

    def reject(self, change_id: str, by: Author, *, reason: str) -> Change:
        """A no, or the author's own withdrawal. Raises ChangeRefused, RevisionConflict, UnknownChange."""
        with self._lock:
            change = self._waiting(change_id)
            verb = "change.withdraw" if is_author(change, by) else "change.reject"
            return self._decided(
                self._approvals.reject(change, reason=reason, now_s=self._clock()), by, verb, change, reason
            )

    def apply(self, change_id: str, by: Author) -> Change:
        """Apply what was approved before. Raises ChangeRefused, RevisionConflict, VersionNotWarm, UnknownChange."""
        with self._lock:
            change = self._waiting(change_id)
            if not self._approvals.approved(change, self._clock()) or change.what != FLAG:
                lacking = f"; it lacks {self._approvals.missing(change)} approvals" if change.state == OPEN else ""
                raise ChangeRefused(f"change {change.id} is {change.state} and cannot be applied{lacking}")
            return self._apply(change, by, [])

    def acknowledge(self, change_id: str, by: Author, *, reason: str) -> Change:
        """The review of a broken glass. Raises Forbidden, ChangeRefused, UnknownChange."""
        with self._lock:
            change = self._read(change_id)
            after = self._approvals.acknowledge(change, by, reason=reason, now_s=self._clock())
            return self._decided(after, by, "change.acknowledge", change, reason)

    # -- what time and other edits do -------------------------------------------------------------

    async def run(self) -> None:
        """Sweep for ever, in a thread."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            await asyncio.to_thread(self.sweep)

    def sweep(self) -> None:
        """Write down what has expired or become void, and forget what has been over for long."""
        try:
            with self._lock:
                document = self._desk.document()
                written = self._written()
                for change in written:
                    self._settle(change, self._as_it_stands(change, document))
                over = sorted((each for each in written if each.state not in WAITING), key=lambda each: each.created_s)
                gone = [RecordWrite(KIND, each.id, None, each.revision) for each in over[:-KEPT_CLOSED]]
                if gone:
                    self._store.commit(author=SYSTEM, verb="change.forget", reason="", records=gone)
            self._trouble = ""
        except (StoreUnavailable, RevisionConflict) as error:
            if str(error) != self._trouble:
                _log.error("proposed changes cannot be looked through", extra={"why": str(error)})
            self._trouble = str(error)

    def _as_it_stands(self, change: Change, document: FlagDocument) -> Change:
        """The change as time and other edits have left it, whether that is written yet or not."""
        if change.state not in (OPEN, APPROVED):
            return change
        if self._clock() >= change.expires_s:
            return closed(change, EXPIRED, "nobody applied it in time")
        if change.what == FLAG:
            flag = document.flags.get(change.target)
            revision = 0 if flag is None else flag.revision
            if revision != change.based_on:
                why = f"{change.target} is at revision {revision} now; the change is based on {change.based_on}"
                return closed(change, VOID, why)
        return change

    def _settle(self, written: Change, now: Change) -> None:
        if now is written:
            return
        verb = "change.expire" if now.state == EXPIRED else "change.void"
        self._commit(now, SYSTEM, now.note(verb, written), now.state_reason)

    # -- the books ------------------------------------------------------------------------------

    def _written(self) -> list[Change]:
        return [change_from(record.id, record.revision, record.body) for record in self._store.records(KIND)]

    def _read(self, change_id: str) -> Change:
        record = self._store.record(KIND, change_id)
        if record is None:
            raise UnknownChange(f"no change {change_id!r}")
        return change_from(record.id, record.revision, record.body)

    def _waiting(self, change_id: str, digest: str | None = None) -> Change:
        """A change that may still be decided about. Raises RevisionConflict if it is void or not what was seen."""
        written = self._read(change_id)
        document = self._desk.document()
        change = self._as_it_stands(written, document)
        self._settle(written, change)
        flag = document.flags.get(change.target)
        revision = 0 if flag is None else flag.revision
        if change.state == VOID:
            message = f"change {change.id} is void: {change.state_reason}. Propose it anew"
            raise RevisionConflict(message, current_revision=revision)
        found = digest_of(change.what, change.target, change.based_on, change.before, change.after)
        if found != change.digest or (digest is not None and digest != found):
            message = f"change {change.id} is not what was seen: its digest is {found}, not {digest or change.digest}"
            raise RevisionConflict(message, current_revision=revision)
        return change

    def _apply(self, change: Change, by: Author, notes: list[Note]) -> Change:
        done = closed(change, APPLIED, "")
        who = ", ".join(each.actor for each in change.approvals)
        self._desk.apply(
            {change.target: change.after},
            based_on={change.target: change.based_on},
            author=by,
            verb=f"{change.verb}.approved",
            reason=f"{change.reason} (change {change.id} of {change.actor}, approved by {who})",
            records=[done.write()],
            notes=[*notes, done.note("change.apply", change)],
            is_in_charge=False,
        )
        return dataclasses.replace(done, revision=done.revision + 1)

    def _decided(self, after: Change, by: Author, verb: str, before: Change, reason: str) -> Change:
        self._commit(after, by, after.note(verb, before), reason)
        return dataclasses.replace(after, revision=after.revision + 1)

    def _commit(self, change: Change, by: Author, note: Note, reason: str) -> None:
        self._store.commit(author=by, verb=note.verb, reason=reason, records=[change.write()], notes=[note])
