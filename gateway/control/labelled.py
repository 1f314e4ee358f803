"""What the monitor counts of labels, read as a worker's counts are: cumulative, per arm of a split and revision."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import orjson

from gateway.control.status import WorkerStatus

_log = logging.getLogger(__name__)


class LabelCounts:
    """Reads the drift documents of this host. Used by one thread at a time; blocks on the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[tuple[int, int, int], list[WorkerStatus]]] = {}  # by what stat says of the file

    def of(self, model: str) -> list[WorkerStatus]:
        """One who counted, or nobody if there are no labels. Its name changes when its counts begin anew."""
        path = self._directory / f"{model}.json"
        try:
            found = os.stat(path)
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            known = self._known.get(model)
            if known is None or known[0] != stamp:
                known = self._known[model] = stamp, _counted(model, orjson.loads(path.read_bytes()))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("labels cannot be counted", extra={"path": str(path), "why": repr(error)})
            return []
        return known[1]


def _counted(model: str, document: dict[str, Any]) -> list[WorkerStatus]:
    section = document.get("performance")
    if not section or not section["arms"]:
        return []
    numbers = ("revision", "labelled", "correct")
    signals = [
        {"model": model, "variant": str(arm["variant"]), **{name: int(arm[name]) for name in numbers}}
        for arm in section["arms"]
    ]
    return [WorkerStatus({"boot": "labels", "pid": section["counter"], "slot": 0, "signals": signals}, age_s=0.0)]
