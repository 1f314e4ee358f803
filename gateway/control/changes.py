"""The desk where every change of flags is checked, tried or written; no HTTP here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.control.status import WorkerStatus, not_warm
from gateway.errors import ChangeRefused, InvalidFlag, StoreUnavailable, UnknownFlag, VersionNotWarm
from gateway.flags.audit import SYSTEM, Author
from gateway.flags.compile import Route, check_evaluators, compile_route, validate
from gateway.flags.document import (
    ENABLED,
    ROUTE,
    Flag,
    FlagDocument,
    Json,
    change,
    dump,
    dump_flag,
    parse,
    parse_flag,
    route_key,
)
from gateway.flags.exposure import raised
from gateway.flags.lastgood import read_last_known_good, write_last_known_good
from gateway.flags.store import FlagStore, Note, RecordWrite, check_revision, put, replace, restore
from gateway.models.source import ModelSource

_log = logging.getLogger(__name__)

# Looks at what a change of the flags makes of them, and raises ChangeRefused. Not asked by `Desk.apply`.
Guard = Callable[[FlagDocument, FlagDocument], None]

# Dry runs decide for so many made-up keys to tell which share of keys would move.
PROBE_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change did, or would do. before, after: as flagd JSON, None where there is nothing."""

    document: FlagDocument
    before: Json | None
    after: Json | None

    @property
    def changed(self) -> bool:
        return bool(_without_revision(self.before) != _without_revision(self.after))


class Desk:
    """Checks changes against the flags in force and the workers, and writes them.

    Methods block on the disk; call them off the event loop, from any thread. Changes are taken one at a time. All raise
    StoreUnavailable.

    workers: reads the status documents. After each change the last-known-good file follows the store.
    """

    def __init__(
        self,
        store: FlagStore,
        *,
        last_known_good: Path,
        source: ModelSource,
        workers: Callable[[], list[WorkerStatus]],
    ) -> None:
        self._store = store
        self._last_known_good = last_known_good
        self._source = source
        self._workers = workers
        self.guards: list[Guard] = []
        self._lock = threading.RLock()  # `document` is asked with and without it
        self._recovered = False

    def document(self) -> FlagDocument:
        """The flags in force. A store that has lost them, even while we run, gets them back first; see `recover`."""
        found = self._store.load()
        if found is None and self._recovered:  # else `recover` has not yet said that the file can be read
            found = self._restored()
        return found or FlagDocument()

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
    ) -> Outcome:
        """Change one flag. edit: from its flagd JSON (None: there is none) to what it shall be (None: nothing).

        expected_revision: 0 if the flag must not exist, None for any. Raises RevisionConflict, InvalidFlag,
        UnknownFlag, ChangeRefused, VersionNotWarm.
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
            self._check(document, draft)
            if not dry_run and draft is not document:
                # also under "any": nobody else may have changed what was just checked
                based_on = before.revision if before is not None else 0
                draft = put(
                    self._store, key, after, expected_revision=based_on, author=author, verb=verb, reason=reason
                )
                self._committed(draft, verb, key, author, reason)
            written = draft.flags.get(key)
            return Outcome(draft, plain_before, None if written is None else dump_flag(written))

    def change_document(
        self,
        edit: Callable[[Json], Json],
        *,
        expected_revision: int | None,
        author: Author,
        verb: str,
        reason: str,
        dry_run: bool = False,
    ) -> Outcome:
        """Change the whole document as one revision. edit: from flagd JSON to flagd JSON. Raises as `change_flag`."""
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
            self._check(document, draft)
            if not dry_run and draft is not document:
                draft = replace(
                    self._store, wanted, expected_revision=document.revision, author=author, verb=verb, reason=reason
                )
                self._committed(draft, verb, "all flags", author, reason)
            return Outcome(draft, dump(document), dump(draft))

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
    ) -> FlagDocument:
        """Write several flags, records and notes as one revision, for those who are in charge of the flags.

        wanted: flagd JSON by key, None to delete. based_on: the revisions of these flags, 0 for one that must not
        exist. lowers: the change takes exposure back, so nothing has to be warm for it. Raises RevisionConflict,
        InvalidFlag, VersionNotWarm.
        """
        with self._lock:
            document = self.document()

            def edit(before: FlagDocument) -> FlagDocument:
                for key in wanted:
                    found = before.flags.get(key)
                    check_revision(f"flag {key!r}", found.revision if found is not None else 0, based_on.get(key))
                flags = {key: parse_flag(key, plain, before.evaluators) for key, plain in wanted.items() if plain}
                return change(before, put=flags.values(), drop=wanted.keys() - flags.keys())

            draft = edit(document)
            self._check_flags(document, draft, lowers=lowers)
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

    def seed(self, model: str, version: str) -> None:
        """Give a model that has no route its first one; does nothing if it has one."""
        if not self._recovered:
            self.recover()  # a lost store must not be taken for a new one
        with self._lock:
            if route_key(model) in self.document().flags:
                return
            plain = {"state": ENABLED, "variants": {"stable": version}, "defaultVariant": "stable"}
            flag = parse_flag(route_key(model), plain)
            document = put(
                self._store,
                flag.key,
                flag,
                expected_revision=0,
                author=SYSTEM,
                verb="flag.seed",
                reason=f"first route of {model}: version {version} is its highest",
            )
            self._committed(document, "flag.seed", flag.key, SYSTEM, "")

    def recover(self) -> None:
        """Bring store and last-known-good file together at start.

        A crash between a commit and the file leaves the file behind, so it is written anew. An empty store beside a
        file is a lost store: the flags of the file are written into it, since to start over would undo every kill
        switch. If that file cannot be read either, nothing is seeded.
        """
        with self._lock:
            document = self._store.load()
            if document is not None:
                self._write_last_known_good(document)
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
                document = restore(self._store, kept, author=SYSTEM, reason=reason)
                self._committed(document, "flags.restore", "all flags", SYSTEM, reason)
            return document

    def moved_share(self, before: Json | None, after: Json | None, key: str) -> float | None:
        """For a route: the share of targeting keys, sent without headers, that a change gives another version."""
        if before is None or after is None or not key.endswith(f".{ROUTE}"):
            return None
        document = self.document()
        flags = (parse_flag(key, plain, document.evaluators) for plain in (before, after))
        old, new = (_route(flag, document.bucketing) for flag in flags)
        if old is None or new is None:
            return None
        moved = 0
        for i in range(PROBE_KEYS):
            key_of_probe = f"probe-{i}"
            was = old.decide(key_of_probe, key_of_probe, {}, "native")
            will_be = new.decide(key_of_probe, key_of_probe, {}, "native")
            moved += was.version != will_be.version
        return moved / PROBE_KEYS

    # -- checks -------------------------------------------------------------------------------

    def _check(self, before: FlagDocument, after: FlagDocument) -> None:
        """All that must hold before *after* is written. Flags that stay as they are stay unchecked."""
        for key in before.flags.keys() - after.flags.keys():
            self._check_delete(before.flags[key])
        if after.evaluators != before.evaluators:
            check_evaluators(after)
        for guard in self.guards:
            guard(before, after)
        self._check_flags(before, after)

    def _check_flags(self, before: FlagDocument, after: FlagDocument, *, lowers: bool = False) -> None:
        """What must hold of each flag that changes."""
        workers: list[WorkerStatus] | None = None
        for key, flag in after.flags.items():
            old = before.flags.get(key)
            if old is not None and old.revision == flag.revision:
                continue
            validate(flag, after.bucketing)
            if flag.kind == ROUTE and not lowers:
                workers = self._workers() if workers is None else workers
                _check_warm(workers, _route(old, before.bucketing), compile_route(flag.model, flag, after.bucketing))

    def _check_delete(self, flag: Flag) -> None:
        if flag.kind == ROUTE and self._source.versions().get(flag.model):
            raise ChangeRefused(
                f"{flag.key} cannot be deleted while the models directory has packages of {flag.model!r}: it would be "
                f"given a new route to its highest version at once. Set it DISABLED, or remove the packages first"
            )

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
        self._write_last_known_good(document)

    def _write_last_known_good(self, document: FlagDocument) -> None:
        try:
            write_last_known_good(self._last_known_good, document)
        except StoreUnavailable as error:  # the change itself is durable: it must be acknowledged
            _log.error("the last known good file is behind the flag store", extra={"why": str(error)})


def _check_warm(workers: list[WorkerStatus], before: Route | None, after: Route) -> None:
    blocking = not_warm(workers, after.model, raised(before, after))
    if blocking:
        first = blocking[0]
        more = f" (and {len(blocking) - 1} more)" if len(blocking) > 1 else ""
        because = f": {first['reason']}" if first["reason"] else ""
        raise VersionNotWarm(
            f"version {first['version']} of {after.model!r} is {first['state']} on worker {first['worker']}{because}"
            f"{more}; declare it at weight 0 and wait until every worker reports it warm",
            blocking=blocking,
        )


def _route(flag: Flag | None, bucketing: str) -> Route | None:
    """The route before a change; a stored flag that does not compile serves nobody."""
    try:
        return None if flag is None else compile_route(flag.model, flag, bucketing)
    except InvalidFlag:
        return None


def _without_revision(plain: Json | None) -> Any:
    if plain is None:
        return None
    metadata = {name: value for name, value in plain.get("metadata", {}).items() if name != "revision"}
    return {**plain, "metadata": metadata}
