"""`make soak` in two minutes: memory and descriptors stay flat under mixed traffic, and nothing is answered wrongly."""

from __future__ import annotations

from pathlib import Path

import growth
import pytest
import soak
from growth import Bounds

SECONDS = 120.0
# In so short a time allocators still settle; what leaks per request or per change is more than that.
BOUNDS = Bounds(memory_bytes=16 * 1024 * 1024, descriptors=8, threads=8)


@pytest.mark.timeout(SECONDS + 180)
def test_mixed_traffic_leaves_memory_and_descriptors_flat(tmp_path: Path) -> None:
    soaked = soak.soak(tmp_path, SECONDS, rate_per_s=40, seed=1, warm_up=0.5, bounds=BOUNDS)
    print(growth.table(soaked.verdicts))
    print(soaked.tally)
    assert soaked.broken == []
    assert {each.process for each in soaked.verdicts} == {"supervisor", "worker 0", "control 0", "monitor 0"}
    assert soaked.tally.right > SECONDS * 20
    assert min(soaked.tally.refused, soaked.tally.labels, soaked.tally.left, soaked.tally.edits) > 0
