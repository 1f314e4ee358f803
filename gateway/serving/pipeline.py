"""One prediction, start to finish. Read this first.

`begin` takes a call to its version, where the calls of one turn of the event loop gather, or answers it at once;
`_take_in` decodes what has gathered and takes it to the batch queue; `finish_batch` takes what has run to its answers.
Nothing here awaits anything: the way back is the call's own on_reply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from logging import getLogger

from gateway.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    GatewayError,
    InferenceFailed,
    InvalidOutput,
    OverShare,
    QueueFull,
    SampleLogUnavailable,
    Shed,
    VersionShut,
)
from gateway.serving.admission import Admission
from gateway.serving.answers import Answers
from gateway.serving.cache import PredictionCache, raw_key, tensor_key
from gateway.serving.call import Call, OnReply, decode_plain
from gateway.serving.cut import Cut
from gateway.serving.entry import Run, first_rows
from gateway.serving.guard import BREAKER, ERROR, INVALID, QUEUE, TIMEOUT, Guard
from gateway.serving.guards import MARGIN_SHARE, Guards
from gateway.serving.registry import LiveVersion
from gateway.serving.router import Router
from gateway.tensors import Tensors

log = getLogger(__name__)

# A body or inputs larger than this are not looked up: making the key would cost more than most runs.
_MAX_KEY_BYTES = 32 * 1024
# Errors of a candidate after which the default version is asked, and how the metric calls them.
_FALL_BACK: dict[type[Exception], str] = {
    InferenceFailed: ERROR,
    InvalidOutput: INVALID,
    VersionShut: BREAKER,
    **dict.fromkeys((QueueFull, Shed, OverShare, DeadlineUnreachable), QUEUE),
}


class Pipeline:
    """The stations of a prediction in their order. Everything runs on the event loop of one worker."""

    def __init__(
        self,
        admission: Admission,
        router: Router,
        cache: PredictionCache,
        answers: Answers,
        guards: Guards,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission = admission
        self._router = router
        self._cache, self._answers, self._guards = cache, answers, guards
        self._clock = clock
        self._loop = asyncio.get_running_loop()  # asking for it each time would be a system call
        self._waiting: dict[object, Call] = {}  # calls on their way, by the key of their inputs

    # -- the way in ---------------------------------------------------------------------------------

    def begin(self, call: Call, on_reply: OnReply) -> None:
        """Take an admitted call, its body read, as far as it goes now; *on_reply* may be called before this returns."""
        call.on_reply = on_reply
        call.owner = self
        try:
            live = self._router.route(call)
            if call.options.cache_enabled and self._cache.enabled and live.cache_policy.should_look(call.body):
                call.is_cached = True
                call.cache_epoch = live.cache_epoch
                if self._answer_equal_body(call, live):
                    return
            batcher = live.batcher
            if batcher.is_busy:
                batcher.room.check(call, batcher.queued_rows)
                batcher.check_in_time(call.deadline_s, call.started_s)
            arrivals = live.arrivals
            if not arrivals:
                self._loop.call_soon(self._take_in, live)
            arrivals.append(call)
        except Exception as error:  # whatever it is, this call gets its answer and its connection goes on
            self._end(call, error)

    def _answer_equal_body(self, call: Call, live: LiveVersion) -> bool:
        """Answer with what an equal body got. False: none is kept."""
        body, codec = call.body, call.codec
        if len(body) > _MAX_KEY_BYTES:
            return False
        call.raw_key = raw_key(live.digest, codec.name, codec.cache_headers(call.headers), body)
        kept = self._cache.get(call.raw_key)
        if kept is None or kept.encoded is None:
            return False
        live.cache_policy.looked(hit=True)
        call.cache = "hit"
        self._answers.answer(call, kept.encoded.body, kept.encoded.headers, kept, None)
        return True

    def _take_in(self, live: LiveVersion) -> None:
        """Decode the calls that have gathered for a version in this turn of the loop, and queue them."""
        calls, live.arrivals = live.arrivals, []
        now_s = self._clock()
        entries, flat_bytes, queued_rows, room = list[Call](), 0, live.batcher.queued_rows, live.batcher.room
        spec, row_bytes = live.signature.inputs[0], live.row_bytes
        for call, flat in zip(calls, decode_plain(live, calls), strict=True):
            if call.left:
                continue
            try:
                if flat is not None:
                    call.flat, call.spec, call.is_plain = flat, spec, True
                    if len(flat) == row_bytes:
                        call.held_bytes += len(flat)  # one row: too little to refuse it at this late hour
                        flat_bytes += len(flat)
                    else:
                        call.rows = len(flat) // row_bytes
                        self._admission.hold(call, len(call.body) + len(flat))
                else:
                    # Those before it may have taken what room there was; who finds an equal call needs none.
                    if live.batcher.is_busy and not call.is_cached:
                        room.check(call, queued_rows)
                    self._decode(call, live)
                if call.deadline_s <= now_s:
                    raise DeadlineExceeded("the deadline passed before the request could be queued")
                if call.is_cached and self._find_equal(call, live):
                    continue
                if (flat is None or call.rows > 1) and live.batcher.is_busy:  # now its rows and wishes are known
                    live.batcher.check_in_time(call.deadline_s, now_s, call.rows)
                entries.append(call)
                if queued_rows + call.rows <= room.easy_rows or room.refusal(call, queued_rows) is None:
                    queued_rows += call.rows  # as submit will count them
            except Exception as error:  # as in begin
                self._fail(call, error)
        self._admission.in_flight_bytes += flat_bytes
        try:
            live.batcher.submit(entries)
        except Exception as error:  # as in begin
            for call in entries:
                self._fail(call, error)

    def _decode(self, call: Call, live: LiveVersion) -> None:
        request = live.bound[call.codec.name].decode(call.body, call.headers)
        call.take_request(request)
        self._admission.hold(call, len(call.body) + request.size_bytes)
        if request.timeout_s is not None:
            self._admission.shorten(call, request.timeout_s)
        if request.priority is not None:
            self._admission.prioritize(call, request.priority)

    def _find_equal(self, call: Call, live: LiveVersion) -> bool:
        """Answer with what equal inputs got, or wait with an equal call that is on its way. False: there is none."""
        request = call.request
        if request.size_bytes > _MAX_KEY_BYTES or len(call.body) > _MAX_KEY_BYTES:
            return False
        key = tensor_key(live.digest, live.signature, request)
        kept = self._cache.get(key)
        leader = self._waiting.get(key)
        live.cache_policy.looked(hit=kept is not None or leader is not None)
        if kept is not None:
            call.cache = "hit"
            self._answers.complete(call, kept, None)
            return True
        if leader is not None:
            call.cache = "shared"
            call.leader = leader
            leader.followers += (call,)
            leader.gone = False
            leader.run_by_s = max(leader.run_by_s, call.deadline_s)
            leader.priority = min(leader.priority, call.priority)  # critical is the least number
            return True
        call.cache = "miss"
        call.key = key
        self._waiting[key] = call
        return False

    # -- the way back -------------------------------------------------------------------------------

    def finish_batch(self, entries: list[Call], outputs: Tensors, run: Run) -> None:
        """Answer all calls of a run. Mostly all are plain rows of one protocol: these are answered in one go."""
        try:
            self._finish_batch(entries, outputs, run)
        except Exception as error:  # an answer that cannot be made must not leave others without theirs
            for call in entries:
                self._fail(call, error)

    def _finish_batch(self, entries: list[Call], outputs: Tensors, run: Run) -> None:
        if run.is_watched:
            if run.bad_rows:
                entries = [self._check(call) if call.is_invalid else call for call in entries]
            self._guards.answered(entries, outputs, run)
        codec = entries[0].codec
        if all([call.is_plain and call.codec is codec for call in entries]):  # noqa: C419  # a list is faster here
            self._complete_plain(entries, first_rows(entries, run.rows), outputs, run)
            return
        start = 0
        plain: dict[str, tuple[list[Call], list[int]]] = {}  # by codec: the calls and the numbers of their rows
        for call in entries:
            if call.is_plain:
                calls, starts = plain.setdefault(call.codec.name, ([], []))
                calls.append(call)
                starts.append(start)
            else:
                self._complete(call, Cut(call.request, outputs, start if len(entries) > 1 else None), run)
            start += call.rows
        for calls, starts in plain.values():
            self._complete_plain(calls, starts, outputs, run)

    def finish(self, entry: Call, result: Tensors | GatewayError, run: Run | None) -> None:
        """Answer a call that ran in several parts, or that could not be run, and those that follow it."""
        if isinstance(result, GatewayError):
            if run is not None and isinstance(result, InferenceFailed):
                self._guards.failed(entry, "invalid" if isinstance(result, InvalidOutput) else "errors")
            self._fail(entry, result)
        else:
            if run is not None and run.is_watched:
                if entry.is_invalid:
                    entry = self._check(entry)
                self._guards.answered([entry], result, run)
            self._complete(entry, Cut(entry.request, result, None), run)

    def _fail(self, entry: Call, error: Exception) -> None:
        """Refuse a call and those that follow it; equal calls that come from now on are on their own."""
        self._forget(entry)
        followers, share = entry.release_followers(), entry.share
        self._end(entry, error)
        for call in followers:
            if isinstance(error, OverShare) and call.share is not share:  # that is the other client's own doing
                call.cache, call.is_cached = "bypass", False  # each for itself from now on
                self._arrive(call, call.live)
            else:
                self._end(call, error)

    def _complete_plain(self, calls: list[Call], starts: Sequence[int], outputs: Tensors, run: Run) -> None:
        if self._waiting:  # else no call has a key
            for call, start in zip(calls, starts, strict=True):
                if call.key is not None:  # what ran alone may have outputs without rows
                    self._keep(call, Cut(call.request, outputs, start if run.requests > 1 else None), run)
        self._answers.complete_plain(calls, starts, outputs, run)

    def _complete(self, entry: Call, own: Cut, run: Run | None) -> None:
        try:
            if entry.key is not None:
                self._keep(entry, own, run)
            self._answers.complete(entry, own, run)
        except Exception as error:  # as in finish_batch
            self._fail(entry, error)

    def _keep(self, entry: Call, own: Cut, run: Run | None) -> None:
        """Keep the outputs of an entry for equal inputs, and answer the calls that follow it."""
        self._forget(entry)
        kept = None
        if entry.cache_epoch == entry.live.cache_epoch:
            kept = self._cache.put(entry.key, entry.request, own.outputs, None, ttl_s=self._answers.ttl_of(entry))
        for call in entry.release_followers():
            try:
                self._answers.complete(call, kept if kept is not None else own, run)
            except Exception as error:  # as in finish_batch
                self._end(call, error)

    def _forget(self, entry: Call) -> None:
        """Equal calls that come from now on do not find it any more."""
        if entry.key is not None and self._waiting.get(entry.key) is entry:
            del self._waiting[entry.key]

    # -- a candidate that fails ---------------------------------------------------------------------

    def _end(self, call: Call, error: Exception) -> None:
        """A call gets no answer from its version: it goes to the default version if that can help, or is refused."""
        why = _FALL_BACK.get(type(error)) if call.arm is not None else None
        if why is None or not self._fall_back(call, why):
            self.refuse(call, error)

    def _fall_back(self, call: Call, why: str) -> bool:
        """Have the default version answer a call that its candidate has failed. False: nothing is changed."""
        live = self._guards.take_over(call, why)
        if live is None:
            return False
        self._arrive(call, live)
        return True

    def _arrive(self, call: Call, live: LiveVersion) -> None:
        """Put a call to those that are taken in with the next turn of the loop."""
        if not live.arrivals:
            self._loop.call_soon(self._take_in, live)
        live.arrivals.append(call)

    def _check(self, entry: Call) -> Call:
        """An entry whose answer is no good, and those that follow it: who can falls back. Returns who is answered.

        No answer is turned into an error: where nobody else can answer, what the version gave is better than nothing.
        """
        self._guards.failed(entry, "invalid")
        if entry.live.batcher.guard is not None:  # also if it was a candidate only when the run began
            entry = self._part(entry, INVALID, lambda _call: True)
            for call in (entry, *entry.followers):
                call.raw_key, call.cache_epoch = None, -1  # equal questions shall not get it without being checked
        return entry

    def _part(self, entry: Call, why: str, is_due: Callable[[Call], bool]) -> Call:
        """Of an entry in a run and those that follow it, those that are due fall back. Returns who stays in the run."""
        for call in entry.followers:
            if is_due(call) and self._fall_back(call, why):
                entry.followers = tuple([other for other in entry.followers if other is not call])
        if not entry.falls_back or not is_due(entry):
            return entry
        stand_in = entry.stand_in()
        if not self._fall_back(entry, why):
            return entry
        for call in stand_in.followers:
            call.leader = stand_in
        if stand_in.key is not None and self._waiting.get(stand_in.key) is entry:
            self._waiting[stand_in.key] = stand_in
        return stand_in

    def divert_late(self) -> None:
        """Called each some milliseconds: who can wait for a candidate's run no longer goes to the default version."""
        for guard, reserve_s in self._guards.late():
            self._divert_late(guard, reserve_s)

    def _divert_late(self, guard: Guard, reserve_s: float) -> None:
        batcher = guard.live.batcher
        away, now_s = batcher.away, self._clock()
        if away is None:
            return

        def is_due(call: Call) -> bool:
            whole_s = call.deadline_s - call.started_s
            return call.deadline_s - now_s <= min(reserve_s + MARGIN_SHARE * whole_s, whole_s / 2)

        hangs = False
        entries: list[Call] = away.batch.entries  # type: ignore[assignment]  # ours are all calls
        for place, entry in enumerate(entries):
            stand_in = self._part(entry, TIMEOUT, is_due)
            if stand_in is not entry:
                batcher.replace(place, stand_in)
                hangs = True
        if batcher.queued_rows and not hangs:
            late = DeadlineUnreachable("the run before it takes too long")
            sent = batcher.send_away(late, lambda entry: is_due(entry) and self._guards.stands_by(entry) is not None)
            hangs = any(queued_s >= away.begun_s for queued_s in sent)
        if hangs:
            guard.hangs()

    # -- ends without an answer ---------------------------------------------------------------------

    def refuse(self, call: Call, error: Exception) -> None:
        """Answer with an error, unless the call has its answer. One that is none of ours is InferenceFailed."""
        if call.left or (call.on_reply is None and not call.is_held):
            return  # it has its answer
        if not isinstance(error, GatewayError):
            log.error("a request failed", extra=call.ids, exc_info=error)
            error = InferenceFailed(f"the request failed: {error!r}")
        self._answers.refuse(call, error)

    def expire(self, call: Call) -> None:
        """The door's clock ran out: answer with DeadlineExceeded and forget the call, unless it has its answer."""
        if call.left or call.on_reply is None:
            return
        if call.arm is not None and call.taken > 0:
            self._guards.failed(call, "timeouts")
        late: GatewayError = DeadlineExceeded("the deadline passed before the answer was ready")
        if call.waits_for_log:
            late = SampleLogUnavailable("the sample log did not take the answer before the deadline")
        self._answers.refuse(call, late)
        call.left = True
        self._leave(call)

    def turn_away(self, call: Call) -> None:
        """The worker's time is up: answer with Draining and forget the call, unless it has its answer."""
        if not call.left and call.on_reply is not None:
            self._answers.refuse(call, Draining("the gateway is stopping"))
            call.left = True
            self._leave(call)

    def abandon(self, call: Call) -> None:
        """The caller went away: nobody reads its answer. Its run is called off unless others wait for it too."""
        if not call.left:
            call.left = True
            call.on_reply = None
            self._answers.let_go(call)
            self._leave(call)

    def _leave(self, call: Call) -> None:
        """A run goes on for those who still wait for it."""
        leader = call.leader or call
        if call.leader is not None:
            leader.followers = tuple([other for other in leader.followers if other is not call])
            call.leader = None
        leader.gone = leader.left and not leader.followers
