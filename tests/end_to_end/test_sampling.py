"""Rules of sampling on a real gateway: who is wanted is in the log once, under its reason; statistics see none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.samples.record import sample_hash, sampling_limit
from gateway.samples.segments import SegmentReader
from tests.builders import classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually

IRIS = classifier()
RULES = {
    "errors": True,
    "low_confidence": 0.5,
    "keys": ["ann"],
    "headers": {"X-Tier": ["gold"]},
    "outliers": True,
}
# Of these weights: a row whose best class has 0.71, and one at which no class has half.
SURE, UNSURE = [1.0, 0.0, 0.0, 0.0], [-0.5, -0.5, -0.5, -0.5]


@pytest.fixture(scope="module", params=["fast", "asgi"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("sampling")
    for model in ("iris", "half", "slow", "greedy", "split"):
        write_package(root / "models", classifier(model), reference_rows=500)
    settings: SettingsTable = {
        "sampling": {"rate": 0.0, "sync_s": 0.01, "max_by_rules_per_s": 20.0},
        "monitor": {"poll_s": 0.05},
        "cache": {"max_bytes": 0},
    }
    options = ("--door", str(request.param))
    with LiveGateway(root / "models", root / "state", settings=settings, options=options) as live:
        yield live


def rules(gateway: LiveGateway, model: str, value: dict[str, Any]) -> None:
    """Put the rules in force in all workers."""
    flag = {"state": "ENABLED", "variants": {"set": value}, "defaultVariant": "set"}
    headers = {"if-none-match": "*", "x-change-reason": "test"}
    reply = gateway.control.put(f"/admin/v1/flags/{model}.sampling", json=flag, headers=headers)
    assert reply.status_code == 201, reply.text
    await_flags(gateway, reply)


def await_flags(gateway: LiveGateway, reply: httpx.Response) -> None:
    """Until all workers have adopted what *reply* says was written."""
    revision = int(reply.headers["etag"].strip('"'))

    def adopted() -> bool:
        workers = gateway.control.get("/admin/v1/status").json()["workers"]
        return bool(workers) and all(worker["revision"] >= revision for worker in workers)

    eventually(adopted, "the workers know the flag")


def ask(gateway: LiveGateway, model: str, row: list[Any], **headers: str) -> httpx.Response:
    body = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row}]}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.data.post(f"/v2/models/{model}/infer", json=body, headers=sent)


def logged(gateway: LiveGateway, model: str) -> list[dict[str, Any]]:
    blocks = SegmentReader(gateway.state / "samples").read(10**9)
    records = [json.loads(line) for _file, block in blocks for line in block.splitlines()]
    return [record for record in records if record["model"] == model]


def test_each_rule_writes_whom_it_wants_and_nobody_else(gateway: LiveGateway) -> None:
    assert max(IRIS.answer([SURE])["probabilities"][0]) > 0.5
    assert max(IRIS.answer([UNSURE])["probabilities"][0]) < 0.5
    rules(gateway, "iris", RULES)
    wanted = {
        ask(gateway, "iris", SURE, x_targeting_key="ann").headers["x-prediction-id"]: "key",
        ask(gateway, "iris", SURE, x_tier="gold").headers["x-prediction-id"]: "header",
        ask(gateway, "iris", UNSURE).headers["x-prediction-id"]: "low_confidence",
        ask(gateway, "iris", [0.5, 0.5, 0.5, 99]).headers["x-prediction-id"]: "outlier",
    }
    refused = ask(gateway, "iris", ["x", 0, 0, 0])
    assert refused.status_code == 400
    wanted[refused.headers["x-prediction-id"]] = "error"
    for _ in range(5):
        ask(gateway, "iris", SURE, x_targeting_key="bob", x_tier="silver")
    eventually(lambda: len(logged(gateway, "iris")) >= len(wanted), "all are in the log")
    records = logged(gateway, "iris")
    assert {record["prediction_id"]: record["sample_reason"] for record in records} == wanted
    assert len(records) == len(wanted)
    (error,) = [record for record in records if record["sample_reason"] == "error"]
    assert (error["error"], error["inputs"], error["outputs"]) == ("invalid_input", {}, {})
    assert {record["error"] for record in records if record is not error} == {None}


def test_a_row_says_the_weight_that_its_variant_had_in_the_split(gateway: LiveGateway) -> None:
    split = {"variants": {"canary": "1"}, "targeting": {"fractional": [["canary", 25], ["stable", 75]]}}
    headers = {"if-match": "*", "x-change-reason": "test"}
    reply = gateway.control.patch("/admin/v1/flags/split.route", json=split, headers=headers)
    assert reply.status_code == 200, reply.text
    await_flags(gateway, reply)
    rules(gateway, "split", {"rate": 1.0})
    before = random_rows(gateway)
    for number in range(30):
        ask(gateway, "split", SURE, x_targeting_key=f"user-{number}")
    eventually(lambda: len(logged(gateway, "split")) >= 30, "all are in the log")
    weights = {(record["variant"], record["reason"], record["variant_weight"]) for record in logged(gateway, "split")}
    assert weights == {("canary", "SPLIT", 0.25), ("stable", "SPLIT", 0.75)}
    eventually(lambda: random_rows(gateway) == before + 30, "the monitor has counted all of them")


def test_who_is_drawn_by_chance_and_wanted_by_a_rule_is_written_once_as_random(gateway: LiveGateway) -> None:
    before = random_rows(gateway)
    rules(gateway, "half", {"rate": 0.5, "headers": {"x-all": "yes"}})
    ids = [ask(gateway, "half", SURE, x_all="yes").headers["x-prediction-id"] for _ in range(20)]
    eventually(lambda: len(logged(gateway, "half")) >= 20, "all are in the log")
    drawn = {name for name in ids if sample_hash(name) < sampling_limit(0.5)}
    found = logged(gateway, "half")
    assert Counter((record["prediction_id"], record["sample_reason"]) for record in found) == Counter(
        (name, "random" if name in drawn else "header") for name in ids
    )
    assert {record["sample_rate"] for record in found} == {0.5}
    # The monitor has read all of it, and put only what chance drew into its windows.
    eventually(lambda: random_rows(gateway) == before + len(drawn), "the monitor has counted the random ones")


def random_rows(gateway: LiveGateway) -> int:
    page = gateway.control.get("/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("sluicegate_monitor_rows_total")]
    return int(sum(float(line.split()[1]) for line in lines))


def test_slow_answers_are_written(gateway: LiveGateway) -> None:
    rules(gateway, "slow", {"slow_s": 1e-9})
    name = ask(gateway, "slow", SURE).headers["x-prediction-id"]
    found = eventually(lambda: logged(gateway, "slow"), "it is in the log")
    assert [(record["prediction_id"], record["sample_reason"]) for record in found] == [(name, "slow")]


def test_rules_that_want_all_stay_within_their_budget(gateway: LiveGateway) -> None:
    rules(gateway, "greedy", {"errors": True})
    for _ in range(200):
        assert ask(gateway, "greedy", ["x", 0, 0, 0]).status_code == 400

    def dropped() -> int:
        page = gateway.control.get("/metrics").text
        found = [line for line in page.splitlines() if 'samples_dropped_total{reason="rule_budget"}' in line]
        return int(float(found[0].split()[-1])) if found else 0

    eventually(lambda: len(logged(gateway, "greedy")) + dropped() == 200, "each is written or counted")
    assert dropped() > 0
