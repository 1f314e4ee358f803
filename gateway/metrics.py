"""Every metric that the gateway exports, by name, label and bucket; those of the monitor are in `metrics_monitor`.

Each process writes to its own files in one directory per boot (prometheus_client's multiprocess mode: the variable
PROMETHEUS_MULTIPROC_DIR must be set before this module is imported); `metric_files` makes one page of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway import metric_pages
from gateway.metric_kinds import BulkHistogram

# A tabular model answers in 0.1 ms to 10 ms; the upper end shows queueing.
LATENCY_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_VERSION = ("model", "version")
_VARIANT = ("model", "version", "variant")


class ServingMetrics:
    """What a worker counts. One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.requests = Counter(
            "sluicegate_requests",
            "Predictions answered, by outcome: ok or the code of the error.",
            (*_VARIANT, "outcome"),
            registry=r,
        )
        self.refused = Counter(
            "sluicegate_refused", "Requests answered with an error before a version was chosen.", ("code",), registry=r
        )
        self.api_key_requests = Counter(
            "sluicegate_api_key_requests",
            "Requests that came while API keys are asked for, by the public id of the key (empty: none that is known) "
            "and outcome: admitted, or the code of the refusal.",
            ("key", "outcome"),
            registry=r,
        )
        self.lowered_priorities = Counter(
            "sluicegate_lowered_priorities", "Requests that claimed more than their API key may.", ("key",), registry=r
        )
        self.request_s = BulkHistogram(
            "sluicegate_request_duration_seconds",
            "Time from the request's head to its answer, per prediction answered with ok.",
            _VARIANT,
            buckets=LATENCY_BUCKETS_S,
            registry=r,
        )
        self.failed_s = Counter(
            "sluicegate_failed_request_seconds",
            "Time from the request's head to its answer, summed over the predictions answered with an error.",
            _VERSION,
            registry=r,
        )
        self.hit_s = Counter(
            "sluicegate_cache_hit_seconds",
            "Time from the request's head to its answer, summed over the predictions answered from the cache.",
            _VERSION,
            registry=r,
        )
        self.last_inference_s = Gauge(
            "sluicegate_last_prediction_timestamp_seconds",
            "Unix time of the latest prediction answered with ok, to a tenth of a second.",
            _VERSION,
            multiprocess_mode="max",
            registry=r,
        )
        self.queue_s = BulkHistogram(
            "sluicegate_queue_duration_seconds",
            "Time that the oldest entry of a batch waited for its run.",
            _VERSION,
            buckets=LATENCY_BUCKETS_S,
            registry=r,
        )
        self.run_s = BulkHistogram(
            "sluicegate_run_duration_seconds",
            "Time of one run of the model.",
            _VERSION,
            buckets=LATENCY_BUCKETS_S,
            registry=r,
        )
        self.run_input_s = Counter(
            "sluicegate_run_input_seconds",
            "Of the time of the runs, what it took to put the inputs of their requests together.",
            _VERSION,
            registry=r,
        )
        self.batch_rows = BulkHistogram(
            "sluicegate_batch_rows", "Rows in one run of the model.", _VERSION, buckets=ROWS_BUCKETS, registry=r
        )
        self.batch_requests = BulkHistogram(
            "sluicegate_batch_requests", "Requests that share one run.", _VERSION, buckets=ROWS_BUCKETS, registry=r
        )
        self.batches = Counter(
            "sluicegate_batches",
            "Runs of the model, by why the batch left with the rows that it had: drained (nothing else waited), full, "
            "best_size, deadline, shape, alone.",
            (*_VERSION, "reason"),
            registry=r,
        )
        self.queue_limit_rows = Gauge(
            "sluicegate_queue_limit_rows",
            "Rows that may wait for a run of a version; of the worker where they are fewest.",
            _VERSION,
            multiprocess_mode="livemin",
            registry=r,
        )
        self.cache = Counter(
            "sluicegate_cache",
            "Predictions by what the cache did: hit, miss, shared (waited for an equal one), bypass.",
            (*_VERSION, "result"),
            registry=r,
        )
        self.cache_bytes = Gauge(
            "sluicegate_cache_bytes", "Bytes held by the prediction caches.", multiprocess_mode="livesum", registry=r
        )
        self.in_flight = Gauge(
            "sluicegate_in_flight_requests", "Predictions now in the workers.", multiprocess_mode="livesum", registry=r
        )
        self.in_flight_bytes = Gauge(
            "sluicegate_in_flight_bytes",
            "Bytes that predictions now inside the workers hold: bodies, and the tensors made of them.",
            multiprocess_mode="livesum",
            registry=r,
        )
        self.open_connections = Gauge(
            "sluicegate_open_connections",
            "Connections of clients now open, over all live workers.",
            multiprocess_mode="livesum",
            registry=r,
        )
        self.run_threads = Gauge(
            "sluicegate_run_threads",
            "Threads that may run models at once, over all live workers.",
            multiprocess_mode="livesum",
            registry=r,
        )
        self.samples = Counter("sluicegate_samples", "Predictions handed to the sample log.", ("model",), registry=r)
        self.samples_written = Counter(
            "sluicegate_samples_written", "Sample records written to the sample log, one per row.", registry=r
        )
        self.samples_dropped = Counter(
            "sluicegate_samples_dropped", "Sampled predictions that were not written.", ("reason",), registry=r
        )
        self.labels = Counter(
            "sluicegate_labels",
            "Labels that came, by what became of them: accepted, invalid, refused.",
            ("outcome",),
            registry=r,
        )
        self.traces = Counter(
            "sluicegate_traces", "Traced requests, by what became of their spans.", ("outcome",), registry=r
        )
        self.shadow_pairs = Counter(
            "sluicegate_shadow_pairs",
            "Answered requests that a shadow version has run too, with outputs that could be compared.",
            _VERSION,
            registry=r,
        )
        self.shadow_dropped = Counter(
            "sluicegate_shadow_dropped",
            "Copies for a shadow version that were not run: queue_full, busy (the worker had no room), not_warm, "
            "inputs_differ, resting (after a run that took too long), stopped, error.",
            ("model", "reason"),
            registry=r,
        )
        self.shadow_failed = Counter(
            "sluicegate_shadow_failed",
            "Copies that a shadow version failed on: error, timeout, invalid (not finite, or another shape).",
            (*_VERSION, "reason"),
            registry=r,
        )
        self.shadow_run_s = BulkHistogram(
            "sluicegate_shadow_run_duration_seconds",
            "Time of one run of a shadow version.",
            _VERSION,
            buckets=LATENCY_BUCKETS_S,
            registry=r,
        )
        self.flag_revision = Gauge(
            "sluicegate_flag_revision",
            "Flag revision that the slowest live worker has read.",
            multiprocess_mode="livemin",
            registry=r,
        )
        self.flag_store_age_s = Gauge(
            "sluicegate_flag_store_age_seconds",
            "Time since this host last heard from the flag store, by the worker that is furthest behind.",
            multiprocess_mode="livemax",
            registry=r,
        )
        self.versions_loaded = Gauge(
            "sluicegate_versions_loaded",
            "Loaded versions over all live workers.",
            multiprocess_mode="livesum",
            registry=r,
        )
        self.quarantined_versions = Gauge(
            "sluicegate_quarantined_versions",
            "Versions on the quarantine list, as the live workers have read it.",
            multiprocess_mode="livemax",
            registry=r,
        )
        self.load_failures = Counter(
            "sluicegate_version_load_failures", "Versions that could not be loaded or warmed.", _VERSION, registry=r
        )
        self.breaker_state = Gauge(
            "sluicegate_breaker_state",
            "Whether a variant other than the default one is asked: 0 closed, 1 half-open, 2 open; the worst worker's.",
            ("model", "variant"),
            multiprocess_mode="livemax",
            registry=r,
        )
        self.fallbacks = Counter(
            "sluicegate_fallbacks",
            "Predictions taken from a variant to the default one, by why: error, invalid, timeout, breaker, queue.",
            (*_VARIANT, "reason"),
            registry=r,
        )


class RolloutMetrics:
    """What control says of the rollouts that go on. One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, labels: Iterable[str]) -> Gauge:
            return Gauge(name, text, tuple(labels), multiprocess_mode="mostrecent", registry=registry)

        self.phase = gauge(
            "sluicegate_rollout_phase",
            "Phase of a model's newest rollout: 0 declared, 1 progressing, 2 paused, 3 promoting, 4 healthy, "
            "5 aborting, 6 rolled back.",
            ("model", "strategy"),
        )
        self.weight = gauge(
            "sluicegate_rollout_weight", "Share of traffic that a rollout gives its candidate.", ("model", "variant")
        )
        self.e_value = gauge(
            "sluicegate_rollout_evalue",
            "Evidence against the candidate; above the threshold of the signal, the rollout acts.",
            ("model", "signal"),
        )


class AuditMetrics:
    """What control counts and knows of the audit trail. One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, multiprocess_mode="mostrecent", registry=registry)

        self.seq = gauge("sluicegate_audit_seq", "Number of the newest audit row.")
        self.checkpoint_seq = gauge("sluicegate_audit_checkpoint_seq", "Audit row that the last checkpoint signed.")
        self.checkpoint_timestamp_s = gauge(
            "sluicegate_audit_checkpoint_timestamp_seconds", "Unix time of the last checkpoint of the audit."
        )
        self.failures = Counter(
            "sluicegate_audit_checkpoint_failures",
            "Checkpoints that could not be brought to their file or webhook, each try.",
            ("target",),
            registry=registry,
        )
        self.breaks = Counter(
            "sluicegate_audit_breaks",
            "Times that the audit trail did not go on from its checkpoint.",
            registry=registry,
        )
        self.break_glass = Counter(
            "sluicegate_break_glass", "Changes that went past the approvals by X-Break-Glass.", registry=registry
        )


class ControlMetrics:
    """What the control process counts. One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.webhook_deliveries = Counter(
            "sluicegate_webhook_deliveries",
            "Attempts by outcome, and events given_up; unsigned: its key is gone; gone: 410, and it was disabled.",
            ("outcome",),
            registry=registry,
        )
        self.webhook_lag_rows = Gauge(
            "sluicegate_webhook_lag_rows",
            "Audit rows that the webhook furthest behind has not been told of yet.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.refused_connections = Counter(
            "sluicegate_admin_refused_connections", "Connections beyond control.max_connections.", registry=registry
        )


class SupervisorMetrics:
    """What the supervisor counts and knows. One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.restarts = Counter(
            "sluicegate_process_restarts", "Children started again after they died.", ("role",), registry=registry
        )
        self.deaths_in_a_row = Gauge(
            "sluicegate_process_deaths_in_a_row",
            "How often a child died without having lived for supervisor.stable_after_s in between; from 2 on, a loop.",
            ("child",),
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.rolling_restarts = Counter(
            "sluicegate_rolling_restarts",
            "Restarts of all workers, by what became of them: done, stopped (a new worker was not ready), refused (the "
            "settings make no sense).",
            ("outcome",),
            registry=registry,
        )
        self.processors = Gauge(
            "sluicegate_processors",
            "Processors that this gateway may run on.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )


def process_registry() -> CollectorRegistry:
    """A registry for this process's metrics; the values live in the files that `metric_files` merges."""
    metric_pages.install()
    return CollectorRegistry()
