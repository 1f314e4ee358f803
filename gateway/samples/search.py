"""Looking things up in the sample log: the newest rows, or those of a span of time, of one model or of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from gateway.samples.segments import CLOSED, OPEN, closed_name

_HOUR_NS = 3600 * 10**9
_TAIL_STEP_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are wanted: since_ns <= ts_ns < until_ns; None stands for all."""

    model: str | None = None
    version: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None

    def takes(self, record: dict[str, Any]) -> bool:
        ts_ns = record["ts_ns"]
        return (self.since_ns is None or ts_ns >= self.since_ns) and (self.until_ns is None or ts_ns < self.until_ns)


def newest(root: Path, rows: int, selection: Selection) -> list[tuple[dict[str, Any], bytes]]:
    """The newest *rows* rows, oldest first: decoded, and the line as it stands in the log. Raises OSError."""
    found: list[tuple[dict[str, Any], bytes]] = []
    for segments in reversed(_hours(root, selection)):
        for path in segments:
            found += _decoded(_last_lines(path, rows), selection)
        if len(found) >= rows:
            break  # what is in an earlier hour's folder is older than all in this one
    found.sort(key=lambda entry: entry[0]["ts_ns"])
    return found[-rows:] if rows else []


def select(root: Path, selection: Selection) -> Iterator[tuple[dict[str, Any], bytes]]:
    """All rows of *selection*, by hour: decoded, and the line as it stands in the log. Raises OSError."""
    for segments in _hours(root, selection):
        for path in segments:
            with suppress(FileNotFoundError), _opened(path) as file:
                yield from _decoded(file, selection)


def _hours(root: Path, selection: Selection) -> list[list[Path]]:
    """The segments of each hour that may hold wanted rows, oldest hour first."""
    model = quote(selection.model, safe="") if selection.model is not None else "*"
    version = quote(selection.version, safe="") if selection.version is not None else "*"
    hours: dict[str, list[Path]] = {}
    for folder in sorted(root.glob(f"model={model}/version={version}/date=*/hour=*")):
        name = f"{folder.parent.name}/{folder.name}"
        try:
            start = datetime.strptime(name, "date=%Y-%m-%d/hour=%H").replace(tzinfo=UTC)
        except ValueError:
            continue  # a stranger's folder
        start_ns = int(start.timestamp()) * 10**9
        if selection.until_ns is not None and start_ns >= selection.until_ns:
            continue
        if selection.since_ns is not None and start_ns + _HOUR_NS <= selection.since_ns:
            continue
        segments = (path for path in folder.iterdir() if path.name.endswith((CLOSED, OPEN)))
        hours.setdefault(name, []).extend(sorted(segments))
    return [hours[name] for name in sorted(hours)]


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
    for line in lines:
        if line.endswith(b"\n"):
            with suppress(ValueError, KeyError, TypeError):  # a line that is no sample
                record = orjson.loads(line)
                if selection.takes(record):
                    yield record, line
