"""A sample log and labels written by hand, and monitors that follow them by a clock of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gateway.labelling import LabelSettings
from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline.monitor import Monitor
from gateway.samples.labels import Label, LabelLog
from gateway.settings import MonitorSettings, PathSettings, Settings
from tests.builders import Linear, classifier
from tests.offline.logs import Log, document
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, linear_sample

SECOND_NS = 10**9
WAIT_S = 3600.0
IRIS = classifier()


def settings_in(root: Path, **labels: Any) -> Settings:
    return Settings(
        paths=PathSettings(root / "models", root / "state"),
        monitor=MonitorSettings(poll_s=0.05),
        labels=LabelSettings(**{"wait_s": WAIT_S, **labels}),
    )


class Rig:
    """A sample log and labels that are written by hand, and monitors that follow them by a clock of ours."""

    def __init__(self, root: Path, **labels: Any) -> None:
        self.settings = settings_in(root, **labels)
        self.clock = FakeClock(TEN_O_CLOCK_NS / 1e9)
        self.log = Log(self.settings)
        self.label_logs = [
            LabelLog(self.settings.sample_log_path, boot=f"w{index}", max_bytes=3000, max_age_s=3600)
            for index in range(2)
        ]
        self.monitor = self.start()

    def start(self) -> Monitor:
        self.registry = process_registry()
        return Monitor(self.settings, MonitorMetrics(self.registry), clock=self.clock)

    def restart(self) -> None:
        self.monitor.save()
        self.monitor = self.start()

    def kill(self) -> None:
        """A monitor that saved nothing since the last time."""
        self.monitor = self.start()

    def label(self, *labels: Label, worker: int = 0) -> None:
        for label in labels:
            self.label_logs[worker].append([label.to_line()], label.ts_ns)

    def run(self) -> None:
        while self.monitor.step():
            pass

    def section(self, model: str = "iris") -> dict[str, Any]:
        self.monitor.report()
        found = document(self.settings, model).performance
        assert found is not None
        return dict(found)

    def alarms(self, kind: str, model: str = "iris") -> float | None:
        """What the gauge says of version 1."""
        names = {"model": model, "version": "1", "kind": kind}
        return self.registry.get_sample_value("sluicegate_drift_alarms", names)

    def variant(self, model: str = "iris", variant: str = "stable") -> dict[str, Any]:
        return next(dict(each) for each in self.section(model)["variants"] if each["variant"] == variant)


def close(found: float | None, wanted: float) -> bool:
    return found is not None and abs(found - wanted) <= 1e-12


def label_all(rig: Rig, linear: Linear, rows: int, *, right: float, variant: str = "stable", **fields: Any) -> None:
    """Predictions of *linear*, and a label for each; a share of them is confirmed."""
    table = np.random.default_rng(7).normal(size=(rows, len(linear.features))).astype(np.float32)
    answers = linear.answer(table)
    for index, row in enumerate(table):
        name = f"{linear.model}-{linear.version}-{variant}-{index}"
        rig.log.write(linear_sample(row[np.newaxis], linear, prediction_id=name, variant=variant, **fields))
        if linear.classes is None:
            label: Any = float(answers["value"][index, 0]) - 2.0
        else:
            predicted = int(answers["label"][index])
            label = predicted if index < right * rows else (predicted + 1) % len(linear.classes)
        rig.label(Label(name, label, TEN_O_CLOCK_NS + 60 * SECOND_NS))
