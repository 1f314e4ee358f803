"""Where the flags are kept: what every store can do, and what one write consists of.

A write is one transaction: flags, records and audit rows are committed together or not at all. Records are the
documents of control that must not come apart from the flags: rollouts, proposed changes, webhooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.errors import RevisionConflict, UnknownFlag
from gateway.flags.audit import GENESIS, AuditRow, Author, Head, check_ending, next_row, targets_of, verify
from gateway.flags.document import Flag, FlagDocument, Json, change

VERIFY_CHUNK_ROWS = 1000
# The kind of records that the API keys are: workers follow these, as they follow the flags.
KEYS = "api_key"

Edit = Callable[[FlagDocument], FlagDocument]


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON document beside the flags. revision counts its writes from 1."""

    kind: str
    id: str
    revision: int
    body: Json


@dataclass(frozen=True, slots=True)
class RecordWrite:
    """A record to be written. body: None deletes it; a function makes it of the document after the edit.

    expected_revision: 0 must not exist, None any.
    """

    kind: str
    id: str
    body: Json | Callable[[FlagDocument], Json]
    expected_revision: int | None = None

    def content(self, after: FlagDocument) -> Json:
        """The body."""
        return self.body(after) if callable(self.body) else self.body

    def check(self, current_revision: int) -> None:
        """Raises RevisionConflict if the record is not at the expected revision."""
        check_revision(f"{self.kind} {self.id!r}", current_revision, self.expected_revision)


@dataclass(frozen=True, slots=True)
class Note:
    """An audit row for something that is no flag. target: ``<kind>:<id>``."""

    verb: str
    target: str
    before: Json = None
    after: Json = None


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The status document of a worker as the follower of its host left it in a shared store.

    age_s: by the host's own clock before that, by that of the store since: two hosts' clocks never meet.
    """

    host: str
    document: Json
    age_s: float


class FlagStore(Protocol):
    """The flags, the records and the audit trail.

    Methods may be called from any thread, and block. All raise StoreUnavailable if the store cannot be reached, read or
    written, or is not what this gateway wrote.
    """

    def changed(self) -> bool:
        """Whether somebody else committed since the last `load`; True before it. Cheap."""
        ...

    def load(self) -> FlagDocument | None:
        """The current document; None if none was ever written."""
        ...

    def commit(
        self,
        edit: Edit | None = None,
        *,
        author: Author,
        verb: str,
        reason: str,
        records: Sequence[RecordWrite] = (),
        notes: Sequence[Note] = (),
    ) -> FlagDocument:
        """One transaction: flags edited, records written, an audit row per changed flag and per note.

        edit: from the document in force to the one thereafter; may be called again if it must be tried again, so it
        must be pure. It may raise to call everything off. Returns the document thereafter. Raises RevisionConflict.
        """
        ...

    def records(self, kind: str) -> list[Record]:
        """All records of a kind, by id."""
        ...

    def record(self, kind: str, record_id: str) -> Record | None:
        """One record; None if there is none."""
        ...

    def history(
        self, target: str | None = None, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> list[AuditRow]:
        """Audit rows with a seq above *after*, of one target or of all. Raises AuditBroken for a changed row."""
        ...

    def now_s(self) -> float:
        """The one clock of all who share this store: unix seconds."""
        ...

    def hurry(self) -> None:
        """The process is about to end: from now on, a store that does not answer is not waited for."""
        ...

    def close(self) -> None:
        """Let go of files and connections; the next use opens them again."""
        ...


# -- the usual writes -----------------------------------------------------------------------------


def put(
    store: FlagStore,
    key: str,
    flag: Flag | None,
    *,
    expected_revision: int | None,
    author: Author,
    verb: str,
    reason: str,
) -> FlagDocument:
    """Write one flag (None: delete it); return the document thereafter.

    expected_revision: the flag's revision that the change is based on, 0 if the flag must not exist yet, None for any.
    A flag that would not differ is not written. The flag must have been validated. Raises RevisionConflict, and
    UnknownFlag if there is nothing to delete.
    """
    return store.commit(edit_of_flag(key, flag, expected_revision), author=author, verb=verb, reason=reason)


def edit_of_flag(key: str, flag: Flag | None, expected_revision: int | None) -> Edit:
    """The edit that `put` makes."""

    def edit(before: FlagDocument) -> FlagDocument:
        found = before.flags.get(key)
        if flag is None and found is None:
            raise UnknownFlag(f"no flag {key!r}")
        check_revision(f"flag {key!r}", found.revision if found is not None else 0, expected_revision)
        return change(before, drop=[key]) if flag is None else change(before, put=[flag])

    return edit


def replace(
    store: FlagStore, document: FlagDocument, *, expected_revision: int | None, author: Author, verb: str, reason: str
) -> FlagDocument:
    """Write a whole document, with an audit row per flag that it changes.

    expected_revision: the document's. The revisions inside *document* are not read. Raises RevisionConflict.
    """
    edit = edit_of_document(document, expected_revision)
    return store.commit(edit, author=author, verb=verb, reason=reason)


def edit_of_document(document: FlagDocument, expected_revision: int | None) -> Edit:
    """The edit that `replace` makes."""

    def edit(before: FlagDocument) -> FlagDocument:
        check_revision("the flag document", before.revision, expected_revision)
        return change(
            before,
            put=document.flags.values(),
            drop=before.flags.keys() - document.flags.keys(),
            metadata=document.metadata,
            evaluators=document.evaluators,
        )

    return edit


def restore(store: FlagStore, document: FlagDocument, *, author: Author, reason: str) -> FlagDocument:
    """Write *document* into an empty store, under a revision above its own. Raises RevisionConflict."""

    def edit(before: FlagDocument) -> FlagDocument:
        check_revision("the flag document", before.revision, 0)
        return change(
            FlagDocument(document.revision),
            put=document.flags.values(),
            metadata=document.metadata,
            evaluators=document.evaluators,
        )

    return store.commit(edit, author=author, verb="flags.restore", reason=reason)


def note(store: FlagStore, noted: Note, *, author: Author, reason: str) -> None:
    """Write an audit row for something that is no flag, as a new token."""
    store.commit(None, author=author, verb=noted.verb, reason=reason, notes=[noted])


def verify_trail(store: FlagStore) -> Head:
    """Check the whole trail, and that it ends in the document that is now in force. Raises AuditBroken."""
    head = GENESIS
    written: dict[str, AuditRow] = {}
    while True:
        while more := store.history(after=head.seq, limit=VERIFY_CHUNK_ROWS):
            head = verify(more, head)
            written |= {row.target: row for row in more}
        document = store.load() or FlagDocument()
        if not store.history(after=head.seq, limit=1):  # else a change came between the two
            check_ending(written.values(), document)
            return head


# -- what a write consists of ---------------------------------------------------------------------


def audit_rows(
    before: FlagDocument,
    after: FlagDocument,
    notes: Sequence[Note],
    head: Head,
    *,
    author: Author,
    verb: str,
    reason: str,
    now_s: float,
) -> list[AuditRow]:
    """The sealed rows of one write, in their order: flags by key, then notes. now_s: unix seconds."""
    old, new = targets_of(before), targets_of(after)
    rows: list[AuditRow] = []
    wanted = [
        Note(verb, target, old.get(target), new.get(target))
        for target in sorted(old.keys() | new.keys())
        if old.get(target) != new.get(target)
    ]
    for each in (*wanted, *notes):
        row = next_row(
            head,
            author,
            now_s=now_s,
            verb=each.verb,
            target=each.target,
            revision=after.revision,
            before=each.before,
            after=each.after,
            reason=reason,
        )
        rows.append(row)
        head = Head(row.seq, row.hash)
    return rows


def check_revision(what: str, current: int, expected: int | None) -> None:
    """The compare of compare-and-set: revision 0 is "does not exist", expecting None is "any".

    Raises RevisionConflict.
    """
    if expected is None or current == expected:
        return
    based = f"the change is based on revision {expected}"
    if expected == 0:
        message = f"{what} exists already, at revision {current}"
    elif current == 0:
        message = f"{what} does not exist; {based}"
    else:
        message = f"{what} is at revision {current} now; {based}"
    raise RevisionConflict(message, current_revision=current)
