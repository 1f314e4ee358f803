"""What a worker counts per request, gathered in plain numbers and handed to the metrics ten times a second."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gateway.metrics import ServingMetrics
from gateway.serving.batcher import Run

FLUSH_INTERVAL_S = 0.1


class Counts:
    """Counters of one worker. Everything but the constructor runs on the event loop."""

    def __init__(self, metrics: ServingMetrics) -> None:
        self._metrics = metrics
        self._outcomes: dict[tuple[str, str, str, str], int] = defaultdict(int)
        self._latencies: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._caches: dict[tuple[str, str, str], int] = defaultdict(int)
        self._runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        self._refused: dict[str, int] = defaultdict(int)
        # Children of labelled metrics, bound once: .labels() costs more than the increment.
        self._bound: dict[tuple[Any, ...], Any] = {}
        # Ends of predictions by (model, version, variant): [answered, failed, latency sum], for the status document.
        self.totals: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])

    def answered(self, model: str, version: str, variant: str, cache: str, latency_s: float) -> None:
        """One prediction was answered with ok."""
        self._outcomes[(model, version, variant, "ok")] += 1
        self._latencies[(model, version, variant)].append(latency_s)
        self._caches[(model, version, cache)] += 1
        total = self.totals[(model, version, variant)]
        total[0] += 1
        total[2] += latency_s

    def failed(self, model: str, version: str, variant: str, code: str) -> None:
        """One prediction was answered with an error after its version was chosen."""
        self._outcomes[(model, version, variant, code)] += 1
        self.totals[(model, version, variant)][1] += 1

    def refused(self, code: str) -> None:
        """One request was answered with an error before a version was chosen."""
        self._refused[code] += 1

    def ran(self, model: str, version: str) -> Callable[[Run], None]:
        """Takes the runs of one version."""
        return self._runs[(model, version)].append

    def flush(self) -> None:
        """Hand everything gathered since the last flush to the metrics."""
        metrics = self._metrics
        for labels, count in self._outcomes.items():
            self._child(metrics.requests, labels).inc(count)
        for version, latencies in self._latencies.items():
            observe = self._child(metrics.request_s, version).observe
            for latency_s in latencies:
                observe(latency_s)
        for result, count in self._caches.items():
            self._child(metrics.cache, result).inc(count)
        for code, count in self._refused.items():
            self._child(metrics.refused, (code,)).inc(count)
        for batch, runs in self._runs.items():
            self._flush_runs(batch, runs)
            runs.clear()
        for gathered in (self._outcomes, self._latencies, self._caches, self._refused):
            gathered.clear()

    def _flush_runs(self, version: tuple[str, str], runs: list[Run]) -> None:
        metrics = self._metrics
        for run in runs:
            self._child(metrics.queue_s, version).observe(run.oldest_wait_s)
            self._child(metrics.run_s, version).observe(run.run_s)
            self._child(metrics.batch_rows, version).observe(run.rows)
            self._child(metrics.batch_requests, version).observe(run.requests)

    def _child(self, metric: Any, labels: tuple[str, ...]) -> Any:
        key = (metric, labels)
        child = self._bound.get(key)
        if child is None:
            child = self._bound[key] = metric.labels(*labels)
        return child
