"""One prediction, start to finish. Read this first.

`begin` takes a call from routing to the batch queue, or answers it at once; `finish` takes what has run to its
answers. Neither awaits anything: the way back is the call's own on_reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import getLogger
from typing import NamedTuple

from gateway.codecs.codec import JSON_HEADERS, Encoded, Headers, Request
from gateway.errors import DeadlineExceeded, GatewayError, InferenceFailed
from gateway.samples.record import RANDOM, Sample, is_sampled
from gateway.serving.admission import Admission
from gateway.serving.batcher import Entry
from gateway.serving.cache import Kept, PredictionCache, raw_key, tensor_key
from gateway.serving.call import Call
from gateway.serving.counts import Counts
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.replies import NO_HEADERS, Block, Reply, block
from gateway.serving.router import Router
from gateway.serving.sampler import Sampler
from gateway.tensors import Tensors

log = getLogger(__name__)

# A body or inputs larger than this are not looked up: making the key would cost more than most runs.
_MAX_KEY_BYTES = 32 * 1024
# Lanes kept ready: a few per version and revision; more than this are old ones.
_MAX_LANES = 1024


class Lane(NamedTuple):
    """What calls of one version, variant, flag revision and cache result share: reply headers and a place to count."""

    headers: Block
    latencies_s: list[float]


class Cut:
    """One entry's share of a batch, cut out only when somebody asks: most answers need just the encoded body."""

    __slots__ = ("_cut", "_outputs", "_request", "_start")

    def __init__(self, request: Request, outputs: Tensors, start: int | None) -> None:
        self._request = request
        self._outputs = outputs
        self._start = start  # None: the outputs are all its own
        self._cut: Tensors | None = outputs if start is None else None

    @property
    def rows(self) -> int:
        return self._request.rows

    @property
    def inputs(self) -> Tensors:
        return self._request.inputs

    @property
    def outputs(self) -> Tensors:
        if self._cut is None:
            assert self._start is not None
            stop = self._start + self._request.rows
            self._cut = {name: array[self._start : stop] for name, array in self._outputs.items()}
        return self._cut


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
        self._waiting: dict[object, Entry] = {}  # entries on their way, by the key of their inputs
        self._lanes: dict[tuple[str, str, str, int, str], Lane] = {}

    # -- the way in ---------------------------------------------------------------------------------

    def begin(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        """Take an admitted call, its body read, as far as it goes now; *on_reply* may be called before this returns."""
        call.on_reply = on_reply
        try:
            live = self._router.route(call)
            codec, body = call.codec, call.body
            caching = self._is_cached(call, live)
            if caching and len(body) <= _MAX_KEY_BYTES:
                call.raw_key = raw_key(live.digest, codec.name, codec.cache_headers(call.headers), body)
                kept = self._cache.get(call.raw_key)
                if kept is not None and kept.encoded is not None:
                    live.cache_policy.looked(hit=True)
                    call.cache = "hit"
                    self._answer(call, kept.encoded.body, kept.encoded.headers, kept, None)
                    return
            request = call.request = live.bound[codec.name].decode(body, call.headers)
            if request.timeout_s is not None:
                self._admission.shorten(call, request.timeout_s)
            if call.deadline_s <= self._clock():
                raise DeadlineExceeded("the deadline passed before the request could be queued")
            key = None
            if caching and request.size_bytes <= _MAX_KEY_BYTES:
                key = tensor_key(live.digest, live.signature, request)
                found = self._find_equal(call, request, key)
                live.cache_policy.looked(hit=found)
                if found:
                    return
            entry = Entry(request, call.deadline_s, self, key=key, calls=[call])
            live.batcher.submit(entry)
            call.entry = entry
            if key is not None:
                self._waiting[key] = entry
        except Exception as error:  # whatever it is, this call gets its answer and its connection goes on
            if not isinstance(error, GatewayError):
                log.exception("a request failed on its way in", extra={"model": call.model})
            self._refuse(call, _as_gateway_error(error))

    def _is_cached(self, call: Call, live: LiveVersion) -> bool:
        options = call.options
        assert options is not None
        return options.cache_enabled and self._cache.enabled and live.cache_policy.should_look(call.body)

    def _find_equal(self, call: Call, request: Request, key: object) -> bool:
        """Answer with what equal inputs got, or wait with an equal call that is on its way. False: there is none."""
        kept = self._cache.get(key)
        if kept is not None:
            call.cache = "hit"
            self._complete(call, request, kept)
            return True
        entry = self._waiting.get(key)
        if entry is None:
            call.cache = "miss"
            return False
        call.cache = "shared"
        call.entry = entry
        entry.calls.append(call)
        entry.gone = False
        entry.deadline_s = max(entry.deadline_s, call.deadline_s)
        return True

    # -- the way back -------------------------------------------------------------------------------

    def finish_batch(self, entries: list[Entry], outputs: Tensors) -> None:
        """Answer all calls of all entries of a run; what they can share is made once."""
        rows_of: dict[str, list[bytes] | None] = {}  # by codec: the bodies of plain requests, one per row
        start = 0
        for entry in entries:
            own = Cut(entry.request, outputs, start if len(entries) > 1 else None)
            self._keep(entry, own)
            for call in entry.calls:
                try:
                    name, request = call.codec.name, call.request
                    assert request is not None
                    if request.is_plain and call.live is not None:
                        if name not in rows_of:
                            rows_of[name] = call.live.bound[name].encode_rows(outputs)
                        bodies = rows_of[name]
                        if bodies is not None:
                            self._complete_plain(call, bodies[start], own)
                            continue
                    self._complete(call, request, own)
                except Exception as error:  # an answer that cannot be written must not keep others from theirs
                    self._refuse(call, _as_gateway_error(error))
            start += entry.rows

    def finish(self, entry: Entry, result: Tensors | GatewayError) -> None:
        """Answer all calls of an entry that ran in several parts, or that could not be run."""
        if isinstance(result, GatewayError):
            if entry.key is not None:
                self._waiting.pop(entry.key, None)
            for call in entry.calls:
                self._refuse(call, result)
            return
        own = Cut(entry.request, result, None)
        self._keep(entry, own)
        for call in entry.calls:
            try:
                assert call.request is not None
                self._complete(call, call.request, own)
            except Exception as error:  # as in finish_batch
                self._refuse(call, _as_gateway_error(error))

    def _keep(self, entry: Entry, own: Cut) -> None:
        """Into the tensor cache, once per run."""
        if entry.key is None:
            return
        self._waiting.pop(entry.key, None)
        if entry.calls:
            ttl_s = self._ttl_of(entry.calls[0])
            self._cache.put(entry.key, own.inputs, own.outputs, own.rows, None, ttl_s=ttl_s)

    def _complete_plain(self, call: Call, body: bytes, own: Cut | Kept) -> None:
        """Answer with a body that was made for the whole batch."""
        if call.raw_key is not None:
            self._keep_raw(call, Encoded(body, JSON_HEADERS), own)
        self._answer(call, body, JSON_HEADERS, own, call.entry)

    def _complete(self, call: Call, request: Request, own: Cut | Kept) -> None:
        """Encode the outputs, keep them for equal bodies, answer."""
        assert call.live is not None
        bound = call.live.bound[call.codec.name]
        bodies = bound.encode_rows(own.outputs) if request.is_plain else None
        if bodies is not None:
            self._complete_plain(call, bodies[0], own)
            return
        encoded = bound.encode(request, own.outputs)
        if call.raw_key is not None:
            self._keep_raw(call, encoded, own)
        self._answer(call, encoded.body, encoded.headers, own, call.entry)

    def _keep_raw(self, call: Call, encoded: Encoded, own: Cut | Kept) -> None:
        self._cache.put(call.raw_key, own.inputs, own.outputs, own.rows, encoded, ttl_s=self._ttl_of(call))

    def _answer(self, call: Call, body: bytes, headers: Headers, own: Cut | Kept, entry: Entry | None) -> None:
        """Reply with ok, count, offer to the sample log, let go of the version."""
        live, decision, options, on_reply = call.live, call.decision, call.options, call.on_reply
        assert live is not None
        assert decision is not None
        assert options is not None
        body = live.bound[call.codec.name].stamp(body, decision.variant, call.prediction_id)
        lane = self._lane(call)
        if on_reply is not None:
            call.on_reply = None
            on_reply(Reply(None, call.request_id, call.prediction_id, lane.headers, headers, body))
        lane.latencies_s.append(self._clock() - call.started_s)
        rate = self._sampling_rate if options.sampling_rate is None else options.sampling_rate
        if is_sampled(call.prediction_id, rate):
            self._sample(call, own, entry, rate)
        call.entry = None  # it knows its calls: without this, every request would leave work for the cycle collector
        call.live = None
        self._registry.release(live)

    def _sample(self, call: Call, own: Cut | Kept, entry: Entry | None, rate: float) -> None:
        """Hand references to the sampler, which never waits."""
        live, decision, route = call.live, call.decision, call.route
        assert live is not None
        assert decision is not None
        assert route is not None
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
                inputs=own.inputs,
                outputs=own.outputs,
                signature=live.signature,
                rows=own.rows,
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
        on_reply, call.on_reply = call.on_reply, None
        if on_reply is not None:
            headers = self._lane(call).headers if call.decision is not None else NO_HEADERS
            told = call.codec.error(error)
            on_reply(Reply(error, call.request_id, call.prediction_id, headers, JSON_HEADERS, told))
        if call.decision is not None and call.live is not None:
            self._counts.failed(call.model, call.decision.version, call.decision.variant, error.code)
        else:
            self._counts.refused(error.code)
        self._let_go(call)

    def expire(self, call: Call) -> None:
        """The door's clock ran out: answer with DeadlineExceeded and forget the call, unless it has its answer."""
        if call.left or call.on_reply is None:
            return
        self._leave(call)
        self._refuse(call, DeadlineExceeded("the deadline passed before the answer was ready"))
        call.left = True

    def abandon(self, call: Call) -> None:
        """The caller went away: nobody reads its answer. Its run is called off unless others wait for it too."""
        if not call.left:
            call.left = True
            call.on_reply = None
            self._leave(call)
            self._let_go(call)

    def _leave(self, call: Call) -> None:
        entry = call.entry
        if entry is not None and call in entry.calls:
            entry.calls.remove(call)
            entry.gone = not entry.calls

    # -- small parts --------------------------------------------------------------------------------

    def _let_go(self, call: Call) -> None:
        live, call.live, call.entry = call.live, None, None
        if live is not None:
            self._registry.release(live)

    def _ttl_of(self, call: Call) -> float:
        ttl_s = call.options.cache_ttl_s if call.options is not None else None
        return self._ttl_s if ttl_s is None else ttl_s

    def _lane(self, call: Call) -> Lane:
        """What all calls share that got the same decision, revision and kind of cache result; made once for them."""
        decision, route = call.decision, call.route
        assert decision is not None
        assert route is not None
        key = (call.model, decision.version, decision.variant, route.revision, call.cache)
        found = self._lanes.get(key)
        if found is None:
            if len(self._lanes) >= _MAX_LANES:
                self._lanes.clear()
            model, version, variant, revision, cache = key
            headers = block(
                (
                    (b"x-model-version", version.encode()),
                    (b"x-model-variant", variant.encode()),
                    (b"x-flag-revision", str(revision).encode()),
                    (b"x-cache", cache.encode()),
                )
            )
            found = self._lanes[key] = Lane(headers, self._counts.latencies(model, version, variant, cache))
        return found


def _as_gateway_error(error: Exception) -> GatewayError:
    return error if isinstance(error, GatewayError) else InferenceFailed(f"the request failed: {error!r}")
