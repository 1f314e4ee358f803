"""Dashboards, recording rules and alerts ask for what there is: a real Prometheus scrapes a gateway with a full life.

Whatever a query reads has happened to it: errors, a full queue, cache hits, a failing candidate, a version that cannot
be loaded, a shadow, a rollout, drift, samples that were dropped, labels.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from tests.builders import classifier, write_package
from tests.deploy.programs import require
from tests.deploy.prometheus import ALERTS, RULES, install, results, running
from tests.end_to_end.flags import declare, must_change, split, wait_adopted, wait_warm
from tests.faults import write_erring, write_faulty
from tests.live import LiveGateway, SettingsTable, eventually

DASHBOARDS = sorted((Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards").glob("*.json"))
FEATURES = classifier().features
REASON = {"x-change-reason": "test"}
WORKERS, MAX_CONNECTIONS = 2, 30
SETTINGS: SettingsTable = {
    "sampling": {"rate": 1.0, "max_queue_bytes": 20_000},
    "batching": {"max_queue_rows": 2_000},
    "server": {"max_connections": MAX_CONNECTIONS},
    "monitor": {"poll_s": 0.05, "window_rows": 200},
    "labels": {"wait_s": 2, "window_rows": 50, "reference_windows": 2},
    "metrics": {"listen": "127.0.0.1:0"},
}


def write_models(root: Path) -> None:
    write_package(root, classifier(), reference_rows=500)
    write_package(root, classifier("house"))
    write_package(root, classifier("failing"))
    write_package(root, classifier("slow", iterations=6_000))
    write_erring(root, classifier("erring"), above=10.0)


def predict(gateway: LiveGateway, model: str, rows: Any, **headers: str) -> httpx.Response:
    named = [dict(zip(FEATURES, row, strict=True)) for row in np.asarray(rows).tolist()]
    return gateway.data.post(f"/predict/{model}", json={"rows": named}, headers=headers)


def crowd(gateway: LiveGateway, table: list[list[float]]) -> int:
    """One more connection that asks the slow model for much; returns the status."""
    rows = [dict(zip(FEATURES, row, strict=True)) for row in table]
    return httpx.post(f"{gateway.data_url}/predict/slow", json={"rows": rows}, timeout=60).status_code


def live_eventfully(gateway: LiveGateway, models: Path) -> None:
    """Everything that has a metric, once."""
    draw = np.random.default_rng(1)
    write_package(models, classifier("iris", "2"))
    write_package(models, classifier("house", "2"))
    write_faulty(models, classifier("failing", "2"), "raise")
    (write_package(models, classifier("iris", "3")) / "model.onnx").write_bytes(b"no model")
    declare(gateway, "iris", "shadow", "2")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gateway", "flags", "set", "iris.shadow", "1.0", "--reason", "test"),
            *("--url", gateway.control_url, "--token-file", str(gateway.state / "admin.token")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    must_change(gateway, "iris.route", {"variants": {"broken": "3"}})
    declare(gateway, "failing", "canary", "2")
    wait_adopted(gateway, "failing", must_change(gateway, "failing.route", {"targeting": split(50)}))
    plan = {"strategy": "canary", "version": "2", "steps": [{"weight_percent": 50, "min_time_s": 600}]}
    reply = gateway.control.post("/admin/v1/models/house/rollouts", json=plan, headers=REASON)
    assert reply.status_code == 201, reply.text
    wait_warm(gateway, "iris", "2")
    for key in range(40):
        assert predict(gateway, "failing", draw.normal(size=(1, 4)), **{"x-targeting-key": f"k{key}"}).is_success
        assert predict(gateway, "house", draw.normal(size=(1, 4)), **{"x-targeting-key": f"k{key}"}).is_success
    for _ in range(3):
        assert predict(gateway, "iris", [[0.5] * 4]).is_success  # the second one is a hit
    assert predict(gateway, "erring", [[20.0] * 4]).status_code == 500
    assert predict(gateway, "nobody", [[0.0] * 4]).status_code == 404
    with ThreadPoolExecutor(12) as clients:  # no room in the queue for some
        table = draw.normal(size=(900, 4)).tolist()
        asked = [clients.submit(crowd, gateway, table) for _ in range(12)]
    assert 503 in [each.result() for each in asked]
    assert predict(gateway, "iris", draw.normal(size=(1_500, 4))).is_success  # no room in the queue of samples
    with contextlib.ExitStack() as stack:  # more connections than may be
        host, _, port = gateway.data_url.removeprefix("http://").partition(":")
        for _ in range(WORKERS * MAX_CONNECTIONS + 1):
            stack.enter_context(socket.create_connection((host, int(port))))
        refused = 'sluicegate_refused_total{code="too_many_connections"}'
        eventually(lambda: refused in gateway.control.get("/metrics").text, "a connection is refused")
    labels = []
    for row in draw.normal(3.0, size=(400, 4)):
        answer = predict(gateway, "iris", [row])
        labels.append({"prediction_id": answer.headers["x-prediction-id"], "label": int(draw.integers(3))})
    assert gateway.data.post("/v1/feedback", json=labels).is_success


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    require("prometheus", "prometheus")
    root = tmp_path_factory.mktemp("eventful")
    write_models(root / "models")
    with LiveGateway(root / "models", root / "state", workers=WORKERS, settings=SETTINGS) as gateway:
        token = root / "admin.token"
        token.write_text(gateway.admin_token)
        places = {
            "127.0.0.1:8081": gateway.control_url.removeprefix("http://"),
            "/etc/prometheus/sluicegate.token": str(token),
            "scrape_interval: 15s": "scrape_interval: 500ms\n  evaluation_interval: 500ms",
        }
        with running(install(root, places), root) as client:
            live_eventfully(gateway, root / "models")
            yield client


def selectors(expression: str) -> set[str]:
    """The series that an expression reads, each as a query of its own."""
    return {found[0] for found in re.finditer(r"(?:\b(?:model:)?sluicegate_[\w:]+|\bup\b)(?:\{[^}]*\})?", expression)}


def queries() -> list[Any]:
    """All that is asked of Prometheus, named by where it stands."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                asked = target["expr"].replace("$model", ".*").replace("$__rate_interval", "30s")
                found.append(pytest.param(asked, id=f"{path.stem}: {panel['title']} {target['refId']}"))
    for path in (RULES, ALERTS):
        for rule in yaml.safe_load(path.read_text())["groups"][0]["rules"]:
            if "record" in rule:
                found += [pytest.param(asked, id=rule["record"]) for asked in (rule["record"], rule["expr"])]
            else:
                found += [pytest.param(asked, id=rule["alert"]) for asked in sorted(selectors(rule["expr"]))]
    return found


@pytest.mark.parametrize("query", queries())
def test_what_is_asked_of_prometheus_is_there(prometheus: httpx.Client, query: str) -> None:
    eventually(lambda: results(prometheus, query), query)


def test_dashboards_ask_the_source_that_is_chosen_and_have_names_of_their_own() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert [board["uid"] for board in boards] == [path.stem for path in DASHBOARDS]
    for board in boards:
        assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "model"}
        for panel in board["panels"]:
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
            assert all(target["legendFormat"] for target in panel["targets"])


def test_every_selector_of_an_expression_is_looked_at() -> None:
    assert selectors('a:b * model:sluicegate_x:rate5m > sum(rate(sluicegate_y_total{a="b"}[5m])) and up == 0') == {
        "model:sluicegate_x:rate5m",
        'sluicegate_y_total{a="b"}',
        "up",
    }
