"""A bare loop over ONNX Runtime without any server: what the model itself can do on one core.

python -m speed.bare_loop MODEL.onnx ROWS.json --batch 128 --seconds 1 prints rows per second. With --then OTHER.onnx 3
each run is followed by one of three rows of the other model, whose rows count, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from speed.machine import SERVER_CORE

BATCHES = (1, 8, 16, 32, 64, 128, 256, 512)
_TRIAL_S = 0.4


def session(onnx: Path) -> Any:
    """A session with one thread that does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])


def probabilities(onnx: Path, rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """The probabilities [rows, classes] that the model itself gives."""
    (found,) = session(onnx).run(["probabilities"], {"input": np.array(rows, np.float32)})
    return [[float(value) for value in row] for row in found]


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop in a process of its own on the servers' core. rows: a file with rows as JSON; batch: rows per run.

    then: a model, and the rows of its runs, each of which follows one of the first model.
    """

    onnx: Path
    rows: Path
    batch: int
    then: tuple[Path, int] | None = None

    def rows_per_s(self, seconds: float) -> float:
        command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "speed.bare_loop", str(self.onnx),
                   str(self.rows), "--batch", str(self.batch), "--seconds", str(seconds)]  # fmt: skip
        if self.then is not None:
            command += ["--then", *map(str, self.then)]
        told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        return float(told.stdout)


def best_batch(onnx: Path, rows: Path) -> int:
    """The batch size with most rows per second, each tried once."""
    return max(BATCHES, key=lambda batch: Loop(onnx, rows, batch).rows_per_s(_TRIAL_S))


def _loop(turns: Sequence[tuple[Path, int]], rows: Path, seconds: float) -> float:
    """Rows per second of runs of these models, of so many rows each, in turns."""
    table = np.array(json.loads(rows.read_text()), np.float32)
    runs = [(session(onnx).run, {"input": np.resize(table, (batch, table.shape[1]))}) for onnx, batch in turns]

    def turn() -> None:
        for run, inputs in runs:
            run(None, inputs)

    until_s = time.perf_counter() + 0.1  # caches and clocks of the processor warm up
    while time.perf_counter() < until_s:
        turn()
    done, began_s = 0, time.perf_counter()
    while (now_s := time.perf_counter()) - began_s < seconds:
        turn()
        done += sum(batch for _onnx, batch in turns)
    return done / (now_s - began_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--then", nargs=2, metavar=("MODEL", "ROWS"))
    options = parser.parse_args()
    turns = [(options.onnx, options.batch)]
    if options.then is not None:
        turns.append((Path(options.then[0]), int(options.then[1])))
    print(_loop(turns, options.rows, options.seconds))


if __name__ == "__main__":
    main()
