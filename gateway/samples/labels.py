"""What turned out to be true of a prediction: one label, its line in the log, and how the lines are read again.

    <log>/labels/date=YYYY-MM-DD/<boot>-<pid>-<seq>.jsonl[.open]

Written by one process each, like the samples. The date is UTC and that of the label's arrival.
"""

from __future__ import annotations

import difflib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from gateway.errors import InvalidInput
from gateway.samples.segments import CLOSED, OPEN, SegmentWriter, closed_name

SCHEMA = 1
FOLDER = "labels"
# Where a worker looks for label segments that dead processes have left open.
OPEN_LABELS = f"{FOLDER}/date=*/*{OPEN}"

_DAY_NS = 24 * 3600 * 10**9
# Lines of a day may be written a little after it, since they wait in a queue.
_LATE_LINES_S = 900.0
MAX_ID_CHARS = 128
MAX_TEXT_CHARS = 1024
MAX_OUTPUTS = 64
MAX_ROW = 2**31
# A line is shorter than that: JSON writes a character in at most six bytes.
_MAX_LINE_BYTES = 1 << 20
_FIELDS = ("prediction_id", "label", "row", "event_ts_ns", "source", "weight")

Scalar: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Label:
    """One label as it arrived.

    label: the true value, or one per output by name. row: which row of the request it is about, None if that had one
    row only. ts_ns: Unix time of arrival. event_ts_ns: of what it tells about, if the sender says so. weight: what it
    counts beside others, 1 if None.
    """

    prediction_id: str
    label: Scalar | dict[str, Scalar]
    ts_ns: int
    row: int | None = None
    event_ts_ns: int | None = None
    source: str = ""
    weight: float | None = None

    def to_line(self) -> bytes:
        """The line of the log, with its newline."""
        plain: dict[str, Any] = {
            "schema": SCHEMA,
            "prediction_id": self.prediction_id,
            "label": self.label,
            "ts_ns": self.ts_ns,
            "source": self.source,
        }
        for name in ("row", "event_ts_ns", "weight"):
            if (value := getattr(self, name)) is not None:
                plain[name] = value
        return orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)


def from_line(line: bytes) -> Label:
    """The inverse of Label.to_line. Raises ValueError, KeyError, TypeError or InvalidInput if it is no label."""
    plain = orjson.loads(line)
    if plain["schema"] != SCHEMA:
        raise ValueError("a label of another schema")
    ts_ns = plain["ts_ns"]
    if not isinstance(ts_ns, int):
        raise TypeError("ts_ns must be a whole number")
    known = {name: plain[name] for name in _FIELDS if name in plain}  # a later writer may say more
    return checked(known, ts_ns=ts_ns)


def items_in(body: bytes) -> tuple[bool, list[Any] | list[bytes]]:
    """What a request brings: whether it is a bulk, and its items: decoded, or the lines of JSON Lines as they came.

    One JSON value is an object (no bulk) or a list; all else is taken as JSON Lines. Raises InvalidInput.
    """
    try:
        plain = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) < 2:
            raise InvalidInput("body", f"no JSON ({error})", "a label, a list of labels, or one label a line") from None
        return True, lines
    if isinstance(plain, list):
        return True, plain
    return False, [plain]


def checked(item: Any, *, ts_ns: int, where: str = "") -> Label:
    """The label that *item*, decoded or a line of JSON, stands for.

    ts_ns: of its arrival. where: what comes before the names of fields in errors. Raises InvalidInput.
    """
    if isinstance(item, bytes):
        try:
            item = orjson.loads(item)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(where.rstrip(".") or "body", f"no JSON ({error})", "an object") from None
    if not isinstance(item, dict):
        raise InvalidInput(where.rstrip(".") or "body", _kind(item), "an object with prediction_id and label")
    for name in item:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.0)[0]
            raise InvalidInput(f"{where}{name[:40]}", "an unknown field", f"one of {', '.join(_FIELDS)} ({near}?)")
    for name in ("prediction_id", "label"):
        if name not in item:
            raise InvalidInput(f"{where}{name}", "nothing", "a value")
    identity = item["prediction_id"]
    if not (isinstance(identity, str) and 0 < len(identity) <= MAX_ID_CHARS and identity.isascii()):
        raise InvalidInput(f"{where}prediction_id", _kind(identity), f"ASCII text of 1 to {MAX_ID_CHARS} characters")
    source = item.get("source", "")
    if not (isinstance(source, str) and len(source) <= MAX_ID_CHARS):
        raise InvalidInput(f"{where}source", _kind(source), f"text of at most {MAX_ID_CHARS} characters")
    weight = item.get("weight")
    if weight is not None and not (_is_number(weight) and 0 < weight <= 1e9):
        raise InvalidInput(f"{where}weight", _kind(weight), "a number above 0, at most 1e9")
    return Label(
        identity,
        _label(item["label"], f"{where}label"),
        ts_ns,
        _whole(item, "row", MAX_ROW, where),
        _whole(item, "event_ts_ns", 2**63 - 1, where),
        source,
        weight,
    )


def _label(value: Any, where: str) -> Scalar | dict[str, Scalar]:
    if not isinstance(value, dict):
        return _scalar(value, where)
    if not 0 < len(value) <= MAX_OUTPUTS:
        raise InvalidInput(where, f"{len(value)} outputs", f"1 to {MAX_OUTPUTS} of them by name")
    for name in value:
        if len(name) > MAX_ID_CHARS:
            raise InvalidInput(f"{where}.{name[:40]}...", f"{len(name)} characters", f"at most {MAX_ID_CHARS}")
    return {name: _scalar(each, f"{where}.{name[:40]}") for name, each in value.items()}


def _scalar(value: Any, where: str) -> Scalar:
    if isinstance(value, str) and len(value) <= MAX_TEXT_CHARS:
        return value
    if isinstance(value, bool) or _is_number(value):
        return value  # type: ignore[no-any-return]  # it is one of these
    expected = f"a number, true, false, or text of at most {MAX_TEXT_CHARS} characters"
    raise InvalidInput(where, _kind(value), expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(item: dict[str, Any], name: str, largest: int, where: str) -> int | None:
    value = item.get(name)
    if isinstance(value, float) and value.is_integer():  # 3.0 is 3 in JSON, and some write it so
        value = int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest):
        return value
    raise InvalidInput(f"{where}{name}", _kind(value), f"a whole number from 0 to {largest}")


def _kind(value: Any) -> str:
    """What came, short enough for a message."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."


# -- writing ----------------------------------------------------------------------------------------


class LabelLog:
    """The label segments of one process. Used by one thread; clock: monotonic."""

    def __init__(self, root: Path, *, boot: str, max_bytes: int, max_age_s: float) -> None:
        self._writer = SegmentWriter(
            root,
            boot=boot,
            max_bytes=max_bytes,
            max_age_s=max_age_s,
            partition=lambda _m, _v, ts_ns: partition_of(ts_ns),
        )

    def append(self, lines: list[bytes], ts_ns: int) -> None:
        """Put whole *lines* into the segment of the day of *ts_ns*. Raises OSError, then none of them is in the log."""
        self._writer.write("", "", ts_ns - ts_ns % _DAY_NS, b"".join(lines))

    def sync(self) -> None:
        """Wait until the disk holds all that was appended. Raises OSError."""
        self._writer.sync()

    def close_old(self) -> None:
        self._writer.close_old()

    def close(self) -> None:
        self._writer.close()


def partition_of(ts_ns: int) -> str:
    """The folder, relative to the log, of the labels that arrived that day."""
    return f"{FOLDER}/" + time.strftime("date=%Y-%m-%d", time.gmtime(ts_ns // 10**9))


# -- reading ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class LabelMark:
    """How far a reader has come, as plain values.

    offsets: file of the label folder, without ``.open`` -> bytes read. finished: the last ``date=...`` that is over and
    read to its end, like all before it.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    finished: str = ""


class LabelReader:
    """Follows the labels of a log from a mark. Used by one thread. clock: Unix time."""

    def __init__(self, root: Path, mark: LabelMark | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = root / FOLDER
        self._clock = clock
        self._read_to_end: set[str] = set()  # closed segments that need not be looked at again
        self.mark = mark if mark is not None else LabelMark()
        self.has_more = False  # whether the last `read` stopped before the end of what there was

    def read(self, max_bytes: int) -> Iterator[bytes]:
        """Whole lines of what is new, oldest day first, until about *max_bytes* were given.

        The mark moves with each block. Raises OSError if a segment cannot be read; one that vanishes is passed over.
        """
        self.has_more = False
        for name, path in self._segments():
            if max_bytes <= 0:
                self.has_more = True
                return
            offset = self.mark.offsets.get(name, 0)
            block, is_end = _block(path, offset, max_bytes)
            self.has_more |= not is_end
            self.mark.offsets[name] = offset + len(block)
            if is_end and path.name.endswith(CLOSED):
                self._read_to_end.add(name)
            if block:
                max_bytes -= len(block)
                yield block

    def forget_finished(self) -> None:
        """Drop from the mark the days that are over and read, and files that are gone."""
        over = time.strftime("date=%Y-%m-%d", time.gmtime(self._clock() - 24 * 3600 - _LATE_LINES_S))
        waiting = {name.partition("/")[0] for name, _path in self._segments()}
        days = {path.name for path in self._folder.glob("date=*")}
        for day in sorted(days):
            if day > over or day in waiting:
                break
            self.mark.finished = max(self.mark.finished, day)
        for name in list(self.mark.offsets):
            path = self._folder / name
            is_there = path.with_name(path.name + ".open").exists() or path.exists()
            if name.partition("/")[0] <= self.mark.finished or not is_there:
                del self.mark.offsets[name]
                self._read_to_end.discard(name)

    def _segments(self) -> list[tuple[str, Path]]:
        """(name, path) of what may hold something new."""
        found: list[tuple[str, Path]] = []
        for day in sorted(self._folder.glob("date=*")):
            if day.name <= self.mark.finished:
                continue
            with suppress(FileNotFoundError), os.scandir(day) as entries:
                for entry in entries:
                    name = f"{day.name}/{entry.name.removesuffix('.open')}"
                    if entry.name.endswith((OPEN, CLOSED)) and name not in self._read_to_end:
                        found.append((name, Path(entry.path)))
        return sorted(found)


def _block(path: Path, offset: int, budget: int) -> tuple[bytes, bool]:
    """Whole lines from *offset* on, and whether these are all."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        try:
            file = closed_name(path).open("rb")  # closed since we looked
        except FileNotFoundError:
            return b"", False
    with file:
        file.seek(offset)
        budget = max(budget, _MAX_LINE_BYTES)
        block = file.read(budget)
        return block[: block.rfind(b"\n") + 1], len(block) < budget
