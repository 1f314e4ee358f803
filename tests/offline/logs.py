"""A sample log and packages for tests of the monitor, written by the code that serving uses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE, Manifest, sha256_of
from gateway.offline.report import DriftDocument, parse
from gateway.samples.lines import to_lines
from gateway.samples.record import Sample
from gateway.samples.segments import SegmentWriter
from gateway.settings import MonitorSettings, PathSettings, SamplingSettings, Settings
from gateway.tensors import Signature


class Log:
    """One writing process; several of them make the log of several workers."""

    def __init__(self, settings: Settings, *, boot: str = "b1", max_bytes: int = 10**7) -> None:
        self._writer = SegmentWriter(settings.sample_log_path, boot, max_bytes=max_bytes, max_age_s=3600.0)

    def write(self, *samples: Sample) -> None:
        for sample in samples:
            lines = b"".join(to_lines(sample, 10_000))
            self._writer.write(sample.model, sample.version, sample.ts_ns, lines)

    def write_raw(self, model: str, version: str, ts_ns: int, lines: bytes) -> None:
        self._writer.write(model, version, ts_ns, lines)

    def close(self) -> None:
        self._writer.close()


def monitor_settings(models: Path, state: Path, **monitor: Any) -> Settings:
    """Of a log that is never too old: its rows are of a day of their own."""
    followed = MonitorSettings(**{"poll_s": 0.05, **monitor})
    return Settings(
        paths=PathSettings(models, state), monitor=followed, sampling=SamplingSettings(keep_s=0, max_log_bytes=0)
    )


def document(settings: Settings, model: str) -> DriftDocument:
    """The drift document of *model* as anybody would read it."""
    return parse(json.loads((settings.drift_path / f"{model}.json").read_bytes()))


def verdicts(settings: Settings, model: str, version: str = "1") -> dict[str, str]:
    """Column -> verdict."""
    found = next(found for found in document(settings, model).versions if found.version == version)
    return {column.name: column.verdict for column in found.columns}


def write_reference_package(
    models: Path, model: str, version: str, signature: Signature, columns: Mapping[str, Sequence[Any]]
) -> Path:
    """A package of which only manifest and reference are real; the monitor looks at nothing else."""
    target = models / model / version
    target.mkdir(parents=True)
    (target / MODEL_FILE).write_bytes(b"not read")
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), target / REFERENCE_FILE)
    files = {name: sha256_of(target / name) for name in (MODEL_FILE, REFERENCE_FILE)}
    (target / MANIFEST_FILE).write_bytes(Manifest(model, version, files, signature).to_json())
    return target
