"""Every metric that the drift monitor exports, by name and label."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

_VERSION = ("model", "version")
_VARIANT = (*_VERSION, "variant")


class MonitorMetrics:
    """What the drift monitor exports. One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        feature = (*_VERSION, "feature")

        def gauge(name: str, text: str, labels: Iterable[str]) -> Gauge:
            return Gauge(name, text, tuple(labels), multiprocess_mode="mostrecent", registry=registry)

        self.window_rows = gauge("sluicegate_drift_window_rows", "Sampled rows in the compared window.", _VERSION)
        self.drifted_features = gauge("sluicegate_drift_features", "Features and outputs now found drifted.", _VERSION)
        self.alarms = gauge("sluicegate_drift_alarms", "Alarms of now, by what they are of.", (*_VERSION, "kind"))
        self.statistic = gauge("sluicegate_drift_statistic", "Test statistic.", (*feature, "test"))
        self.q_value = gauge("sluicegate_drift_q_value", "P-value after Benjamini-Hochberg.", feature)
        self.effect = gauge("sluicegate_drift_effect", "Effect size: KS distance or Cramer's V.", feature)
        self.drifted = gauge("sluicegate_drift_detected", "1 if the feature is found drifted, else 0.", feature)
        self.read_rows = Counter("sluicegate_monitor_rows", "Sample records read by the monitor.", registry=registry)
        self.log_bytes = gauge("sluicegate_sample_log_bytes", "Size of the sample log on this disk.", ())
        self.log_removed = Counter(
            "sluicegate_sample_log_removed_files",
            "Files removed from the sample log, by why: age, bytes (no room), unread (no room, and the monitor had not "
            "read it to its end).",
            ("reason",),
            registry=registry,
        )
        self.compacted_rows = Counter(
            "sluicegate_compacted_rows", "Sample records that were made Parquet.", registry=registry
        )
        self.rejected_lines = Counter(
            "sluicegate_compaction_rejected_lines",
            "Lines of the sample log that are no samples, found when it was made Parquet; they are kept aside.",
            registry=registry,
        )
        self.outside_share = gauge(
            "sluicegate_outside_ratio", "Share of the window's rows that are unlike all of the reference.", _VERSION
        )
        self.outside_bound = gauge(
            "sluicegate_outside_bound_ratio", "What that share exceeds by chance in one window of a thousand.", _VERSION
        )
        self.outside_outputs_share = gauge(
            "sluicegate_outside_outputs_ratio",
            "Share of the window's rows with an answer beyond all that the reference has of it.",
            _VERSION,
        )
        self.outside_outputs_bound = gauge(
            "sluicegate_outside_outputs_bound_ratio",
            "What that share of answers exceeds by chance in one window of a thousand.",
            _VERSION,
        )
        self.performance = gauge(
            "sluicegate_performance",
            "How good labelled predictions were: accuracy, f1, auc, rmse ...",
            (*_VARIANT, "metric"),
        )
        self.error_drift = gauge(
            "sluicegate_error_drift",
            "1 while a detector on the errors of labelled rows has found a change within its cool-down.",
            ("model", "version", "detector"),
        )
        self.label_coverage = gauge(
            "sluicegate_label_coverage", "Share of sampled rows that got a label while it was awaited.", _VARIANT
        )
        self.label_delay_s = gauge(
            "sluicegate_label_delay_seconds", "Time from a prediction to its label, 90th percentile.", _VARIANT
        )
        self.labels_read = Counter(
            "sluicegate_labels_read",
            "Labels read by the monitor, by what became of them; rows that were let go.",
            ("outcome",),
            registry=registry,
        )
        self.last_report_s = gauge(
            "sluicegate_drift_report_timestamp_seconds", "Unix time of the latest drift report.", ("model",)
        )
