"""Decision tables of conversions: a network that int8 serves well, one that it would harm, and an ensemble that is cut.

.venv/bin/python benchmarks/variants.py
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from converters.convert import Order, convert
from gateway.cli.package_view import decision_table, quantization_text

TARGET = "truth"
_WIDTH = 150


def blinded() -> Any:
    """Rows in which a number decides beside one that is sixty times as large, so that int8 hardly sees the first."""
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"large": random.uniform(0, 60, 4000), "small": random.uniform(0, 1, 4000)})
    return rows.assign(**{TARGET: (rows["small"] > 0.5).astype(int)})


def digits() -> Any:
    bunch = load_digits(as_frame=True)
    return bunch.data.assign(**{TARGET: bunch.target})


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "an MLP of 1024, 1024 and 512 over handwritten digits": (
        digits(),
        make_pipeline(MinMaxScaler(), MLPClassifier((1024, 1024, 512), max_iter=12, random_state=2)),
        {},
    ),
    "an MLP of 256 and 256 that must see a small number beside a large one": (
        blinded(),
        MLPClassifier((256, 256), max_iter=60, random_state=0),
        {},
    ),
    "60 rounds of GradientBoostingClassifier over handwritten digits, --max-trees auto": (
        digits(),
        GradientBoostingClassifier(n_estimators=60, random_state=0),
        {"max_trees": "auto"},
    ),
}


def main() -> None:
    screen = Console(width=_WIDTH)
    for name, (rows, estimator, changes) in CASES.items():
        seen, held_out = train_test_split(rows, test_size=0.5, random_state=0, stratify=rows[TARGET])
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # networks are stopped early on purpose
            place = Path(directory)
            joblib.dump(estimator.fit(seen.drop(columns=TARGET), seen[TARGET]), place / "model.joblib")
            held_out.to_parquet(place / "rows.parquet", index=False)
            order = Order(
                place / "model.joblib",
                "model",
                "1",
                place / "rows.parquet",
                place / "models",
                target=TARGET,
                held_out=True,
                trust=True,
                **changes,
            )
            manifest = convert(order).manifest
        screen.print(f"\n{name}; {len(held_out)} held-out rows")
        screen.print(decision_table(manifest.quantization))
        screen.print(quantization_text(manifest.quantization))
        accuracy = {whose: manifest.metrics[whose]["accuracy"] for whose in ("original", "served")}
        screen.print(f"accuracy: original {accuracy['original']:.4f}, served {accuracy['served']:.4f}")


if __name__ == "__main__":
    main()
