"""A pipeline that traces: for requests that are drawn, spans are made of what was measured, once the answer is out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from gateway import __version__
from gateway.codecs.codec import Headers
from gateway.errors import CallerLeft, GatewayError, MethodNotAllowed
from gateway.metrics import ServingMetrics
from gateway.serving.admission import Admission
from gateway.serving.answers import Answers
from gateway.serving.cache import PredictionCache
from gateway.serving.call import Call, OnReply
from gateway.serving.entry import Run
from gateway.serving.guards import Guards
from gateway.serving.pipeline import Pipeline
from gateway.serving.protocols import kind_of, patterns_of, prediction_paths
from gateway.serving.registry import LiveVersion
from gateway.serving.replies import NO_HEADERS, Block, block, status_of
from gateway.serving.router import Router
from gateway.serving.target import Target
from gateway.serving.trace import METHOD_HEADER, Attributes, Step, Trace
from gateway.serving.tracing import Tracer
from gateway.settings import Settings
from gateway.tensors import Tensors


class TracedPipeline(Pipeline):
    """A class of its own, so that workers that trace nothing pay nothing for it; nor do requests that are not drawn,
    but for the drawing.

    scheme: of the public port. Names of spans and attributes are those of OpenTelemetry's semantic conventions where
    these have one.
    """

    def __init__(
        self,
        admission: Admission,
        router: Router,
        cache: PredictionCache,
        answers: Answers,
        guards: Guards,
        tracer: Tracer,
        *,
        scheme: str = "http",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(admission, router, cache, answers, guards, clock=clock)
        self.tracer = tracer
        self._scheme = scheme
        self._routes = patterns_of(prediction_paths())
        self._now_s = clock
        self._open = 0  # traces of requests that wait for their answer

    # -- the way in ---------------------------------------------------------------------------------

    def begin(self, call: Call, on_reply: OnReply) -> None:
        """As Pipeline does it; the answer to a request that is drawn says by which trace."""
        trace = self.tracer.sample(call.headers)
        if trace is None:
            super().begin(call, on_reply)
            return
        call.trace = trace
        trace.since_s = call.started_s
        self._open += 1
        extra = (b"traceresponse", trace.response)

        def answered(call: Call, error: GatewayError | None, route: Block, content: Headers, body: bytes) -> None:
            on_reply(call, error, block((*route.pairs, extra)), content, body)
            self._ended(call, trace, error)

        super().begin(call, answered)

    def turned_away(
        self, asked: Target | Call, headers: Mapping[str, str], error: GatewayError, request_id: str
    ) -> Block:
        """A request got no further than its head or body. Returns the headers by which its answer names its trace."""
        call = asked if isinstance(asked, Call) else None
        if (call is not None and call.trace is not None) or isinstance(error, MethodNotAllowed):
            return NO_HEADERS  # its trace tells how it ended; and a GET is no prediction
        trace = self.tracer.sample(headers)
        if trace is None:
            return NO_HEADERS
        now_s = self._now_s()
        version = asked.pinned if isinstance(asked, Call) else asked.version
        attributes = self._describe(asked.codec.name, asked.model, version, headers, request_id, error)
        self.tracer.offer(trace, self._whole(call.started_s if call is not None else now_s, now_s, attributes, error))
        return block(((b"traceresponse", trace.response),))

    # -- the stations -------------------------------------------------------------------------------

    def _answer_equal_body(self, call: Call, live: LiveVersion) -> bool:
        trace = call.trace
        if trace is None:
            return super()._answer_equal_body(call, live)
        trace.looks_s, trace.looks_for = self._now_s(), "body"
        found = super()._answer_equal_body(call, live)
        if not found:
            self._looked(trace, "miss" if call.raw_key is not None else "")
        return found

    def _find_equal(self, call: Call, live: LiveVersion) -> bool:
        trace = call.trace
        if trace is None:
            return super()._find_equal(call, live)
        trace.looks_s, trace.looks_for = self._now_s(), "inputs"
        found = super()._find_equal(call, live)
        if not found:
            self._looked(trace, "miss" if call.key is not None else "")
        return found  # who follows another call looks until that has its answer

    def _looked(self, trace: Trace, result: str, ended_s: float | None = None) -> None:
        """The look into the cache is over, if there was one. result: empty if it was too large to be looked for."""
        begun_s, trace.looks_s = trace.looks_s, 0.0
        if begun_s and result:
            told: Attributes = {"sluicegate.cache.result": result, "sluicegate.cache.key": trace.looks_for}
            trace.steps.append(Step("cache", begun_s, self._now_s() if ended_s is None else ended_s, told))

    # -- the way back -------------------------------------------------------------------------------

    def finish_batch(self, entries: list[Call], outputs: Tensors, run: Run) -> None:
        """As Pipeline does it."""
        if self._open:
            for call in entries:
                if call.trace is not None:
                    self._ran(call, call.trace, run)
        super().finish_batch(entries, outputs, run)

    def finish(self, entry: Call, result: Tensors | GatewayError, run: Run | None) -> None:
        """As Pipeline does it."""
        if entry.trace is not None and run is not None:
            self._ran(entry, entry.trace, run, result if isinstance(result, GatewayError) else None)
        super().finish(entry, result, run)

    def _ran(self, call: Call, trace: Trace, run: Run, error: GatewayError | None = None) -> None:
        if call.left or call.on_reply is None:
            return  # it has its answer; in its place stands who only holds it in the run
        queued_s = call.queued_s if run.oldest_wait_s else run.begun_s  # who came to a free model did not queue
        ended_s = run.begun_s + run.run_s
        self._looked(trace, "shared", queued_s)  # it followed a call that failed, and now runs itself
        trace.steps.append(Step("queue", queued_s, run.begun_s, {}))
        told = {
            **_version(call),
            "sluicegate.batch.rows": run.rows,
            "sluicegate.batch.requests": run.requests,
            "sluicegate.batch.reason": str(run.reason),
        }
        trace.steps.append(_infer(run.begun_s, ended_s, told, error))
        trace.since_s = ended_s

    def abandon(self, call: Call) -> None:
        """As Pipeline does it."""
        if call.trace is not None and not call.left and call.on_reply is not None:
            self._ended(call, call.trace, CallerLeft("the caller left before the answer"))
        super().abandon(call)

    # -- the end ------------------------------------------------------------------------------------

    def _ended(self, call: Call, trace: Trace, error: GatewayError | None) -> None:
        now_s = self._now_s()
        self._open -= 1
        self._looked(trace, call.cache, now_s)
        if error is not None and call.queued_s >= trace.since_s:
            self._still_waits(call, trace, error, now_s)
        decision = call.decision
        told = self._describe(
            call.codec.name, call.model, call.pinned, call.headers, call.request_id, error, call.prediction_id
        )
        if decision is not None:
            told |= _version(call)
            told |= {
                "feature_flag.key": f"{call.model}.route",
                "feature_flag.provider.name": "sluicegate",
                "feature_flag.result.variant": decision.variant,
                "feature_flag.result.reason": decision.reason.lower(),
                "feature_flag.version": str(call.route.revision),
                "sluicegate.cache.result": call.cache,
            }
        self.tracer.offer(trace, self._whole(call.started_s, now_s, told, error))

    def _still_waits(self, call: Call, trace: Trace, error: GatewayError, now_s: float) -> None:
        """The answer came first: out of the queue, or while a run goes on that nobody waits for any more."""
        away = call.live.batcher.away if call.taken > 0 else None
        if away is None or away.begun_s < call.queued_s:
            trace.steps.append(Step("queue", call.queued_s, now_s, {}, str(error)))
            return
        trace.steps.append(Step("queue", call.queued_s, away.begun_s, {}))
        told = {
            **_version(call),
            "sluicegate.batch.rows": away.run.rows,
            "sluicegate.batch.requests": away.run.requests,
            "sluicegate.batch.reason": str(away.run.reason),
        }
        trace.steps.append(_infer(away.begun_s, now_s, told, error))

    def _describe(
        self,
        codec: str,
        model: str,
        version: str | None,
        headers: Mapping[str, str],
        request_id: str,
        error: GatewayError | None,
        prediction_id: str = "",
    ) -> Attributes:
        told: Attributes = {
            "http.request.method": headers.get(METHOD_HEADER, "POST"),
            "url.scheme": self._scheme,
            "sluicegate.model": model,
            "sluicegate.protocol": codec,
            "sluicegate.request.id": request_id,
        }
        route = self._routes.get(kind_of(codec, model, version))
        if route is not None:
            told["http.route"] = route
            told["url.path"] = route.format(model=model, version=version, label=version)
        if "user-agent" in headers:
            told["user_agent.original"] = headers["user-agent"]
        if prediction_id:
            told["sluicegate.prediction.id"] = prediction_id
        if not isinstance(error, CallerLeft):
            told["http.response.status_code"] = status_of(error)
        if error is not None:
            told["error.type"] = error.code
        return told

    def _whole(self, begun_s: float, ended_s: float, told: Attributes, error: GatewayError | None) -> Step:
        """The span of the request itself. What a client did wrong is told, and is no error of the server's span."""
        failure = str(error) if error is not None and status_of(error) >= 500 else ""
        name = " ".join([str(told[key]) for key in ("http.request.method", "http.route") if key in told])
        return Step(name, begun_s, ended_s, told, failure)


def traced_pipeline(
    settings: Settings,
    boot: str,
    metrics: ServingMetrics,
    admission: Admission,
    router: Router,
    cache: PredictionCache,
    answers: Answers,
    guards: Guards,
) -> TracedPipeline | None:
    """The pipeline of a worker whose settings name a collector; None if they do not."""
    if not settings.tracing.endpoint:
        return None
    instance = f"{boot}-{os.getpid()}"
    about = {"service.name": "sluicegate", "service.version": __version__, "service.instance.id": instance}
    tracer = Tracer(settings.tracing, metrics, about=about)
    scheme = "https" if settings.server.tls_certificate else "http"
    return TracedPipeline(admission, router, cache, answers, guards, tracer, scheme=scheme)


def _version(call: Call) -> Attributes:
    decision = call.decision
    assert decision is not None
    return {
        "sluicegate.model": call.model,
        "sluicegate.version": decision.version,
        "sluicegate.variant": decision.variant,
    }


def _infer(begun_s: float, ended_s: float, told: Attributes, error: GatewayError | None) -> Step:
    if error is None:
        return Step("infer", begun_s, ended_s, told)
    return Step("infer", begun_s, ended_s, {**told, "error.type": error.code}, str(error))
