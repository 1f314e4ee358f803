"""No answer depends on who else is asking: the same rows alone and among many, for every kind of served model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.convert import Order, convert
from converters.quantize import Choice
from gateway.models.manifest import parse
from gateway.models.runtime import OnnxRuntime
from tests.converters.bench import cancer, converted, mixed, mixed_pipeline, order
from tests.live import LiveGateway

LENIENT = {"max_flip_rate": 0.05, "max_metric_drop_points": 5.0}
NETWORKS: dict[str, Choice] = {"float32": "off", "static": "static", "fp16": "fp16", "dynamic": "dynamic"}
MODELS = (*NETWORKS, "trees", "linear", "columns", "ready")
ROWS = cancer().features
MIXED = mixed().features
# The one whose rows depend on their batch, which is therefore never batched.
UNBATCHED = "dynamic"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """Serves a network in all its variants, trees, a linear model, a pipeline over columns, and a ready ONNX file."""
    directory = tmp_path_factory.mktemp("mates")
    rows = cancer()
    network = make_pipeline(
        StandardScaler(), MLPClassifier((64, 32), solver="lbfgs", max_iter=2000, alpha=10, random_state=0)
    )
    network.fit(rows.features, rows.truth)
    for name, choice in NETWORKS.items():
        convert(order(directory, network, rows, name=name, quantize=choice, gate=LENIENT))
    converted(directory, LGBMClassifier(n_estimators=20, n_jobs=1, verbosity=-1), rows, name="trees")
    converted(directory, make_pipeline(StandardScaler(), LogisticRegression()), rows, name="linear")
    converted(directory, mixed_pipeline(), mixed(), name="columns")
    file = directory / "models" / "float32" / "1" / "model.onnx"
    convert(Order(file, "ready", "1", None, directory / "models"))
    with LiveGateway(directory / "models", directory / "state", settings={"cache": {"max_bytes": 0}}) as started:
        yield started


def body(model: str, row: int) -> dict[str, Any]:
    """A request for one row, in the Open Inference Protocol."""
    if model == "columns":
        values = MIXED.iloc[row]
        inputs = [
            {
                "name": name,
                "shape": [1, 1],
                "datatype": "BYTES" if isinstance(values[name], str) else "FP32",
                "data": [values[name] if isinstance(values[name], str) else float(values[name])],
            }
            for name in MIXED.columns
        ]
    else:
        data = ROWS.iloc[row].tolist()
        datatype = "FP64" if model == "trees" else "FP32"
        inputs = [{"name": "input", "shape": [1, len(data)], "datatype": datatype, "data": data}]
    return {"inputs": inputs}


async def asked(gateway: LiveGateway, model: str, rows: list[int]) -> list[list[float]]:
    """The probabilities for rows that are all asked for at the same time."""
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=gateway.data.base_url, timeout=60, limits=limits) as client:
        replies = await asyncio.gather(
            *(client.post(f"/v2/models/{model}/infer", json=body(model, row)) for row in rows)
        )
    found = []
    for reply in replies:
        assert reply.status_code == 200, reply.text
        found.append(next(each["data"] for each in reply.json()["outputs"] if each["name"] == "probabilities"))
    return found


def alone(gateway: LiveGateway, model: str, rows: list[int]) -> list[list[float]]:
    """What the package's file gives for each row by itself, without any gateway."""
    runtime = OnnxRuntime((gateway.models / model / "1" / "model.onnx").read_bytes())
    found = []
    for row in rows:
        tensors = {}
        for one in body(model, row)["inputs"]:
            values = [each.encode() if isinstance(each, str) else each for each in one["data"]]
            dtype = {"BYTES": object, "FP32": np.float32, "FP64": np.float64}[one["datatype"]]
            tensors[one["name"]] = np.array(values, dtype=dtype).reshape(one["shape"])
        found.append(runtime.run(tensors)["probabilities"].ravel().tolist())
    return found


def runs(gateway: LiveGateway, model: str) -> tuple[float, float]:
    """How many runs the model had so far, and how many rows in them."""
    page = gateway.control.get("/metrics").text
    count, total = (
        re.search(rf'^sluicegate_batch_rows_{what}{{model="{model}",version="1"}} (\S+)$', page, re.MULTILINE)
        for what in ("count", "sum")
    )
    return (float(count[1]) if count else 0.0, float(total[1]) if total else 0.0)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=3)
@given(rows=st.lists(st.integers(0, len(ROWS) - 1), min_size=20, max_size=40))
def test_a_row_among_many_gets_the_answer_that_it_gets_alone(model: str, gateway: LiveGateway, rows: list[int]) -> None:
    together = asyncio.run(asked(gateway, model, rows))
    tolerance = 0.0 if model == UNBATCHED else 1e-5
    found, expected = (np.array(each, np.float32) for each in (together, alone(gateway, model, rows)))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_what_depends_on_its_batch_is_never_batched_and_all_else_is(gateway: LiveGateway) -> None:
    for model in MODELS:
        asyncio.run(asked(gateway, model, list(range(100))))
    for model in MODELS:
        raw = (gateway.models / model / "1" / "manifest.json").read_bytes()
        assert parse(raw, where=model).signature.batch_invariant == (model != UNBATCHED)
        count, total = runs(gateway, model)
        assert total >= 100
        assert (count == total) if model == UNBATCHED else (count < total)


def test_the_unbatched_one_would_answer_otherwise_in_company(gateway: LiveGateway) -> None:
    runtime = OnnxRuntime((gateway.models / UNBATCHED / "1" / "model.onnx").read_bytes())
    matrix = ROWS.to_numpy(np.float32)
    together = runtime.run({"input": matrix})["probabilities"]
    single = alone(gateway, UNBATCHED, list(range(64)))
    assert np.abs(together[:64] - np.array(single)).max() > 1e-5
