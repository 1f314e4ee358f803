"""A bench to convert on: rows that come with scikit-learn, estimators to fit on them, orders for their conversion."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from converters.convert import Converted, Order, convert
from gateway.models.runtime import OnnxRuntime
from gateway.tensors import Array, Tensors

TARGET = "truth"


@dataclass(frozen=True, slots=True)
class Rows:
    """Features and the true labels or values."""

    features: Any
    truth: Any


def cancer() -> Rows:
    """569 rows of 30 decimal numbers, two classes."""
    bunch = load_breast_cancer(as_frame=True)
    return Rows(bunch.data, bunch.target)


def narrow() -> Rows:
    """The first eight numbers of the tumours, for what is asked of many estimators."""
    rows = cancer()
    return Rows(rows.features.iloc[:, :8], rows.truth)


def flowers() -> Rows:
    """150 rows of 4 decimal numbers, three classes named by text."""
    bunch = load_iris(as_frame=True)
    return Rows(bunch.data, bunch.target.map(dict(enumerate(bunch.target_names))))


def diabetes() -> Rows:
    """442 rows of 10 decimal numbers, a value."""
    bunch = load_diabetes(as_frame=True)
    return Rows(bunch.data, bunch.target)


def mixed() -> Rows:
    """The tumours with two columns of texts made of their numbers: a zip-like code and a size in words; two classes."""
    rows = cancer()
    area = rows.features["mean area"]
    features = pd.DataFrame(
        {
            "area": area,
            "smoothness": rows.features["mean smoothness"],
            "size": np.where(area < 500, "small", np.where(area < 900, "middle", "large")),
            "code": (rows.features["mean texture"] // 10).astype(int).map("00{}".format),
        }
    )
    return Rows(features.astype({"size": object, "code": object}), rows.truth)


def mixed_pipeline(*, unseen: str = "ignore", scaled: bool = True) -> Any:
    """An unfitted pipeline over the columns of mixed(); unseen: what its encoder does with texts that it never saw."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler()) if scaled else SimpleImputer()
    columns = ColumnTransformer(
        [
            ("numbers", numbers, ["area", "smoothness"]),
            ("texts", OneHotEncoder(handle_unknown=unseen), ["size", "code"]),
        ]
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000))


def voting(estimator: Any) -> Any:
    """The estimator where its trees are not read one by one: left to skl2onnx, which rounds thresholds to float32."""
    return VotingClassifier([("only", estimator)], voting="soft", flatten_transform=False)


def order(directory: Path, estimator: Any, rows: Rows, *, file: str = "rows.parquet", **changes: Any) -> Order:
    """Save a fitted estimator and rows below *directory*, and order their conversion; *changes* are fields of Order."""
    source = directory / "model.joblib"
    joblib.dump(estimator, source)
    data = directory / file
    table = rows.features.assign(**{TARGET: rows.truth})
    if data.suffix == ".csv":
        table.to_csv(data, index=False)
    else:
        table.to_parquet(data, index=False)
    made = Order(source, "model", "1", data, directory / "models", target=TARGET, trust=True)
    return dataclasses.replace(made, **changes)


def converted(directory: Path, estimator: Any, rows: Rows, **changes: Any) -> Converted:
    """Fit the estimator on the rows, and convert it on them."""
    return convert(order(directory, estimator.fit(rows.features, rows.truth), rows, **changes))


def served(package: Converted, inputs: Tensors) -> Tensors:
    """What a worker's runtime gives for these tensors."""
    return OnnxRuntime((package.path / "model.onnx").read_bytes()).run(inputs)


def matrix(features: Any) -> Tensors:
    """The one input of a model that takes a matrix."""
    return {"input": features.to_numpy().astype(np.float32)}


def doubles(features: Any, datatype: str) -> Tensors:
    """The one input of a model that takes a matrix of that datatype, FP64 or FP32."""
    return {"input": features.to_numpy().astype(np.float64 if datatype == "FP64" else np.float32)}


def columns(features: Any) -> Tensors:
    """The inputs of a model that takes its columns one by one."""
    tensors: Tensors = {}
    for name in features.columns:
        values = features[name].to_numpy()
        column: Array = np.array([str(v).encode() for v in values], object) if values.dtype == object else values
        tensors[name] = (column if column.dtype == object else column.astype(np.float32)).reshape(-1, 1)
    return tensors


def as_text(labels: Any) -> list[str]:
    """Labels of either model as texts, to compare them."""
    return [label.decode() if isinstance(label, bytes) else str(label) for label in np.asarray(labels).tolist()]
