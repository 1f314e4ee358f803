"""Which requests are traced, and the way of their spans out of the event loop: a bounded queue, and a thread."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from logging import getLogger
from typing import TYPE_CHECKING

from gateway.metrics import ServingMetrics
from gateway.serving.trace import Step, Trace
from gateway.tracing_settings import TracingSettings

if TYPE_CHECKING:
    from gateway.serving.spans import Spans

log = getLogger(__name__)

# W3C Trace Context, version 00; of later versions what this one knows of them.
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1
# How long spans wait for company on their way to the collector, and how many traces go there at once.
_EXPORT_EVERY_S = 0.5
_TRACES_AT_ONCE = 256


class Tracer:
    """Draws requests, and takes their traces to the collector. The event loop never waits for it.

    about: what spans say of this process. `start` and `close` are called by the worker, all else on its event loop.
    """

    def __init__(
        self,
        settings: TracingSettings,
        metrics: ServingMetrics,
        *,
        about: Mapping[str, str],
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._ratio = settings.sample_ratio
        self._metrics = metrics
        self._about = about
        self._wall_clock_ns = wall_clock_ns
        drawn = random.Random()
        self._random, self._bits = drawn.random, drawn.getrandbits
        self._queue: deque[Trace] = deque()  # append and popleft are atomic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._spans: Spans | None = None  # made by the thread
        self._trouble = ""  # why traces do not get out, as last logged; empty while all is well

    @property
    def waiting(self) -> int:
        """Traces that wait for the collector."""
        return len(self._queue)

    def sample(self, headers: Mapping[str, str]) -> Trace | None:
        """A trace, if the request is to have one: its caller has decided that, or else chance does.

        headers: lower-case names.
        """
        came = headers.get("traceparent")
        parent = _PARENT.fullmatch(came) if came is not None else None
        if parent is None or (parent.group(4) is not None and parent.group(0).startswith("00")):
            return Trace(self._bits(128), self._bits(64)) if self._random() < self._ratio else None
        if not int(parent.group(3), 16) & _SAMPLED:
            return None
        return Trace(int(parent.group(1), 16), self._bits(64), int(parent.group(2), 16), headers.get("tracestate", ""))

    def offer(self, trace: Trace, whole: Step) -> None:
        """A traced request has its answer. Never blocks, never raises; what finds no room is dropped and counted."""
        trace.ended_ns = self._wall_clock_ns()
        trace.whole = whole
        if len(self._queue) >= self._settings.max_queue_traces:
            self._metrics.traces.labels("queue_full").inc()
        else:
            self._queue.append(trace)

    def start(self) -> None:
        """Start the thread that exports."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Send what waits, as far as *timeout_s* allows. What is not out by then is lost, and counted."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s / 2)
            if self._spans is not None:
                self._spans.close()  # whoever waits there to try again gives up
            self._thread.join(timeout_s / 2)
        if self._queue:
            self._metrics.traces.labels("closed").inc(len(self._queue))

    # -- everything below runs in the thread --------------------------------------------------------

    def _run(self) -> None:
        # Here and not above: loading it takes a moment, and no request needs to wait for that.
        from gateway.serving.spans import Spans

        self._spans = Spans(self._settings.url, self._about)
        while not self._stop.wait(_EXPORT_EVERY_S):
            self._send_all(self._spans)
        self._send_all(self._spans)

    def _send_all(self, spans: Spans) -> None:
        """Send what waits. What the collector does not take is not kept: more is to come."""
        while self._queue:
            traces = [self._queue.popleft() for _ in range(min(len(self._queue), _TRACES_AT_ONCE))]
            try:
                trouble = spans.send(traces)
            except Exception as error:  # of foreign code: the thread must live on
                trouble = repr(error)
            self._metrics.traces.labels("not_taken" if trouble else "exported").inc(len(traces))
            self._report(trouble)

    def _report(self, trouble: str) -> None:
        """Log the begin and the end of trouble once, not each lost trace."""
        if bool(trouble) != bool(self._trouble):
            if trouble:
                log.warning("traces are being dropped", extra={"endpoint": self._settings.url, "why": trouble})
            else:
                log.info("the collector takes traces again", extra={"was": self._trouble})
        self._trouble = trouble
