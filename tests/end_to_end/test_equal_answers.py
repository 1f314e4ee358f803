"""Whatever short way an answer takes - fast door, batch, cache - it says what the long way says, for any model.

Models and requests are other ones each time; SEED says which, and SLUICEGATE_TEST_SEED asks for them again.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import COLOURS, Linear, classifier, regressor, write_mixed_package, write_package
from tests.live import LiveGateway, SettingsTable, eventually
from tests.traffic import Client

SEED = int(os.environ.get("SLUICEGATE_TEST_SEED") or secrets.randbelow(2**32))
DRAW = np.random.default_rng(SEED)
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
    write_mixed_package(root / "models")
    off: SettingsTable = {"cache": {"max_bytes": 0}, "server": {"door": "asgi"}}
    with (
        LiveGateway(root / "models", root / "short") as short,
        LiveGateway(root / "models", root / "long", settings=off) as long,
    ):
        yield short, long


Asked = tuple[str, bytes, dict[str, str]]  # path, body, headers


def requests() -> list[Asked]:
    """One to four random rows, by several protocols, in the spellings of several clients; one in twelve is wrong."""
    asked: list[Asked] = []
    for number in range(240):
        if number % 12 == 7:
            asked.append(mixed(number))
            continue
        model = MODELS[number % len(MODELS)]
        rows = np.round(DRAW.normal(size=(1 if number % 4 else int(DRAW.integers(1, 5)), len(model.features))), 4)
        shape = list(rows.shape)
        if number % 12 == 11:
            shape[1] += 1
        tensor: dict[str, Any] = {"name": "input", "shape": shape, "datatype": "FP32"}
        headers: dict[str, str] = {}
        document: dict[str, Any]
        path = f"/v2/models/{model.model}/infer"
        if number % 5 == 4:
            path = f"/predict/{model.model}"
            document = {"rows": [dict(zip(model.features, row, strict=True)) for row in rows.tolist()]}
        elif number % 5 == 3:
            path = f"/predict/{model.model}"
            document = {"columns": list(model.features), "rows": rows.tolist()}
        elif number % 5 == 2:
            tensor["parameters"] = {"binary_data_size": 4 * rows.size}
            document = {"inputs": [tensor]}
        else:
            document = {"inputs": [{**tensor, "data": rows.ravel().tolist()}]}
        body = json.dumps(document, separators=(",", ":") if number % 2 else None).encode()
        if number % 5 == 2:
            headers["inference-header-content-length"] = str(len(body))
            body += rows.astype("<f4").tobytes()
        asked.append((path, body, headers))
    return asked


def mixed(number: int) -> Asked:
    """A row of the model with two inputs, of which one is a text; sometimes one that is missing."""
    size, colour = round(float(DRAW.normal()), 3), str(DRAW.choice([*COLOURS, "grün", ""]))
    row: dict[str, Any] = {"size": size, "colour": colour} if number % 24 == 7 else {"colour": colour}
    return "/predict/paint", json.dumps({"rows": [row]}, ensure_ascii=bool(number % 2)).encode(), {}


async def one_by_one(gateway: LiveGateway, asked: list[Asked]) -> list[Any]:
    async with Client(gateway.data_url) as client:
        return [told(await client.post(*request)) for request in asked]


async def at_once(gateway: LiveGateway, asked: list[Asked]) -> list[Any]:
    async def ask(request: Asked) -> Any:
        async with Client(gateway.data_url) as client:
            return told(await client.post(*request))

    return list(await asyncio.gather(*(ask(request) for request in asked)))


def told(answer: Any) -> Any:
    """What an answer says, without the ids that are minted for each request."""
    assert answer.status in (200, 400), answer.body
    document = json.loads(re.sub(rb'"(prediction|request)_id":"[0-9a-f]*"', b'"id":""', answer.body))
    return {"status": str(answer.status), "document": document}


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
    for request, alone, batched in zip(asked, expected, together, strict=True):
        assert texts(alone) == texts(batched), (SEED, request)
        np.testing.assert_allclose(numbers(batched), numbers(alone), TOLERANCE, TOLERANCE, err_msg=f"{SEED}: {request}")
    wrong = sum(answer["status"] == "400" for answer in expected)
    assert 10 < wrong < 50, SEED
    hit = r'sluicegate_cache_total\{model="\w+",result="hit",version="1"\} (\S+)'
    eventually(lambda: counted(short, hit) >= len(asked) - wrong, "all good second answers are counted as hits")
    # Some did share a run.
    assert counted(short, r'sluicegate_batch_requests_count\{model="\w+",version="1"\} (\S+)') < len(asked)


def counted(gateway: LiveGateway, pattern: str) -> float:
    return sum(map(float, re.findall(pattern, gateway.control.get("/metrics").text)))
