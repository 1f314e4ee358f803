"""Looking things up in the sample log: the newest rows, or those of a span of time, of one model or of all.

Rows lie in segments, and once these were compacted in Parquet files, which this room knows nothing of: who wants them
too brings an `Archive`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from heapq import nlargest
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import orjson

from gateway.errors import GatewayError
from gateway.samples.lock import reading
from gateway.samples.segments import CLOSED, OPEN, closed_name

_HOUR_NS = 3600 * 10**9
_TAIL_STEP_BYTES = 1 << 16

# A row of the log: decoded, and the line as it stands there, or would.
Found = tuple[dict[str, Any], bytes]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are wanted: since_ns <= ts_ns < until_ns, of these predictions; None, and no ids, stand for all."""

    model: str | None = None
    version: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    prediction_ids: frozenset[str] = frozenset()

    def takes(self, record: dict[str, Any]) -> bool:
        ts_ns = record["ts_ns"]
        if self.prediction_ids and record["prediction_id"] not in self.prediction_ids:
            return False
        return (self.since_ns is None or ts_ns >= self.since_ns) and (self.until_ns is None or ts_ns < self.until_ns)

    def overlaps(self, first_ns: int, last_ns: int) -> bool:
        """Whether something from *first_ns* to *last_ns*, both included, may be wanted."""
        return (self.since_ns is None or last_ns >= self.since_ns) and (
            self.until_ns is None or first_ns < self.until_ns
        )

    def in_span(self, ts_ns: Any) -> Any:
        """Which of these times, int64 [n], are wanted: bool [n]."""
        wanted = ts_ns >= (self.since_ns if self.since_ns is not None else -(2**63))
        return wanted & (ts_ns < self.until_ns) if self.until_ns is not None else wanted

    def from_on(self, ts_ns: int) -> Selection:
        """What of this is not before *ts_ns*."""
        return replace(self, since_ns=ts_ns if self.since_ns is None else max(ts_ns, self.since_ns))


class Archive(Protocol):
    """What knows the Parquet files in the folder of an hour; all may raise OSError and ValueError."""

    def sources(self, folder: Path) -> frozenset[str]:
        """The names of the segments whose rows they have: these are not to be read, should they still be there."""

    def select(self, folder: Path, selection: Selection) -> Iterator[Found]:
        """The wanted rows in them."""

    def newest(self, folder: Path, rows: int, selection: Selection) -> list[Found]:
        """At least the newest *rows* wanted rows in them, if there are as many."""


def newest(root: Path, rows: int, selection: Selection, archive: Archive | None = None) -> list[Found]:
    """The newest *rows* rows, oldest first.

    Raises OSError; GatewayError if there are Parquet files and no *archive*.
    """
    if selection.prediction_ids or selection.until_ns is not None:  # they may be anywhere in a file
        some = nlargest(rows, select(root, selection, archive), key=lambda entry: entry[0]["ts_ns"])
        return sorted(some, key=lambda entry: entry[0]["ts_ns"])
    found: list[Found] = []
    with reading(root):
        for folders in reversed(hours(root, selection)):
            for folder in folders:
                for path in segments_in(folder, archive):
                    found += _decoded(_last_lines(path, rows), selection)
                if archive is not None:
                    found += archive.newest(folder, rows, selection)
            if len(found) >= rows:
                break  # what is in an earlier hour's folder is older than all in this one
    found.sort(key=lambda entry: entry[0]["ts_ns"])
    return found[-rows:] if rows else []


def select(root: Path, selection: Selection, archive: Archive | None = None) -> Iterator[Found]:
    """All rows of *selection*, each once, by hour. Nothing is compacted until the last one is taken.

    Raises OSError; GatewayError if there are Parquet files and no *archive*.
    """
    with reading(root):
        for folders in hours(root, selection):
            for folder in folders:
                if archive is not None:
                    yield from archive.select(folder, selection)
                for path in segments_in(folder, archive):
                    with suppress(FileNotFoundError), _opened(path) as file:
                        yield from _decoded(file, selection)


def hours(root: Path, selection: Selection) -> list[list[Path]]:
    """The folders of each hour that may hold wanted rows, oldest hour first."""
    model = quote(selection.model, safe="") if selection.model is not None else "*"
    version = quote(selection.version, safe="") if selection.version is not None else "*"
    found: dict[str, list[Path]] = {}
    for folder in sorted(root.glob(f"model={model}/version={version}/date=*/hour=*")):
        name = f"{folder.parent.name}/{folder.name}"
        try:
            start = datetime.strptime(name, "date=%Y-%m-%d/hour=%H").replace(tzinfo=UTC)
        except ValueError:
            continue  # a stranger's folder
        start_ns = int(start.timestamp()) * 10**9
        if selection.overlaps(start_ns, start_ns + _HOUR_NS - 1):
            found.setdefault(name, []).append(folder)
    return [found[name] for name in sorted(found)]


def segments_in(folder: Path, archive: Archive | None) -> list[Path]:
    """The segments of an hour whose rows are nowhere else, by name. To be asked while one holds the log's lock.

    Raises OSError; GatewayError if there are Parquet files and no *archive*.
    """
    names: set[str] = set()
    with suppress(FileNotFoundError):  # the whole hour was removed
        names = {path.name for path in folder.iterdir()}
    # A segment that is closed during the listing may be seen by both of its names.
    names -= {name + ".open" for name in names if name.endswith(CLOSED)}
    taken: frozenset[str] = frozenset()
    if any(name.endswith(".parquet") for name in names):
        if archive is None:
            raise GatewayError("the sample log has Parquet files, which need pyarrow: install sluicegate[monitor]")
        taken = archive.sources(folder)
    return [folder / name for name in sorted(names) if name.endswith((CLOSED, OPEN)) and name not in taken]


def _opened(path: Path) -> Any:
    """The segment as a binary file, by its other name if it was closed since it was listed."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return closed_name(path).open("rb")


def _last_lines(path: Path, rows: int) -> list[bytes]:
    """At least the last *rows* whole lines of a segment, if it has as many."""
    with suppress(FileNotFoundError), _opened(path) as file:
        end = start = file.seek(0, 2)
        tail = b""
        while start > 0 and tail.count(b"\n") <= rows:
            start = max(0, start - max(_TAIL_STEP_BYTES, end - start))
            file.seek(start)
            tail = file.read(end - start)
        lines: list[bytes] = tail.splitlines(keepends=True)
        return lines if start == 0 else lines[1:]
    return []


def _decoded(lines: Any, selection: Selection) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The wanted rows among *lines*; the torn last line of an open segment is passed over."""
    names = [identity.encode() for identity in selection.prediction_ids]
    for line in lines:
        if names and not any(name in line for name in names):
            continue  # far cheaper than decoding it
        if line.endswith(b"\n"):
            with suppress(ValueError, KeyError, TypeError):  # a line that is no sample
                record = orjson.loads(line)
                if selection.takes(record):
                    yield record, line
