"""The desk where every change of flags is checked, tried or written; no HTTP here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.control.gate import Gate, Passage
from gateway.control.lastseen import AtHand, LastSeen
from gateway.control.precedence import by_hand, still_killed
from gateway.control.rules import Blocked, Guard, changed_flags, of_cold_routes, of_delete, of_followed_file
from gateway.control.status import WorkerStatus
from gateway.errors import (
    ChangeRefused,
    RevisionConflict,
    StoreUnavailable,
    UnknownFlag,
)
from gateway.flags.audit import SYSTEM, Author
from gateway.flags.compile import check_evaluators, validate
from gateway.flags.document import (
    FlagDocument,
    Json,
    change,
    dump,
    dump_flag,
    parse,
    parse_flag,
)
from gateway.flags.lastgood import read_last_known_good
from gateway.flags.shadowing import check_shadow
from gateway.flags.store import (
    Edit,
    FlagStore,
    Note,
    RecordWrite,
    check_revision,
    edit_of_document,
    edit_of_flag,
    restore,
)
from gateway.models.source import ModelSource

_log = logging.getLogger(__name__)

# Changes of flags that are no edits of what they say.
_ALWAYS_BY_HAND = frozenset({"cache.purge"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change did, or would do.

    base, document: all flags before and after it. before, after: what was changed, as flagd JSON; None where there is
    nothing. blocked, approvals: of a dry run, why the change would be refused now, and by route, how many people would
    have to approve it first.
    """

    base: FlagDocument
    document: FlagDocument
    before: Json | None
    after: Json | None
    blocked: tuple[Blocked, ...] = ()
    approvals: Mapping[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return bool(_without_revision(self.before) != _without_revision(self.after))


class Desk:
    """Checks changes against the flags in force and the workers, and writes them.

    Methods block on the disk; call them off the event loop, from any thread. Changes are taken one at a time. All raise
    StoreUnavailable.

    workers: reads the status documents. gate: what changes of flags have to pass; None lets all pass. After each change
    the last-known-good file follows the store. import_file: if the flags follow a file, hands may only pull kill
    switches and purge caches.
    """

    def __init__(
        self,
        store: FlagStore,
        *,
        last_known_good: Path,
        source: ModelSource,
        workers: Callable[[], list[WorkerStatus]],
        gate: Gate | None = None,
        import_file: str = "",
    ) -> None:
        self._store = store
        self._gate = gate
        self._import_file = import_file
        self._last_known_good = last_known_good
        self._source = source
        self._workers = workers
        self.guards: list[Guard] = []
        self._lock = threading.RLock()  # `document` is asked with and without it
        self._recovered = False
        self._last = LastSeen(store, last_known_good, self._lock)

    @property
    def last_known_good_trouble(self) -> str:
        """Why the last-known-good file is behind the store; empty while it is not."""
        return self._last.trouble

    def document(self) -> FlagDocument:
        """The flags in force. A store that has lost them, even while we run, gets them back first; see `recover`."""
        found = self._store.load()
        if found is None and self._recovered:  # else `recover` has not yet said that the file can be read
            found = self._restored()
        if found is not None:
            self._last.look(found)
        return found or FlagDocument()

    def at_hand(self) -> AtHand:
        """The flags to look at, also while the store cannot be read. Raises StoreUnavailable if there are none."""
        try:
            return AtHand(self.document())
        except StoreUnavailable:
            found = self._last.at_hand()
            if found is None:
                raise
            return found

    def change_flag(
        self,
        key: str,
        edit: Callable[[Json | None], Json | None],
        *,
        expected_revision: int | None,
        author: Author,
        verb: str,
        reason: str,
        dry_run: bool = False,
        break_glass: bool = False,
    ) -> Outcome:
        """Change one flag. edit: from its flagd JSON (None: there is none) to what it shall be (None: nothing).

        expected_revision: 0 if the flag must not exist, None for any. break_glass: do not wait for approvals. Raises
        RevisionConflict, InvalidFlag, UnknownFlag, ChangeRefused, VersionNotWarm, of which a dry run tells the last two
        as what blocks it; ApprovalPending if the change was proposed instead.
        """
        with self._lock:
            document = self.document()
            before = document.flags.get(key)
            check_revision(f"flag {key!r}", before.revision if before is not None else 0, expected_revision)
            plain_before = None if before is None else dump_flag(before)
            plain = edit(_without_revision(plain_before))
            if plain is None and before is None:
                raise UnknownFlag(f"no flag {key!r}")
            after = None if plain is None else parse_flag(key, plain, document.evaluators)
            draft = change(document, drop=[key]) if after is None else change(document, put=[after])
            is_allowed = not self._import_file or verb in _ALWAYS_BY_HAND
            if not is_allowed and (marked := by_hand(before, after)) is not None:
                after, is_allowed = marked, True
            blocked = self._check(document, draft, dry_run, is_allowed=is_allowed)
            if not dry_run and draft is not document:
                # also under "any": nobody else may have changed what was just checked
                based_on = before.revision if before is not None else 0
                passage = self._admit(document, draft, author, verb, reason, break_glass=break_glass)
                wanted = edit_of_flag(key, after, based_on)
                draft = self._write(wanted, passage, key, author, reason)
            written = draft.flags.get(key)
            needed = self._needed(document, draft) if dry_run else {}
            done = None if written is None else dump_flag(written)
            return Outcome(document, draft, plain_before, done, blocked, needed)

    def change_document(
        self,
        edit: Callable[[Json], Json],
        *,
        expected_revision: int | None,
        author: Author,
        verb: str,
        reason: str,
        dry_run: bool = False,
        is_followed: bool = False,
        break_glass: bool = False,
    ) -> Outcome:
        """Change the whole document as one revision. edit: from flagd JSON to flagd JSON. Raises as `change_flag`.

        is_followed: the change comes from the file that the flags follow.
        """
        with self._lock:
            document = self.document()
            check_revision("the flag document", document.revision, expected_revision)
            wanted = parse(edit(dump(document)))
            draft = change(
                document,
                put=wanted.flags.values(),
                drop=document.flags.keys() - wanted.flags.keys(),
                metadata=wanted.metadata,
                evaluators=wanted.evaluators,
            )
            blocked = self._check(document, draft, dry_run, is_allowed=is_followed or not self._import_file)
            if not dry_run and draft is not document:
                passage = Passage(verb)  # where the flags follow a file, who may change that is the file's business
                if not is_followed:
                    passage = self._admit(document, draft, author, verb, reason, break_glass=break_glass, is_whole=True)
                edit_all = edit_of_document(wanted, document.revision)
                draft = self._write(edit_all, passage, "all flags", author, reason)
            needed = self._needed(document, draft) if dry_run else {}
            return Outcome(document, draft, dump(document), dump(draft), blocked, needed)

    def apply(
        self,
        wanted: Mapping[str, Json | None],
        *,
        based_on: Mapping[str, int],
        author: Author,
        verb: str,
        reason: str,
        records: Sequence[RecordWrite] = (),
        notes: Sequence[Note] = (),
        lowers: bool = False,
        is_in_charge: bool = True,
    ) -> FlagDocument:
        """Write several flags, records and notes as one revision, for those who are in charge of the flags.

        wanted: flagd JSON by key, None to delete. based_on: the revisions of these flags, 0 for one that must not
        exist. lowers: the change takes exposure back, so nothing has to be warm for it, and it may come before a file
        that the flags follow. is_in_charge: if not, the guards are asked. Raises RevisionConflict, InvalidFlag,
        VersionNotWarm, FlagsFollowFile, ChangeRefused.
        """
        with self._lock:
            document = self.document()

            def edit(before: FlagDocument) -> FlagDocument:
                for key in wanted:
                    found = before.flags.get(key)
                    check_revision(f"flag {key!r}", found.revision if found is not None else 0, based_on.get(key))
                flags = {key: parse_flag(key, plain, before.evaluators) for key, plain in wanted.items() if plain}
                if self._import_file:
                    flags = {key: still_killed(flag, before.flags.get(key)) for key, flag in flags.items()}
                return change(before, put=flags.values(), drop=wanted.keys() - flags.keys())

            draft = edit(document)
            for refused in (
                () if lowers or not self._import_file else of_followed_file(self._import_file, document, draft)
            ):
                raise refused.error
            for guard in () if is_in_charge else self.guards:
                for refused in guard(document, draft):
                    raise refused.error
            for flag in changed_flags(document, draft):
                validate(flag, draft.bucketing)
                check_shadow(document, draft, flag)
            for refused in () if lowers else self._of_cold_routes(document, draft):
                raise refused.error
            after = self._store.commit(
                edit if wanted else None, author=author, verb=verb, reason=reason, records=records, notes=notes
            )
            if after.revision != document.revision:
                self._committed(after, verb, ", ".join(wanted), author, reason)
            return after

    def check_package(self, model: str, version: str) -> None:
        """Raise ChangeRefused if there are packages of *model* here, but none of that version."""
        versions = self._source.versions().get(model, [])
        if versions and version not in versions:
            raise ChangeRefused(f"there is no package {model}/{version}; there are versions {', '.join(versions)}")

    def make_sure_of_recovery(self) -> None:
        """`recover`, if it has not succeeded yet: a lost store must not be taken for a new one."""
        if not self._recovered:
            self.recover()

    def recover(self) -> None:
        """Bring store and last-known-good file together at start.

        A crash between a commit and the file leaves the file behind, so it is written anew. An empty store beside a
        file is a lost store: the flags of the file are written into it, since to start over would undo every kill
        switch. If that file cannot be read either, nothing is seeded.
        """
        with self._lock:
            document = self._store.load()
            if document is not None:
                self._last.keep(document)
            else:
                self._restored()
            self._recovered = True

    def _restored(self) -> FlagDocument | None:
        """What an empty store now holds: the flags of the last known good file; None if it has never held any."""
        with self._lock:
            document = self._store.load()  # another thread may have been faster
            if document is None and (kept := read_last_known_good(self._last_known_good)) is not None:
                _log.warning("the flag store is empty; its flags are restored from the last known good file")
                reason = "the flag store was lost; flags of the last known good file"
                try:
                    document = restore(self._store, kept, author=SYSTEM, reason=reason)
                except RevisionConflict:  # another control was faster
                    return self._store.load()
                self._committed(document, "flags.restore", "all flags", SYSTEM, reason)
            return document

    # -- writing ------------------------------------------------------------------------------

    def _admit(
        self,
        before: FlagDocument,
        after: FlagDocument,
        author: Author,
        verb: str,
        reason: str,
        *,
        break_glass: bool,
        is_whole: bool = False,
    ) -> Passage:
        if self._gate is None:
            return Passage(verb)
        return self._gate.admit(
            before, after, author=author, verb=verb, reason=reason, break_glass=break_glass, is_whole=is_whole
        )

    def _needed(self, before: FlagDocument, after: FlagDocument) -> Mapping[str, int]:
        return {} if self._gate is None else self._gate.needed(before, after)

    def _write(self, edit: Edit, passage: Passage, what: str, author: Author, reason: str) -> FlagDocument:
        after = self._store.commit(
            edit, author=author, verb=passage.verb, reason=reason, records=passage.records, notes=passage.notes
        )
        if self._gate is not None:
            self._gate.tell(passage)
        self._committed(after, passage.verb, what, author, reason)
        return after

    # -- checks -------------------------------------------------------------------------------

    def _check(
        self, before: FlagDocument, after: FlagDocument, dry_run: bool, *, is_allowed: bool
    ) -> tuple[Blocked, ...]:
        """All that must hold before *after* is written. Flags that stay as they are stay unchecked.

        Raises InvalidFlag, and the first of what blocks the change unless it is a dry run.
        """
        if after.evaluators != before.evaluators:
            check_evaluators(after)
        for flag in changed_flags(before, after):
            validate(flag, after.bucketing)
            check_shadow(before, after, flag)
        blocked = []
        followed = () if is_allowed else of_followed_file(self._import_file, before, after)
        for refused in (*followed, *self._refusals(before, after)):
            if not dry_run:
                raise refused.error
            blocked.append(refused)
        return tuple(blocked)

    def _refusals(self, before: FlagDocument, after: FlagDocument) -> Iterator[Blocked]:
        """Every rule that blocks a valid change."""
        for key in sorted(before.flags.keys() - after.flags.keys()):
            yield from of_delete(before.flags[key], self._source)
        for guard in self.guards:
            yield from guard(before, after)
        yield from self._of_cold_routes(before, after)

    def _of_cold_routes(self, before: FlagDocument, after: FlagDocument) -> Iterator[Blocked]:
        return of_cold_routes(before, after, self._workers)

    def _committed(self, document: FlagDocument, verb: str, what: str, author: Author, reason: str) -> None:
        _log.info(
            "flags changed",
            extra={
                "verb": verb,
                "flag": what,
                "revision": document.revision,
                "actor": author.actor,
                "reason": reason,
            },
        )
        self._last.keep(document)


def _without_revision(plain: Json | None) -> Any:
    if plain is None:
        return None
    metadata = {name: value for name, value in plain.get("metadata", {}).items() if name != "revision"}
    return {**plain, "metadata": metadata}
