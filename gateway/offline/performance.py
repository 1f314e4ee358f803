"""How good the predictions were, once their labels have come: sample log and labels followed, and summed up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import InvalidInput
from gateway.labelling import LabelSettings, parse_detectors
from gateway.metrics_monitor import MonitorMetrics
from gateway.models.manifest import version_order
from gateway.offline.awaited import Awaited, since_ns
from gateway.offline.chunks import Taken
from gateway.offline.decay import Decay
from gateway.offline.detectors import Watches
from gateway.offline.groups import Group, count_unknown, newest, told_of
from gateway.offline.join import Join, Waiting
from gateway.offline.scores import Judged
from gateway.offline.targets import Target, Targets, UnknownClass
from gateway.offline.windows import replace_file
from gateway.redaction import Rules
from gateway.samples.labels import LabelMark, LabelReader, from_line
from gateway.samples.segments import SegmentReader, Watermark

log = logging.getLogger(__name__)

SCHEMA = 1
MEMORY_FILE = "labels.json"

# What one step reads of each log at most.
_STEP_BYTES = 2 * 1024 * 1024
# Counts of a release that are kept per model: those of its newest revisions.
_MAX_ARMS = 64

_Key = tuple[str, str, str]  # model, version, variant
_Arm = tuple[str, str, str, int]  # and revision of the route


class Performance:
    """Follows sample log and labels. Used by one thread; has a memory of its own: a kill repeats and loses nothing.

    Until the first label has come it reads nothing.
    """

    # Set by _forget, and by _remember.
    _since_ns: int | None  # rows before this time cannot have labels; None before the first label
    _counter: str  # names the counts of _arms: when they begin anew, it is another one
    _rows: SegmentReader
    _labels: LabelReader
    _join: Join
    _groups: dict[_Key, Group]
    _decays: dict[tuple[str, str], Decay]  # by model and version
    _watches: Watches
    _arms: dict[_Arm, list[int]]  # labelled predictions of a split, and how many of them were right
    saved: Watermark | None  # what of the sample log it has read for good; None before the first label

    def __init__(
        self,
        settings: LabelSettings,
        *,
        models: Path,
        sample_log: Path,
        memory: Path,
        metrics: MonitorMetrics,
        clock: Callable[[], float] = time.time,
        redact: Mapping[str, Rules] | None = None,
    ) -> None:
        """memory: the directory of its memory. redact: what the settings hide in the log, by model. Raises OSError."""
        self._settings = settings
        self._models = models
        self._log = sample_log
        self._path = memory / MEMORY_FILE
        self._metrics = metrics
        self._clock = clock
        self._targets = Targets(models, clock=clock, redact=redact)
        self._forget()
        try:
            self._remember()
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the memory of labels cannot be read; reading all again", extra={"error": str(error)})
            self._forget()
        self._told = dict(self._join.counts)
        self.changed = {model for model, _version, _variant in self._groups}
        self.has_unsaved = False

    # -- following ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Know from when on rows are awaited, if a first label has come. Raises OSError."""
        if self._since_ns is None:
            self._since_ns = since_ns(self._log, self._settings.wait_s)

    @property
    def is_used(self) -> bool:
        """Whether there are labels."""
        return self._since_ns is not None

    @property
    def is_full(self) -> bool:
        """Whether no more rows can wait before all labels are read, which `step` does."""
        return self._join.is_full

    def take(self, relative: str, end: int, block: bytes, taken: Taken) -> None:
        """Have rows wait that somebody else has just read: whole lines of a segment, up to the byte *end*.

        taken: the same as columns. If these lines are not the next ones for us, they are left to `step`, or were read
        by it.
        """
        watermark = self._rows.watermark
        is_next = watermark.offsets.get(relative, 0) == end - len(block) and not self._rows.has_read(relative)
        if self.is_used and is_next:
            self._awaited().take_block(block, taken)
            watermark.offsets[relative] = end
            self.has_unsaved = True

    def step(self, read: Mapping[str, int], *, has_more: bool) -> bool:
        """Read what is new, up to a bound; returns whether there may be more. Raises OSError.

        read: bytes of segments that somebody has read who hands them to `take`; has_more: and will go on to read. What
        of these was not taken is read here.
        """
        if self._since_ns is None:
            return False
        offsets = self._rows.watermark.offsets
        is_behind = any(offsets.get(name, 0) < end for name, end in read.items())
        rows_left = has_more or is_behind
        if not self.is_full and (is_behind or not has_more):  # also to see that segments have ended
            rows_left = self._read_rows() or has_more
        # A label comes after its row, so rows are read first, unless no more of them can wait.
        labels_left = (not rows_left or self._join.is_full) and self._read_labels()
        if not labels_left and (not rows_left or self._join.is_full):
            now_ns = int(self._clock() * 1e9)
            self._settle_all(self._join.over(now_ns))
            if not rows_left:
                self._join.forget_early(now_ns)
        return rows_left or labels_left

    def _read_rows(self) -> bool:
        read_bytes = 0
        for _relative, block in self._rows.read(_STEP_BYTES):
            read_bytes += len(block)
            self._awaited().take_lines(block)
        self.has_unsaved |= read_bytes > 0
        return self._rows.has_more

    def _awaited(self) -> Awaited:
        feature = self._settings.slice_feature
        return Awaited(self._targets, self._join, self._groups, since_ns=self._since_ns or 0, slice_feature=feature)

    def _read_labels(self) -> bool:
        read_bytes = bad_lines = 0
        for block in self._labels.read(_STEP_BYTES):
            read_bytes += len(block)
            for line in block.splitlines():
                try:
                    self._join.add_label(from_line(line))
                except (ValueError, KeyError, TypeError, InvalidInput):
                    bad_lines += 1
        if bad_lines:
            log.warning("lines that are no labels", extra={"lines": bad_lines})
        if read_bytes:
            self.has_unsaved = True
            self.changed |= {model for model, _version, _variant in self._groups}
        return self._labels.has_more

    def _settle_all(self, rows: Iterable[Waiting]) -> None:
        """The wait of these rows is over: count them, for good. Most have no label, and are of one kind for long."""
        kind: tuple[Any, ...] = ()
        group = Group("")  # of *kind*, as long as `_settle` has made no other
        for row in rows:
            model, version, variant, _revision, digest = row.plain[:5]
            if row.label is None and kind == (model, version, variant, digest):
                group.over += 1
                continue
            self._settle(row)
            self.changed.add(model)
            self.has_unsaved = True
            group = self._groups[model, version, variant]
            kind = (model, version, variant, digest) if group.digest == digest else ()

    def _settle(self, row: Waiting) -> None:
        model, version, variant, revision, digest = row.plain[:5]
        group = self._groups.get((model, version, variant))
        if group is None:
            group = self._groups[model, version, variant] = Group(digest)
        if group.digest != digest:  # another package under the same number: what was known is of the one before
            if any(known.ts_ns > row.ts_ns for known in group.recent):
                return
            group = self._groups[model, version, variant] = Group(digest)
        group.over += 1
        if row.label is None:
            return
        judged = self._judged(row)
        if not isinstance(judged, Judged):
            group.add_unusable(judged)
            return
        group.labelled += 1
        group.add(judged, self._settings.recent_rows)
        target = self._targets.find(model, version, digest)
        if isinstance(target, Target):
            decay = self._decays.setdefault((model, version), Decay(digest))
            if decay.digest != digest:
                decay = self._decays[model, version] = Decay(digest)
            sizes = self._settings
            decay.add(judged, target, window_rows=sizes.window_rows, reference_windows=sizes.reference_windows)
            self._watches.add((model, version), digest, judged, target)
        if revision >= 0 and isinstance(target, Target) and target.is_classes:
            counts = self._arms.setdefault((model, version, variant, revision), [0, 0])
            counts[0] += 1
            counts[1] += judged.predicted == judged.truth
            self._forget_arms(model)

    def _judged(self, row: Waiting) -> Judged | str:
        """The row beside its truth; if its label cannot be used, the class that it names and the model does not have,
        or "" if it says nothing of what was predicted."""
        model, version, _variant, _revision, digest, predicted, scores, slice_ = row.plain
        target = self._targets.find(model, version, digest)
        if row.label is None or isinstance(target, str):
            return ""
        arrived_ns, label, weight = row.label
        try:
            truth = target.truth(label)
        except UnknownClass as error:
            return error.name
        except (ValueError, TypeError):
            return ""
        delay_s = (arrived_ns - row.ts_ns) / 1e9
        return Judged(row.ts_ns, row.prediction_id, row.row, predicted, scores, truth, weight, slice_, delay_s)

    def _forget_arms(self, model: str) -> None:
        arms = sorted((arm for arm in self._arms if arm[0] == model), key=lambda arm: arm[3])
        for arm in arms[:-_MAX_ARMS]:
            del self._arms[arm]

    # -- telling --------------------------------------------------------------------------------------

    def section(self, model: str) -> dict[str, Any] | None:
        """What the drift document of *model* says of performance; None before any label came. Sets the gauges."""
        if self._since_ns is None:
            return None
        waiting: dict[_Key, list[Waiting]] = {}
        for row in self._join.rows():
            if row.plain[0] == model:
                waiting.setdefault((model, row.plain[1], row.plain[2]), []).append(row)
        keys = sorted({key for key in self._groups if key[0] == model}, key=lambda key: (version_order(key[1]), key[2]))
        variants: list[dict[str, Any]] = []
        of_version: dict[str, list[list[Judged]]] = {}
        for key in keys:
            told, rows = self._variant(key, waiting.get(key, []))
            variants.append(told)
            of_version.setdefault(key[1], []).append(rows)
            self._show(key, told)
        return {
            "wait_s": self._settings.wait_s,
            "recent_rows": self._settings.recent_rows,
            "slice_feature": self._settings.slice_feature,
            "detectors_alarm": self._settings.detectors_tell == "alarm",
            "counter": self._counter,
            "labels": dict(self._join.counts),
            "variants": variants,
            "versions": [self._version(model, version, parts) for version, parts in of_version.items()],
            "arms": [
                {"version": arm[1], "variant": arm[2], "revision": arm[3], "labelled": counts[0], "correct": counts[1]}
                for arm, counts in self._arms.items()
                if arm[0] == model
            ],
        }

    def _variant(self, key: _Key, waiting: Sequence[Waiting]) -> tuple[dict[str, Any], list[Judged]]:
        """What is told of one variant, and the rows that it comes from: newest labelled ones, waiting or not."""
        group = self._groups[key]
        labelled = [row for row in waiting if row.label is not None and row.plain[4] == group.digest]
        usable: list[Judged] = []
        unknown = dict(group.unknown)
        for judged in map(self._judged, labelled):
            if isinstance(judged, Judged):
                usable.append(judged)
            else:
                count_unknown(unknown, judged)
        rows = newest([*group.recent, *usable], self._settings.recent_rows)
        target = self._targets.find(key[0], key[1], group.digest)
        counts = {
            "waiting": len(waiting),
            "waiting_labelled": len(labelled),
            "unusable": group.unusable + len(labelled) - len(usable),
            "unknown_classes": [{"class": name, "rows": count} for name, count in unknown.items()],
        }
        return {
            "version": key[1],
            "variant": key[2],
            "reason": target if isinstance(target, str) else "",
            **group.told(),
            **counts,
            **told_of(rows, target, by_slice=bool(self._settings.slice_feature)),
        }, rows

    def _version(self, model: str, version: str, parts: Sequence[list[Judged]]) -> dict[str, Any]:
        """All variants of a version together."""
        digest = next(group.digest for key, group in self._groups.items() if key[:2] == (model, version))
        target = self._targets.find(model, version, digest)
        rows = newest((row for rows in parts for row in rows), self._settings.recent_rows)
        told = {"version": version, "window_rows": self._settings.window_rows, **told_of(rows, target)}
        told["detectors"] = self._watches.told((model, version))
        decay = self._decays.get((model, version))
        if decay is not None:
            told |= decay.told(self._settings.reference_windows)
        return told

    def _show(self, key: _Key, told: dict[str, Any]) -> None:
        for name, value in (told["scores"] or {}).items():
            if name not in ("rows", "classes"):
                self._metrics.performance.labels(*key, name).set(float("nan") if value is None else value)
        if told["coverage"] is not None:
            self._metrics.label_coverage.labels(*key).set(told["coverage"])
        if told["delay_s"] is not None:
            self._metrics.label_delay_s.labels(*key).set(told["delay_s"]["p90"])

    # -- remembering ----------------------------------------------------------------------------------

    def save(self) -> None:
        """Make what was read survive a kill: logs' marks and all that came of them, in one rename. Raises OSError."""
        if self._since_ns is None:
            return
        plain = {
            "schema": SCHEMA,
            "counter": self._counter,
            "since_ns": self._since_ns,
            "offsets": self._rows.watermark.offsets,
            "finished": self._rows.watermark.finished,
            "label_offsets": self._labels.mark.offsets,
            "label_finished": self._labels.mark.finished,
            "join": self._join.to_plain(),
            "groups": [[*key, group] for key, group in self._groups.items()],
            "decays": [[*key, decay] for key, decay in self._decays.items()],
            "watches": self._watches.to_plain(),
            "arms": [[*arm, *counts] for arm, counts in self._arms.items()],
        }
        replace_file(self._path, orjson.dumps(plain), sync=True)
        self.saved = Watermark(dict(self._rows.watermark.offsets), dict(self._rows.watermark.finished))
        self.has_unsaved = False
        for name, count in self._join.counts.items():  # only now: after a kill, what was not saved is counted again
            self._metrics.labels_read.labels(name).inc(count - self._told[name])
        self._told = dict(self._join.counts)

    def has_read(self, relative: str) -> bool:
        """Whether a closed segment was read to its end, or no label of its rows is awaited."""
        return self._since_ns is None or self._rows.has_read(relative)

    def tidy(self) -> None:
        """Forget finished hours and days of the logs, and versions whose package is gone. Raises OSError."""
        self._rows.forget_finished()
        self._labels.forget_finished()
        for model, version, variant in list(self._groups):
            if self._models.is_dir() and not (self._models / model / version).is_dir():
                del self._groups[model, version, variant]
                self._decays.pop((model, version), None)
                self._watches.forget((model, version))
                self.changed.add(model)
                self.has_unsaved = True

    def _forget(self) -> None:
        self._since_ns = None
        self._counter = os.urandom(8).hex()
        self._rows = SegmentReader(self._log, clock=self._clock)
        self._labels = LabelReader(self._log, clock=self._clock)
        self._join = Join(int(self._settings.wait_s * 1e9), self._settings.max_waiting_rows)
        self._groups = {}
        self._decays = {}
        self._watches = Watches(parse_detectors(self._settings.detectors), self._settings.detectors_cool_down_s)
        self._arms = {}
        self.saved = None

    def _remember(self) -> None:
        """Raises ValueError, KeyError or TypeError if the memory is none, OSError if it cannot be read."""
        try:
            plain = orjson.loads(self._path.read_bytes())
        except FileNotFoundError:
            return
        if plain["schema"] != SCHEMA:
            raise ValueError(f"schema is {plain['schema']!r}, not {SCHEMA}")
        self._counter, self._since_ns = str(plain["counter"]), plain["since_ns"]
        self._rows.watermark = Watermark(plain["offsets"], plain["finished"])
        self.saved = Watermark(dict(plain["offsets"]), dict(plain["finished"]))
        self._labels.mark = LabelMark(plain["label_offsets"], plain["label_finished"])
        self._join.take(plain["join"], [from_line(line.encode()) for line in plain["join"]["early"]])
        for model, version, variant, group in plain["groups"]:
            recent = [Judged(**row) for row in group.pop("recent")]
            self._groups[model, version, variant] = Group(**group, recent=recent)
        for model, version, decay in plain["decays"]:
            rows = [Judged(**row) for row in decay.pop("rows")]
            self._decays[model, version] = Decay(**decay, rows=rows)
        self._watches.restore(plain.get("watches", ()))
        self._arms = {(m, v, variant, revision): counts for m, v, variant, revision, *counts in plain["arms"]}
