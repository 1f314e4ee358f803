"""What a rollout knows of its two arms: counts taken from the workers, handed to the judge, and kept for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.control.plan import Plan
from gateway.control.rollout import Found
from gateway.control.rollouts import Rollout
from gateway.control.signals import plus
from gateway.control.status import WorkerStatus


class Evidence:
    """The evidence of one rollout, from what its record holds on. No clock, no disk."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    def take(self, workers: Sequence[WorkerStatus]) -> int:
        """Take what was counted since the last time; returns how many requests the candidate's arm answered of it."""
        going = self._rollout
        requests = 0
        epochs = going.cursor.take(
            workers,
            going.model,
            candidate=going.variant,
            stable=going.base["defaultVariant"],
            since_revision=min(map(int, going.shares), default=0),
        )
        for epoch in epochs:
            totals = going.totals.setdefault(str(epoch.revision), {})
            for arm, per_worker in (("candidate", epoch.candidate), ("stable", epoch.stable)):
                for added in per_worker.values():
                    totals[arm] = plus(totals.get(arm, {}), added)
            requests += sum(added.get("eligible", 0) for added in epoch.candidate.values())
        return requests

    def findings(self) -> list[Found]:
        """What the judge has found so far."""
        return []

    def promotion(self) -> str | None:
        """None if the candidate may be promoted, else why not."""
        return None

    def e_values(self) -> Mapping[str, float]:
        """The evidence against the candidate, by signal."""
        return {}

    def shadow(self, workers: Sequence[WorkerStatus]) -> Any:
        """The merged report of a shadow."""
        return None

    def report(self) -> dict[str, Any]:
        """What can be said of the two arms, as JSON and as lines of text."""
        return {"text": []}


def foresight(plan: Plan) -> list[str]:
    """Which regressions a plan can see, in plain sentences."""
    return []
