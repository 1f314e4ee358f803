"""Spans as OpenTelemetry knows them, and the way to a collector. The one door to OpenTelemetry."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gateway import __version__
from gateway.serving.trace import Step, Trace

# The longest that one portion may take on its way, tries and pauses included.
_TIMEOUT_S = 10.0


class _FirstWords(logging.Handler):
    """Keeps what the exporter logs first of a portion: why. The tracer logs the begin and the end of trouble."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ""

    def emit(self, record: logging.LogRecord) -> None:
        if not self.words:
            self.words = record.getMessage()


class Spans:
    """Makes spans of traces and sends them. Used by the tracer's thread, but for `close`.

    about: attributes of the resource; those of OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME in the environment go
    first. Credentials and certificates for the collector are taken from OTEL_EXPORTER_OTLP_*, as by other senders.
    """

    def __init__(self, url: str, about: Mapping[str, str]) -> None:
        self._resource = Resource.create(dict(about)).merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope("sluicegate", __version__)
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=_TIMEOUT_S)
        self._bits = random.Random().getrandbits
        self._said = _FirstWords()
        heard = logging.getLogger("opentelemetry")
        heard.addHandler(self._said)
        heard.propagate = False

    def send(self, traces: Sequence[Trace]) -> str:
        """Send the spans of some traces; returns why they were not taken, empty if they were."""
        self._said.words = ""
        spans = [span for trace in traces for span in self._spans(trace)]
        if self._exporter.export(spans) is SpanExportResult.SUCCESS:
            return ""
        return self._said.words or "the collector did not take them"

    def close(self) -> None:
        """End all tries. May be called on any thread."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it says nothing of its types

    def _spans(self, trace: Trace) -> list[ReadableSpan]:
        whole = trace.whole
        assert whole is not None
        state = TraceState.from_header([trace.state]) if trace.state else None
        own = self._context(trace, trace.span_id, state)
        parent = self._context(trace, trace.parent_id, state, is_remote=True) if trace.parent_id else None

        def at_ns(when_s: float) -> int:
            return trace.ended_ns + round((when_s - whole.ended_s) * 1e9)

        def span(step: Step, context: SpanContext, parent: SpanContext | None, kind: SpanKind) -> ReadableSpan:
            return ReadableSpan(
                step.name,
                context,
                parent,
                self._resource,
                step.attributes,
                kind=kind,
                status=Status(StatusCode.ERROR, step.failure) if step.failure else Status(),
                start_time=at_ns(step.begun_s),
                end_time=at_ns(step.ended_s),
                instrumentation_scope=self._scope,
            )

        children = [
            span(step, self._context(trace, self._bits(64), state), own, SpanKind.INTERNAL) for step in trace.steps
        ]
        return [*children, span(whole, own, parent, SpanKind.SERVER)]

    def _context(self, trace: Trace, span_id: int, state: TraceState | None, *, is_remote: bool = False) -> SpanContext:
        return SpanContext(trace.trace_id, span_id, is_remote, TraceFlags(TraceFlags.SAMPLED), state)
