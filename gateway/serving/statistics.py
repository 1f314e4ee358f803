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
    "sluicegate_failed_request_seconds",
    "sluicegate_last_prediction_timestamp_seconds",
    "sluicegate_cache",
    "sluicegate_cache_hit_seconds",
    "sluicegate_run_input_seconds",
    "sluicegate_queue_duration_seconds",
    "sluicegate_run_duration_seconds",
    "sluicegate_batch_rows",
)

_LAST = "sluicegate_last_prediction_timestamp_seconds"

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
                sums, name = found[labels["model"], labels["version"]], f"{sample}:{which}"
                sums[name] = max(sums[name], value) if sample == _LAST else sums[name] + value
        return found


def _told(model: str, version: str, sums: _Sums) -> dict[str, Any]:
    runs = round(sums["sluicegate_batch_rows_bucket:"])
    input_s = sums["sluicegate_run_input_seconds_total:"]

    def lasted(count: float, seconds: float = 0.0) -> dict[str, int]:
        return {"count": round(count), "ns": round(seconds * 1e9)}

    return {
        "name": model,
        "version": version,
        "last_inference": round(sums[f"{_LAST}:"] * 1e3),
        "inference_count": round(sums["sluicegate_batch_rows_sum:"]),
        "execution_count": runs,
        "inference_stats": {
            "success": lasted(sums["sluicegate_requests_total:ok"], sums["sluicegate_request_duration_seconds_sum:"]),
            "fail": lasted(sums["sluicegate_requests_total:failed"], sums["sluicegate_failed_request_seconds_total:"]),
            "queue": lasted(runs, sums["sluicegate_queue_duration_seconds_sum:"]),
            "compute_input": lasted(runs, input_s),
            "compute_infer": lasted(runs, sums["sluicegate_run_duration_seconds_sum:"] - input_s),
            "compute_output": lasted(runs),  # outputs come out of a run as they are taken: nothing is left to do
            "cache_hit": lasted(sums["sluicegate_cache_total:hit"], sums["sluicegate_cache_hit_seconds_total:"]),
            "cache_miss": lasted(sums["sluicegate_cache_total:miss"] + sums["sluicegate_cache_total:shared"]),
        },
        "batch_stats": [],
    }
