"""The drift monitor: it follows the sample log and says which columns no longer look like the reference.

It only reads what serving writes and writes files that others may read, so it can lag, crash or be killed without
anybody noticing but the reader of its reports.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from gateway.errors import PackageInvalid
from gateway.metrics_monitor import MonitorMetrics
from gateway.models.manifest import NAME_PATTERN, VERSION_PATTERN
from gateway.offline.beside import Besides
from gateway.offline.chunks import Chunk, Taken, of_lines
from gateway.offline.cuts import Cut
from gateway.offline.drift import Column, ColumnDrift, Rules, compare
from gateway.offline.gauges import Gauges
from gateway.offline.history import AlarmRule, alarms, judged, timeline
from gateway.offline.measures import measure
from gateway.offline.optional import compactor_of, past_hours_of
from gateway.offline.outside import outside_of
from gateway.offline.past import PastReader
from gateway.offline.performance import Performance
from gateway.offline.reference import Reference, columns_of, load_reference
from gateway.offline.report import DriftDocument, VersionReport, status_of
from gateway.offline.together import Fit, Together
from gateway.offline.windows import Memory, Window, load_memory, replace_file
from gateway.redaction import parse_setting
from gateway.samples.retention import Retention
from gateway.samples.segments import SegmentReader, Watermark, version_in
from gateway.settings import Settings

log = logging.getLogger(__name__)

MEMORY_FILE = "memory.json"

# What one step reads at most (some 0.1 s of work), so that it beats and reports while it catches up.
_STEP_BYTES = 4 * 1024 * 1024
# Finished windows that are not judged yet take so much memory at most.
_MAX_UNJUDGED_BYTES = 32 * 1024 * 1024
# A package without a reference is looked at again, since it may be on its way.
_RETRY_S = 10.0


class Monitor:
    """Follows one sample log. Used by one thread; the caller decides when a step is due."""

    def __init__(self, settings: Settings, metrics: MonitorMetrics, *, clock: Callable[[], float] = time.time) -> None:
        """Read the memory of an earlier monitor, if there is one. Raises OSError."""
        self._settings = settings
        self._rules = Rules(
            settings.monitor.min_window_rows, settings.monitor.max_false_discovery_rate, settings.monitor.min_effect
        )
        self._alarm_rule = AlarmRule(settings.monitor.alarm_drifted_windows, settings.monitor.alarm_windows)
        self._window_ns = int(settings.monitor.window_s * 1e9)
        self._metrics = metrics
        self._gauges = Gauges(metrics)
        self._clock = clock
        self._memory_path = settings.monitor_path / MEMORY_FILE
        self._besides = Besides(settings.monitor.window_rows)
        self._past_hours = past_hours_of(settings, clock)
        self._memory = self._remember()
        watermark = self._memory.watermark
        self._past = PastReader(settings.sample_log_path, watermark, is_new=not self._memory.windows)
        self._reader = SegmentReader(settings.sample_log_path, watermark, clock=clock)
        self._saved = Watermark(dict(watermark.offsets), dict(watermark.finished))
        self._compactor = compactor_of(settings)
        self._redact = parse_setting(settings.sampling.redact)
        self._performance = Performance(
            settings.labels,
            models=settings.paths.models,
            sample_log=settings.sample_log_path,
            memory=settings.monitor_path,
            metrics=metrics,
            clock=clock,
            redact=self._redact,
        )
        self._references: dict[tuple[str, str], Reference | str] = {}  # or why there is none
        sampling = settings.sampling
        self._retention = Retention(settings.sample_log_path, sampling.keep_s, sampling.max_log_bytes, clock)
        self._fits: dict[tuple[str, str], tuple[Reference | str, Fit | str]] = {}
        self._retry_at: dict[tuple[str, str], float] = {}
        self._changed = {model for model, _version in self._memory.windows}
        self._unsaved_rows = 0
        self._is_dirty = False

    @property
    def has_reports_due(self) -> bool:
        """Whether rows or labels came in since the last report."""
        return bool(self._changed or self._performance.changed)

    @property
    def has_unsaved(self) -> bool:
        """Whether something was read since the memory was saved."""
        return self._is_dirty or self._performance.has_unsaved

    def step(self) -> bool:
        """Read what is new, up to a bound; returns whether there may be more. Raises OSError."""
        self._performance.begin()
        is_held = self._performance.is_full  # until it has read the labels of the rows that it has
        segments = () if is_held else self._read_segments()
        for relative, taken in chain(self._past.read(_STEP_BYTES), segments):
            self._is_dirty = True
            bad_lines = taken.bad_lines + sum(map(self._take, taken.chunks))
            if bad_lines:
                log.warning("lines that are no samples", extra={"file": relative, "lines": bad_lines})
        has_more = is_held or self._reader.has_more or not self._past.is_read
        self._finish_windows(is_all_read=not has_more)
        has_labels_left = self._performance.step(self._reader.watermark.offsets, has_more=has_more)
        return has_more or has_labels_left

    def report(self) -> None:
        """Write the drift documents of all models whose windows changed. Raises OSError."""
        self._changed |= self._performance.changed
        self._performance.changed.clear()
        for model in sorted(self._changed):
            versions = tuple(
                self._examine(model, version)
                for name, version in sorted(self._memory.windows)
                if name == model and (model, version) in self._memory.windows
            )
            now = self._clock()
            monitor = self._settings.monitor
            performance = self._performance.section(model)
            document = DriftDocument(
                model,
                now,
                monitor.window_rows,
                self._rules,
                versions,
                self._alarm_rule,
                monitor.window_s,
                performance,
            )
            replace_file(self._document_path(model), document.to_json(), sync=False)
            for found in versions:
                self._gauges.show(model, found, performance)
            self._metrics.last_report_s.labels(model).set(now)
        self._changed.clear()

    def save(self) -> None:
        """Make what was read survive a kill. Raises OSError."""
        for model, version in self._memory.windows:
            self._judge_all(model, version)
        self._memory.watermark = self._reader.watermark
        self._memory.besides = self._besides.to_plain()
        if self._past_hours is not None:
            self._memory.past_hours = self._past_hours.save()
        self._memory.save(self._memory_path)
        if self._past_hours is not None:
            self._past_hours.sweep()
        self._saved = Watermark(dict(self._reader.watermark.offsets), dict(self._reader.watermark.finished))
        self._performance.save()
        self._is_dirty = False
        # Only now: after a kill, rows that were not saved are read, and counted, again.
        self._metrics.read_rows.inc(self._unsaved_rows)
        self._unsaved_rows = 0

    def tidy(self) -> None:
        """Forget finished hours of the log, and versions whose package is gone. Raises OSError."""
        if self._past.is_read:
            self._reader.forget_finished()
        self._performance.tidy()
        models = self._settings.paths.models
        if not models.is_dir():
            return
        for model, version in list(self._memory.windows):
            if not (models / model / version).is_dir():
                del self._memory.windows[model, version]
                self._references.pop((model, version), None)
                self._fits.pop((model, version), None)
                self._besides.forget(model, version)
                if self._past_hours is not None:
                    self._past_hours.forget(model, version)
                self._gauges.forget(model, version)
                self._changed.add(model)
                self._is_dirty = True
        watched = {model for model, _version in self._memory.windows}
        for model in self._changed - watched:
            self._document_path(model).unlink(missing_ok=True)
        self._changed &= watched

    def prune(self) -> None:
        """Remove from the log what its bounds do not allow. Raises OSError."""
        if self.has_unsaved:
            self.save()  # what is removed must not have to be read again
        removed = self._retention.apply(lambda name: self._reader.has_read(name) and self._performance.has_read(name))
        for reason, files in removed.files.items():
            if files:
                self._metrics.log_removed.labels(reason).inc(files)
        if removed.files["unread"]:
            log.warning(
                "the sample log is larger than it may be; rows that the monitor has not read are gone",
                extra={"files": removed.files["unread"], "max_log_bytes": self._retention.max_bytes},
            )
        self._metrics.log_bytes.set(removed.log_bytes)

    def compact(self, go_on: Callable[[], bool]) -> None:
        """Make some of what was read Parquet, if that is due. go_on: see `Compactor.step`. Raises OSError."""
        # What was read but not saved would be read again after a kill: it must still be there then.
        if self._compactor is not None and self._past.is_read:
            by_labels = self._performance.saved
            # A first label may come for every row that is younger than labels may be late: it looks for it in segments.
            min_age_s = self._settings.labels.wait_s if by_labels is None else 0.0
            done = self._compactor.step(self._saved, go_on, also_read=by_labels, min_age_s=min_age_s)
            if done is not None:
                self._metrics.compacted_rows.inc(done.rows)
                self._metrics.rejected_lines.inc(done.rejected_lines)
                if done.rejected_lines:
                    log.warning("lines that are no samples are kept aside", extra={"lines": done.rejected_lines})

    # -- the parts of a step ---------------------------------------------------------------------------

    def _remember(self) -> Memory:
        try:
            memory = load_memory(
                self._memory_path, limit_rows=self._settings.monitor.window_rows, window_ns=self._window_ns
            )
            self._besides.restore(memory.besides)
            if self._past_hours is not None:
                self._past_hours.restore(memory.past_hours)
            return memory
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            # The log is still there: reading it again from its start gives the same windows.
            log.warning("the monitor's memory cannot be read; reading the whole log again", extra={"error": str(error)})
            if self._past_hours is not None:
                self._past_hours = past_hours_of(self._settings, self._clock)  # it may have taken back a part
            return Memory()

    def _read_segments(self) -> Iterator[tuple[str, Taken]]:
        """(relative file, rows of it) of what is new in segments, up to a bound; the join with labels has them, too."""
        for relative, block in self._reader.read(_STEP_BYTES):
            taken = self._columns(relative, block)
            self._performance.take(relative, self._reader.watermark.offsets[relative], block, taken)
            yield relative, taken

    def _columns(self, relative: str, block: bytes) -> Taken:
        """The rows of some lines of a segment."""
        window = self._memory.windows.get(version_in(relative))
        if window is not None and window.shape:  # without a reference there may be no pyarrow
            from gateway.offline.batches import of_usual_lines

            by_labels = self._performance.is_used
            usual = of_usual_lines(block, *version_in(relative), window.shape, for_labels=by_labels)
            # Of another package other columns may be wanted.
            if usual is not None and all(chunk.digest == window.digest for chunk in usual.chunks):
                return usual
        return of_lines(block)

    def _take(self, chunk: Chunk) -> int:
        """Put rows into their window; returns how many could not be."""
        try:
            window, start = self._window(chunk)
        except ValueError:
            return len(chunk)
        rows = chunk.rows(window.shape).part(start, len(chunk))
        if len(rows):
            window.add(rows)
            self._besides.take(chunk, rows, self._reference)
            if self._past_hours is not None:
                self._past_hours.take(chunk, rows)
            self._unsaved_rows += len(rows)
            self._changed.add(chunk.model)
        return 0

    def _window(self, chunk: Chunk) -> tuple[Window, int]:
        """The window that rows belong to, from which of them on: the others are of a package that has been replaced.

        Raises ValueError if these are no names of a model and a version.
        """
        key = (chunk.model, chunk.version)
        window = self._memory.windows.get(key)
        if window is None:
            if not (NAME_PATTERN.fullmatch(chunk.model) and VERSION_PATTERN.fullmatch(chunk.version)):
                raise ValueError("neither may lead out of the directories that they name files in")
            window = Window(self._settings.monitor.window_rows, chunk.digest, window_ns=self._window_ns)
            window.restart(chunk.digest, self._reference(*key))
            self._memory.windows[key] = window
        elif window.digest != chunk.digest:
            newer = np.flatnonzero(chunk.ts_ns >= window.newest_ts_ns())
            if not newer.size:
                return window, len(chunk)
            self._references.pop(key, None)
            window.restart(chunk.digest, self._reference(*key))
            return window, int(newer[0])
        return window, 0

    def _reference(self, model: str, version: str) -> Reference | None:
        key = (model, version)
        known = self._references.get(key)
        if known is None or (isinstance(known, str) and self._clock() >= self._retry_at[key]):
            try:
                known = load_reference(self._settings.paths.models / model / version, self._redact)
            except PackageInvalid as error:
                known = str(error)
                self._retry_at[key] = self._clock() + _RETRY_S
            self._references[key] = known
        return None if isinstance(known, str) else known

    def _finish_windows(self, *, is_all_read: bool) -> None:
        """Set finished windows aside, to be judged when somebody asks for what was found in them."""
        if beside := self._besides.finish(self._rules, self._reference):
            self._changed |= beside
            self._is_dirty = True
        clock_ns = int(self._clock() * 1e9)
        for (model, version), window in self._memory.windows.items():
            cuts = window.cut(clock_ns, is_all_read=is_all_read)
            reference = self._reference(model, version) if cuts else None
            if reference is None or not window.has_columns_of(reference):
                continue
            self._judge(window, reference, window.set_aside(cuts, _MAX_UNJUDGED_BYTES))
            self._changed.add(model)
            self._is_dirty = True

    def _judge_all(self, model: str, version: str) -> None:
        """Have what was found in all finished windows."""
        window, reference = self._memory.windows[model, version], self._reference(model, version)
        if reference is not None and window.has_columns_of(reference):
            self._judge(window, reference, window.set_aside((), 0))

    def _judge(self, window: Window, reference: Reference, cuts: Sequence[Cut]) -> None:
        for cut in cuts:
            window.finish(judged(columns_of(reference, cut.rows), cut, self._rules))

    def _examine(self, model: str, version: str) -> VersionReport:
        """Compare one version's window with its reference."""
        window = self._memory.windows[model, version]
        reference = self._reference(model, version)
        if reference is not None and not window.has_columns_of(reference):
            window.restart(window.digest, reference)  # the reference came, or changed, after the first rows
        self._judge_all(model, version)
        rows = window.rows()
        found: tuple[ColumnDrift, ...] = ()
        columns: list[Column] = []
        if reference is not None:
            columns = columns_of(reference, rows)
            found = tuple(
                replace(drift, measures=measure(column))
                for drift, column in zip(compare(columns, self._rules), columns, strict=True)
            )
            status, reason = status_of(found)
        else:
            status, reason = "no reference", str(self._references[model, version])
        courses = None
        if reference is not None and self._past_hours is not None:
            effects = {column.name: column.effect for column in found}
            courses = self._past_hours.courses(model, version, reference, effects)
        as_one, ids = self._together(model, version, columns), rows.ids.tolist()
        alarmed, quiet = alarms(window.history, self._alarm_rule)
        return VersionReport(
            version,
            window.digest,
            status,
            reason,
            window_rows=len(rows),
            window_from_ns=int(rows.ts_ns[0]) if len(rows) else 0,
            window_to_ns=int(rows.ts_ns[-1]) if len(rows) else 0,
            rows_total=window.rows_total,
            reference_rows=reference.rows if reference is not None else 0,
            columns=found,
            alarms=tuple(alarmed),
            quiet=tuple(quiet),
            late_rows=window.uncut.late_rows,
            timeline=timeline(window.history),
            together=None if isinstance(as_one, str) else as_one,
            beside=self._besides.examine(model, version, self._rules, self._alarm_rule, self._reference),
            outside=outside_of(columns, ids),
            outside_outputs=outside_of(columns, ids, "output"),
            courses=courses,
            together_reason=as_one if isinstance(as_one, str) else "",
        )

    def _together(self, model: str, version: str, columns: Sequence[Column]) -> Together | str:
        """All features as one figure, or why there is none; "" without features."""
        features = [column for column in columns if column.role == "input"]
        if not features:
            return ""
        if (rows := len(features[0].current)) < self._rules.min_rows:
            return f"insufficient rows: the window has {rows} rows of at least {self._rules.min_rows}"
        reference = self._references[model, version]
        known = self._fits.get((model, version))
        if known is None or known[0] is not reference:
            fit: Fit | str
            try:
                fit = Fit(features)
            except ValueError as error:
                fit = str(error)
            self._fits[model, version] = known = (reference, fit)
        return known[1] if isinstance(known[1], str) else known[1].judge(features)

    def _document_path(self, model: str) -> Path:
        return self._settings.drift_path / f"{model}.json"
