"""A compactor that is killed at any point: each row is there once, and the next one goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet

from gateway.offline.parts import parts_in, read_part
from tests.offline.workshop import HOUR, Workshop
from tests.samples.make import TEN_O_CLOCK_NS

# Compacts a log, and kills itself when it is about to open, rename or remove such a file for the n-th time.
_KILLED = """
import os, signal, sys
from pathlib import Path
from gateway.offline.compactor import Compactor
from gateway.samples.segments import SegmentReader

root, wanted, suffix, left = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
reader = SegmentReader(root)
for block in reader.read(10**9):
    pass

def watch(event, arguments):
    global left
    if event == wanted and str(arguments[0]).startswith(str(root)) and str(arguments[0]).endswith(suffix):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

compactor = Compactor(root, root, after_s=0.001, clock=lambda: 2e9)
sys.addaudithook(watch)
while compactor.step(reader.watermark, lambda: True):
    pass
"""
# (what it is about to do, with which file, up to which time of doing so)
_POINTS = [
    ("open", ".jsonl", 9),
    ("open", ".tmp", 2),
    ("os.rename", ".rejected.tmp", 3),
    ("os.rename", ".parquet.tmp", 1),
    ("open", "hour=10", 1),  # the part is there, all of its segments too
    ("os.remove", ".jsonl", 3),
]


def _run(root: Path, event: str, suffix: str, times: int) -> int:
    """The exit code of a compactor that is killed there."""
    command = [sys.executable, "-c", _KILLED, str(root), event, suffix, str(times)]
    return subprocess.run(command, check=False).returncode


def test_killed_at_any_point_each_row_is_there_once_and_the_next_compactor_goes_on(shop: Workshop) -> None:
    rng = random.Random(5)
    points = rng.sample(_POINTS * 2, 10)
    for round_, (event, suffix, most) in enumerate(points):
        shop.write(rng.randrange(20, 40))  # four segments at least
        shop.writer.write("iris", "1", TEN_O_CLOCK_NS, b"torn in round %d\n" % round_)
        shop.writer.close()
        assert _run(shop.root, event, suffix, rng.randint(1, most)) == -signal.SIGKILL
        assert shop.ids() == shop.each_once()
        parquet_alone = Counter(
            name
            for path in shop.root.rglob("*.parquet")
            for name in pyarrow.parquet.read_table(path)["prediction_id"].to_pylist()
        )
        assert not parquet_alone or max(parquet_alone.values()) == 1
    assert _run(shop.root, "never", "", 1) == 0
    assert shop.ids() == shop.each_once()
    assert {path.suffix for path in (shop.root / HOUR).iterdir()} == {".parquet", ".rejected"}
    rejected = b"".join(path.read_bytes() for path in (shop.root / HOUR).glob("*.rejected"))
    assert sorted(rejected.splitlines()) == sorted(b"torn in round %d" % round_ for round_ in range(10))
    assert sum(read_part(path).rows for path in parts_in(shop.root / HOUR)) == shop.written
