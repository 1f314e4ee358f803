"""The models that are served: trained on data that scikit-learn ships and converted, two versions of each."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed import bare_loop
from speed.machine import ROOT

STABLE, CANARY = "2", "1"
_CHECKED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Model:
    """One model. rows: real rows of its data; rows_path: the same as JSON; wanted: probabilities of the first rows."""

    name: str
    folder: Path
    rows: list[list[float]]
    rows_path: Path
    wanted: dict[str, list[list[float]]]

    @property
    def onnx(self) -> Path:
        """The stable version's file: what the peers serve."""
        return self.folder / STABLE / "model.onnx"


def make(root: Path, names: Sequence[str]) -> dict[str, Model]:
    """Train and convert the named models (iris, forest, mlp) into ``root/models``."""
    return {name: _make(root, name) for name in names}


def _make(root: Path, name: str) -> Model:
    import joblib

    load, fit = _RECIPES[name]
    data = load(as_frame=True)
    frame = data.data.astype("float32")
    source, table = root / f"{name}.joblib", root / f"{name}.parquet"
    frame.to_parquet(table)
    for version in (CANARY, STABLE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a network that has not converged is as much work as one that has
            joblib.dump(fit(int(version)).fit(frame, data.target), source)
        convert = [sys.executable, "-m", "gateway", "convert", str(source), "--name", name, "--version", version,
                   "--data", str(table), "--out", str(root / "models"), "--trust", "--quantize", "off"]  # fmt: skip
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    rows = [[float(f"{value:.6g}") for value in row] for row in frame.sample(640, replace=True, random_state=1).values]
    rows_path = root / f"{name}.rows.json"
    rows_path.write_text(json.dumps(rows))
    folder = root / "models" / name
    wanted = {
        version: bare_loop.probabilities(folder / version / "model.onnx", rows[:_CHECKED_ROWS])
        for version in (CANARY, STABLE)
    }
    return Model(name, folder, rows, rows_path, wanted)


def _iris(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=float(seed), max_iter=1000))


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(100, random_state=seed)


def _mlp(seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((1024, 1024), max_iter=2, random_state=seed)


def _load(name: str) -> Callable[..., Any]:
    def load(**options: Any) -> Any:
        import sklearn.datasets

        return getattr(sklearn.datasets, f"load_{name}")(**options)

    return load


# Name -> where its data comes from, and what is fitted to them: 4 features, 30 features, 64 features.
_RECIPES: dict[str, tuple[Callable[..., Any], Callable[[int], Any]]] = {
    "iris": (_load("iris"), _iris),
    "forest": (_load("breast_cancer"), _forest),
    "mlp": (_load("digits"), _mlp),
}
