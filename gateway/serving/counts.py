"""What a worker counts per request, gathered in plain numbers and handed to the metrics ten times a second."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gateway.metrics import ServingMetrics
from gateway.serving.entry import Run

FLUSH_INTERVAL_S = 0.1


class Counts:
    """Counters of one worker. Everything but the constructor runs on the event loop."""

    def __init__(self, metrics: ServingMetrics, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._outcomes: dict[tuple[str, str, str, str], int] = defaultdict(int)
        self._failed_s: dict[tuple[str, str], float] = defaultdict(float)
        self._latencies: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
        self._runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        self._refused: dict[str, int] = defaultdict(int)
        self._fallbacks: dict[tuple[str, str, str, str], int] = defaultdict(int)
        # Children of labelled metrics, bound once: .labels() costs more than the increment.
        self._bound: dict[tuple[Any, ...], Any] = {}
        self._cache_results: dict[tuple[str, str, str], int] = defaultdict(int)
        # Ends of predictions by (model, version, variant): [answered, failed, latency sum], for the status document.
        self.totals: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])

    def latencies(self, model: str, version: str, variant: str, cache: str) -> list[float]:
        """Where the latencies in seconds of predictions answered with ok are put; emptied at each flush."""
        return self._latencies[(model, version, variant, cache)]

    def cache_results(self, model: str, version: str) -> dict[str, int]:
        """Predictions of a version by what the cache did, since the worker began, up to the last flush."""
        return {key[2]: count for key, count in self._cache_results.items() if key[:2] == (model, version)}

    def failed(self, model: str, version: str, variant: str, code: str, took_s: float) -> None:
        """One prediction was answered with an error after its version was chosen."""
        self._outcomes[(model, version, variant, code)] += 1
        self._failed_s[(model, version)] += took_s
        self.totals[(model, version, variant)][1] += 1

    def refused(self, code: str) -> None:
        """One request was answered with an error before a version was chosen."""
        self._refused[code] += 1

    def fell_back(self, model: str, version: str, variant: str, reason: str) -> None:
        """One prediction was taken from a variant to the default one."""
        self._fallbacks[(model, version, variant, reason)] += 1

    def breaker(self, model: str, variant: str, state: int) -> None:
        """A breaker is now closed (0), half-open (1) or open (2)."""
        self._child(self._metrics.breaker_state, (model, variant)).set(state)

    def queue_limit(self, model: str, version: str, rows: int) -> None:
        """So many rows may now wait for a run of a version."""
        self._child(self._metrics.queue_limit_rows, (model, version)).set(rows)

    def ran(self, model: str, version: str) -> Callable[[Run], None]:
        """Takes the runs of one version."""
        return self._runs[(model, version)].append

    def flush(self) -> None:
        """Hand everything gathered since the last flush to the metrics."""
        metrics = self._metrics
        for (model, version, variant, cache), latencies_s in self._latencies.items():
            if latencies_s:
                self._flush_answered((model, version, variant), cache, latencies_s)
                latencies_s.clear()
        # Times before counts: who reads meanwhile sees no count without its time.
        for version_of, took_s in self._failed_s.items():
            self._child(metrics.failed_s, version_of).inc(took_s)
        for labels, count in self._outcomes.items():
            self._child(metrics.requests, labels).inc(count)
        for code, count in self._refused.items():
            self._child(metrics.refused, (code,)).inc(count)
        for labels, count in self._fallbacks.items():
            self._child(metrics.fallbacks, labels).inc(count)
        for batch, runs in self._runs.items():
            self._flush_runs(batch, runs)
            runs.clear()
        self._outcomes.clear()
        self._failed_s.clear()
        self._refused.clear()
        self._fallbacks.clear()

    def _flush_answered(self, variant: tuple[str, str, str], cache: str, latencies_s: list[float]) -> None:
        metrics = self._metrics
        count, sum_s = len(latencies_s), sum(latencies_s)
        metrics.request_s.observe_many(self._child(metrics.request_s, variant), latencies_s)
        if cache == "hit":
            self._child(metrics.hit_s, variant[:2]).inc(sum_s)
        self._child(metrics.last_inference_s, variant[:2]).set(self._wall_clock())
        self._child(metrics.requests, (*variant, "ok")).inc(count)
        self._child(metrics.cache, (*variant[:2], cache)).inc(count)
        self._cache_results[(*variant[:2], cache)] += count
        total = self.totals[variant]
        total[0] += count
        total[2] += sum_s

    def _flush_runs(self, version: tuple[str, str], runs: list[Run]) -> None:
        metrics = self._metrics
        if runs:
            self._child(metrics.run_input_s, version).inc(sum([run.input_s for run in runs]))
        for metric, values in (
            (metrics.queue_s, [run.oldest_wait_s for run in runs]),
            (metrics.run_s, [run.run_s for run in runs]),
            (metrics.batch_rows, [float(run.rows) for run in runs]),
            (metrics.batch_requests, [float(run.requests) for run in runs]),
        ):
            if values:
                metric.observe_many(self._child(metric, version), values)
        reasons: dict[str, int] = defaultdict(int)
        for run in runs:
            reasons[run.reason] += 1
        for reason, count in reasons.items():
            self._child(metrics.batches, (*version, reason)).inc(count)

    def _child(self, metric: Any, labels: tuple[str, ...]) -> Any:
        key = (metric, labels)
        child = self._bound.get(key)
        if child is None:
            child = self._bound[key] = metric.labels(*labels)
        return child
