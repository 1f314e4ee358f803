"""One rollout as it is written down: plan, state, evidence, and the route as it was before."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from gateway.control import plan as plans
from gateway.control import rollout, steering
from gateway.control.judge import Judge
from gateway.control.plan import Plan
from gateway.control.rollout import State
from gateway.control.signals import Cursor
from gateway.flags.document import Json
from gateway.flags.store import Record


@dataclass(slots=True)
class Rollout:
    """One rollout as it is written down.

    base: the route before it. shares: configured share of the candidate by epoch, that is by revision of the route.
    drift: what the monitor last said of the candidate. drift_seen_s: when somebody looked at that and went on; Unix
    time, 0 for never. revision: of the record, 0 before it is written.
    """

    id: str
    model: str
    plan: Plan
    base: Json
    state: State
    author: str
    reason: str
    started_s: float
    ended_s: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    cursor: Cursor = field(default_factory=Cursor)
    judge: Judge = field(default_factory=Judge)
    shadow: Json = None  # the last report of a shadow
    drift: Json = None
    drift_seen_s: float = 0.0
    change_id: str = ""  # of the proposal that others have to approve
    revision: int = 0

    @property
    def target(self) -> str:
        """What its audit rows are about."""
        return f"rollout:{self.id}"

    @property
    def variant(self) -> str:
        """The candidate's variant."""
        return rollout.variant_of(self.plan, self.base)

    @property
    def baseline(self) -> str:
        """The version that the candidate is compared with: what the route before gave by default."""
        return str(self.base["variants"][self.base["defaultVariant"]])

    @property
    def is_over(self) -> bool:
        return self.state.phase in rollout.ENDED

    def to_json(self) -> Json:
        """What the record holds."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        del plain["revision"], plain["id"]
        plain |= {"plan": self.plan.to_json(), "state": self.state.to_json(), "cursor": self.cursor.read}
        return plain | {"judge": self.judge.to_json()}

    def describe(self) -> dict[str, Any]:
        """What people want to know of it."""
        return {
            "id": self.id,
            "model": self.model,
            "strategy": self.plan.strategy,
            "version": self.plan.version,
            **steering.describe(self.plan, self.base, self.state),
            "change_id": self.change_id,
            "author": self.author,
            "reason_given": self.reason,
            "started_s": self.started_s,
            "ended_s": self.ended_s,
        }


def from_record(record: Record) -> Rollout:
    """The inverse of Rollout.to_json."""
    body = dict(record.body)
    body |= {
        "plan": plans.parse(body["plan"]),
        "state": rollout.state_from_json(body["state"]),
        "cursor": Cursor(body["cursor"]),
        "judge": Judge.from_json(body["judge"]),
    }
    return Rollout(id=record.id, revision=record.revision, **body)
