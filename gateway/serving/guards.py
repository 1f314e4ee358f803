"""All guards and signals of a worker: who is looked after by the flags, what is counted, and who answers instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from logging import getLogger
from typing import Any

from gateway.errors import DeadlineUnreachable
from gateway.flags.compile import FELL_BACK, Decision, Route
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.entry import Run
from gateway.serving.guard import BREAKER, NO_ARMS, QUARANTINE, QUEUE, TIMEOUT, Arm, Arms, Guard
from gateway.serving.outputs import OutputCheck
from gateway.serving.overrun import Overrun
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.runpool import RunPool
from gateway.serving.signals import BadEnd, Signals
from gateway.tensors import Tensors

log = getLogger(__name__)

# What the default version is left of a request's time beside twice what it should need: a look at the clocks and a hop.
_MARGIN_S = 0.03
# And this share of the whole, but never more than half of it.
MARGIN_SHARE = 0.2
# A candidate's run in the pool that takes longer than this, and than so many runs of the default version, does not keep
# others from a thread any more.
_LEND_S = 0.1
_LEND_RUNS = 4.0
# A run in the pool that takes longer than this, and for which nobody waits any more, is called off.
RUN_LIMIT_S = 10.0
_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Guards:
    """The guards and signals of one worker. Everything runs on its event loop.

    on_change: something that the status document tells has changed. on_candidate: the answers that are kept of this
    version are to be forgotten, since they were not checked.
    """

    def __init__(
        self,
        registry: Registry,
        counts: Counts,
        pool: RunPool,
        *,
        on_change: Callable[[], None],
        on_candidate: Callable[[LiveVersion], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._counts = counts
        self._pool = pool
        self._on_change = on_change
        self._on_candidate = on_candidate
        self._clock = clock
        self._guards: dict[tuple[str, str], Guard] = {}
        # Those of versions that are no candidates any more, until their last runs end; and the check that comes then.
        self._retired: dict[Guard, OutputCheck | None] = {}
        self._overrun = Overrun(self._call_off_blocking)
        self.signals = Signals()

    # -- as the flags say -----------------------------------------------------------------------------

    def watch(self, route: Route) -> Arms:
        """Look after the versions that *route* can give, from now on; they are warm. Returns where its requests count.

        A route that gives all requests one version is not looked after at all.
        """
        model = route.model
        counted = self.signals.arms(route)
        candidates = route.reachable - {route.default_version} if route.falls_back else frozenset()
        watched = route.reachable if len(route.reachable) > 1 else frozenset()
        for key, guard in list(self._guards.items()):
            if key[0] == model and not (key[1] in candidates and self._registry.find(*key) is guard.live):
                self._retire(key)
        retired = {guard.live: guard for guard in self._retired}
        for live in self._registry.versions(model):
            check = OutputCheck(live.signature, live.misdeclared) if live.version in watched else None
            if live.version in candidates and self._registry.find(model, live.version) is live:
                _watch(live, check, self._guard(live, route))
                if live in retired:
                    self._end(retired[live])
            elif live in retired:
                self._retired[retired[live]] = check
            else:
                _watch(live, check, None)
        self._overrun.needed(bool(self._guards))
        if not watched:
            return NO_ARMS
        fallback = Decision(route.default.variant, route.default_version, FELL_BACK)
        guards = {variant: self._guards.get((model, version)) for variant, version in route.variants.items()}
        return Arms(
            {variant: Arm(counted.get(variant), guard, fallback) for variant, guard in guards.items()},
            {variant: Arm(None, guard, fallback) for variant, guard in guards.items() if guard is not None},
        )

    def lacks_one(self, route: Route) -> bool:
        """Whether *route* gives a warm version that nobody stands behind, though somebody should."""
        if not route.falls_back or len(route.reachable) < 2:
            return False
        warm = [self._registry.find(route.model, version) for version in route.reachable - {route.default_version}]
        return any(live is not None and not self.is_candidate(live) for live in warm)

    def forget(self, model: str) -> None:
        """The flags do not name this model any more."""
        self.signals.forget(model)
        for key in [key for key in self._guards if key[0] == model]:
            self._retire(key)
        self._overrun.needed(bool(self._guards))

    def _guard(self, live: LiveVersion, route: Route) -> Guard:
        key = (live.model, live.version)
        guard = self._guards.get(key)
        if guard is None or guard.live is not live:
            guard = self._guards[key] = Guard(live, self._clock, self._changed)
            self._on_candidate(live)
        guard.default_version = route.default_version
        guard.variants = frozenset(variant for variant, version in route.variants.items() if version == live.version)
        self._tell_metrics(guard)
        return guard

    def _retire(self, key: tuple[str, str]) -> None:
        """No new requests come; those that are on their way still have somebody behind them."""
        guard = self._guards.pop(key)
        for variant in guard.variants:
            self._counts.breaker(key[0], variant, 0)
        guard.variants = frozenset()
        self._retired[guard] = None

    def _let_go(self) -> None:
        for guard, check in list(self._retired.items()):
            if not guard.live.batcher.is_busy and not guard.live.arrivals:
                _watch(guard.live, check, None)
                self._end(guard)

    def _end(self, guard: Guard) -> None:
        """Nothing is left of it. What was called off may run again: the flags have taken it back, or give it anew."""
        del self._retired[guard]
        if guard.called_off:
            guard.live.batcher.execution.renew()

    def _changed(self, guard: Guard) -> None:
        live, breaker = guard.live, guard.breaker
        self._tell_metrics(guard)
        level = log.warning if breaker.state == "open" else log.info
        level(
            f"the breaker of a version is now {breaker.state.replace('_', '-')}",
            extra={"model": live.model, "version": live.version, "reason": breaker.reason},
        )
        self._on_change()

    def _tell_metrics(self, guard: Guard) -> None:
        for variant in guard.variants:
            self._counts.breaker(guard.live.model, variant, _STATES[guard.breaker.state])

    # -- in the request ---------------------------------------------------------------------------------

    def admit(self, call: Call, arm: Arm, guard: Guard, decision: Decision) -> Decision:
        """What becomes of a call for a candidate that is shut: *decision*, as a try, or one for the default variant."""
        if guard.admits():
            call.arm = arm
            # A kept answer would say nothing of the version.
            call.options = replace(call.options, cache_enabled=False)
            return decision
        self._count_fallback(call, decision, arm, BREAKER)
        return arm.fallback

    def divert(self, call: Call, route: Route, arm: Arm | None, decision: Decision) -> Decision:
        """What becomes of a call for a version that is not held here: a decision for the default variant.

        arm: where a split would have counted it.
        """
        if arm is not None:
            self._count_fallback(call, decision, arm, QUARANTINE)
            return arm.fallback
        self._counts.fell_back(call.model, decision.version, decision.variant, QUARANTINE)
        return Decision(route.default.variant, route.default_version, FELL_BACK)

    def take_over(self, call: Call, why: str) -> LiveVersion | None:
        """Take a call from its candidate to the default version, which is returned and held; None: that cannot be.

        It cannot if the caller left or asked for the version itself, if the route forbids it, and if the default
        version is not warm or could not answer in time.
        """
        live, arm = self.stands_by(call), call.arm
        if live is None:
            return None
        assert arm is not None
        assert call.decision is not None
        self._count_fallback(call, call.decision, arm, why)
        if call.is_held:
            self._registry.release(call.live)
        live.holders += 1
        call.start_again(live, arm.fallback)
        return live

    def stands_by(self, call: Call) -> LiveVersion | None:
        """The default version, if it may and can answer a call in place of its candidate."""
        arm = call.arm
        if arm is None or arm.guard is None or call.left or call.on_reply is None:
            return None
        live = self._registry.find(call.model, arm.fallback.version)
        if live is not None and live.batcher.is_busy:
            try:
                live.batcher.check_in_time(call.deadline_s, self._clock())
            except DeadlineUnreachable:
                return None
        return live

    def is_candidate(self, live: LiveVersion) -> bool:
        """Whether there is a guard behind this version."""
        guard = self._guards.get((live.model, live.version))
        return guard is not None and guard.live is live

    def _count_fallback(self, call: Call, decision: Decision, arm: Arm, why: str) -> None:
        self._counts.fell_back(call.model, decision.version, decision.variant, why)
        counts = arm.counts
        if counts is not None and call.cache != "shared":
            if why in (BREAKER, QUEUE, TIMEOUT, QUARANTINE):
                counts.eligible += 1
            if why == TIMEOUT:
                counts.ended("timeouts", call.key_of_arm)
            counts.ended("fallbacks", call.key_of_arm)

    def answered(self, calls: Sequence[Call], outputs: Tensors, run: Run) -> None:
        """A run of a version that is looked after has these outputs; all of its calls are about to be answered."""
        arms = [call.arm for call in calls if call.on_reply is not None and not call.is_invalid]
        run_s = None if run.failed else run.cost_s
        while arms:
            arm, requests = arms[0], len(arms)
            if requests > 1:
                requests = arms.count(arm)
            arms = [other for other in arms if other is not arm] if requests < len(arms) else []
            if arm is None or arm.counts is None:
                continue
            counts = arm.counts
            counts.answered(requests, run_s)
            if counts.wants_outputs:
                if not calls[0].live.signature.batchable:
                    outputs = {name: array.reshape(1, -1) for name, array in outputs.items()}
                counts.offer(outputs, _rows_of(arm, calls))

    def failed(self, call: Call, end: BadEnd) -> None:
        """A run of its own has failed a call."""
        counts = call.arm.counts if call.arm is not None else None
        if counts is not None and call.on_reply is not None and call.cache != "shared":
            counts.eligible += 1
            counts.ended(end, call.key_of_arm)

    # -- in time ------------------------------------------------------------------------------------------

    @property
    def has_candidates(self) -> bool:
        """Whether `late` need be asked often."""
        return bool(self._guards or self._retired)

    def late(self) -> list[tuple[Guard, float]]:
        """The candidates that have a run in the pool, and how long the default version needs for an answer, in seconds.

        Whoever holds a thread for too long is made to share it; a run for which nobody waits any more is called off.
        """
        now_s = self._clock()
        self._let_go()
        found: list[tuple[Guard, float]] = []
        for guard in (*self._guards.values(), *self._retired):
            batcher = guard.live.batcher
            away = batcher.away
            if away is None:
                continue
            default = self._registry.find(guard.live.model, guard.default_version)
            cost_s = default.batcher.expected_s(1) if default is not None else 0.0
            found.append((guard, _MARGIN_S + 2 * cost_s))
            took_s = now_s - away.begun_s
            if took_s > max(_LEND_S, _LEND_RUNS * cost_s):
                self._pool.lend(away.batch)
            is_lost = took_s > RUN_LIMIT_S and guard.is_hanging and not guard.called_off
            if is_lost and all(entry.gone for entry in away.batch.entries):
                self._call_off(guard, f"a run did not end in {took_s:.0f} s")
                guard.trip(guard.called_off)
        return found

    def _call_off(self, guard: Guard, reason: str) -> None:
        guard.called_off = f"{reason} and was called off; this version does not run again until it is released anew"
        guard.live.batcher.execution.abort()

    def _call_off_blocking(self, limit_s: float) -> None:
        """In the thread of `Overrun`: call off the run that holds the event loop, if one has for too long."""
        for guard in list(self._guards.values()):
            since_s = guard.live.batcher.blocks_since_s
            if since_s and self._clock() - since_s > limit_s and not guard.called_off:
                self._call_off(guard, f"a run held the event loop for {limit_s:g} s")

    # -- told ---------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The signals and breakers of the status document."""
        breakers = [
            {
                "model": model,
                "variant": variant,
                "version": version,
                "state": guard.breaker.state,
                "opened": guard.breaker.opened,
                "reason": guard.breaker.reason,
            }
            for (model, version), guard in sorted(self._guards.items())
            for variant in sorted(guard.variants)
        ]
        return {"signals": self.signals.to_json(), "breakers": breakers}

    def close(self) -> None:
        """Call off what candidates still run, so that the process can end."""
        self._overrun.close()
        for guard in (*self._guards.values(), *self._retired):
            if guard.live.batcher.away is not None:
                guard.live.batcher.execution.abort()


def _watch(live: LiveVersion, check: OutputCheck | None, guard: Guard | None) -> None:
    live.batcher.execution.check, live.batcher.guard = check, guard


def _rows_of(arm: Arm, calls: Sequence[Call]) -> list[int]:
    """The rows of one arm's calls in their run."""
    rows: list[int] = []
    at = 0
    for call in calls:
        if call.arm is arm:
            rows += range(at, at + call.rows)
        at += call.rows
    return rows
