"""A log with one writer, one reader and one compactor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gateway.offline.compactor import Compaction, Compactor
from gateway.offline.parts import Parts
from gateway.samples.lines import to_lines
from gateway.samples.search import Selection, select
from gateway.samples.segments import SegmentReader, SegmentWriter, Watermark
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, iris_rows, linear_sample

HOUR = "model=iris/version=1/date=2026-03-01/hour=10"
SECOND_NS = 10**9


def always() -> bool:
    return True


class Workshop:
    """A log with one writer, one reader and one compactor, which finds every closed segment old enough."""

    def __init__(self, root: Path, models: Path, *, boot: str = "b1", max_bytes: int = 4000) -> None:
        self.root = root
        self.writer = SegmentWriter(root, boot, max_bytes=max_bytes, max_age_s=3600.0, clock=FakeClock())
        self.reader = SegmentReader(root)
        self.compactor = Compactor(root, models, after_s=0.001, clock=lambda: 2e9)
        self.written = 0

    def write(self, rows: int, **fields: Any) -> None:
        """So many rows, one second apart, each a request of its own."""
        for row in iris_rows(rows, self.written):
            ts_ns = fields.pop("ts_ns", TEN_O_CLOCK_NS + self.written * SECOND_NS)
            sample = linear_sample(row[np.newaxis], prediction_id=f"p{self.written:06d}", ts_ns=ts_ns, **fields)
            self.writer.write(sample.model, sample.version, ts_ns, b"".join(to_lines(sample, 1)))
            self.written += 1

    def read(self) -> Watermark:
        """Read all there is, as the monitor does before anything is compacted."""
        for _block in self.reader.read(10**9):
            pass
        return self.reader.watermark

    def compact(self) -> list[Compaction]:
        """Close, read and compact everything."""
        self.writer.close()
        watermark, done = self.read(), []
        while found := self.compactor.step(watermark, always):
            done.append(found)
        return done

    def ids(self) -> Counter[str]:
        """How often each row is found by those who read the log."""
        return Counter(record["prediction_id"] for record, _line in select(self.root, Selection(), Parts()))

    def each_once(self) -> Counter[str]:
        return Counter(f"p{index:06d}" for index in range(self.written))
