"""The books of all rollouts: each is started, steered and written here, together with the route that it is about."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gateway.control import plan as plans
from gateway.control import rollout, steering, unreadable
from gateway.control.changes import Desk
from gateway.control.consent import Consent
from gateway.control.gate import Passage
from gateway.control.judge import Judge, acknowledged
from gateway.control.plan import Plan
from gateway.control.record import Rollout, from_record
from gateway.control.rollout import Move, State
from gateway.control.rules import Blocked
from gateway.errors import (
    ChangeRefused,
    GatewayError,
    InvalidInput,
    RevisionConflict,
    UnknownModel,
    UnknownRollout,
)
from gateway.flags.audit import Author
from gateway.flags.compile import compile_options, compile_route
from gateway.flags.document import ENABLED, ROUTE, SHADOW, FlagDocument, Json, dump_flag, parse_flag, route_key
from gateway.flags.store import FlagStore, Note, Record, RecordWrite

_log = logging.getLogger(__name__)

# Kinds of records: those that go on are read again and again, so the others are kept apart.
GOING_ON, OVER = unreadable.GOING_ON, unreadable.OVER
KEPT_OVER = 50  # ended rollouts of one model; the audit trail has them all
# What reading a record raises that this gateway cannot read.
_NO_ROLLOUT = (InvalidInput, KeyError, TypeError, ValueError, AttributeError)
_TRIES = 3  # of a verb, if the route or the record changes under it


class Rollouts:
    """Starts rollouts, does what operators ask of them, and writes every move. Methods block; any thread may call them.

    All raise StoreUnavailable. consent: what models of high stakes need; None lets all pass.
    """

    def __init__(
        self, store: FlagStore, desk: Desk, consent: Consent | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._desk = desk
        self._consent = consent
        self._clock = clock
        self.lock = threading.RLock()
        self._live: dict[str, Rollout] = {}
        self._unreadable: dict[str, str] = {}
        desk.guards.append(self.guard)

    # -- reading --------------------------------------------------------------------------------
    # What is read is the controller's own, if it has it: newer than what is written. Hold the lock while looking at it.

    def going_on(self) -> list[Rollout]:
        """The rollouts that are not over; from now on their holder writes what it changes in them."""
        found = self._readable(self._store.records(GOING_ON))
        self._live = {each.id: each for each in found}
        return found

    def _readable(self, records: Iterable[Record]) -> list[Rollout]:
        """Those that this gateway can read: a newer one may have written others before it was taken back."""
        found = []
        for record in records:
            if unreadable.is_over(record):
                continue
            try:
                found.append(self._newest(record))
            except _NO_ROLLOUT as error:
                if record.id not in self._unreadable:
                    _log.error("a rollout cannot be read", extra={"rollout": record.id, "why": repr(error)})
                self._unreadable[record.id] = repr(error)
        return found

    def unreadable(self, model: str | None = None) -> dict[str, str]:
        """Why those that go on and cannot be read cannot, by id; they can be aborted, no more."""
        ids = {record.id for record in self._store.records(GOING_ON)}
        return {
            rollout_id: why
            for rollout_id, why in self._unreadable.items()
            if rollout_id in ids and model in (None, unreadable.model_of(rollout_id))
        }

    def _newest(self, record: Record) -> Rollout:
        live = self._live.get(record.id)
        return live if live is not None and live.revision == record.revision else from_record(record)

    def all(self, model: str | None = None) -> list[Rollout]:
        """All rollouts, newest first; those of one model by their numbers, since a clock may be set back."""
        records = [*self._store.records(GOING_ON), *self._store.records(OVER)]
        found = self._readable(record for record in records if model is None or unreadable.model_of(record.id) == model)
        found.sort(key=lambda each: _number(each.id), reverse=True)
        return found if model is not None else sorted(found, key=lambda each: -each.started_s)

    def find(self, rollout_id: str) -> Rollout:
        """Raises UnknownRollout."""
        for kind in (GOING_ON, OVER):
            record = self._store.record(kind, rollout_id)
            if record is not None and not unreadable.is_over(record):
                try:
                    return self._newest(record)
                except _NO_ROLLOUT as error:
                    raise ChangeRefused(
                        f"rollout {rollout_id} cannot be read by this gateway ({error!r}): a newer one may, else "
                        f"abort it (`sluicegate rollout abort {rollout_id}`)"
                    ) from error
        raise UnknownRollout(f"no rollout {rollout_id!r}")

    def guard(self, before: FlagDocument, after: FlagDocument) -> Iterator[Blocked]:
        """Nobody else changes a route while a rollout is in charge of it, except to pull the kill switch.

        So the order of its variants cannot change either, and no update is lost when the route before comes back.
        """
        for going in self._store.records(GOING_ON):
            model = unreadable.model_of(going.id)
            for kind in (ROUTE, SHADOW) if unreadable.is_shadow(going) else (ROUTE,):
                key = f"{model}.{kind}"
                old, new = before.flags.get(key), after.flags.get(key)
                if (0 if old is None else old.revision) == (0 if new is None else new.revision):
                    continue
                only_state = (
                    old is not None
                    and new is not None
                    and dataclasses.replace(new, state=old.state, revision=old.revision) == old
                )
                if not only_state or before.evaluators != after.evaluators or before.bucketing != after.bucketing:
                    why = (
                        f"rollout {going.id} is in charge of {key}: abort it first "
                        f"(`sluicegate rollout abort {going.id}`); the kill switch always works"
                    )
                    yield Blocked(key, ChangeRefused(why))

    # -- what operators ask for -----------------------------------------------------------------

    def start(
        self,
        model: str,
        plain_plan: Json,
        *,
        author: Author,
        reason: str,
        dry_run: bool = False,
        break_glass: bool = False,
    ) -> Rollout:
        """A new rollout: its candidate is declared at weight 0 and loaded from now on.

        break_glass: it does not wait for approvals. Raises InvalidInput, UnknownModel, ChangeRefused.
        """
        plan = plans.parse(plain_plan)
        with self.lock:
            document = self._desk.document()
            flag = document.flags.get(route_key(model))
            if flag is None:
                raise UnknownModel(f"no route for model {model!r}: is there a package of it in the models directory?")
            base = dump_flag(flag)
            others = self.all(model)
            for other in others:
                if not other.is_over:
                    raise ChangeRefused(f"rollout {other.id} of {model!r} is {other.state.phase}: abort it first")
            number = 1 + max(self._numbers(model), default=0)
            move = rollout.begin(plan, base)
            self._check_beginning(document, model, plan, base)
            self._desk.check_package(model, plan.version)
            begun = Rollout(
                id=f"{model}-{number}",
                model=model,
                plan=plan,
                base=base,
                state=State(),
                author=author.actor,
                reason=reason,
                started_s=self._clock(),
                judge=Judge(plan.judge),
            )
            if dry_run:
                return begun
            passage = Passage(move.verb)
            if self._consent is not None:
                begun.change_id, passage = self._consent.propose(
                    document, begun.id, model, plan, base, author=author, reason=reason, break_glass=break_glass
                )
            move = dataclasses.replace(move, verb=passage.verb)
            self.commit(begun, move, route_revision=flag.revision, author=author, reason=reason, passage=passage)
            if self._consent is not None:
                self._consent.tell(passage)
            return begun

    def _numbers(self, model: str) -> list[int]:
        records = (*self._store.records(GOING_ON), *self._store.records(OVER))
        return [_number(record.id) for record in records if unreadable.model_of(record.id) == model]

    @staticmethod
    def _check_beginning(document: FlagDocument, model: str, plan: Plan, base: Json) -> None:
        """Raise ChangeRefused if declaring the candidate gives it to somebody, InvalidInput if a stage cannot be made.

        The words of a rule do not tell: it may refer to a named rule, or work out the variant per request.
        """
        (_, declared), *_ = steering.stages(plan, base)
        variant = rollout.variant_of(plan, base)
        flag = parse_flag(route_key(model), declared, document.evaluators)
        if variant in compile_route(model, flag, document.bucketing).given:
            why = f"a rule of the route can give {variant!r} to somebody: give the candidate another variant name"
            raise ChangeRefused(why)
        if plan.strategy == plans.SHADOW and compile_options(document, model).shadow_rate > 0:
            raise ChangeRefused(f"{model}.{SHADOW} shadows the model already: bring that to an end first")

    def approvals_needed(self, begun: Rollout) -> int:
        """How many people would have to approve a rollout."""
        if self._consent is None:
            return 0
        return self._consent.needed(self._desk.document(), begun.model, begun.plan, begun.base)

    def consent_of(self, found: Rollout) -> tuple[int, str]:
        """How many people still have to agree to a rollout, and why they will not, "" while they may."""
        return (0, "") if self._consent is None or not found.change_id else self._consent.stands(found.change_id)

    def command(self, rollout_id: str, verb: str, *, author: Author, reason: str) -> Rollout:
        """What a verb of `steering.VERBS` asks for. Raises UnknownRollout, ChangeRefused."""
        with self.lock:
            for _ in range(_TRIES):
                try:
                    return self._command(rollout_id, verb, author=author, reason=reason)
                except RevisionConflict as error:  # the kill switch, or another control, came in between
                    conflict = error
            raise conflict

    def end_unreadable(self, rollout_id: str, *, author: Author, reason: str) -> dict[str, Any] | None:
        """Abort a rollout that cannot be read, and tell what became of it; None if there is none of that kind.

        Raises RevisionConflict if the route changes meanwhile.
        """
        with self.lock:
            record = self._store.record(GOING_ON, rollout_id)
            if record is None or self._readable([record]):
                return None
            why = self._unreadable[rollout_id]
            return unreadable.end(record, why, self._desk, author=author, reason=reason, now_s=self._clock())

    def _command(self, rollout_id: str, verb: str, *, author: Author, reason: str) -> Rollout:
        found = self.find(rollout_id)
        if verb == "rollback":
            self._check_newest(found)
        route, revision = self.route_of(found.model)
        move = steering.command(found.plan, found.base, found.state, verb, route=route, route_revision=revision)
        if verb == "rollback":
            move = dataclasses.replace(move, verb="rollout.rollback")
        if verb in ("pause", "resume", "abort", "rollback") and reason not in move.state.why:
            said = dataclasses.replace(move.state, why=f"{move.state.why}: {reason}")
            move = dataclasses.replace(move, state=said)
        judge, drift_seen_s = found.judge, found.drift_seen_s
        if verb == "resume":
            found.judge, found.drift_seen_s = acknowledged(judge), self._clock()
        try:
            self.commit(found, move, route_revision=revision, author=author, reason=reason)
        except GatewayError:
            found.judge, found.drift_seen_s = judge, drift_seen_s
            raise
        return found

    def _check_newest(self, found: Rollout) -> None:
        newest = self.all(found.model)[0]
        if newest.id != found.id:
            raise ChangeRefused(f"rollout {newest.id} came after {found.id}: roll that one back")

    def route_of(self, model: str) -> tuple[Json | None, int]:
        """The route as flagd JSON now, and its revision."""
        flag = self._desk.document().flags.get(route_key(model))
        return (None, 0) if flag is None else (dump_flag(flag), flag.revision)

    # -- writing --------------------------------------------------------------------------------

    def commit(
        self,
        found: Rollout,
        move: Move,
        *,
        route_revision: int,
        author: Author,
        reason: str,
        passage: Passage | None = None,
    ) -> None:
        """Write a move: flags, state and audit rows in one transaction; *found* then stands where the move leads.

        route_revision: of the route that the move was made of. passage: what else goes into it.

        Raises RevisionConflict if the record or the route is not what the move was made of, VersionNotWarm.
        """
        document = self._desk.document()
        key = route_key(found.model)
        wanted: dict[str, Json | None] = {}
        if move.route is not None and not _same(move.route, document, key):
            wanted[key] = move.route
        shadow_key = f"{found.model}.{SHADOW}"
        is_ours = found.plan.strategy == plans.SHADOW  # else the copies are somebody else's business
        if is_ours and move.shadow_rate is not None and (move.shadow_rate or shadow_key in document.flags):
            wanted[shadow_key] = _rate_flag(move.shadow_rate) if move.shadow_rate else None
        after = dataclasses.replace(found, state=move.state)
        if after.state.step != found.state.step:
            after.judge = Judge.from_json(found.judge.to_json())
            after.judge.begin_step()
        if after.is_over:
            after.ended_s = self._clock()

        def body(written: FlagDocument) -> Json:
            flag = written.flags.get(key)
            if flag is not None and move.route is not None:
                after.state = dataclasses.replace(after.state, wrote_revision=flag.revision)
                share = rollout.share_of(found.plan, after.state)
                after.shares = {**found.shares, str(flag.revision): share}
            return after.to_json()

        was = OVER if found.is_over else GOING_ON
        now = OVER if after.is_over else GOING_ON
        records = [RecordWrite(now, found.id, body, found.revision if was == now else 0)]
        if was != now and found.revision:
            records.append(RecordWrite(was, found.id, None, found.revision))
        if after.is_over:
            records += self._forgotten(found)
        if passage is None:
            passage = self._settled(found, after)
        self._desk.apply(
            wanted,
            based_on={name: route_revision if name == key else _revision(document, name) for name in wanted},
            author=author,
            verb=move.verb,
            reason=reason,
            records=[*records, *passage.records],
            notes=[self._note(found, after, move), *passage.notes],
            lowers=move.state.phase == rollout.ABORTING,
        )
        found.state, found.ended_s, found.shares, found.judge = after.state, after.ended_s, after.shares, after.judge
        found.revision = found.revision + 1 if was == now else 1

    def _forgotten(self, ending: Rollout) -> list[RecordWrite]:
        """The oldest ended rollouts of a model, once there are too many with the one that ends now."""
        over = [
            record
            for record in self._store.records(OVER)
            if unreadable.model_of(record.id) == ending.model and record.id != ending.id
        ]
        over.sort(key=lambda record: _number(record.id))
        return [RecordWrite(OVER, record.id, None) for record in over[: -(KEPT_OVER - 1)]]

    def _settled(self, found: Rollout, after: Rollout) -> Passage:
        """The end of a proposal, if this move brings it."""
        is_first = found.state.step < 0 <= after.state.step
        if self._consent is None or not (is_first or after.state.phase == rollout.ABORTING):
            return Passage("")
        return self._consent.settle(found.change_id, applied=is_first)

    def _note(self, before: Rollout, after: Rollout, move: Move) -> Note:
        told = after.describe()
        names = ("model", "strategy", "version", "phase", "reason", "why", "step", "steps", "weight_percent")
        what = {name: told[name] for name in names}
        if move.notes:
            what["found"] = [dataclasses.asdict(found) for found in move.notes]
        was = {"phase": before.state.phase, "step": before.state.step + 1} if before.revision else None
        return Note(move.verb, before.target, was, what)

    def save(self, found: Rollout) -> None:
        """Write times and evidence, without a row in the audit. Raises RevisionConflict."""
        records = [RecordWrite(GOING_ON, found.id, found.to_json(), found.revision)]
        self._store.commit(author=Author("controller"), verb="rollout.save", reason="", records=records)
        found.revision += 1


def _number(rollout_id: str) -> int:
    return int(rollout_id.rpartition("-")[2])


def _same(wanted: Json, document: FlagDocument, key: str) -> bool:
    """Whether the flag says the same already."""
    flag = document.flags.get(key)
    return flag is not None and _plain(wanted) == _plain(dump_flag(flag))


def _plain(flag: Mapping[str, Any]) -> Any:
    metadata = {name: value for name, value in flag.get("metadata", {}).items() if name != "revision"}
    return {**flag, "metadata": metadata, "targeting": flag.get("targeting")}


def _revision(document: FlagDocument, key: str) -> int:
    flag = document.flags.get(key)
    return 0 if flag is None else flag.revision


def _rate_flag(rate: float) -> Json:
    return {"state": ENABLED, "variants": {"rate": rate}, "defaultVariant": "rate"}
