"""Who has to agree before a model of high stakes is sent more traffic, and what they agreed to; no clock, no disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.control.merge import differences
from gateway.errors import ChangeRefused, Forbidden
from gateway.flags.audit import Author
from gateway.flags.compile import Route
from gateway.flags.document import MISSING_KEY, Flag, Json
from gateway.flags.exposure import raised
from gateway.flags.store import Note, RecordWrite

KIND = "change"  # of the records
FLAG, ROLLOUT = "flag", "rollout"  # what a change is of

OPEN = "open"  # waits for approvals
APPROVED = "approved"  # has them all, and waits to be applied
APPLIED, REJECTED, EXPIRED, VOID = "applied", "rejected", "expired", "void"
BROKEN_GLASS = "break_glass"  # went past the approvals, and waits for its review
REVIEWED = "reviewed"
WAITING = (OPEN, APPROVED, BROKEN_GLASS)  # for somebody

_DOMAIN = b"sluicegate change\n"


@dataclass(frozen=True, slots=True)
class Approval:
    """One person's yes. at_s: unix seconds."""

    actor: str
    token_id: str
    at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """What somebody wants to change, exactly, and who agreed to it.

    target: the flag's key, or ``rollout:<id>``. based_on: revision of the flag, 0 where there is none. before, after:
    as JSON, without revisions. verb: of the audit rows when it is applied. digest: over what, target, based_on, before
    and after: that is what is approved. required: how many people. state_reason: why it is closed.
    """

    id: str
    model: str
    what: str
    verb: str
    target: str
    based_on: int
    before: Json
    after: Json
    actor: str
    token_id: str
    reason: str
    required: int
    created_s: float
    expires_s: float
    digest: str
    state: str = OPEN
    state_reason: str = ""
    approvals: tuple[Approval, ...] = ()
    revision: int = 0  # of the record; 0 before it is written

    @property
    def audit_target(self) -> str:
        """What its audit rows are about."""
        return f"{KIND}:{self.id}"

    def write(self) -> RecordWrite:
        """The record, to be written together with what the change changes."""
        body = dataclasses.asdict(self)
        del body["revision"]
        return RecordWrite(KIND, self.id, body, self.revision)

    def note(self, verb: str, was: Change | None = None) -> Note:
        """The audit row of a decision about it. was: the change before the decision."""
        return Note(verb, self.audit_target, None if was is None else was._told(), self._told())

    def to_json(self) -> dict[str, Any]:
        """As the admin API tells it: with what differs."""
        found = dataclasses.asdict(self)
        found["diff"] = [*differences(self.before or {}, self.after or {})]
        return found

    def _told(self) -> Json:
        names = ("model", "target", "based_on", "digest", "required", "state")
        who = [each.actor for each in self.approvals]
        return {**{name: getattr(self, name) for name in names}, "author": self.actor, "approved_by": who}


def change_from(record_id: str, revision: int, body: Mapping[str, Json]) -> Change:
    """The change in a record."""
    approvals = tuple(Approval(**each) for each in body["approvals"])
    return Change(**{**body, "id": record_id, "revision": revision, "approvals": approvals})


class Approvals:
    """The rules. stakes_are_high: of a model, as the cards of its packages say; may block on the disk.

    required: people who must agree, none of them the author. lifetime_s: of a proposal.
    """

    def __init__(self, stakes_are_high: Callable[[str], bool], *, required: int, lifetime_s: float) -> None:
        self._stakes_are_high = stakes_are_high
        self._required = required
        self._lifetime_s = lifetime_s

    def needed(self, model: str, before: Route | None, after: Route | None, *, widened: bool = False) -> int:
        """How many people must agree to go from *before* to *after*; 0 if exposure does not rise, or stakes are low.

        widened: see `widens`, for routes whose rules have conditions.
        """
        if after is None or not (widened or raised(before, after)):
            return 0
        return self._required if self._stakes_are_high(model) else 0

    def propose(
        self,
        *,
        model: str,
        what: str,
        verb: str,
        target: str,
        based_on: int,
        before: Json,
        after: Json,
        author: Author,
        reason: str,
        required: int,
        now_s: float,
    ) -> Change:
        """A change that waits. It is the caller's to write: `Change.write` and `Change.note`, in one commit."""
        digest = digest_of(what, target, based_on, before, after)
        made = f"{digest} {author.token_id} {author.actor} {now_s!r}"
        return Change(
            id=hashlib.sha256(made.encode()).hexdigest()[:12],
            model=model,
            what=what,
            verb=verb,
            target=target,
            based_on=based_on,
            before=before,
            after=after,
            actor=author.actor,
            token_id=author.token_id,
            reason=reason,
            required=required,
            created_s=now_s,
            expires_s=now_s + self._lifetime_s,
            digest=digest,
        )

    def missing(self, change: Change) -> int:
        """How many people still have to agree. A setting that was raised meanwhile counts."""
        return max(0, max(change.required, self._required) - len(change.approvals))

    def approved(self, change: Change, now_s: float) -> bool:
        """Whether it may be applied now."""
        return change.state in (OPEN, APPROVED) and now_s < change.expires_s and not self.missing(change)

    def approve(self, change: Change, by: Author, *, reason: str, now_s: float) -> Change:
        """One more yes. Raises Forbidden for its author and whoever has agreed already, ChangeRefused if it is over."""
        _check_waiting(change, (OPEN,), now_s)
        _check_other(change, by, "approve")
        if any(_same_person(by, each.actor, each.token_id) for each in change.approvals):
            raise Forbidden(f"{by.actor!r} has approved change {change.id} already; another person has to")
        approvals = (*change.approvals, Approval(by.actor, by.token_id, now_s, reason))
        after = dataclasses.replace(change, approvals=approvals)
        return after if self.missing(after) else dataclasses.replace(after, state=APPROVED)

    def reject(self, change: Change, *, reason: str, now_s: float) -> Change:
        """A no, which ends it. Raises ChangeRefused if it is over."""
        _check_waiting(change, (OPEN, APPROVED), now_s)
        return dataclasses.replace(change, state=REJECTED, state_reason=reason)

    def acknowledge(self, change: Change, by: Author, *, reason: str, now_s: float) -> Change:
        """The review of a change that went past the approvals. Raises Forbidden for its author, ChangeRefused."""
        if change.state != BROKEN_GLASS:
            raise ChangeRefused(f"change {change.id} is {change.state}; only a change by break-glass is acknowledged")
        _check_other(change, by, "acknowledge")
        approvals = (*change.approvals, Approval(by.actor, by.token_id, now_s, reason))
        return dataclasses.replace(change, state=REVIEWED, state_reason=reason, approvals=approvals)


def closed(change: Change, state: str, why: str) -> Change:
    """The change at its end."""
    return dataclasses.replace(change, state=state, state_reason=why)


def digest_of(what: str, target: str, based_on: int, before: Json, after: Json) -> str:
    """What an approval is bound to, in hex."""
    fields = {"what": what, "target": target, "based_on": based_on, "before": before, "after": after}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(_DOMAIN + text.encode("utf-8", "surrogatepass")).hexdigest()


def is_author(change: Change, by: Author) -> bool:
    """By token, and by name: a second token of the same name is the same person."""
    return _same_person(by, change.actor, change.token_id)


def _same_person(by: Author, actor: str, token_id: str) -> bool:
    return (bool(token_id) and by.token_id == token_id) or by.actor.casefold() == actor.casefold()


def _check_other(change: Change, by: Author, verb: str) -> None:
    if is_author(change, by):
        raise Forbidden(f"{by.actor!r} is the author of change {change.id}; somebody else has to {verb} it")


def _check_waiting(change: Change, states: tuple[str, ...], now_s: float) -> None:
    if change.state not in states:
        because = f": {change.state_reason}" if change.state_reason else ""
        raise ChangeRefused(f"change {change.id} is {change.state}{because}")
    if now_s >= change.expires_s:
        raise ChangeRefused(f"change {change.id} has expired; propose it anew")


# -- what raises exposure ---------------------------------------------------------------------------


def widens(before: Flag | None, after: Flag, old: Route | None, new: Route) -> bool:
    """Whether the conditions of a route's rules changed so that other versions may get more than before.

    `raised` compares shares, and a rule that names a version outright gives it the share 1 whatever its condition is.
    So where rules have conditions, only a change of nothing but shares, none of them upwards, is taken for harmless.
    """
    if old is None or before is None or new.reachable <= {new.default_version}:
        return False
    if _is_plain(before, old) and _is_plain(after, new):
        return before.metadata.get(MISSING_KEY) != after.metadata.get(MISSING_KEY)
    if _conditions(before) != _conditions(after):
        return True
    others = new.reachable - {new.default_version}  # the default takes what they lose
    return any(_rises(old.shares.get(version, ()), new.shares.get(version, ())) for version in others)


def _is_plain(flag: Flag, route: Route) -> bool:
    """Whether the shares say all."""
    return flag.targeting is None or route.is_sticky or not flag.enabled


def _rises(old: tuple[float, ...], new: tuple[float, ...]) -> bool:
    return len(old) != len(new) or any(share > was + 1e-12 for was, share in zip(old, new, strict=True))


def _conditions(flag: Flag) -> Json:
    """All of the rules but the shares."""
    return [_without_weights(flag.targeting), dict(flag.evaluators), flag.metadata.get(MISSING_KEY)]


def _without_weights(rule: Json) -> Json:
    if isinstance(rule, list):
        return [_without_weights(each) for each in rule]
    if not isinstance(rule, dict):
        return rule
    found = {}
    for name, args in rule.items():
        if name == "fractional" and isinstance(args, list):
            args = [each[:1] if isinstance(each, list) else each for each in args]
        found[name] = _without_weights(args)
    return found
