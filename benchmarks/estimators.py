"""Every estimator of scikit-learn that skl2onnx says it converts: fitted on real rows, converted, and judged by others.

Each is fitted on half of the rows of a data set, converted with a quarter of them, and judged on the last quarter. What
counts as wrong is written here once more, so that a fault of the conversion's own comparison shows: a label that is
another one and no tie, a probability off by more than 2e-5, a number by more than 2e-5 of itself and of its column's
usual size. The table in docs/converters.md is written anew; a minute.

    .venv/bin/python benchmarks/estimators.py
"""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import pandas as pd
from estimator_recipes import SETS, Recipe, claimed, kind_of, recipe_of, unclaimed
from sklearn.base import is_regressor
from sklearn.feature_extraction.text import CountVectorizer

from converters.convert import Order, convert
from converters.ways import IN_DOUBLES
from gateway.errors import GatewayError
from gateway.models.runtime import OnnxRuntime
from gateway.tensors import Array, Tensors

Verdict = Literal["passes", "passes in doubles", "refused", "wrong"]
PAGE = Path(__file__).parent.parent / "docs" / "converters.md"
BEGIN, END = "<!-- written by benchmarks/estimators.py -->", "<!-- end of what it writes -->"
_MAX_REASON = 160
MAX_ROWS = 300
# As the conversion has it, but here it is not what the package was chosen by.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one estimator on one data set. rows: judged on; worst: the largest difference, relative to size."""

    estimator: str
    kind: str
    data: str
    verdict: Verdict
    reason: str = ""
    rows: int = 0
    worst: float = 0.0


def outcomes(directory: Path, estimators: Mapping[str, type]) -> Iterator[Outcome]:
    """Convert each of *estimators* on its data sets, below an empty *directory*, and judge what is served."""
    for name, each in estimators.items():
        recipe = recipe_of(name, each)
        for data in recipe.data:
            yield _tried(directory, name, each, recipe, data)


def _tried(directory: Path, name: str, each: type, recipe: Recipe, data: str) -> Outcome:
    features, truth = SETS[data]()
    order_of_rows = np.random.default_rng(1).permutation(len(features))[:MAX_ROWS]
    features.columns = [str(name) for name in features.columns]
    features, truth = (
        features.iloc[order_of_rows].reset_index(drop=True),
        truth.iloc[order_of_rows].reset_index(drop=True),
    )
    if name == "MultiOutputClassifier":
        truth = pd.DataFrame({"one": truth, "other": truth % 2})
    half, rest = len(features) // 2, len(features) * 3 // 4
    kind = kind_of(each)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            estimator = recipe.make(each)
            if name in ("LabelEncoder", "LabelBinarizer"):
                estimator.fit(features[:half].iloc[:, 0])
            elif name == "DictVectorizer":
                estimator.fit(features[:half].to_dict("records"))
            else:
                estimator.fit(_given(estimator, features[:half]), truth[:half])
        except Exception as error:  # whatever an estimator raises on data that it was not made for is its row's reason
            why = (str(error) or type(error).__name__).splitlines()[0][:100]
            return Outcome(name, kind, data, "refused", f"cannot be fitted on rows of columns: {why}")
        place = directory / f"{name}-{data}"
        place.mkdir()
        joblib.dump(estimator, place / "model.joblib")
        features[half:rest].to_parquet(place / "rows.parquet", index=False)
        order = Order(
            place / "model.joblib", "m", "1", place / "rows.parquet", place / "models", trust=True, quantize="off"
        )
        try:
            package = convert(order)
        except GatewayError as error:
            return Outcome(name, kind, data, "refused", str(error))
        unseen = features[rest:]
        manifest = package.manifest
        served = OnnxRuntime((package.path / "model.onnx").read_bytes()).run(_tensors(unseen, manifest.signature))
        wrong, worst = judged(estimator, _given(estimator, unseen), served)
    verdict: Verdict = "passes in doubles" if IN_DOUBLES in manifest.parity["notes"] else "passes"
    return Outcome(
        name, kind, data, "wrong" if wrong else verdict, f"{wrong} rows" if wrong else "", len(unseen), worst
    )


def _given(estimator: Any, features: Any) -> Any:
    """The rows as the estimator takes them."""
    return features.iloc[:, 0] if isinstance(estimator, CountVectorizer) else features


def _tensors(features: Any, signature: Any) -> Tensors:
    if len(signature.inputs) == 1 and len(features.columns) > 1:
        return {"input": features.to_numpy().astype(signature.inputs[0].dtype)}
    tensors: Tensors = {}
    for spec in signature.inputs:
        column = features[spec.name] if spec.name in features.columns else features.iloc[:, 0]
        values = column.to_numpy()
        made: Array = np.array([str(v).encode() for v in values], object) if values.dtype == object else values
        tensors[spec.name] = made.astype(spec.dtype).reshape(-1, 1)
    return tensors


def judged(estimator: Any, features: Any, served: Tensors) -> tuple[int, float]:
    """Rows that are wrong, and the largest difference of a number, in parts of its column's usual size."""
    rows = len(features)
    wrong = np.zeros(rows, dtype=bool)
    worst = 0.0
    for name, found in served.items():
        if name == "label":
            said = np.asarray(estimator.predict(features)).ravel()
            same = np.array(
                [str(a) == (b.decode() if isinstance(b, bytes) else str(b)) for a, b in zip(said, found, strict=True)]
            )
            wrong |= ~same & ~_tied(estimator, features)
            continue
        expected = _asked(estimator, features, name)
        if expected.dtype == object:
            wrong |= (expected != np.vectorize(bytes.decode)(found)).any(axis=1)
            continue
        size = np.median(np.abs(expected), axis=0) if name != "probabilities" else 1.0
        apart = np.abs(expected - found) / np.maximum(np.abs(expected), np.where(size, size, 1.0))
        apart[np.isnan(expected) & np.isnan(found)] = 0
        worst = max(worst, float(apart.max()))
        wrong |= ~(apart <= 2 * TOLERANCE).all(axis=1)
    return int(wrong.sum()), worst


def _asked(estimator: Any, features: Any, output: str) -> Array:
    if output == "probabilities":
        found = estimator.predict_proba(features)
    elif output == "score":
        found = estimator.decision_function(features)
    elif is_regressor(estimator):
        found = estimator.predict(features)
    else:
        found = estimator.transform(features)
    found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    return found.reshape(len(features), -1)


def _tied(estimator: Any, features: Any) -> Array:
    for ask in ("predict_proba", "decision_function", "transform"):
        if hasattr(estimator, ask):
            scores = np.asarray(getattr(estimator, ask)(features), dtype=float).reshape(len(features), -1)
            if scores.shape[1] == 1:
                return np.asarray(np.abs(scores[:, 0]) < TOLERANCE * np.median(np.abs(scores)))
            best = np.sort(scores if ask != "transform" else -scores, axis=1)
            return np.asarray(best[:, -1] - best[:, -2] < TOLERANCE * max(1.0, float(np.median(np.abs(best)))))
    return np.zeros(len(features), dtype=bool)


def written(found: Iterable[Outcome]) -> list[str]:
    """The lines of the table: one per estimator."""
    by_name: dict[str, list[Outcome]] = {}
    for outcome in found:
        by_name.setdefault(outcome.estimator, []).append(outcome)
    lines = ["| estimator | kind | rows judged | most off | result |", "|---|---|---|---|---|"]
    for name, own in by_name.items():
        rows = ", ".join(f"{each.data} {each.rows}" for each in own if each.rows)
        worst = max(each.worst for each in own)
        lines.append(f"| {name} | {own[0].kind} | {rows} | {f'{worst:.0e}' if rows else ''} | {_results(own)} |")
    return lines


def _results(own: list[Outcome]) -> str:
    told = {each.data: each.verdict + (f": {_cut(each.reason)}" if each.reason else "") for each in own}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{data}: {text}" for data, text in told.items())


def _cut(reason: str) -> str:
    """The reason as far as a table has room for it."""
    short = re.sub(r"ONNX Runtime refuses the model: \[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason)
    short = re.sub(r"\[ONNXRuntimeError\].*Status Message: ", "", short.partition(". Nothing was written")[0])
    short = re.sub(r"; [^;]* on raw rows$", "", short).replace("|", "/")
    return short if len(short) <= _MAX_REASON else short[: _MAX_REASON - 1] + "…"


def main() -> None:
    """Convert and judge all, and put the table into the page."""
    with tempfile.TemporaryDirectory() as directory:
        found = list(outcomes(Path(directory), claimed()))
    with tempfile.TemporaryDirectory() as directory:
        others = list(outcomes(Path(directory), unclaimed()))
    taken = sorted({each.estimator for each in others if each.verdict != "refused"})
    wrong = [each for each in found + others if each.verdict == "wrong"]
    passed = sum(
        any(each.verdict.startswith("passes") for each in found if each.estimator == name) for name in claimed()
    )
    lines = [
        BEGIN,
        f"{len(claimed())} estimators, {passed} pass on one data set or all, {len(wrong)} answers wrongly. "
        f"{_versions()}; {date.today()}.",
        "",
        *written(found),
        "",
        f"scikit-learn's other {len(unclaimed())} classifiers, regressors, transformers and outlier detectors are not "
        f"claimed by skl2onnx. Refused: {', '.join(sorted({each.estimator for each in others} - set(taken)))}."
        + (f" Taken: {', '.join(taken)}." if taken else ""),
        END,
    ]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + "\n".join(lines) + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))
    if wrong:
        raise SystemExit(f"{len(wrong)} are wrong")


def _versions() -> str:
    names = ("scikit-learn", "skl2onnx", "onnxruntime")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


if __name__ == "__main__":
    main()
