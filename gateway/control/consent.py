"""What a rollout of a model of high stakes needs of other people before its candidate gets traffic."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from gateway.control import steering
from gateway.control.approvals import (
    APPLIED,
    APPROVED,
    BROKEN_GLASS,
    KIND,
    OPEN,
    REVIEWED,
    ROLLOUT,
    VOID,
    Approvals,
    Change,
    change_from,
    closed,
)
from gateway.control.gate import BREAK_GLASS_VERB, Passage
from gateway.control.plan import Plan
from gateway.errors import ChangeRefused
from gateway.flags.audit import Author
from gateway.flags.compile import compile_route
from gateway.flags.document import FlagDocument, Json, parse_flag, route_key
from gateway.flags.store import FlagStore, Note

_log = logging.getLogger(__name__)

_START = "rollout.start"


class Consent:
    """Proposes the plans of rollouts, and tells how their proposals stand. Methods block on the disk.

    clock: unix seconds that never go back. count_break_glass: called for each rollout that went past the approvals.
    """

    def __init__(
        self,
        store: FlagStore,
        approvals: Approvals,
        *,
        clock: Callable[[], float],
        count_break_glass: Callable[[], None],
    ) -> None:
        self._store = store
        self._approvals = approvals
        self._clock = clock
        self._count_break_glass = count_break_glass

    def needed(self, document: FlagDocument, model: str, plan: Plan, base: Json) -> int:
        """How many people must agree before *plan* may give its version traffic."""
        before = _route(document, model, base)
        stages = [_route(document, model, route) for _, route in steering.stages(plan, base)]
        return max(self._approvals.needed(model, before, after) for after in stages)

    def propose(
        self,
        document: FlagDocument,
        rollout_id: str,
        model: str,
        plan: Plan,
        base: Json,
        *,
        author: Author,
        reason: str,
        break_glass: bool,
    ) -> tuple[str, Passage]:
        """The id of the proposal, "" if none is needed, and what goes into the commit of the start."""
        required = self.needed(document, model, plan, base)
        if not required:
            return "", Passage(_START)
        change = self._approvals.propose(
            model=model,
            what=ROLLOUT,
            verb=_START,
            target=f"rollout:{rollout_id}",
            based_on=document.flags[route_key(model)].revision,
            before={"route": base},
            after={"route": base, "plan": plan.to_json()},
            author=author,
            reason=reason,
            required=required,
            now_s=self._clock(),
        )
        if not break_glass:
            return change.id, Passage(_START, (change.write(),), (change.note("change.propose"),))
        change = dataclasses.replace(change, state=BROKEN_GLASS)
        alarm = Note("alarm.break_glass", change.audit_target, after={"target": change.target, "reason": reason})
        notes = (change.note("change.break_glass"), alarm)
        return change.id, Passage(_START + BREAK_GLASS_VERB, (change.write(),), notes, (change,))

    def tell(self, passage: Passage) -> None:
        """After the commit: the alarm of a broken glass."""
        for change in passage.broken:
            self._count_break_glass()
            _log.error(
                "glass broken: a rollout went past the approvals",
                extra={"change": change.id, "target": change.target, "actor": change.actor, "reason": change.reason},
            )

    def stands(self, change_id: str) -> tuple[int, str]:
        """How many people still have to agree to a proposal, and why it has failed, "" if it has not."""
        change = self._read(change_id)
        if change is None or change.state in (OPEN, APPROVED):
            if change is None or self._clock() >= change.expires_s:
                return 1, f"its proposal {change_id} has expired"
            return self._approvals.missing(change), ""
        if change.state in (APPLIED, BROKEN_GLASS, REVIEWED):
            return 0, ""
        return 1, f"its proposal {change_id} is {change.state}: {change.state_reason}"

    def settle(self, change_id: str, *, applied: bool) -> Passage:
        """What goes into the commit with which a rollout gets its first traffic, or ends without any.

        Raises ChangeRefused if it shall get traffic and its proposal stands otherwise by now.
        """
        if applied and change_id:
            missing, why = self.stands(change_id)
            if missing:
                raise ChangeRefused(why or f"its proposal {change_id} still lacks {missing} approvals")
        change = self._read(change_id) if change_id else None
        if change is None or change.state not in (OPEN, APPROVED):
            return Passage("")
        if applied:
            done, verb = closed(change, APPLIED, ""), "change.apply"
        else:
            done, verb = closed(change, VOID, "its rollout was ended"), "change.void"
        return Passage("", (done.write(),), (done.note(verb, change),))

    def _read(self, change_id: str) -> Change | None:
        record = self._store.record(KIND, change_id)
        return None if record is None else change_from(record.id, record.revision, record.body)


def _route(document: FlagDocument, model: str, plain: dict[str, Any]) -> Any:
    flag = parse_flag(route_key(model), plain, document.evaluators)
    return compile_route(model, flag, document.bucketing)
