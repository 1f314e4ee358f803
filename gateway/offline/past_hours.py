"""The hours and days of all versions, and the files beside the monitor's memory in which they outlive a kill.

A file is never changed: what has changed gets another one, named by its content, and is only what it says once the
memory names it. So history, windows and watermark are of one moment whenever the monitor dies.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gateway.offline.chunks import Chunk
from gateway.offline.course import Courses
from gateway.offline.hours import Bounds, Hours, Place
from gateway.offline.reference import Reference
from gateway.offline.rows import Rows, shape_of
from gateway.offline.sketches import sketches_of
from gateway.offline.windows import replace_file

log = logging.getLogger(__name__)

Key = tuple[str, str]  # model, version


class PastHours:
    """Used by one thread. What `save` gives belongs into the memory; `sweep` is to be called when that is saved."""

    def __init__(
        self, folder: Path, bounds: Bounds, max_bytes: int, *, clock: Callable[[], float], dice: random.Random
    ) -> None:
        self._folder = folder
        self._bounds = bounds
        self._max_bytes = max_bytes
        self._clock = clock
        self._dice = dice
        self._versions: dict[Key, Hours] = {}
        self._files: dict[tuple[Key, Place], tuple[str, int]] = {}  # name, bytes

    @property
    def size_bytes(self) -> int:
        """Of what was kept by the last `save`."""
        return sum(size for _name, size in self._files.values())

    def take(self, chunk: Chunk, rows: Rows) -> None:
        """Count rows of a chunk. Those of another package, or with other columns, begin anew."""
        if not rows.shape:
            return  # there is no reference yet
        key = (chunk.model, chunk.version)
        hours = self._versions.get(key)
        if hours is None or (hours.digest, hours.shape) != (chunk.digest, rows.shape):
            self.forget(*key)
            hours = self._versions[key] = Hours(chunk.digest, rows.shape, self._bounds, self._dice)
        hours.add(rows, self._clock())

    def courses(
        self, model: str, version: str, reference: Reference, effects: Mapping[str, float | None]
    ) -> Courses | None:
        """What is told of a version; None if nothing is remembered of its package."""
        hours = self._versions.get((model, version))
        if hours is None or hours.shape != reference.shape:
            return None
        hours.age(self._clock())
        return hours.courses(reference, effects)

    def forget(self, model: str, version: str) -> None:
        self._versions.pop((model, version), None)
        for key, place in [known for known in self._files if known[0] == (model, version)]:
            del self._files[key, place]

    def save(self) -> list[dict[str, Any]]:
        """Write what has changed, within the bound; returns what the memory must say of it. Raises OSError."""
        for hours in self._versions.values():
            hours.age(self._clock())
        self._write()
        while self.size_bytes > self._max_bytes and self._shrink():
            self._write()
        return [self._to_plain(key, hours) for key, hours in self._versions.items()]

    def sweep(self) -> None:
        """Remove the files that the memory does not name. Raises OSError."""
        if not self._folder.is_dir():
            return
        named = {name for name, _size in self._files.values()}
        for path in self._folder.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)

    def restore(self, plain: Iterable[Mapping[str, Any]]) -> None:
        """Take back what `save` gave. Raises KeyError or TypeError if it is no such thing.

        A span whose file is gone or damaged is left out, with a warning: its rows cannot be told from later ones.
        """
        for entry in plain:
            key = (entry["model"], entry["version"])
            hours = Hours(entry["digest"], shape_of(entry["shape"]), self._bounds, self._dice)
            hours.first_hour, hours.first_day = entry["first_hour"], entry["first_day"]
            hours.too_late_rows, hours.ahead_rows = entry["too_late_rows"], entry["ahead_rows"]
            self._versions[key] = hours
            for unit, number, name in entry["spans"]:
                try:
                    content = (self._folder / name).read_bytes()
                    if _name_of(content) != name:
                        raise ValueError("its content is not what it was")
                    hours.spans[unit, number] = sketches_of(content, hours.shape)
                    self._files[key, (unit, number)] = (name, len(content))
                except (OSError, ValueError) as error:
                    log.warning("a part of the history is lost", extra={"file": name, "error": str(error)})

    # -- the parts --------------------------------------------------------------------------------------

    def _write(self) -> None:
        for key, hours in self._versions.items():
            for place in list(hours.changed):
                if (sketches := hours.spans.get(place)) is None:
                    self._files.pop((key, place), None)
                else:
                    content = sketches.to_bytes()
                    name = _name_of(content)
                    replace_file(self._folder / name, content, sync=True)
                    self._files[key, place] = (name, len(content))
                hours.changed.discard(place)

    def _shrink(self) -> bool:
        """Keep less of the version that takes most, if it can do with less; else of the next one."""
        sizes = dict.fromkeys(self._versions, 0)
        for (key, _place), (_name, size) in self._files.items():
            sizes[key] += size
        return any(self._versions[key].shrink() for key in sorted(sizes, key=lambda key: -sizes[key]))

    def _to_plain(self, key: Key, hours: Hours) -> dict[str, Any]:
        return {
            "model": key[0],
            "version": key[1],
            "digest": hours.digest,
            "shape": hours.shape,
            "first_hour": hours.first_hour,
            "first_day": hours.first_day,
            "too_late_rows": hours.too_late_rows,
            "ahead_rows": hours.ahead_rows,
            "spans": [(*place, self._files[key, place][0]) for place in hours.spans],
        }


def _name_of(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:32]}.json"
