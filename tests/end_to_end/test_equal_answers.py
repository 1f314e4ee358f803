"""Whatever short way an answer takes - fast door, batch, cache - it says what the long way says, for any model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import Linear, classifier, regressor, write_package
from tests.live import LiveGateway, SettingsTable, eventually
from tests.traffic import Client

DRAW = np.random.default_rng(17)
# The answer of a row beside others may differ in its last digits: the matrix product takes other turns.
TOLERANCE = 1e-5


def models() -> list[Linear]:
    """Models of random widths and kinds."""
    made: list[Linear] = []
    for number in range(6):
        features = [f"f{index}" for index in range(int(DRAW.integers(1, 12)))]
        classes = range(int(DRAW.integers(2, 5)))
        if number % 3 == 0:
            made.append(regressor(f"m{number}", features=features))
        else:
            named = [f"class {index}" for index in classes] if number % 3 == 1 else list(classes)
            made.append(classifier(f"m{number}", features=features, classes=named))
    return made


MODELS = models()


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveGateway, LiveGateway]]:
    """One with every short way, one with none: no cache, no fast door, and it is asked one request at a time."""
    root: Path = tmp_path_factory.mktemp("equal")
    for model in MODELS:
        write_package(root / "models", model)
    off: SettingsTable = {"cache": {"max_bytes": 0}, "server": {"door": "asgi"}}
    with (
        LiveGateway(root / "models", root / "short") as short,
        LiveGateway(root / "models", root / "long", settings=off) as long,
    ):
        yield short, long


def requests() -> list[tuple[str, bytes]]:
    """Paths and bodies: one to four random rows, by either protocol, in the spellings of several clients."""
    asked: list[tuple[str, bytes]] = []
    for number in range(240):
        model = MODELS[number % len(MODELS)]
        rows = np.round(DRAW.normal(size=(1 if number % 4 else int(DRAW.integers(1, 5)), len(model.features))), 4)
        document: dict[str, Any]
        if number % 5 == 4:
            path = f"/predict/{model.model}"
            document = {"rows": [dict(zip(model.features, row, strict=True)) for row in rows.tolist()]}
        elif number % 5 == 3:
            path = f"/predict/{model.model}"
            document = {"columns": list(model.features), "rows": rows.tolist()}
        else:
            path = f"/v2/models/{model.model}/infer"
            tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
            document = {"inputs": [tensor]}
        asked.append((path, json.dumps(document, separators=(",", ":") if number % 2 else None).encode()))
    return asked


async def one_by_one(gateway: LiveGateway, asked: list[tuple[str, bytes]]) -> list[Any]:
    async with Client(gateway.data_url) as client:
        return [told(await client.post(path, body)) for path, body in asked]


async def at_once(gateway: LiveGateway, asked: list[tuple[str, bytes]]) -> list[Any]:
    async def ask(path: str, body: bytes) -> Any:
        async with Client(gateway.data_url) as client:
            return told(await client.post(path, body))

    return list(await asyncio.gather(*(ask(path, body) for path, body in asked)))


def told(answer: Any) -> Any:
    """What an answer says, without the id that is minted for each request."""
    assert answer.status == 200, answer.body
    return json.loads(re.sub(rb'"prediction_id":"[0-9a-f]{32}"', b'"prediction_id":""', answer.body))


def numbers(document: Any) -> list[float]:
    if isinstance(document, dict):
        return [number for value in document.values() for number in numbers(value)]
    if isinstance(document, list):
        return [number for value in document for number in numbers(value)]
    return [float(document)] if isinstance(document, int | float) else []


def texts(document: Any) -> Any:
    """A document with its numbers blotted out."""
    if isinstance(document, dict):
        return {key: texts(value) for key, value in document.items()}
    if isinstance(document, list):
        return [texts(value) for value in document]
    return 0 if isinstance(document, int | float) else document


def test_batched_cached_and_single_answers_of_both_doors_are_the_same(
    gateways: tuple[LiveGateway, LiveGateway],
) -> None:
    short, long = gateways
    asked = requests()
    expected = asyncio.run(one_by_one(long, asked))
    together = asyncio.run(at_once(short, asked))
    again = asyncio.run(one_by_one(short, asked))
    assert again == together  # from the cache: bit for bit
    for (path, body), alone, batched in zip(asked, expected, together, strict=True):
        assert texts(alone) == texts(batched), (path, body)
        np.testing.assert_allclose(numbers(batched), numbers(alone), rtol=TOLERANCE, atol=TOLERANCE)
    hit = r'sluicegate_cache_total\{model="\w+",result="hit",version="1"\} (\S+)'
    eventually(lambda: counted(short, hit) >= len(asked), "all second answers are counted as hits")
    # Some did share a run.
    assert counted(short, r'sluicegate_batch_requests_count\{model="\w+",version="1"\} (\S+)') < len(asked)


def counted(gateway: LiveGateway, pattern: str) -> float:
    return sum(map(float, re.findall(pattern, gateway.control.get("/metrics").text)))
