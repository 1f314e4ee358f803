"""Parts of the monitor that need packages which may not be there: without them it does all the rest."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.offline.compactor import Compactor
    from gateway.offline.past_hours import PastHours

log = logging.getLogger(__name__)

HISTORY_FOLDER = "history"


def compactor_of(settings: Settings) -> Compactor | None:
    """What makes old samples Parquet; None if that is switched off, or, with a warning, if pyarrow is missing."""
    if settings.monitor.compact_after_s == 0:
        return None
    try:
        from gateway.offline.compactor import Compactor
    except ImportError:
        log.warning("samples stay JSON Lines: making them Parquet needs pyarrow, install sluicegate[monitor]")
        return None
    return Compactor(settings.sample_log_path, settings.paths.models, after_s=settings.monitor.compact_after_s)


def past_hours_of(settings: Settings, clock: Callable[[], float]) -> PastHours | None:
    """What remembers columns by hour and day; None, with a warning, if datasketches is missing."""
    try:
        from gateway.offline.hours import Bounds
        from gateway.offline.past_hours import PastHours
    except ImportError:
        log.warning("there is no history of columns: it needs datasketches, install sluicegate[monitor]")
        return None
    monitor = settings.monitor
    bounds = Bounds(monitor.history_hours, monitor.history_days)
    folder = settings.monitor_path / HISTORY_FOLDER
    return PastHours(folder, bounds, monitor.history_max_bytes, clock=clock, dice=random.Random())
