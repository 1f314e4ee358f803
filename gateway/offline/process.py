"""The monitor's process: each duty at its own pace, gently towards the workers, until it is told to stop."""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.offline import memory
from gateway.offline.monitor import Monitor
from gateway.settings import Settings

log = logging.getLogger(__name__)

_BEAT_S = 1.0
_TIDY_S = 60.0
_PRUNE_S = 10.0
_SAVE_S = 5.0
# Reports and saves rest this many times what they cost: however large the windows, that is 10 % of a core at most.
_REST = 10
# Compaction rests less, or a log that grows fast would stay as it is.
_COMPACT_S = 5.0
_COMPACT_REST = 2
# What the monitor spends on the backlog when it is told to stop.
_FINISH_S = 2.0


class _Schedule:
    """When something that costs processor time is due again: after *every_s*, or *rest* times what it cost if that is
    more.
    """

    def __init__(self, every_s: float, rest: float = _REST) -> None:
        self._every_s = every_s
        self._rest = rest
        self._due_at = 0.0
        self._is_first = True

    def is_due(self) -> bool:
        return time.monotonic() >= self._due_at

    def run(self, work: Callable[[], None]) -> None:
        spent_s = -time.thread_time()
        work()
        spent_s += time.thread_time()
        if self._is_first:  # libraries were loaded, which says nothing of the next time
            self._is_first, spent_s = False, 0.0
        self._due_at = time.monotonic() + max(self._every_s, self._rest * spent_s)


def run_monitor(
    settings: Settings, *, boot: str, run_dir: Path, report: Callable[[str], None], lifeline_fd: int
) -> None:
    """Follow the log until SIGTERM or SIGINT, then save and return; or until the end of file on *lifeline_fd*.

    Then the supervisor was killed, and the next one waits for us before it serves again: nothing is saved, which costs
    no more than reading on from an older watermark.
    Blocks; to be called in the main thread of a process of its own, which gives way to the workers (children.py).
    Calls report("ready") once and report("beat") each second. Raises what a broken disk raises when it starts;
    later it goes on trying.
    """
    stop_read_fd, stop_write_fd = os.pipe()
    os.set_blocking(stop_write_fd, False)

    def stop(_signal: int, _frame: object) -> None:
        os.write(stop_write_fd, b"x")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    memory.keep_small(without_pandas=not settings.labels.detectors)
    monitor = Monitor(settings, MonitorMetrics(process_registry()))
    log.info("following the sample log", extra={"boot": boot, "log": str(settings.sample_log_path)})
    report("ready")
    compact_s = min(_COMPACT_S, settings.monitor.compact_after_s or _COMPACT_S)
    _follow(monitor, settings.monitor.poll_s, compact_s, report, (stop_read_fd, lifeline_fd))
    if select.select((lifeline_fd,), [], [], 0.0)[0]:
        log.warning("the supervisor is gone; the monitor leaves as it stands")
    else:
        _finish(monitor)
    os.close(stop_read_fd)
    os.close(stop_write_fd)


def _finish(monitor: Monitor) -> None:
    """Read the last rows of workers that have just left, report, save; what cannot be done now is done next time."""
    deadline = time.monotonic() + _FINISH_S
    try:
        while monitor.step() and time.monotonic() < deadline:
            pass
        monitor.report()
        monitor.save()
    except OSError as error:
        log.warning("the monitor's memory is not saved; it will read these rows again", extra={"error": str(error)})


def _follow(
    monitor: Monitor, poll_s: float, compact_s: float, report: Callable[[str], None], stop_fds: tuple[int, int]
) -> None:
    """The main loop: read, report, save, compact, each at its own pace, until *stop_fds* have something to say."""
    reports, saves, tidying, beats = _Schedule(poll_s), _Schedule(_SAVE_S), _Schedule(_TIDY_S), _Schedule(_BEAT_S)
    pruning = _Schedule(_PRUNE_S)
    compactions = _Schedule(compact_s, _COMPACT_REST)

    def go_on() -> bool:
        if beats.is_due():
            beats.run(lambda: report("beat"))
        return not select.select(stop_fds, [], [], 0.0)[0]

    trouble = ""
    pause_s = 0.0
    while not select.select(stop_fds, [], [], pause_s)[0]:
        has_more = False
        try:
            has_more = monitor.step()
            if monitor.has_reports_due and reports.is_due():
                reports.run(monitor.report)
            if monitor.has_unsaved and saves.is_due():
                saves.run(monitor.save)
            if tidying.is_due():
                tidying.run(monitor.tidy)
            if pruning.is_due():
                pruning.run(monitor.prune)
            if compactions.is_due():
                compactions.run(lambda: monitor.compact(go_on))
            trouble = ""
        except OSError as error:  # a full or broken disk: nothing is lost, since the log is read on from the watermark
            if str(error) != trouble:
                log.warning("the monitor cannot go on for now", extra={"error": str(error)})
            trouble = str(error)
        if beats.is_due():
            beats.run(lambda: report("beat"))
        pause_s = 0.0 if has_more else min(poll_s, _BEAT_S)
