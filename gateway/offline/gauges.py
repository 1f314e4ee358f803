"""The gauges of what was found for each version, and how they are taken back when the version is gone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gateway.metrics_monitor import MonitorMetrics
from gateway.offline import alarmed
from gateway.offline.report import VersionReport

# Columns of a version that get metrics of their own; the drift document has them all.
_MAX_METRIC_COLUMNS = 100


class Gauges:
    """Shows version reports as metrics. Used by one thread."""

    def __init__(self, metrics: MonitorMetrics) -> None:
        self._metrics = metrics
        self._tests: dict[tuple[str, str, str], str] = {}  # that is shown of each column
        self._flags: dict[tuple[str, str], set[Any]] = {}  # gauges that are 1 or 0, by model and version

    def show(self, model: str, found: VersionReport, performance: Mapping[str, Any] | None = None) -> None:
        """Set the gauges of one version. performance: that section of the model's document."""
        metrics, version = self._metrics, found.version
        metrics.window_rows.labels(model, version).set(found.window_rows)
        metrics.drifted_features.labels(model, version).set(len(found.drifted))
        for kind, count in alarmed.counts(found, performance).items():
            metrics.alarms.labels(model, version, kind).set(count)
        for share, bound, outside in (
            (metrics.outside_share, metrics.outside_bound, found.outside),
            (metrics.outside_outputs_share, metrics.outside_outputs_bound, found.outside_outputs),
        ):
            if outside is not None:
                share.labels(model, version).set(outside.share)
                bound.labels(model, version).set(outside.bound)
        outputs_first = sorted(found.columns, key=lambda column: column.role == "input")
        for column in outputs_first[:_MAX_METRIC_COLUMNS]:
            labels = (model, version, column.name)
            self._flag(metrics.drifted.labels(*labels), model, version, column.verdict)
            metrics.q_value.labels(*labels).set(_or_nan(column.q))
            metrics.effect.labels(*labels).set(_or_nan(column.effect))
            shown = self._tests.get(labels)
            if shown is not None and shown != column.test:
                metrics.statistic.labels(*labels, shown).set(math.nan)
            if column.test:
                metrics.statistic.labels(*labels, column.test).set(_or_nan(column.statistic))
                self._tests[labels] = column.test
        self._show_labels(model, version, alarmed.of_version(performance, version))

    def _show_labels(self, model: str, version: str, told: Mapping[str, Any]) -> None:
        """What labels say of one version: its metrics as if each were one more column, and its detectors."""
        for metric in told.get("metrics", ()):
            gauge = self._metrics.drifted.labels(model, version, f"{metric['name']} by labels")
            self._flag(gauge, model, version, metric["verdict"])
        for found in told.get("detectors", ()):
            gauge = self._metrics.error_drift.labels(model, version, found["name"])
            self._flag(gauge, model, version, found["verdict"])

    def _flag(self, gauge: Any, model: str, version: str, verdict: str) -> None:
        gauge.set(verdict == "drifted")
        self._flags.setdefault((model, version), set()).add(gauge)

    def forget(self, model: str, version: str) -> None:
        """Nothing is found drifted any more of a version that is gone."""
        self._metrics.window_rows.labels(model, version).set(0)
        self._metrics.drifted_features.labels(model, version).set(0)
        self._metrics.outside_share.labels(model, version).set(0)
        self._metrics.outside_outputs_share.labels(model, version).set(0)
        for kind in alarmed.KINDS:
            self._metrics.alarms.labels(model, version, kind).set(0)
        for gauge in self._flags.pop((model, version), ()):
            gauge.set(0)
        self._tests = {labels: test for labels, test in self._tests.items() if labels[:2] != (model, version)}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
