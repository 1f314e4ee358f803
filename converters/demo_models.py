"""The demo's models: trained on real rows that come with scikit-learn, converted, and given real rows as traffic."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from converters.convert import STEPS, Order, Progress, convert, silent

TARGET = "true label"
_SEED = 0


@dataclass(frozen=True, slots=True)
class DemoModels:
    """What was built. models: the models directory. traffic: by model, a JSON file of rows to send.

    A traffic file holds ``features`` (names), ``rows`` (lists of numbers in that order) and ``labels`` (the true ones).
    """

    models: Path
    traffic: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to get one model's rows, and one estimator for each of its versions."""

    model: str
    load: Callable[..., Any]
    versions: Mapping[str, Callable[[], Any]]


_RECIPES = (
    _Recipe(
        "breast-cancer",
        load_breast_cancer,
        {
            "1": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
            "2": lambda: GradientBoostingClassifier(random_state=_SEED),
        },
    ),
    _Recipe(
        "digits",
        load_digits,
        # Large enough that int8 pays; stopped early, since 25 rounds are as good as 200. With this seed few held-out
        # rows lie between two digits, so that the flips stay within the gate on processors that round otherwise.
        {"1": lambda: make_pipeline(MinMaxScaler(), MLPClassifier((1024, 512), max_iter=25, random_state=2))},
    ),
)


def build(directory: Path, progress: Progress = silent) -> DemoModels:
    """Train and convert ``breast-cancer`` versions 1 and 2 and ``digits`` version 1 below *directory*.

    Each model is trained on one half of its rows. The other half is what it is compared on, what its reference shows,
    and the traffic: a reference of training rows would be too sure of itself, and all later predictions would look
    like drift. Blocks for seconds. Raises ConversionRefused if a version exists in the directory.
    """
    total = STEPS * sum(len(recipe.versions) for recipe in _RECIPES)
    done = 0
    traffic: dict[str, Path] = {}
    for name in ("estimators", "rows", "traffic"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for recipe in _RECIPES:
        bunch = recipe.load(as_frame=True)
        seen, held_out, seen_labels, true_labels = train_test_split(
            bunch.data, bunch.target, test_size=0.5, random_state=_SEED, stratify=bunch.target
        )
        rows = directory / "rows" / f"{recipe.model}.parquet"
        held_out.assign(**{TARGET: true_labels}).to_parquet(rows, index=False)
        traffic[recipe.model] = directory / "traffic" / f"{recipe.model}.json"
        _write_traffic(traffic[recipe.model], recipe.model, held_out, true_labels)
        for version, make in recipe.versions.items():
            source = directory / "estimators" / f"{recipe.model}-{version}.joblib"
            progress(f"{recipe.model} {version}: train", done, total)
            _train(make(), seen, seen_labels, source)
            order = Order(source, recipe.model, version, rows, directory / "models", TARGET, held_out=True, trust=True)
            convert(order, progress=_shifted(progress, f"{recipe.model} {version}", done, total))
            done += STEPS
    return DemoModels(directory / "models", traffic)


def _train(estimator: Any, rows: Any, labels: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the network is stopped early on purpose
        joblib.dump(estimator.fit(rows, labels), path)


def _write_traffic(path: Path, model: str, rows: Any, labels: Any) -> None:
    document = {
        "model": model,
        "features": list(rows.columns),
        "rows": rows.to_numpy().tolist(),
        "labels": labels.tolist(),
    }
    path.write_text(json.dumps(document))


def _shifted(progress: Progress, name: str, done: int, total: int) -> Progress:
    """Progress of one conversion as a part of the whole."""
    return lambda step, own, _: progress(f"{name}: {step}", done + own, total)
