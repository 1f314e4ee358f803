"""How often a converted model of trees answers otherwise than its original: counted, for every library and many rows.

Each model is trained on half of a data set of scikit-learn, converted, and served. Compared are: rows in which one
feature stands on a threshold or beside it, as float32 and as doubles; the other half of the rows rounded to float32;
and these rows as they are, sent as JSON to a gateway. A row counts as wrong if its label differs and is no tie, or if a
probability is off by more than 1e-5 (a value: by 1e-5 of itself and of the median).

    .venv/bin/python benchmarks/boundaries.py
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import joblib
import numpy as np
from catboost import CatBoostClassifier, CatBoostRegressor
from lightgbm import LGBMClassifier, LGBMRegressor
from serving import serving
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from xgboost import XGBClassifier, XGBRegressor

from converters.convert import Converted, Order, convert
from converters.original import Answer, Original
from converters.quantize import cpu
from converters.verify import compare, tolerance_for

TREES = 100
SETS: dict[str, Callable[..., Any]] = {
    "breast cancer (2 classes)": load_breast_cancer,
    "iris (3)": load_iris,
    "wine (3)": load_wine,
    "digits (10)": load_digits,
    "diabetes (values)": load_diabetes,
}
_QUIET = {"thread_count": 1, "verbose": False, "allow_writing_files": False, "random_seed": 0}
MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "DecisionTree": (
        lambda: DecisionTreeClassifier(random_state=0),
        lambda: DecisionTreeRegressor(random_state=0),
    ),
    "RandomForest": (
        lambda: RandomForestClassifier(TREES, random_state=0),
        lambda: RandomForestRegressor(TREES, random_state=0),
    ),
    "ExtraTrees": (
        lambda: ExtraTreesClassifier(TREES, random_state=0),
        lambda: ExtraTreesRegressor(TREES, random_state=0),
    ),
    "GradientBoosting": (
        lambda: GradientBoostingClassifier(n_estimators=TREES, random_state=0),
        lambda: GradientBoostingRegressor(n_estimators=TREES, random_state=0),
    ),
    "StandardScaler, GradientBoosting": (
        lambda: make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=TREES, random_state=0)),
        lambda: make_pipeline(StandardScaler(), GradientBoostingRegressor(n_estimators=TREES, random_state=0)),
    ),
    "HistGradientBoosting": (
        lambda: HistGradientBoostingClassifier(max_iter=TREES, random_state=0),
        lambda: HistGradientBoostingRegressor(max_iter=TREES, random_state=0),
    ),
    "XGBoost": (
        lambda: XGBClassifier(n_estimators=TREES, n_jobs=1),
        lambda: XGBRegressor(n_estimators=TREES, n_jobs=1),
    ),
    "LightGBM": (
        lambda: LGBMClassifier(n_estimators=TREES, n_jobs=1, verbosity=-1),
        lambda: LGBMRegressor(n_estimators=TREES, n_jobs=1, verbosity=-1),
    ),
    "CatBoost": (
        lambda: CatBoostClassifier(iterations=TREES, **_QUIET),
        lambda: CatBoostRegressor(iterations=TREES, **_QUIET),
    ),
}
# Wrong rows and all rows.
Count = tuple[int, int]
_ROWS_PER_REQUEST = 50


def main() -> None:
    """Convert all, serve all, count, and print a table in Markdown."""
    counted: list[tuple[str, str, list[Count]]] = []
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(directory)
        made = list(_converted(root))
        with serving(root) as url:
            for model, data, package, original, rows in made:
                parity = package.manifest.parity
                boundary, single = parity["boundary_rows"], parity["float32_rows"]
                counts = [_wrong(boundary), _wrong(single), _over_http(url, package, original, rows)]
                counted.append((model, data, counts))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    _print(counted)


def _converted(root: Path) -> Iterator[tuple[str, str, Converted, Original, Any]]:
    for number, (data, load) in enumerate(SETS.items()):
        bunch = load(as_frame=True)
        seen, held_out, labels, _ = train_test_split(bunch.data, bunch.target, test_size=0.5, random_state=0)
        rows = root / f"{number}.parquet"
        held_out.to_parquet(rows, index=False)
        for place, (model, makes) in enumerate(MODELS.items()):
            estimator = makes[data.endswith("(values)")]().fit(seen, labels)
            source = root / f"{number}-{place}.joblib"
            joblib.dump(estimator, source)
            package = convert(Order(source, f"m{number}-{place}", "1", rows, root / "models", trust=True))
            print(".", end="", file=sys.stderr, flush=True)
            yield model, data, package, Original(estimator), held_out.reset_index(drop=True)


def _over_http(url: str, package: Converted, original: Original, rows: Any) -> Count:
    """Wrong rows and rows, of decimals sent by name as JSON."""
    answers: list[dict[str, Any]] = []
    records = rows.to_dict(orient="records")
    for start in range(0, len(records), _ROWS_PER_REQUEST):
        body = json.dumps({"rows": records[start : start + _ROWS_PER_REQUEST]}).encode()
        reply = httpx.post(f"{url}/predict/{package.manifest.name}", content=body, timeout=60).raise_for_status()
        answers += reply.json()["predictions"]
    expected = original.answer(rows)
    found = _as_tensors(answers, expected)
    comparison = compare(expected, found, tolerance_for(expected))
    return comparison.mismatches + comparison.over_tolerance, comparison.rows


def _as_tensors(answers: list[Any], expected: Answer) -> dict[str, Any]:
    if "value" in expected.outputs:
        return {"value": np.array([answer["value"] for answer in answers], dtype=np.float64).reshape(-1, 1)}
    shares = [answer["probabilities"] for answer in answers]
    matrix = [list(share.values()) if isinstance(share, dict) else share for share in shares]
    return {
        "label": np.array([answer["label"] for answer in answers]).astype(np.int64),
        "probabilities": np.array(matrix, dtype=np.float64),
    }


def _wrong(found: dict[str, Any]) -> Count:
    return found["mismatches"] + found["over_tolerance"], found["rows"]


def _print(counted: list[tuple[str, str, list[Count]]]) -> None:
    """Wrong rows of all rows; one line per model, data sets taken together, and one for all."""
    facts = cpu()
    print(f"{facts['model']}, {os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}")
    print(f"data sets: {', '.join(SETS)}; {TREES} trees each\n")
    print("| model | rows on thresholds | held-out rows as float32 | held-out rows as JSON over HTTP |")
    print("|---|---|---|---|")
    for model in [*MODELS, "all"]:
        own = [line for line in counted if model in (line[0], "all")]
        cells = [
            f"{sum(counts[i][0] for _, _, counts in own):,} of {sum(counts[i][1] for _, _, counts in own):,}"
            for i in range(3)
        ]
        print(f"| {model} | {' | '.join(cells)} |")
    for line in counted:
        if any(wrong for wrong, _ in line[2]):
            print(f"wrong: {line}")


if __name__ == "__main__":
    main()
