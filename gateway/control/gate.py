"""The gate that every change of flags passes: through, into the queue for approval, or through the broken glass."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.control.approvals import BROKEN_GLASS, FLAG, KIND, OPEN, Approvals, Change, change_from, widens
from gateway.errors import ApprovalPending, ChangeRefused, InvalidFlag
from gateway.flags.audit import Author
from gateway.flags.compile import Route, compile_route
from gateway.flags.document import ROUTE, Flag, FlagDocument, dump_flag
from gateway.flags.store import FlagStore, Note, RecordWrite

_log = logging.getLogger(__name__)

BREAK_GLASS_VERB = ".break_glass"  # how the verbs of such changes end


@dataclass(frozen=True, slots=True)
class Passage:
    """What goes into the same commit as the change."""

    verb: str
    records: tuple[RecordWrite, ...] = ()
    notes: tuple[Note, ...] = ()
    broken: tuple[Change, ...] = ()  # for whom the glass was broken


class NeverBack:
    """Unix seconds that never go back while the process lives: a clock set back must not prolong a proposal."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._latest_s = 0.0

    def __call__(self) -> float:
        self._latest_s = max(self._latest_s, self._clock())
        return self._latest_s


class Gate:
    """Decides for each change of flags whether somebody has to agree first. Methods block on the disk.

    count_break_glass: called for each change that went past the approvals.
    """

    def __init__(
        self, store: FlagStore, approvals: Approvals, *, clock: NeverBack, count_break_glass: Callable[[], None]
    ) -> None:
        self._store = store
        self._approvals = approvals
        self._clock = clock
        self._count_break_glass = count_break_glass

    def needed(self, before: FlagDocument, after: FlagDocument) -> dict[str, int]:
        """How many people must agree, by the keys of the routes that need it."""
        found = {}
        for key, flag in after.flags.items():
            old = before.flags.get(key)
            if flag.kind != ROUTE or (old is not None and old.revision == flag.revision):
                continue
            was, will_be = _route(old, before.bucketing), compile_route(flag.model, flag, after.bucketing)
            people = self._approvals.needed(flag.model, was, will_be, widened=widens(old, flag, was, will_be))
            if people:
                found[key] = people
        return found

    def admit(
        self,
        before: FlagDocument,
        after: FlagDocument,
        *,
        author: Author,
        verb: str,
        reason: str,
        break_glass: bool,
        is_whole: bool,
    ) -> Passage:
        """Let a change pass, or write down that it is proposed. is_whole: it changes the document, not one flag.

        Raises ApprovalPending, with the proposal; ChangeRefused for a whole document, which nobody could review.
        """
        needed = self.needed(before, after)
        if not needed:
            return Passage(verb)
        if is_whole and not break_glass:
            raise ChangeRefused(
                f"this raises the exposure of {', '.join(sorted(needed))}, which needs approval: change these flags "
                f"one by one, so that each can be approved as it is"
            )
        changes = [
            self._change(key, before, after, author=author, verb=verb, reason=reason, required=people)
            for key, people in needed.items()
        ]
        if break_glass:
            return self._break_glass(changes, verb)
        (proposed,) = changes
        for record in self._store.records(KIND):
            waiting = change_from(record.id, record.revision, record.body)
            same = (waiting.digest, waiting.actor, waiting.state) == (proposed.digest, proposed.actor, OPEN)
            if same and self._clock() < waiting.expires_s:
                raise ApprovalPending(waiting.id, waiting.to_json())
        note = proposed.note("change.propose")
        self._store.commit(author=author, verb=note.verb, reason=reason, records=[proposed.write()], notes=[note])
        _log.info("a change waits for approval", extra={"change": proposed.id, "target": proposed.target})
        raise ApprovalPending(proposed.id, proposed.to_json())

    def tell(self, passage: Passage) -> None:
        """After the commit: the alarm of a broken glass."""
        for change in passage.broken:
            self._count_break_glass()
            _log.error(
                "glass broken: a change went past the approvals",
                extra={"change": change.id, "target": change.target, "actor": change.actor, "reason": change.reason},
            )

    def _break_glass(self, changes: list[Change], verb: str) -> Passage:
        broken = tuple(dataclasses.replace(change, state=BROKEN_GLASS) for change in changes)
        alarms = [
            Note("alarm.break_glass", change.audit_target, after={"target": change.target, "reason": change.reason})
            for change in broken
        ]
        return Passage(
            verb + BREAK_GLASS_VERB,
            tuple(change.write() for change in broken),
            (*(change.note("change.break_glass") for change in broken), *alarms),
            broken,
        )

    def _change(
        self,
        key: str,
        before: FlagDocument,
        after: FlagDocument,
        *,
        author: Author,
        verb: str,
        reason: str,
        required: int,
    ) -> Change:
        old, new = before.flags.get(key), after.flags[key]
        return self._approvals.propose(
            model=new.model,
            what=FLAG,
            verb=verb,
            target=key,
            based_on=0 if old is None else old.revision,
            before=None if old is None else _plain(old),
            after=_plain(new),
            author=author,
            reason=reason,
            required=required,
            now_s=self._clock(),
        )


def _route(flag: Flag | None, bucketing: str) -> Route | None:
    try:
        return None if flag is None else compile_route(flag.model, flag, bucketing)
    except InvalidFlag:  # a stored flag that does not compile serves nobody
        return None


def _plain(flag: Flag) -> dict[str, Any]:
    """As flagd JSON, without the revision."""
    plain = dump_flag(flag)
    plain["metadata"] = dict(flag.metadata)
    return plain
