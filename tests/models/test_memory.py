"""What a run takes in memory is given back after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gateway.models.manifest import MODEL_FILE
from gateway.models.runtime import OnnxRuntime
from tests.builders import classifier
from tests.faults import BAD_ABOVE, LARGE_BYTES, write_faulty


def resident_bytes(what: str) -> int:
    """VmRSS: now; VmHWM: the most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def test_memory_of_one_large_run_is_not_kept_for_the_next(tmp_path: Path) -> None:
    package = write_faulty(tmp_path, classifier(), "large")
    runtime = OnnxRuntime((package / MODEL_FILE).read_bytes())
    row = np.ones((1, 4), np.float32)
    runtime.run({"input": row})
    before = resident_bytes("VmRSS")
    runtime.run({"input": row * (BAD_ABOVE + 1)})
    assert resident_bytes("VmHWM") > before + LARGE_BYTES / 2, "the model does not take what it is to take"
    assert resident_bytes("VmRSS") < before + LARGE_BYTES / 8
