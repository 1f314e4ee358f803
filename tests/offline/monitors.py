"""Monitors that are started and run by hand, and rows that are like the reference or are not."""

from __future__ import annotations

from typing import Any

import numpy as np

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline.monitor import Monitor
from gateway.samples.record import Sample
from gateway.settings import Settings
from gateway.tensors import Array
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample

OUTPUTS = {"label", "probabilities.0", "probabilities.1", "probabilities.2"}


def start(settings: Settings, clock: FakeClock | None = None) -> Monitor:
    return Monitor(settings, MonitorMetrics(process_registry()), clock=clock or FakeClock(TEN_O_CLOCK_NS / 1e9))


def run(monitor: Monitor) -> None:
    """Read all there is, then report."""
    while monitor.step():
        pass
    monitor.report()


def clean(seed: int = 1, rows: int = 300) -> Array:
    return iris_rows(rows, seed)


def shifted(seed: int = 2, rows: int = 300) -> Array:
    table = iris_rows(rows, seed)
    table[:, 1] += 1.0
    return table


def samples(table: Array, *, start_row: int = 0, **fields: Any) -> list[Sample]:
    """One request per row, one second apart."""
    return [
        linear_sample(
            row[np.newaxis],
            **{"prediction_id": f"p{index:06d}", "ts_ns": TEN_O_CLOCK_NS + index * 10**9, **fields},
        )
        for index, row in enumerate(table, start_row)
    ]
