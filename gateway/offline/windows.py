"""What the monitor remembers: the most recent rows of each version, and how far it has read, kept as one file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from gateway.offline.cuts import Cut, Uncut
from gateway.offline.history import MAX_WINDOWS, FinishedWindow, window_of
from gateway.offline.reference import Reference
from gateway.offline.rows import Rows, Shape, no_rows, rows_of, shape_of, together
from gateway.samples.segments import Watermark

SCHEMA = 4


@dataclass(slots=True)
class Window:
    """The most recent rows of one version, at most limit_rows of them.

    Most recent is by (ts_ns, prediction id, row), so the window is the same in whatever order the files of several
    workers were read. shape: the columns that are kept, those of the reference. digest: the package that answered; rows
    of another package under the same version number are not mixed in. rows_total: all rows that were ever counted.
    window_ns: if not 0, rows that are older than the newest by more than that are left out.

    Beside it: uncut, the rows that make the next finished window; unjudged, finished windows that nobody has looked at
    yet; and history, what was found in the last ones before these. All oldest first. The window moves with each row and
    shows what is now; finished windows have no row in common, so that what is found in two of them is found twice.
    """

    limit_rows: int
    digest: str
    shape: Shape = ()
    rows_total: int = 0
    window_ns: int = 0
    _parts: list[Rows] = field(default_factory=list)
    _held: int = 0
    uncut: Uncut = field(init=False)
    unjudged: list[Cut] = field(default_factory=list)
    history: list[FinishedWindow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uncut = Uncut(self.limit_rows, self.window_ns)

    def add(self, rows: Rows) -> None:
        """Count rows of the log, of this window's shape, in any order."""
        rows = rows.in_order()
        self.rows_total += len(rows)
        self.uncut.add(rows)
        self._hold(rows)

    def _hold(self, rows: Rows) -> None:
        self._parts.append(rows.part(max(0, len(rows) - self.limit_rows), len(rows)))
        self._held += len(self._parts[-1])
        if self._held >= 2 * self.limit_rows:
            self.rows()

    def rows(self) -> Rows:
        """The rows of the window, oldest first."""
        if not self._held:
            return no_rows(self.shape)
        rows = together(self._parts).in_order()
        start = max(0, len(rows) - self.limit_rows)
        if self.window_ns:
            oldest_ns = int(rows.ts_ns[-1]) - self.window_ns
            start = max(start, int(np.searchsorted(rows.ts_ns, oldest_ns)))
        self._parts = [rows.part(start, len(rows))]
        self._held = len(rows) - start
        return self._parts[0]

    def cut(self, clock_ns: int, *, is_all_read: bool) -> list[Cut]:
        """The windows that are finished by now, oldest first; see Uncut.cut."""
        return list(self.uncut.cut(clock_ns, is_all_read=is_all_read))

    def set_aside(self, cuts: Sequence[Cut], max_bytes: int) -> list[Cut]:
        """Keep finished windows until somebody asks what is in them; returns the oldest, for which there is no room.

        Only as many are kept as the history has: what was found in the others would be forgotten before it was seen.
        """
        self.unjudged = [*self.unjudged, *cuts][-MAX_WINDOWS:]
        sizes = np.cumsum([cut.rows.size_bytes for cut in reversed(self.unjudged)])
        kept = int(np.searchsorted(sizes, max_bytes, side="right"))
        surplus = self.unjudged[: len(self.unjudged) - kept]
        del self.unjudged[: len(surplus)]
        return surplus

    def finish(self, window: FinishedWindow) -> None:
        self.history.append(window)
        del self.history[:-MAX_WINDOWS]

    def newest_ts_ns(self) -> int:
        return max((int(part.ts_ns.max()) for part in self._parts if len(part)), default=0)

    def restart(self, digest: str, reference: Reference | None) -> None:
        """Begin an empty window for another package, or another set of columns."""
        self.digest = digest
        self.shape = reference.shape if reference is not None else ()
        self._parts, self._held = [], 0
        self.uncut = Uncut(self.limit_rows, self.window_ns)
        self.unjudged = []
        self.history = []

    def has_columns_of(self, reference: Reference) -> bool:
        return self.shape == reference.shape

    def to_plain(self) -> dict[str, Any]:
        """All but what is not judged yet."""
        return {
            "digest": self.digest,
            "shape": self.shape,
            "rows_total": self.rows_total,
            "rows": self.rows().to_plain(),
            "window_ns": self.window_ns,
            "ended_ns": self.uncut.ended_ns,
            "late_rows": self.uncut.late_rows,
            "uncut": self.uncut.rows(self.shape).to_plain(),
            "uncut_seen": self.uncut.seen(),
            "history": self.history,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take back what to_plain gave, but for rows of windows of another length. Raises as rows_of does."""
        rows = rows_of(plain["rows"], self.shape)
        if len(rows):
            self._hold(rows)
        is_same_length = plain["window_ns"] == self.window_ns
        self.uncut.ended_ns = plain["ended_ns"] if is_same_length else 0
        self.uncut.restore(rows_of(plain["uncut"], self.shape), plain["uncut_seen"] if is_same_length else [])
        self.uncut.late_rows = plain["late_rows"]
        self.history = [window_of(window) for window in plain["history"]]


@dataclass(slots=True)
class Memory:
    """Everything that must survive a restart; besides is that of offline/beside.py, past_hours that of
    offline/past_hours.py.

    Windows and watermark are written as one file in one rename: after a kill at any moment both are of the same moment,
    so that reading on neither loses nor repeats a row.
    """

    watermark: Watermark = field(default_factory=Watermark)
    windows: dict[tuple[str, str], Window] = field(default_factory=dict)
    besides: dict[str, Any] = field(default_factory=lambda: {"defaults": {}, "stable": {}, "pairs": []})
    past_hours: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Replace *path* with this memory. Raises OSError."""
        plain = {
            "schema": SCHEMA,
            "offsets": self.watermark.offsets,
            "finished": self.watermark.finished,
            "besides": self.besides,
            "past_hours": self.past_hours,
            "windows": [
                {"model": model, "version": version, **window.to_plain()}
                for (model, version), window in self.windows.items()
            ],
        }
        replace_file(path, orjson.dumps(plain), sync=True)


def load_memory(path: Path, *, limit_rows: int, window_ns: int = 0) -> Memory:
    """Read back what Memory.save wrote; an empty memory if nothing was ever saved.

    Raises ValueError if the file is not such a memory, OSError if it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Memory()
    try:
        plain = orjson.loads(raw)
        if plain["schema"] != SCHEMA:
            raise ValueError(f"schema is {plain['schema']!r}, not {SCHEMA}")
        windows: dict[tuple[str, str], Window] = {}
        for entry in plain["windows"]:
            window = Window(limit_rows, entry["digest"], shape_of(entry["shape"]), entry["rows_total"], window_ns)
            window.restore(entry)
            windows[entry["model"], entry["version"]] = window
        return Memory(Watermark(plain["offsets"], plain["finished"]), windows, plain["besides"], plain["past_hours"])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a monitor's memory: {error}") from error


def replace_file(path: Path, content: bytes, *, sync: bool) -> None:
    """Put *content* in the place of *path* so that a reader sees the old file or the new one, whole.

    sync: also wait for the disk, so that this holds over a power cut. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
