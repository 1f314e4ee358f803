"""What the monitor remembers: the most recent rows of each version, and how far it has read, kept as one file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gateway.offline.cuts import Cut, Row, Uncut
from gateway.offline.history import MAX_WINDOWS, FinishedWindow, window_of
from gateway.offline.reference import Reference
from gateway.samples.segments import Watermark

SCHEMA = 2


@dataclass(slots=True)
class Window:
    """The most recent rows of one version, at most limit_rows of them.

    Most recent is by (ts_ns, prediction id, row), so the window is the same in whatever order the files of several
    workers were read. inputs, outputs: the names of the columns that are kept, those of the reference. digest: the
    package that answered; rows of another package under the same version number are not mixed in. rows_total: all rows
    that were ever counted. window_ns: if not 0, rows that are older than the newest by more than that are left out.

    Beside it: uncut, the rows that make the next finished window, and history, what was found in the last ones, oldest
    first. The window moves with each row and shows what is now; finished windows have no row in common, so that what is
    found in two of them is found twice.
    """

    limit_rows: int
    digest: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    rows_total: int = 0
    window_ns: int = 0
    _rows: list[Row] = field(default_factory=list)
    uncut: Uncut = field(init=False)
    history: list[FinishedWindow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uncut = Uncut(self.limit_rows, self.window_ns)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one row of the log. Raises KeyError, TypeError or AttributeError if it is not such a row."""
        inputs, outputs = record["inputs"], record["outputs"]
        values = [*map(inputs.get, self.inputs), *map(outputs.get, self.outputs)]
        ts_ns, identity, row = record["ts_ns"], record["prediction_id"], record["row"]
        if not (isinstance(ts_ns, int) and isinstance(identity, str) and isinstance(row, int)):
            raise TypeError("ts_ns and row must be whole numbers, prediction_id text")
        self._rows.append((ts_ns, identity, row, values))
        self.uncut.add(self._rows[-1])
        self.rows_total += 1
        if len(self._rows) >= 2 * self.limit_rows:
            self._cut()

    def rows(self) -> list[Row]:
        """The rows of the window, oldest first."""
        self._cut()
        return self._rows

    def cut(self, clock_ns: int, *, is_all_read: bool) -> list[Cut]:
        """The windows that are finished by now, oldest first; see Uncut.cut."""
        return list(self.uncut.cut(clock_ns, is_all_read=is_all_read))

    def finish(self, window: FinishedWindow) -> None:
        self.history.append(window)
        del self.history[:-MAX_WINDOWS]

    def newest_ts_ns(self) -> int:
        return max((row[0] for row in self._rows), default=0)

    def restart(self, digest: str, reference: Reference | None) -> None:
        """Begin an empty window for another package, or another set of columns."""
        self.digest = digest
        self.inputs = reference.names("input") if reference is not None else ()
        self.outputs = reference.names("output") if reference is not None else ()
        self._rows = []
        self.uncut = Uncut(self.limit_rows, self.window_ns)
        self.history = []

    def has_columns_of(self, reference: Reference) -> bool:
        return (self.inputs, self.outputs) == (reference.names("input"), reference.names("output"))

    def _cut(self) -> None:
        self._rows.sort(key=lambda row: row[:3])
        del self._rows[: -self.limit_rows]
        if self.window_ns and self._rows:
            oldest_ns = self._rows[-1][0] - self.window_ns
            del self._rows[: next(index for index, row in enumerate(self._rows) if row[0] >= oldest_ns)]

    def to_plain(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "rows_total": self.rows_total,
            "rows": self.rows(),
            "window_ns": self.window_ns,
            "ended_ns": self.uncut.ended_ns,
            "late_rows": self.uncut.late_rows,
            "uncut": self.uncut.rows(),
            "uncut_seen": self.uncut.seen(),
            "history": self.history,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take back what to_plain gave, but for rows of windows of another length. Raises KeyError, TypeError."""
        self._rows = [_row(row) for row in plain["rows"]]
        is_same_length = plain["window_ns"] == self.window_ns
        self.uncut.ended_ns = plain["ended_ns"] if is_same_length else 0
        self.uncut.restore([_row(row) for row in plain["uncut"]], plain["uncut_seen"] if is_same_length else [])
        self.uncut.late_rows = plain["late_rows"]
        self.history = [window_of(window) for window in plain["history"]]


@dataclass(slots=True)
class Memory:
    """Everything that must survive a restart; besides is that of offline/beside.py.

    Windows and watermark are written as one file in one rename: after a kill at any moment both are of the same moment,
    so that reading on neither loses nor repeats a row.
    """

    watermark: Watermark = field(default_factory=Watermark)
    windows: dict[tuple[str, str], Window] = field(default_factory=dict)
    besides: dict[str, Any] = field(default_factory=lambda: {"stable": {}, "pairs": []})

    def save(self, path: Path) -> None:
        """Replace *path* with this memory. Raises OSError."""
        plain = {
            "schema": SCHEMA,
            "offsets": self.watermark.offsets,
            "finished": self.watermark.finished,
            "besides": self.besides,
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
            names = tuple(entry["inputs"]), tuple(entry["outputs"])
            window = Window(limit_rows, entry["digest"], *names, entry["rows_total"], window_ns)
            window.restore(entry)
            windows[entry["model"], entry["version"]] = window
        return Memory(Watermark(plain["offsets"], plain["finished"]), windows, plain["besides"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a monitor's memory: {error}") from error


def _row(plain: Sequence[Any]) -> Row:
    ts_ns, identity, row, values = plain
    return ts_ns, identity, row, values


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
