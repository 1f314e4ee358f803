"""Drift documents as the monitor writes them."""

from __future__ import annotations

from pathlib import Path

from gateway.offline.drift import Rules
from gateway.offline.history import Alarm, AlarmRule, TopFeature
from gateway.offline.report import DriftDocument, VersionReport
from gateway.offline.windows import replace_file


def alarm(name: str, effect: float = 0.3) -> Alarm:
    top = (TopFeature("a", 0.4),)
    return Alarm(name, "input", 2, 3, 1, 2, 500, 400, "ks", effect, 1e-9, 1e-8, effect, "", top, ("p1", "p2"))


def write_drift(
    directory: Path,
    written_at: float,
    *,
    digest: str = "d1",
    version: str = "3",
    accuracy: str = "",
    adwin: str = "",
    tell: str = "alarm",
    **verdicts: str,
) -> None:
    """A drift document of the model iris, as the monitor writes it. verdicts: column -> verdict. accuracy: its verdict
    by labels. adwin: that of a detector on single errors, which may alarm or not."""
    alarms = tuple(alarm(name) for name, verdict in verdicts.items() if verdict == "drifted")
    quiet = tuple(name for name, verdict in verdicts.items() if verdict == "stable")
    report = VersionReport(version, digest, "stable", "", 500, 1, 2, 500, 500, (), alarms, quiet)
    metric = {"name": "accuracy", "verdict": accuracy, "value": 0.7, "mean": 0.9, "bound": 0.85}
    change = {"ts_ns": 2, "before": 0.1, "after": 0.4}
    detector = {"name": "adwin", "verdict": adwin, "reason": "", "rows": 500, "found": 1, "changes": [change]}
    by_labels = {"metrics": [metric] if accuracy else [], "detectors": [detector] if adwin else []}
    labels = {"versions": [{"version": version, **by_labels}], "detectors_alarm": tell == "alarm"}
    rules = Rules(100, 0.05, 0.08)
    document = DriftDocument(
        "iris", written_at, 1000, rules, (report,), AlarmRule(2, 3), performance=labels if accuracy or adwin else None
    )
    directory.mkdir(exist_ok=True)
    replace_file(directory / "iris.json", document.to_json(), sync=False)
