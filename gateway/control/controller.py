"""The controller: looks at the workers again and again, and takes each rollout one step on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.control import observation, rollout
from gateway.control.beside import Beside
from gateway.control.plan import SHADOW
from gateway.control.record import Rollout
from gateway.control.rollout import Found, Move, Seen
from gateway.control.rollouts import Rollouts
from gateway.control.signals import worker_name
from gateway.control.status import FAILED, QUARANTINED, WorkerStatus, not_warm
from gateway.errors import GatewayError, RevisionConflict, StoreUnavailable
from gateway.flags.audit import Author
from gateway.flags.lease import Turn
from gateway.metrics import RolloutMetrics

_log = logging.getLogger(__name__)

TICK_S = 0.25
# Times and evidence are written this often; workers count on from their start, so nothing is lost or taken twice.
SAVE_INTERVAL_S = 5.0
# States of a version in a worker that will not become warm by themselves soon.
_BROKEN = (FAILED, QUARANTINED)
_BREAKER = {"model", "variant", "state", "opened", "reason"}
# A rollout of which nothing can be seen or written for so long is ended.
GIVE_UP_S = 60.0
_CONTROLLER = Author("controller")


@dataclass(slots=True)
class _Live:
    """A rollout in the controller's hands."""

    rollout: Rollout
    looked_s: float
    saved_s: float
    trouble: str = ""
    stuck_s: float = 0.0  # for so long nothing could be seen or written


class Controller:
    """Steps the rollouts that go on. One thread at a time; times are of a monotonic clock.

    workers: reads the status documents. labels: who counted the labels of a model. drift: what the monitor says of a
    version of a model. turn: where several controls share a store, one of them steps.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        workers: Callable[[], list[WorkerStatus]],
        *,
        metrics: RolloutMetrics | None = None,
        turn: Turn | None = None,
        labels: Callable[[str], list[WorkerStatus]] = lambda _model: [],
        drift: Callable[[str, str], Beside | None] = lambda _model, _version: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rollouts = rollouts
        self._workers = workers
        self._metrics = metrics
        self._turn = turn
        self._labels = labels
        self._drift = drift
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._store_trouble = ""

    async def run(self) -> None:
        """Look for ever, in a thread."""
        while True:
            await asyncio.to_thread(self.tick)
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """One look at everything; blocks on the disk. A rollout in trouble keeps no other from going on."""
        try:
            with self._rollouts.lock:
                self._refresh()
                if self._live and self._turn is not None and not self._turn.is_ours():
                    self._live.clear()  # what is written by then is what it goes on with when its turn comes
                    return
                workers = [worker for worker in self._workers() if worker.live] if self._live else []
                for live in list(self._live.values()):
                    self._step(live, workers)
            self._store_trouble = ""
        except StoreUnavailable as error:
            if str(error) != self._store_trouble:  # said once, not four times a second
                _log.error("rollouts stand still: the store cannot be used", extra={"why": str(error)})
            self._store_trouble = str(error)

    def _refresh(self) -> None:
        """Hold what the books say; what was written by somebody else is read anew, evidence and all."""
        now_s = self._clock()
        going_on = {each.id: each for each in self._rollouts.going_on()}
        for gone in self._live.keys() - going_on.keys():
            self._forget(self._live.pop(gone).rollout)
        for rollout_id, each in going_on.items():
            known = self._live.get(rollout_id)
            if known is None:
                self._live[rollout_id] = _Live(each, now_s, now_s)
            elif known.rollout is not each:
                looked_s = known.looked_s
                self._live[rollout_id] = _Live(each, looked_s, now_s, known.trouble)

    def _step(self, live: _Live, workers: Sequence[WorkerStatus]) -> None:
        going, now_s = live.rollout, self._clock()
        elapsed_s = max(0.0, now_s - live.looked_s)
        try:
            seen = self._look(live, workers, elapsed_s)
            live.looked_s = now_s
            move = rollout.step(going.plan, going.base, going.state, seen)
            if move.verb:
                going.state = rollout.later(going.state, seen)  # what was seen stays, also if it cannot be written
                self._write(live, move, seen.route_revision)
            else:
                going.state = move.state
                if now_s - live.saved_s >= SAVE_INTERVAL_S:
                    self._rollouts.save(going)
                    live.saved_s = now_s
            live.trouble, live.stuck_s = "", 0.0
            self._tell(live)
        except RevisionConflict:
            del self._live[going.id]  # somebody was faster; the next look begins with what is written now
        except StoreUnavailable:
            raise
        except Exception as error:  # whatever it is: the other rollouts go on, and so does control
            live.looked_s = now_s
            live.stuck_s += elapsed_s if live.trouble else 0.0  # since the first time
            self._say(live, error)
            if live.stuck_s > GIVE_UP_S:
                self._give_up(live, error)

    def _write(self, live: _Live, move: Move, route_revision: int) -> None:
        going, why = live.rollout, move.state.why
        self._rollouts.commit(going, move, route_revision=route_revision, author=_CONTROLLER, reason=why)
        live.saved_s = self._clock()
        log = _log.warning if move.verb in ("rollout.abort", "rollout.pause") else _log.info
        log(move.verb, extra={"rollout": going.id, "why": why})

    def _give_up(self, live: _Live, error: Exception) -> None:
        """End a rollout that cannot go on: nobody would see what its candidate does."""
        going = live.rollout
        try:
            route, revision = self._rollouts.route_of(going.model)
            if going.state.phase in (rollout.PROMOTING, rollout.ABORTING):
                blind = Seen(elapsed_s=live.stuck_s, route=route, route_revision=revision, adopted=False)
                move = rollout.step(going.plan, going.base, going.state, blind)
            else:
                why = f"could not go on for {live.stuck_s:.0f} s: {_in_words(error)}"
                move = rollout.abort(going.base, going.state, route, why)
            self._write(live, move, revision)
            live.stuck_s = 0.0
        except RevisionConflict:
            del self._live[going.id]
        except StoreUnavailable:
            raise
        except Exception as refused:
            self._say(live, refused)

    def _say(self, live: _Live, error: Exception) -> None:
        trouble = _in_words(error)
        if trouble != live.trouble:
            unexpected = None if isinstance(error, GatewayError) else error
            more = {"rollout": live.rollout.id, "why": trouble}
            _log.error("a rollout cannot go on", extra=more, exc_info=unexpected)
        live.trouble = trouble

    def _look(self, live: _Live, workers: Sequence[WorkerStatus], elapsed_s: float) -> Seen:
        going = live.rollout
        plan, model = going.plan, going.model
        route, revision = self._rollouts.route_of(model)
        requests = observation.take(going, [*workers, *self._labels(model)])
        observation.look_at_drift(going, self._drift(model, plan.version))
        pairs = observation.compare_pairs(going, workers) if plan.strategy == SHADOW else 0
        missing = [
            f"worker {each['worker']}{' of ' + each['host'] if 'host' in each else ''}: {each['state']}"
            + (f" ({each['reason']})" if each["reason"] else "")
            for each in not_warm(workers, model, [plan.version])
        ]
        approvals, refused = self._rollouts.consent_of(going) if going.state.step < 0 else (0, "")
        return Seen(
            elapsed_s=elapsed_s,
            route=route,
            route_revision=revision,
            not_warm=missing if workers else ["no live worker"],
            broken=refused or _broken(workers, model, plan.version),
            adopted=all(_adopted(worker, model) >= revision for worker in workers),
            new_requests=requests,
            found=[*observation.findings(going), *_breakers(workers, going)],
            promotion=observation.promotion(going),
            approvals_missing=approvals,
            pairs=pairs,
        )

    # -- metrics --------------------------------------------------------------------------------

    def _tell(self, live: _Live) -> None:
        if self._metrics is None:
            return
        going = live.rollout
        if going.is_over:
            self._forget(going)
            return
        self._metrics.phase.labels(going.model, going.plan.strategy).set(rollout.PHASES.index(going.state.phase))
        self._metrics.weight.labels(going.model, going.variant).set(rollout.share_of(going.plan, going.state))
        for finding in going.judge.findings():
            self._metrics.e_value.labels(going.model, finding.signal).set(finding.e_value)

    def _forget(self, going: Rollout) -> None:
        if self._metrics is not None:
            self._metrics.phase.labels(going.model, going.plan.strategy).set(rollout.PHASES.index(going.state.phase))
            self._metrics.weight.labels(going.model, going.variant).set(rollout.share_of(going.plan, going.state))


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, GatewayError) else f"unexpected {type(error).__name__}, see the log"


def _adopted(worker: WorkerStatus, model: str) -> int:
    return int(worker.document.get("models", {}).get(model, {}).get("adopted_revision") or 0)


def _broken(workers: Sequence[WorkerStatus], model: str, version: str) -> str:
    """Why the candidate cannot be served; empty if it can."""
    for worker in workers:
        state, reason = worker.version(model, version)
        if state in _BROKEN:
            return f"version {version} is {state} on worker {worker.slot}: {reason}"
    return ""


def _breakers(workers: Sequence[WorkerStatus], going: Rollout) -> list[Found]:
    """Breakers that are open on the candidate; each opening is told once."""
    found = []
    for worker in workers:
        told = worker.document.get("breakers")
        for breaker in told if isinstance(told, list) else ():
            if not isinstance(breaker, dict) or not breaker.keys() >= _BREAKER:  # of another version of the gateway
                continue
            if breaker["model"] == going.model and breaker["variant"] == going.variant and breaker["state"] == "open":
                why = f"the breaker of worker {worker.slot} is open: {breaker['reason']}"
                once = f"breaker:{worker_name(worker)}:{breaker['opened']}"
                found.append(Found("breaker", going.plan.on_breaker, why, once))
    return found
