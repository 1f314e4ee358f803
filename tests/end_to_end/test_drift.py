"""From the request to the drift report: what clients sent is in the log, and what the monitor says of it is true."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from gateway.cli import main
from gateway.offline.report import BesideReport, DriftDocument, VersionReport, parse
from gateway.samples.segments import SegmentReader
from gateway.tensors import Array
from tests.builders import classifier, regressor, write_bare, write_package
from tests.end_to_end.flags import declare, must_change
from tests.live import LiveGateway, eventually
from tests.samples.make import iris_rows

IRIS = classifier()
TESTS = ("ks", "mann-whitney", "chi2")
HOUSE = regressor()
HOUSE_FEATURES = ("input[0]", "input[1]")  # a bare model names none


@pytest.fixture
def gateway(models: Path, state: Path) -> Iterator[LiveGateway]:
    """Two workers that log every prediction; iris has a reference, house is bare, nobody asks for idle."""
    write_package(models, IRIS, reference_rows=2000)
    write_package(models, classifier("idle"), reference_rows=200)
    write_bare(models, HOUSE)
    settings = {"sampling": {"rate": 1.0}, "monitor": {"poll_s": 0.05, "window_rows": 400}}
    with LiveGateway(models, state, workers=2, settings=settings) as live:
        yield live


def send(gateway: LiveGateway, model: str, features: tuple[str, ...], table: Array, rows: int = 10) -> list[str]:
    """Predict all of *table*, *rows* a request; returns the prediction ids."""
    ids = []
    for start in range(0, len(table), rows):
        named = [dict(zip(features, row, strict=True)) for row in table[start : start + rows].tolist()]
        reply = gateway.data.post(f"/predict/{model}", json={"rows": named})
        assert reply.status_code == 200, reply.text
        ids.append(reply.headers["x-prediction-id"])
    return ids


def watched(gateway: LiveGateway, model: str, rows: int) -> VersionReport:
    """Version 1 of the model's report once it has counted so many rows."""

    def look() -> DriftDocument | None:
        reply = gateway.control.get(f"/admin/v1/models/{model}/drift")
        assert reply.status_code == 200
        found = parse(reply.json())
        return found if found.versions[0].rows_total >= rows else None

    return eventually(look, f"{rows} rows of {model} are counted").versions[0]


def records(state: Path) -> list[dict[str, Any]]:
    blocks = SegmentReader(state / "samples").read(10**9)
    return [json.loads(line) for _file, block in blocks for line in block.splitlines()]


def test_a_shift_of_the_traffic_is_found_reported_and_survives_kill_9_of_the_monitor(
    gateway: LiveGateway, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ["drift", "report", "--url", gateway.control_url, "--token-file", str(state / "admin.token")]
    assert main([*report, "iris"]) == 1
    assert "no drift report for 'iris' yet" in capsys.readouterr().err

    ids = send(gateway, "iris", IRIS.features, iris_rows(400, 1))
    send(gateway, "house", HOUSE_FEATURES, iris_rows(20)[:, :2])
    assert watched(gateway, "iris", 400).status == "stable"
    watched(gateway, "house", 20)

    gateway.kill("monitor")
    shifted = iris_rows(400, 2)
    shifted[:, 1] += 1.0
    ids += send(gateway, "iris", IRIS.features, shifted)
    found = watched(gateway, "iris", 800)
    assert (found.status, found.rows_total, found.window_rows) == ("drifted", 800, 400)
    assert "sepal_width" in {column.name for column in found.drifted}

    assert found.alarms == ()  # one finished window is not enough
    ids += send(gateway, "iris", IRIS.features, shifted)
    found = watched(gateway, "iris", 1200)
    (alarm,) = (alarm for alarm in found.alarms if alarm.name == "sepal_width")
    assert (alarm.drifted_windows, alarm.judged_windows) == (2, 3)
    assert set(alarm.prediction_ids) <= set(ids)

    def told() -> list[dict[str, Any]]:
        rows = gateway.control.get("/admin/v1/audit", params={"limit": 100}).json()["rows"]
        return [row for row in rows if row["verb"] == "alarm.drift"]

    row = eventually(told, "the alarm is in the audit trail")[0]
    columns = {column["name"]: column for column in row["after"]["columns"]}
    assert columns["sepal_width"]["prediction_ids"] == list(alarm.prediction_ids)

    # What clients were told and what is in the log agree, row by row.
    logged = [record for record in records(state) if record["model"] == "iris"]
    assert sorted({record["prediction_id"] for record in logged}) == sorted(ids)
    in_log = np.array([list(record["inputs"].values()) for record in logged], np.float32)
    sent = np.concatenate([iris_rows(400, 1), shifted, shifted])
    assert sorted(map(tuple, in_log.tolist())) == sorted(map(tuple, sent.tolist()))
    labels = [record["outputs"]["label"] for record in logged]
    assert labels == IRIS.answer(in_log)["label"].tolist()

    assert main(report) == 0
    printed = capsys.readouterr().out
    assert "iris 1: drifted" in printed
    assert "house 1: no reference (the package has no manifest.json)" in printed
    assert "idle: no report yet" in printed
    rows = [line for line in printed.splitlines() if any(f" {test} " in line for test in TESTS)]
    verdicts = ["drifted" if " drifted " in row else "stable" for row in rows]
    assert verdicts == sorted(verdicts)  # the drifted ones first
    assert "sepal_width" in rows[0]
    assert main([*report, "iris", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"][0]["status"] == "drifted"
    written = tmp_path / "drift.html"
    assert main([*report, "iris", "--html", str(written)]) == 0
    assert "ALARM sepal_width: drifted in 2 of 3 windows" in capsys.readouterr().out
    content = written.read_text("utf-8")
    assert ElementTree.fromstring(content.removeprefix("<!DOCTYPE html>\n")).tag == "html"
    assert alarm.prediction_ids[0] in content
    assert main([*report, "--html", str(written)]) == 2
    assert main([*report, "iris", "--html", str(tmp_path / "no" / "drift.html")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert main([*report, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["idle"] is None

    page = gateway.control.get("/metrics").text
    assert 'sluicegate_drift_detected{feature="sepal_width",model="iris",version="1"} 1.0' in page
    assert "sluicegate_samples_written_total 1220.0" in page


def test_a_canary_that_drifts_from_the_stable_version_is_an_alarm_and_keeps_its_traffic(
    models: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rules send it rows of another kind: what comes to one version only is what the comparison sees."""
    write_package(models, IRIS, reference_rows=2000)
    settings = {"sampling": {"rate": 1.0}, "monitor": {"poll_s": 0.05, "window_rows": 200}}
    with LiveGateway(models, state, workers=1, settings=settings) as live:
        write_package(models, classifier(version="2"), reference_rows=2000)
        declare(live, "iris", "canary", "2")
        by_tier = {"if": [{"==": [{"var": "headers.x-tier"}, "gold"]}, "canary", "stable"]}
        revision = must_change(live, "iris.route", {"targeting": by_tier})

        def adopted() -> bool:
            workers = live.control.get("/admin/v1/status").json()["workers"]
            return bool(workers) and all(worker["revision"] >= revision for worker in workers)

        eventually(adopted, "the worker knows the rule")

        def both(rows: int, seed: int) -> None:
            usual, gold = iris_rows(rows, seed), iris_rows(rows, seed + 100)
            gold[:, 1] += 1.0
            for tier, table in (("usual", usual), ("gold", gold)):
                named = [dict(zip(IRIS.features, row, strict=True)) for row in table.tolist()]
                for start in range(0, rows, 10):
                    body = {"rows": named[start : start + 10]}
                    reply = live.data.post("/predict/iris", json=body, headers={"x-tier": tier})
                    assert reply.headers["x-model-variant"] == {"usual": "stable", "gold": "canary"}[tier]

        def canary() -> VersionReport:
            reply = live.control.get("/admin/v1/models/iris/drift")
            assert reply.status_code == 200
            found = {version.version: version for version in parse(reply.json()).versions}
            assert "2" in found
            return found["2"]

        both(10, 0)
        eventually(lambda: canary().beside, "the canary is seen beside the stable version")
        seeds = itertools.count(1)

        def go_on() -> BesideReport | None:
            both(50, next(seeds))  # as traffic goes on, rows of both fall into each window
            found = canary().beside
            return found if found is not None and found.alarms else None

        beside = eventually(go_on, "it alarms", timeout_s=60.0)
        assert "sepal_width" in {alarm.name for alarm in beside.alarms}

        def told() -> bool:
            rows = live.control.get("/admin/v1/audit", params={"limit": 100}).json()["rows"]
            return any("sepal_width against 1" in str(row["after"]) for row in rows if row["verb"] == "alarm.drift")

        eventually(told, "the alarm is in the audit trail")
        body = {"rows": [dict.fromkeys(IRIS.features, 1.0)]}
        reply = live.data.post("/predict/iris", json=body, headers={"x-tier": "gold"})
        assert reply.headers["x-model-variant"] == "canary"  # an alarm, and nothing else
        report = ["drift", "report", "iris", "--url", live.control_url, "--token-file", str(state / "admin.token")]
        assert main(report) == 0
        assert "beside version 1" in capsys.readouterr().out


def test_cache_hits_are_in_the_log_as_hits_and_under_ids_of_their_own(gateway: LiveGateway, state: Path) -> None:
    row = iris_rows(1, 7)
    ids = [send(gateway, "iris", IRIS.features, row)[0] for _ in range(20)]
    watched(gateway, "iris", 20)
    logged = {record["prediction_id"]: record for record in records(state)}
    assert sorted(logged) == sorted(ids)
    by_cache = [logged[identity]["cache"] for identity in ids]
    assert set(by_cache) == {"miss", "hit"}
    assert by_cache.count("miss") <= 2  # one cache per worker
    assert len({json.dumps([record["inputs"], record["outputs"]]) for record in logged.values()}) == 1


def test_a_rate_of_zero_by_flag_stops_the_log(gateway: LiveGateway, state: Path) -> None:
    (first,) = send(gateway, "iris", IRIS.features, iris_rows(1))
    watched(gateway, "iris", 1)
    flag = {"state": "ENABLED", "variants": {"none": 0.0}, "defaultVariant": "none"}
    headers = {"if-none-match": "*", "x-change-reason": "no samples, please"}
    reply = gateway.control.put("/admin/v1/flags/iris.sampling", json=flag, headers=headers)
    assert reply.status_code in (200, 201), reply.text

    revision = int(reply.headers["etag"].strip('"'))

    def adopted() -> bool:
        workers = gateway.control.get("/admin/v1/status").json()["workers"]
        return len(workers) == 2 and all(worker["revision"] >= revision for worker in workers)

    eventually(adopted, "both workers know the flag")
    send(gateway, "iris", IRIS.features, iris_rows(50, 8), rows=1)
    house_ids = send(gateway, "house", HOUSE_FEATURES, iris_rows(50)[:, :2], rows=1)
    gateway.stop()  # which writes all that is queued
    assert [record["prediction_id"] for record in records(state) if record["model"] == "iris"] == [first]
    assert {record["prediction_id"] for record in records(state) if record["model"] == "house"} == set(house_ids)
    assert list(state.rglob("*.open")) == []
