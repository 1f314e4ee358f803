"""The rows that were made Parquet before a monitor, or another one whose memory it has, could read them as segments.

A monitor reads segments, and its compactor takes only what it has read, so usually nothing that it needs is in Parquet
files. Only one that starts without any memory must read those first, and then go on with the segments.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from gateway.offline import memory
from gateway.offline.chunks import Taken
from gateway.samples.segments import Watermark

log = logging.getLogger(__name__)


class PastReader:
    """Reads the Parquet files that were there when a monitor without memory started. Used by one thread.

    How far it has come stands in the watermark, as rows read per file, and is gone from there when all is read. Nothing
    may be compacted, and no hour called finished, before that.
    """

    def __init__(self, root: Path, watermark: Watermark, *, is_new: bool) -> None:
        """is_new: whether the monitor remembers nothing. Raises OSError."""
        self._root = root
        self._watermark = watermark
        if is_new:
            for path in root.glob("model=*/version=*/date=*/hour=*/part-*.parquet"):
                self._begin(path)
        left = [name for name in watermark.offsets if name.endswith(".parquet")]
        self._left = sorted(left, key=lambda name: (name.split("/")[2:4], name), reverse=True)

    def _begin(self, path: Path) -> None:
        try:
            from gateway.offline.parts import read_part

            sources = read_part(path).sources
        except (ImportError, ValueError) as error:
            log.warning("earlier samples cannot be read", extra={"file": str(path), "error": str(error)})
            return
        offsets = self._watermark.offsets
        offsets.setdefault(path.relative_to(self._root).as_posix(), 0)
        for name in sources:  # one that was not removed, since the compactor was killed: its rows are in the part
            segment = path.with_name(name)
            if segment.exists():
                offsets[segment.relative_to(self._root).as_posix()] = segment.stat().st_size

    @property
    def is_read(self) -> bool:
        """Whether there is nothing more."""
        return not self._left

    def read(self, max_bytes: int) -> Iterator[tuple[str, Taken]]:
        """(relative file, rows of it), oldest hour first, until about *max_bytes* were given.

        Raises OSError; a file that has vanished, or is damaged, is passed over.
        """
        while self._left and max_bytes > 0:
            relative = self._left[-1]
            try:
                from gateway.offline.batches import batches

                for batch in batches(self._root / relative, first_row=self._watermark.offsets[relative]):
                    self._watermark.offsets[relative] += batch.rows  # with each that is given
                    max_bytes -= batch.size_bytes
                    yield relative, batch.taken
                    if batch.is_last:
                        memory.release()
                        if max_bytes <= 0:
                            return
            except FileNotFoundError:
                pass
            except (ImportError, ValueError) as error:
                log.warning("earlier samples cannot be read", extra={"file": relative, "error": str(error)})
            self._left.pop()
            del self._watermark.offsets[relative]
