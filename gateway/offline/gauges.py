"""The gauges of what was found for each version, and how they are taken back when the version is gone."""

from __future__ import annotations

import math

from gateway.metrics import MonitorMetrics
from gateway.offline.report import VersionReport

# Columns of a version that get metrics of their own; the drift document has them all.
_MAX_METRIC_COLUMNS = 100


class Gauges:
    """Shows version reports as metrics. Used by one thread."""

    def __init__(self, metrics: MonitorMetrics) -> None:
        self._metrics = metrics
        self._tests: dict[tuple[str, str, str], str] = {}  # that is shown of each column

    def show(self, model: str, found: VersionReport) -> None:
        """Set the gauges of one version."""
        metrics, version = self._metrics, found.version
        metrics.window_rows.labels(model, version).set(found.window_rows)
        metrics.drifted_features.labels(model, version).set(len(found.drifted))
        metrics.alarms.labels(model, version).set(len(found.alarms))
        if found.outside is not None:
            metrics.outside_share.labels(model, version).set(found.outside.share)
            metrics.outside_bound.labels(model, version).set(found.outside.bound)
        outputs_first = sorted(found.columns, key=lambda column: column.role == "input")
        for column in outputs_first[:_MAX_METRIC_COLUMNS]:
            labels = (model, version, column.name)
            metrics.drifted.labels(*labels).set(column.verdict == "drifted")
            metrics.q_value.labels(*labels).set(_or_nan(column.q))
            metrics.effect.labels(*labels).set(_or_nan(column.effect))
            shown = self._tests.get(labels)
            if shown is not None and shown != column.test:
                metrics.statistic.labels(*labels, shown).set(math.nan)
            if column.test:
                metrics.statistic.labels(*labels, column.test).set(_or_nan(column.statistic))
                self._tests[labels] = column.test

    def forget(self, model: str, version: str) -> None:
        """Nothing is found drifted any more of a version that is gone."""
        self._metrics.window_rows.labels(model, version).set(0)
        self._metrics.drifted_features.labels(model, version).set(0)
        self._metrics.alarms.labels(model, version).set(0)
        for labels in [labels for labels in self._tests if labels[:2] == (model, version)]:
            self._metrics.drifted.labels(*labels).set(0)
            del self._tests[labels]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
