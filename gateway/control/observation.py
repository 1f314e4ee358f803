"""What a rollout sees of its two arms: counts taken from the workers, given to the judge, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.control import beside, comparison
from gateway.control.foresight import ExpectedStep, smallest_regression
from gateway.control.plan import CANARY, EXPERIMENT, NOTIFY, ROLLBACK, SHADOW, Plan
from gateway.control.policy import DRIFT
from gateway.control.record import Rollout
from gateway.control.rollout import DECLARED, PAUSED, PROGRESSING, Found
from gateway.control.shadow_report import SURE, flips_evidence
from gateway.control.shadow_report import merged as merged_pairs
from gateway.control.signals import Counts, Epoch, merged
from gateway.control.status import WorkerStatus
from gateway.control.window import Arm, Window

# What a plan is asked to see, where nothing is known of the model's own rates: shares of bad requests.
_USUAL_RATES = {"errors": 0.005, "timeouts": 0.001, "invalid": 0.001, "slow": 0.01}
_SPLIT = (CANARY, EXPERIMENT)  # the strategies whose two arms are compared
_NUMBERS = ("eligible", "errors", "timeouts", "invalid", "fallbacks", "labelled")


def take(going: Rollout, workers: Sequence[WorkerStatus]) -> int:
    """Give the judge what was counted since the last time; returns how many of it the candidate's arm answered.

    workers: and whoever else counts as they do.
    """
    epochs = going.cursor.take(
        workers,
        going.model,
        candidate=going.variant,
        stable=going.base["defaultVariant"],
        since_revision=min(map(int, going.shares), default=0),
    )
    requests = 0
    for epoch in epochs:
        window = _window(going, epoch)
        going.judge.observe(window)
        requests += window.canary.eligible
    return requests


def _window(going: Rollout, epoch: Epoch) -> Window:
    name = str(epoch.revision)
    share = going.shares.get(name)
    shares = {} if not share or share >= 1 else {"canary": share, "stable": 1 - share}
    return Window(_arm(epoch.candidate), _arm(epoch.stable), epoch=name, shares=shares)


def _arm(per_worker: Mapping[str, Counts]) -> Arm:
    counts = merged(per_worker)
    return Arm(
        **{name: counts.get(name, 0) for name in _NUMBERS},
        correct=min(counts.get("correct", 0), counts.get("labelled", 0)),
        run_s=counts.get("run_s", {}),
        outputs=counts.get("outputs", {}),
        keys={worker: each["keys"] for worker, each in per_worker.items() if each.get("keys")},
    )


def compare_pairs(going: Rollout, workers: Sequence[WorkerStatus]) -> int:
    """Keep the newest report on the pairs of a shadow; returns how many rows were compared."""
    compared = next((each for each in merged_pairs(workers, going.model) if each.version == going.plan.version), None)
    if compared is None:
        return 0
    going.shadow = compared.to_json()
    return compared.sums.rows


def look_at_drift(going: Rollout, found: beside.Beside | None) -> None:
    """Keep what the monitor says of a candidate that a split gives traffic to. Who previews it has chosen to: those
    requests may be of another kind, and blame nobody."""
    if _is_drift_watched(going):
        since_ns = int(max(going.started_s, going.drift_seen_s) * 1e9)
        going.drift = beside.finding(found, going.baseline, since_ns)


def _is_drift_watched(going: Rollout) -> bool:
    in_a_step = going.state.step >= 0 and going.state.phase in (PROGRESSING, PAUSED)
    return in_a_step and going.plan.strategy in _SPLIT and going.plan.judge.drift_action is not None


def _drift_findings(going: Rollout) -> list[Found]:
    """An alarm of the monitor that is the candidate's own."""
    action = going.plan.judge.drift_action
    if not _is_drift_watched(going) or action is None or not (going.drift or {}).get("tripped"):
        return []
    return [Found(DRIFT, action, going.drift["text"])]


def _pair_findings(going: Rollout) -> list[Found]:
    """Outputs whose share of flips is surely above what the plan allows."""
    most = going.plan.max_flip_rate
    return [
        Found(
            f"flips of {name}",
            ROLLBACK,
            f"{name}: {output['flips']} of {output['rows']} rows get another label, surely more than the "
            f"{100 * most:.3g} % of the plan",
        )
        for name, output in ((going.shadow or {}).get("outputs") or {}).items()
        if flips_evidence(output.get("flips", 0), output["rows"], most) >= SURE
    ]


def findings(going: Rollout) -> list[Found]:
    """What was found so far, of what the plan wants acted on."""
    found = [Found(each.signal, each.action, each.text) for each in going.judge.findings() if each.tripped]
    return found + _drift_findings(going) + _pair_findings(going)


def promotion(going: Rollout) -> str | None:
    """None if the judge agrees to a promotion or is not asked, else why not."""
    if going.plan.strategy not in _SPLIT or going.state.phase not in (DECLARED, PROGRESSING, PAUSED):
        return None
    found = going.judge.may_promote()
    drifted = [each for each in _drift_findings(going) if each.action != NOTIFY]
    if found.ready and drifted:
        return f"stopped by {DRIFT}"
    return None if found.ready else found.why


def evidence(going: Rollout) -> list[dict[str, Any]]:
    """Every signal, as JSON; none of a strategy that splits no traffic. What the monitor says has no e-value."""
    if going.plan.strategy not in _SPLIT:
        return []
    judged = [
        {
            "signal": each.signal,
            "e_value": each.e_value,
            "threshold": each.threshold,
            "tripped": each.tripped,
            "action": each.action,
            "text": each.text,
        }
        for each in going.judge.findings()
    ]
    if going.drift is None or going.plan.judge.drift_action is None:
        return judged
    drift = {
        "signal": DRIFT,
        "e_value": None,
        "threshold": None,
        **going.drift,
        "action": going.plan.judge.drift_action,
    }
    return sorted([*judged, drift], key=lambda each: not each["tripped"])


def report(going: Rollout) -> dict[str, Any]:
    """What can be said of the two arms, as JSON and as lines of text."""
    if going.plan.strategy == SHADOW:
        pairs = going.shadow or {"sentence": "no pairs were compared"}
        return {"pairs": pairs, "text": [pairs["sentence"]]}
    document = comparison.report(going.judge)
    return {**document, "text": comparison.lines(document)}


def foresight(plan: Plan) -> list[str]:
    """Which regressions a plan can see if each step ends at its smallest number of requests, in plain sentences."""
    steps = [ExpectedStep(step.weight / 10_000, step.min_requests * 10_000 / step.weight) for step in plan.steps]
    if not any(step.requests for step in steps):
        return []
    return [each.text for each in smallest_regression(plan.judge, steps, _USUAL_RATES)]
