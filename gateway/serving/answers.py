"""The way back of a prediction: encoded, kept, counted, sampled, handed to the door."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.codecs.codec import JSON_HEADERS, Encoded, Headers
from gateway.errors import GatewayError, SampleLogUnavailable
from gateway.flags.compile import FELL_BACK, SPLIT
from gateway.samples.record import ERROR, RANDOM, Sample, SampleGroup, sample_hash, sampling_limit
from gateway.serving.cache import Kept, PredictionCache
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.cut import Cut
from gateway.serving.entry import Run
from gateway.serving.registry import Registry
from gateway.serving.replies import NO_HEADERS, Block, block
from gateway.serving.sampler import Done, Sampler
from gateway.serving.sampling_rules import RuleBudget, confidences_of, why
from gateway.serving.shadow import Shadow
from gateway.tensors import Tensors

# Lanes kept ready: a few per version and revision; more than this are old ones.
_MAX_LANES = 1024


class Lane(NamedTuple):
    """What calls of one version, variant, flag revision and cache result share: reply headers and a place to count."""

    headers: Block
    latencies_s: list[float]


class Answers:
    """Gives calls their answers. Everything runs on the event loop of one worker.

    ttl_s: how long answers are kept where the flags of the model say nothing. budget: for samples that rules add.
    """

    def __init__(
        self,
        registry: Registry,
        cache: PredictionCache,
        sampler: Sampler,
        shadow: Shadow,
        counts: Counts,
        budget: RuleBudget,
        *,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._sampler = sampler
        self._shadow = shadow
        self._counts = counts
        self._budget = budget
        self._ttl_s = ttl_s
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._lanes: dict[tuple[str, str, str, int, str, bool], Lane] = {}

    def complete_plain(self, calls: list[Call], starts: Sequence[int], outputs: Tensors, run: Run) -> None:
        """Answer plain calls of one protocol and version, and keep the answers for equal bodies.

        outputs: of the whole run; starts: which of its rows is the first of each. This is the way of most predictions,
        so what they share is done once.
        """
        first = calls[0]
        live, codec, decision, route = first.live, first.codec, first.decision, first.route
        bound = live.bound[codec.name]
        if run.rows == len(calls):
            bodies = bound.encode_rows(outputs)
        else:
            spans = [(start, start + call.rows) for call, start in zip(calls, starts, strict=True)]
            bodies = bound.encode_rows(outputs, spans)
        # Calls stand in the order in which they came: a flag that made answers wait holds for the last one at least.
        if bodies is None or calls[-1].options.is_durable or first.options.is_durable:
            for call, start in zip(calls, starts, strict=True):  # what ran alone may have outputs without rows
                self.complete(call, Cut(call.request, outputs, start if run.requests > 1 else None), run)
            return
        lane, stamp, now_s = self._lane(first), bound.stamp, self._clock()
        count, headers = lane.latencies_s.append, lane.headers
        shadow_limit = self._shadow.limits.get(first.model, 0.0)
        sampled: list[Call] = []
        places: list[int] = []
        answered = 0
        try:
            for call, start, body in zip(calls, starts, bodies, strict=True):
                on_reply = call.on_reply
                if on_reply is None:
                    continue  # the caller left while its row ran
                if call.decision is not decision or call.route is not route:
                    decision, route = call.decision, call.route
                    lane = self._lane(call)
                    count, headers = lane.latencies_s.append, lane.headers
                call.on_reply = None
                call.is_held = False
                answered += 1
                prediction_id = call.prediction_id
                if call.raw_key is not None:
                    self._keep_body(call, Cut(call.request, outputs, start), Encoded(body, JSON_HEADERS))
                if stamp is not None:
                    body = stamp(body, decision.variant, prediction_id)  # type: ignore[union-attr]  # it was routed
                on_reply(call, None, headers, JSON_HEADERS, body)
                count(now_s - call.started_s)
                drawn = sample_hash(prediction_id)
                if drawn < call.sampling_limit:
                    if (
                        call.flat is not None
                        and call.rows == 1
                        and call.options.sampling_rules is None
                        and call.trace is None
                    ):
                        sampled.append(call)
                        places.append(start)
                    else:
                        self._offer(call, Cut(call.request, outputs, start), run, drawn)
                if drawn < shadow_limit:
                    self._copy(call, outputs, start)
            if sampled:
                self._sample_rows(sampled, places, outputs, run)
        finally:
            self._registry.release(live, answered)

    def complete(self, call: Call, own: Cut | Kept, run: Run | None) -> None:
        """Encode the outputs, keep them for equal bodies, answer. run: None for a kept answer."""
        if call.left:
            return
        bound = call.live.bound[call.codec.name]
        request = call.request
        bodies = bound.encode_rows(own.outputs) if request.is_plain and request.rows == 1 else None
        encoded = bound.encode(request, own.outputs) if bodies is None else Encoded(bodies[0], JSON_HEADERS)
        if call.raw_key is not None:
            self._keep_body(call, own, encoded)
        self.answer(call, encoded.body, encoded.headers, own, run)

    def _keep_body(self, call: Call, own: Cut | Kept, encoded: Encoded) -> None:
        if call.cache_epoch == call.live.cache_epoch:
            like = own if isinstance(own, Kept) else None
            self._cache.put(call.raw_key, call.request, own.outputs, encoded, ttl_s=self.ttl_of(call), like=like)

    def answer(self, call: Call, body: bytes, content: Headers, own: Cut | Kept, run: Run | None) -> None:
        """Reply with an encoded body, count, offer to the sample log, let go of the version."""
        decision = call.decision
        if call.on_reply is None:
            return
        assert decision is not None
        stamp = call.live.bound[call.codec.name].stamp
        if stamp is not None:
            body = stamp(body, decision.variant, call.prediction_id)
        drawn = sample_hash(call.prediction_id)
        if call.options.is_durable and drawn < call.sampling_limit:
            self._log_first(call, body, content, own, run, drawn)
            return
        self._give(call, body, content)
        if drawn < call.sampling_limit:
            self._offer(call, own, run, drawn)
        if run is not None and drawn < self._shadow.limits.get(call.model, 0.0):
            self._copy(call, own.outputs, None)
        self.let_go(call)

    def _give(self, call: Call, body: bytes, content: Headers) -> None:
        """The reply itself, and its count."""
        on_reply, call.on_reply = call.on_reply, None
        assert on_reply is not None
        lane = self._lane(call)
        on_reply(call, None, lane.headers, content, body)
        lane.latencies_s.append(self._clock() - call.started_s)

    def _log_first(
        self, call: Call, body: bytes, content: Headers, own: Cut | Kept, run: Run | None, drawn: int
    ) -> None:
        """Answer once the disk has the sample; refuse if it cannot. Who leaves or expires meanwhile has been let go."""

        def done(error: OSError | None) -> None:
            call.waits_for_log = False
            if call.on_reply is None:
                return
            if error is not None:
                self.refuse(call, SampleLogUnavailable(f"the answer could not be logged: {error}"))
                return
            self._give(call, body, content)
            if run is not None and drawn < self._shadow.limits.get(call.model, 0.0):
                self._copy(call, own.outputs, None)
            self.let_go(call)

        call.waits_for_log = True
        if not self._offer(call, own, run, drawn, done):  # no rule wants it: it need not be in the log
            done(None)

    def refuse(self, call: Call, error: GatewayError) -> None:
        """Reply with an error in the protocol's own shape, count it, let go of the version."""
        on_reply, call.on_reply = call.on_reply, None
        decision = call.decision
        if on_reply is not None:
            headers = self._lane(call).headers if decision is not None else NO_HEADERS
            on_reply(call, error, headers, JSON_HEADERS, call.codec.error(error))
        if decision is not None and call.is_held:
            took_s = self._clock() - call.started_s
            self._counts.failed(call.model, decision.version, decision.variant, error.code, took_s)
            rules = call.options.sampling_rules
            if rules is not None and rules.errors and self._budget.takes(call.model):
                self._sample(call, call.known_inputs, {}, call.rows, None, reason=ERROR, error=error.code)
        else:
            self._counts.refused(error.code)
        self.let_go(call)

    def let_go(self, call: Call) -> None:
        """Give the version back, once."""
        if call.is_held:
            call.is_held = False
            self._registry.release(call.live)

    def ttl_of(self, call: Call) -> float:
        """How long an answer to *call* may be kept, in seconds."""
        ttl_s = call.options.cache_ttl_s
        return self._ttl_s if ttl_s is None else ttl_s

    def _offer(self, call: Call, own: Cut | Kept, run: Run | None, drawn: int, done: Done | None = None) -> bool:
        """Sample an answered call if chance has drawn it, or else a rule wants it. Returns whether it is so.

        done: is told when the disk has it, or that it never will.
        """
        rules, reason = call.options.sampling_rules, RANDOM
        if rules is not None and rules.looks_at_answers and drawn >= _limit(call):
            took_s = self._clock() - call.started_s if rules.slow_s is not None else 0.0
            signature = call.live.signature
            found = why(
                rules,
                call,
                own.inputs,
                lambda: (
                    own.confidences(signature, run)
                    if run is not None and isinstance(own, Cut)
                    else confidences_of(signature, own.outputs)
                ),
                took_s if run is None else max(took_s, run.run_s),
            )
            if found is None or not self._budget.takes(call.model):
                return False
            reason = found
        self._sample(call, own.inputs, own.outputs, own.rows, run, reason=reason, done=done)
        return True

    def _sample(
        self,
        call: Call,
        inputs: Tensors,
        outputs: Tensors,
        rows: int,
        run: Run | None,
        *,
        reason: str,
        error: str | None = None,
        done: Done | None = None,
    ) -> None:
        """Hand references to the sampler, which never waits."""
        sample = self._describe(call, inputs, outputs, rows, run, reason=reason, error=error)
        sample.prediction_id, sample.request_id, sample.trace_id = call.prediction_id, call.request_id, call.trace_id
        self._sampler.offer(sample, done)

    def _sample_rows(self, calls: list[Call], places: list[int], outputs: Tensors, run: Run) -> None:
        """Hand drawn calls of one row to the sampler, those together that differ in ids and values only.

        outputs: of the whole run; places: which of its rows are theirs.
        """
        begin = 0
        for end in range(1, len(calls) + 1):
            first = calls[begin]
            if end < len(calls) and _is_described_alike(first, calls[end]):
                continue
            own = calls[begin:end]
            self._sampler.offer_group(
                SampleGroup(
                    like=self._describe(first, {}, {}, 1, run, reason=RANDOM),
                    identities=[(call.prediction_id, call.request_id) for call in own],
                    spec=first.live.signature.inputs[0],
                    values=[call.flat for call in own],  # type: ignore[misc]  # those without were not gathered
                    all_outputs=outputs,
                    places=places[begin:end],
                )
            )
            begin = end

    def _describe(
        self,
        call: Call,
        inputs: Tensors,
        outputs: Tensors,
        rows: int,
        run: Run | None,
        *,
        reason: str,
        error: str | None = None,
    ) -> Sample:
        """The sample of a call, but for its ids."""
        live, decision = call.live, call.decision
        assert decision is not None
        return Sample(
            prediction_id="",
            request_id="",
            ts_ns=self._wall_clock_ns(),
            model=call.model,
            version=decision.version,
            digest=live.digest,
            variant=decision.variant,
            flag_revision=call.route.revision,
            variant_weight=call.route.weights.get(decision.variant) if decision.reason == SPLIT else None,
            reason=decision.reason,
            sample_rate=_limit(call) / sampling_limit(1),
            sample_reason=reason,
            inputs=inputs,
            outputs=outputs,
            signature=live.signature,
            rows=rows,
            queue_s=run.oldest_wait_s if run is not None else 0.0,
            run_s=run.run_s if run is not None else 0.0,
            batch_rows=run.rows if run is not None else 0,
            cache=call.cache,
            protocol=call.codec.name,
            error=error,
            redact=live.redact,
        )

    def _copy(self, call: Call, outputs: Tensors, start: int | None) -> None:
        """Hand references to the shadow, which never waits. What was asked before would bring nothing new."""
        if call.pinned is None and call.cache in ("miss", "bypass"):
            self._shadow.offer(call.live, call, outputs, start)

    def _lane(self, call: Call) -> Lane:
        """What all calls share that got the same decision, revision and kind of cache result; made once for them."""
        decision, route = call.decision, call.route
        assert decision is not None
        fell_back = decision.reason is FELL_BACK
        key = (call.model, decision.version, decision.variant, route.revision, call.cache, fell_back)
        found = self._lanes.get(key)
        if found is None:
            if len(self._lanes) >= _MAX_LANES:
                self._lanes.clear()
            model, version, variant, revision, cache, _ = key
            headers = block(
                (
                    (b"x-model-version", version.encode()),
                    (b"x-model-variant", variant.encode()),
                    (b"x-flag-revision", str(revision).encode()),
                    (b"x-cache", cache.encode()),
                    *(((b"x-model-fallback", variant.encode()),) if fell_back else ()),
                )
            )
            found = self._lanes[key] = Lane(headers, self._counts.latencies(model, version, variant, cache))
        return found


def _is_described_alike(one: Call, other: Call) -> bool:
    """Whether the samples of two calls of one run differ in nothing but their ids and values."""
    return (
        one.decision is other.decision
        and one.route is other.route
        and one.sampling_limit == other.sampling_limit
        and one.cache == other.cache
    )


def _limit(call: Call) -> float:
    """Below which hash chance draws a call: where rules look at answers, the router lets more come to be looked at."""
    rate = call.options.sampling_rate
    return call.sampling_limit if rate is None or call.options.sampling_rules is None else sampling_limit(rate)
