"""What was counted per version since the gateway started, in all its workers, as the statistics extension tells it.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway import metric_files

# What was read so long ago is read anew.
_MAX_AGE_S = 1.0
_NAMES = (
    "sluicegate_requests",
    "sluicegate_request_duration_seconds",
    "sluicegate_cache",
    "sluicegate_queue_duration_seconds",
    "sluicegate_run_duration_seconds",
    "sluicegate_batch_rows",
)

# Samples of one version: the sum of each, a histogram's count as NAME_bucket.
_Sums = dict[str, float]


class Statistics:
    """Reads the metric files of all workers, those of dead ones too. One thread at a time.

    directory: of the metric files; None: there are none.
    """

    def __init__(self, directory: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._read: dict[tuple[str, str], _Sums] = {}
        self._read_s = -_MAX_AGE_S

    def of(self, model: str, version: str) -> dict[str, Any]:
        """One entry of ``model_stats``. Blocks on the disk, once a second."""
        if self._clock() - self._read_s >= _MAX_AGE_S:
            self._read_s = self._clock()
            self._read = self._sums()
        return _told(model, version, self._read.get((model, version)) or defaultdict(float))

    def _sums(self) -> dict[tuple[str, str], _Sums]:
        found: dict[tuple[str, str], _Sums] = defaultdict(lambda: defaultdict(float))
        if self._directory is not None:
            for sample, labels, value in metric_files.counted(self._directory, _NAMES):
                which = labels.get("outcome") or labels.get("result") or ""
                if sample == "sluicegate_requests_total" and which != "ok":
                    which = "failed"
                found[labels["model"], labels["version"]][f"{sample}:{which}"] += value
        return found


def _told(model: str, version: str, sums: _Sums) -> dict[str, Any]:
    runs = round(sums["sluicegate_batch_rows_bucket:"])

    def lasted(count: float, sample: str = "") -> dict[str, int]:
        return {"count": round(count), "ns": round(sums[f"{sample}_sum:"] * 1e9) if sample else 0}

    return {
        "name": model,
        "version": version,
        "inference_count": round(sums["sluicegate_batch_rows_sum:"]),
        "execution_count": runs,
        "inference_stats": {
            "success": lasted(sums["sluicegate_requests_total:ok"], "sluicegate_request_duration_seconds"),
            "fail": lasted(sums["sluicegate_requests_total:failed"]),
            "queue": lasted(runs, "sluicegate_queue_duration_seconds"),
            "compute_input": lasted(runs),
            "compute_infer": lasted(runs, "sluicegate_run_duration_seconds"),
            "compute_output": lasted(runs),
            "cache_hit": lasted(sums["sluicegate_cache_total:hit"] + sums["sluicegate_cache_total:shared"]),
            "cache_miss": lasted(sums["sluicegate_cache_total:miss"]),
        },
        "batch_stats": [],
    }
