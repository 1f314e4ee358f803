"""Rollouts that this gateway cannot read: a newer one wrote them, or the record is damaged. They can only be ended."""

from __future__ import annotations

from typing import Any

from gateway.control import plan as plans
from gateway.control import rollout
from gateway.control.changes import Desk
from gateway.errors import InvalidFlag
from gateway.flags import release
from gateway.flags.audit import Author
from gateway.flags.compile import validate
from gateway.flags.document import SHADOW, FlagDocument, Json, dump_flag, parse_flag, route_key
from gateway.flags.store import Note, Record, RecordWrite

# Kinds of records: those that go on are read again and again, so the others are kept apart.
GOING_ON, OVER = "rollout", "rollout-ended"
_ENDED_S = "ended_unreadable_s"  # in what is left of one


def model_of(rollout_id: str) -> str:
    """Whose rollout it is, which no record has to say."""
    return rollout_id.rpartition("-")[0]


def is_shadow(record: Record) -> bool:
    """Whether it is one of the strategy shadow, as far as can be seen."""
    plan = record.body.get("plan") if isinstance(record.body, dict) else None
    return isinstance(plan, dict) and plan.get("strategy") == plans.SHADOW


def is_over(record: Record) -> bool:
    """Whether it is what is kept of one that was ended: its name, so that no other gets it. The audit has the rest."""
    return isinstance(record.body, dict) and _ENDED_S in record.body


def end(record: Record, trouble: str, desk: Desk, *, author: Author, reason: str, now_s: float) -> dict[str, Any]:
    """Abort it, and tell what became of it. trouble: why it cannot be read.

    Raises RevisionConflict, StoreUnavailable.
    """
    document = desk.document()
    wanted, what = _flags_after(record, document)
    told = _describe(record, f"it cannot be read ({trouble}): {what}: {reason}")
    revisions = {key: flag.revision for key, flag in document.flags.items()}
    desk.apply(
        wanted,
        based_on={key: revisions[key] for key in wanted},
        author=author,
        verb="rollout.abort",
        reason=reason,
        records=[
            RecordWrite(GOING_ON, record.id, None, record.revision),
            RecordWrite(OVER, record.id, {"model": model_of(record.id), _ENDED_S: now_s}),
        ],
        notes=[
            Note("rollout.abort", f"rollout:{record.id}", record.body, {"phase": told["phase"], "why": told["why"]})
        ],
        lowers=True,
    )
    return told


def _flags_after(record: Record, document: FlagDocument) -> tuple[dict[str, Json | None], str]:
    """The flags that end it, and what becomes of the route in words: as it was before, if the record tells that."""
    model = model_of(record.id)
    wanted: dict[str, Json | None] = {}
    if is_shadow(record) and f"{model}.{SHADOW}" in document.flags:
        wanted[f"{model}.{SHADOW}"] = None
    now = document.flags.get(route_key(model))
    if now is None:
        return wanted, "the model has no route"
    base = record.body.get("base") if isinstance(record.body, dict) else None
    if not isinstance(base, dict):
        return wanted, "the route stays as it is: the record does not tell what it was before"
    try:
        before = release.keeping_state(base, dump_flag(now))
        validate(parse_flag(route_key(model), before, document.evaluators), document.bucketing)
    except (InvalidFlag, KeyError, TypeError, ValueError) as error:
        return wanted, f"the route stays as it is: what it was before cannot be read ({error})"
    return {**wanted, route_key(model): before}, "the route is what it was before"


def _describe(record: Record, why: str) -> dict[str, Any]:
    """What people are told of one that was ended; in the form of those that can be read, as far as they have it."""
    unknown = dict.fromkeys(("strategy", "version", "variant", "author"), "unknown")
    none = {"next": "", "step": 0, "steps": 0, "weight_percent": 0.0, "change_id": "", "judge": []}
    what = {"id": record.id, "model": model_of(record.id), "phase": rollout.ROLLED_BACK, "reason": "unreadable"}
    return {**what, "why": why, **none, **unknown, "not_yet_promotable": ""}
