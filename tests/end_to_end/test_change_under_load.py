"""Two hundred clients while versions come and go and flags flip: nobody notices but by the version in the reply."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tests.builders import Linear, classifier, write_package
from tests.end_to_end.flags import declare, must_change, split, wait_adopted
from tests.live import LiveGateway
from tests.traffic import Client

CLIENTS = 200
SECONDS = 10.0
TOLERANCE = 1e-6


class Watchers:
    """What two hundred clients saw."""

    def __init__(self, versions: dict[str, Linear]) -> None:
        self.versions = versions
        self.answered: Counter[tuple[str, str]] = Counter()
        self.variant_of: dict[tuple[str, str], str] = {}
        self.failures: list[str] = []
        self.workers: set[str] = set()

    async def client(self, url: str, number: int, until_s: float) -> None:
        dice = random.Random(number)
        async with Client(url) as connection:
            while time.monotonic() < until_s:
                key = f"user-{dice.randrange(2000)}"
                row = [round(dice.uniform(-3, 3), 3) for _ in range(4)]
                if dice.random() < 0.3:
                    row = [1.0, 2.0, 3.0, float(dice.randrange(5))]  # a hot row
                answer = await self.ask(connection, key, row, named=dice.random() < 0.5)
                if answer is not None:
                    self.failures.append(answer)

    async def ask(self, connection: Client, key: str, row: list[float], *, named: bool) -> str | None:
        """One prediction; returns what was wrong with it."""
        headers = {"x-targeting-key": key}
        if named:
            features = next(iter(self.versions.values())).features
            body = json.dumps({"rows": [dict(zip(features, row, strict=True))]}).encode()
            answer = await connection.post("/predict/iris", body, headers)
        else:
            tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row}
            answer = await connection.post("/v2/models/iris/infer", json.dumps({"inputs": [tensor]}).encode(), headers)
        if answer.status != 200:
            return f"{answer.status}: {answer.body[:200]!r}"
        version, variant = answer.headers["x-model-version"], answer.headers["x-model-variant"]
        self.answered[(version, variant)] += 1
        if named:
            probabilities = list(answer.json()["predictions"][0]["probabilities"].values())
        else:
            probabilities = answer.json()["outputs"][1]["data"]
        expected = self.versions[version].answer([row])["probabilities"][0]
        if not np.allclose(probabilities, expected, atol=TOLERANCE):
            return f"version {version} said {probabilities} for {row}, must be {expected.tolist()}"
        seen = self.variant_of.setdefault((key, answer.headers["x-flag-revision"]), variant)
        if seen != variant:
            return f"{key} got {seen} and {variant} at revision {answer.headers['x-flag-revision']}"
        return None


def test_versions_and_flags_change_under_load_without_a_failed_request(tmp_path: Path) -> None:
    models = tmp_path / "models"
    versions = {version: classifier("iris", version) for version in ("1", "2", "3")}
    write_package(models, versions["1"], golden=True)

    with LiveGateway(models, tmp_path / "state", workers=2) as gateway:
        write_package(models, versions["2"], golden=True)
        declare(gateway, "iris", "canary", "2")
        wait_adopted(gateway, "iris", must_change(gateway, "iris.route", {"targeting": split(10)}))
        watchers = Watchers(versions)

        def operate() -> None:
            """In a thread: what an operator does in those ten seconds."""
            begun_s = time.monotonic()
            write_package(models, versions["3"], golden=True)
            declare(gateway, "iris", "next", "3")  # added
            time.sleep(max(0.0, begun_s + SECONDS / 3 - time.monotonic()))
            flip = {"defaultVariant": "stable", "variants": {"stable": "1", "canary": "3", "next": None}}
            must_change(gateway, "iris.route", flip)  # version 2 is no longer named: it is removed
            time.sleep(max(0.0, begun_s + SECONDS * 2 / 3 - time.monotonic()))
            must_change(gateway, "iris.route", {"targeting": split(50)})

        async def load() -> None:
            until_s = time.monotonic() + SECONDS
            clients = [watchers.client(gateway.data_url, number, until_s) for number in range(CLIENTS)]
            async with asyncio.timeout(SECONDS + 60):
                await asyncio.gather(asyncio.to_thread(operate), *clients)

        asyncio.run(load())

    total = sum(watchers.answered.values())
    print(f"{total} answers: {dict(watchers.answered)}")
    assert watchers.failures == []
    assert total > 1000
    assert {version for version, _ in watchers.answered} == {"1", "2", "3"}
    revisions = {revision for _, revision in watchers.variant_of}
    assert len(revisions) >= 3


def test_the_shares_of_a_canary_are_what_the_flag_says(tmp_path: Path) -> None:
    """Ten thousand keys at 10 %: five standard deviations are 1.5 points."""
    models = tmp_path / "models"
    write_package(models, classifier("iris", "1"))
    with LiveGateway(models, tmp_path / "state") as gateway:
        write_package(models, classifier("iris", "2"))
        declare(gateway, "iris", "canary", "2")
        wait_adopted(gateway, "iris", must_change(gateway, "iris.route", {"targeting": split(10)}))
        body = json.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
        seen: Counter[str] = Counter()

        async def client(numbers: range) -> None:
            async with Client(gateway.data_url) as connection:
                for number in numbers:
                    headers = {"x-targeting-key": f"user-{number}"}
                    answer = await connection.post("/v2/models/iris/infer", body.encode(), headers)
                    seen[answer.headers["x-model-variant"]] += 1

        async def load() -> None:
            async with asyncio.timeout(60):
                await asyncio.gather(*(client(range(start, 10_000, 20)) for start in range(20)))

        asyncio.run(load())
    assert 0.085 <= seen["canary"] / 10_000 <= 0.115
