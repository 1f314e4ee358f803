"""What Evidently's preset for data drift says of windows: windows.py FOLDER.

FOLDER/*.npz: reference [columns, rows], clean and shifted [windows, columns, rows]. The answer, FOLDER/answer.json: per
file and kind which columns of which window are called drifted, and whether the window is. Everything is left as it is
by default: the preset chooses the tests and their thresholds, and what share of columns makes a drifted dataset. Only
the figures of its page are not drawn: nobody sees them, and they take nine tenths of its time.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from evidently import Report
from evidently.metrics.column_statistics import ValueDriftCalculation
from evidently.presets import DataDriftPreset

ValueDriftCalculation._render = lambda *_arguments: []
DataDriftPreset.render = lambda *_arguments, **_named: []


def frame(rows):
    return pd.DataFrame({f"x{index}": column for index, column in enumerate(rows)})


def verdicts(reference, windows):
    columns, whole = [], []
    for window in windows:
        tests = Report([DataDriftPreset()], include_tests=True).run(frame(window), frame(reference)).dict()["tests"]
        failed = {}
        for test in tests:
            params = test["metric_config"]["params"]
            failed[params.get("column", "")] = test["status"] == "FAIL"
        whole.append(failed.pop(""))
        columns.append([failed[f"x{index}"] for index in range(len(window))])
    return {"columns": columns, "whole": whole}


folder = Path(sys.argv[1])
answer = {"files": {}}
began = time.monotonic()
for path in sorted(folder.glob("*.npz")):
    with np.load(path) as arrays:
        answer["files"][path.stem] = {
            kind: verdicts(arrays["reference"], arrays[kind]) for kind in ("clean", "shifted")
        }
answer["seconds"] = time.monotonic() - began
(folder / "answer.json").write_text(json.dumps(answer))
