"""One prediction, start to finish. Read this first.

`begin` takes a call from routing to the batch queue, or answers it at once; `finish` takes what has run to its
answers. Neither awaits anything: the way back is the call's own on_reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.codecs.codec import Encoded, Headers, Request
from gateway.errors import DeadlineExceeded, GatewayError, InferenceFailed
from gateway.samples.record import RANDOM, Sample, is_sampled
from gateway.serving.admission import Admission
from gateway.serving.batcher import Entry
from gateway.serving.cache import PredictionCache, bytes_of, raw_key, tensor_key
from gateway.serving.call import Call, Flight, Reply
from gateway.serving.counts import Counts
from gateway.serving.registry import Registry
from gateway.serving.router import Router
from gateway.serving.sampler import Sampler
from gateway.tensors import Tensors

# A body or inputs larger than this are not looked up: making the key would cost more than most runs.
_MAX_KEY_BYTES = 32 * 1024
_JSON: Headers = ((b"content-type", b"application/json"),)


class Pipeline:
    """The stations of a prediction in their order. Everything runs on the event loop of one worker.

    ttl_s, sampling_rate: what holds for models whose flags say nothing.
    """

    def __init__(
        self,
        admission: Admission,
        router: Router,
        registry: Registry,
        cache: PredictionCache,
        sampler: Sampler,
        counts: Counts,
        *,
        ttl_s: float,
        sampling_rate: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._admission = admission
        self._router = router
        self._registry = registry
        self._cache = cache
        self._sampler = sampler
        self._counts = counts
        self._ttl_s = ttl_s
        self._sampling_rate = sampling_rate
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._flights: dict[object, Flight] = {}

    # -- the way in ---------------------------------------------------------------------------------

    def begin(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        """Take an admitted call, its body read, as far as it goes now; *on_reply* may be called before this returns."""
        call.on_reply = on_reply
        try:
            self._router.route(call)
            live, codec, options = call.live, call.codec, call.options
            assert live is not None
            assert options is not None
            caching = options.cache_enabled and self._cache.enabled
            if caching and len(call.body) <= _MAX_KEY_BYTES:
                call.raw_key = raw_key(live.digest, codec.name, codec.cache_headers(call.headers), call.body)
                kept = self._cache.get(call.raw_key)
                if kept is not None and kept.encoded is not None:
                    call.cache = "hit"
                    self._answer(call, kept.inputs, kept.outputs, kept.rows, kept.encoded)
                    return
            request = call.request = live.bound[codec.name].decode(call.body, call.headers)
            if request.timeout_s is not None:
                self._admission.shorten(call, request.timeout_s)
            if call.deadline_s <= self._clock():
                raise DeadlineExceeded("the deadline passed before the request could be queued")
            key = None
            if caching and bytes_of(request.inputs) <= _MAX_KEY_BYTES:
                key = tensor_key(live.digest, live.signature, request.inputs)
                if self._find_equal(call, request, key):
                    return
            self._queue(call, request, key)
        except GatewayError as error:
            self._refuse(call, error)

    def _find_equal(self, call: Call, request: Request, key: object) -> bool:
        """Answer with what equal inputs got, or wait with an equal call that is on its way. False: there is none."""
        kept = self._cache.get(key)
        if kept is not None:
            call.cache = "hit"
            self._complete(call, request, kept.outputs)
            return True
        flight = self._flights.get(key)
        if flight is None or flight.entry is None:
            call.cache = "miss"
            return False
        call.cache = "shared"
        call.flight = flight
        flight.calls.append(call)
        flight.entry.gone = False
        flight.entry.deadline_s = max(flight.entry.deadline_s, call.deadline_s)
        return True

    def _queue(self, call: Call, request: Request, key: object) -> None:
        """Into the version's batch queue. Raises QueueFull, InvalidInput."""
        assert call.live is not None
        flight = Flight(key, call)

        def on_done(entry: Entry, result: Tensors | GatewayError) -> None:
            self.finish(flight, entry, result)

        entry = Entry(request.inputs, request.rows, call.deadline_s, on_done)
        call.live.batcher.submit(entry)
        flight.entry = entry
        call.flight = flight
        if key is not None:
            self._flights[key] = flight

    # -- the way back -------------------------------------------------------------------------------

    def finish(self, flight: Flight, entry: Entry, result: Tensors | GatewayError) -> None:
        """Answer all calls of an entry that has run, or that could not."""
        if flight.key is not None:
            self._flights.pop(flight.key, None)
        if isinstance(result, GatewayError):
            for call in flight.calls:
                self._refuse(call, result)
            return
        if flight.key is not None and flight.calls:
            ttl_s = self._ttl_of(flight.calls[0])
            self._cache.put(flight.key, entry.inputs, result, entry.rows, None, ttl_s=ttl_s)
        for call in flight.calls:
            assert call.request is not None
            try:
                self._complete(call, call.request, result)
            except Exception as error:  # an answer that cannot be written must not keep its neighbours from theirs
                self._refuse(call, error if isinstance(error, GatewayError) else InferenceFailed(repr(error)))

    def _complete(self, call: Call, request: Request, outputs: Tensors) -> None:
        """Encode the outputs, keep them for equal bodies, answer."""
        assert call.live is not None
        encoded = call.live.bound[call.codec.name].encode(request, outputs)
        if call.raw_key is not None:
            ttl_s = self._ttl_of(call)
            self._cache.put(call.raw_key, request.inputs, outputs, request.rows, encoded, ttl_s=ttl_s)
        self._answer(call, request.inputs, outputs, request.rows, encoded)

    def _answer(self, call: Call, inputs: Tensors, outputs: Tensors, rows: int, encoded: Encoded) -> None:
        """Reply with ok, count, offer to the sample log, let go of the version."""
        live, decision = call.live, call.decision
        assert live is not None
        assert decision is not None
        body = live.bound[call.codec.name].stamp(encoded.body, decision.variant, call.prediction_id)
        self._reply(call, Reply(None, self._headers(call) + encoded.headers, body))
        latency_s = self._clock() - call.started_s
        self._counts.answered(call.model, decision.version, decision.variant, call.cache, latency_s)
        self._sample(call, inputs, outputs, rows)
        self._let_go(call)

    def _sample(self, call: Call, inputs: Tensors, outputs: Tensors, rows: int) -> None:
        """Hand references to the sampler if this prediction's id is drawn; never waits."""
        live, decision, route, options = call.live, call.decision, call.route, call.options
        assert live is not None
        assert decision is not None
        assert route is not None
        assert options is not None
        rate = self._sampling_rate if options.sampling_rate is None else options.sampling_rate
        if not is_sampled(call.prediction_id, rate):
            return
        entry = call.flight.entry if call.flight is not None else None
        self._sampler.offer(
            Sample(
                prediction_id=call.prediction_id,
                request_id=call.request_id,
                ts_ns=self._wall_clock_ns(),
                model=call.model,
                version=decision.version,
                digest=live.digest,
                variant=decision.variant,
                flag_revision=route.revision,
                reason=decision.reason,
                sample_rate=rate,
                sample_reason=RANDOM,
                inputs=inputs,
                outputs=outputs,
                signature=live.signature,
                rows=rows,
                queue_s=entry.queued_s if entry is not None else 0.0,
                run_s=entry.run_s if entry is not None else 0.0,
                batch_rows=entry.batch_rows if entry is not None else 0,
                cache=call.cache,
                protocol=call.codec.name,
            )
        )

    # -- ends without an answer ---------------------------------------------------------------------

    def _refuse(self, call: Call, error: GatewayError) -> None:
        """Reply with an error in the protocol's own shape, count it, let go of the version."""
        self._reply(call, Reply(error, self._headers(call) + _JSON, call.codec.error(error)))
        if call.decision is not None and call.live is not None:
            self._counts.failed(call.model, call.decision.version, call.decision.variant, error.code)
        else:
            self._counts.refused(error.code)
        self._let_go(call)

    def expire(self, call: Call) -> None:
        """The door's clock ran out: answer with DeadlineExceeded and forget the call."""
        self._leave_flight(call)
        self._refuse(call, DeadlineExceeded("the deadline passed before the answer was ready"))
        call.left = True

    def abandon(self, call: Call) -> None:
        """The caller went away: nobody reads its answer. Its run is called off unless others wait for it too."""
        if not call.left:
            call.left = True
            call.on_reply = None
            self._leave_flight(call)
            self._let_go(call)

    def _leave_flight(self, call: Call) -> None:
        flight = call.flight
        if flight is not None and call in flight.calls:
            flight.calls.remove(call)
            if flight.entry is not None and not flight.calls:
                flight.entry.gone = True

    # -- small parts --------------------------------------------------------------------------------

    def _reply(self, call: Call, reply: Reply) -> None:
        on_reply, call.on_reply = call.on_reply, None
        if on_reply is not None:
            on_reply(reply)

    def _let_go(self, call: Call) -> None:
        live, call.live = call.live, None
        if live is not None:
            self._registry.release(live)

    def _ttl_of(self, call: Call) -> float:
        ttl_s = call.options.cache_ttl_s if call.options is not None else None
        return self._ttl_s if ttl_s is None else ttl_s

    def _headers(self, call: Call) -> Headers:
        """The reply headers that every protocol shares, in the order of the contract."""
        ids = ((b"x-request-id", call.request_id.encode()), (b"x-prediction-id", call.prediction_id.encode()))
        if call.decision is None or call.route is None:
            return ids
        return (
            *ids,
            (b"x-model-version", call.decision.version.encode()),
            (b"x-model-variant", call.decision.variant.encode()),
            (b"x-flag-revision", str(call.route.revision).encode()),
            (b"x-cache", call.cache.encode()),
        )
