"""What NannyML's univariate drift calculator says of windows: windows.py FOLDER.

FOLDER/*.npz: reference [columns, rows], clean and shifted [windows, columns, rows]. The answer, FOLDER/answer.json: per
file and kind which columns of which window alarm. Methods and thresholds are its defaults; of a window as a whole it
says nothing. The windows are the chunks of one long analysis set.
"""

import json
import sys
import time
from pathlib import Path

import nannyml
import numpy as np
import pandas as pd


def frame(rows):
    return pd.DataFrame({f"x{index}": column for index, column in enumerate(rows)})


def verdicts(reference, windows):
    names = [f"x{index}" for index in range(len(reference))]
    calculator = nannyml.UnivariateDriftCalculator(column_names=names, chunk_size=windows.shape[2])
    found = calculator.fit(frame(reference)).calculate(frame(np.concatenate(list(windows), axis=1)))
    table = found.filter(period="analysis").to_df()
    alerts = table.loc[:, (names, slice(None), "alert")].to_numpy(dtype=bool)
    assert alerts.shape == windows.shape[:2], "one method per column, and a chunk per window"
    return {"columns": alerts.tolist(), "whole": None}


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
