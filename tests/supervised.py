"""What a supervised gateway says of itself: its children, its log, its metrics, and that it answers."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from tests.builders import classifier
from tests.live import LiveGateway


def all_pids(gateway: LiveGateway) -> list[int]:
    return [child["pid"] for child in gateway.ready["children"]]


def metric(gateway: LiveGateway, name: str, label: str = "") -> float:
    """The sum of a metric over all its series that carry *label*, as the metrics page shows it."""
    page = gateway.control.get("/metrics")
    assert page.status_code == 200, page.text
    series = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", page.text, re.MULTILINE)
    return sum(float(value) for labels, value in series if label in labels)


def log_records(gateway: LiveGateway) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]


def predict(gateway: LiveGateway) -> httpx.Response:
    row = dict.fromkeys(classifier().features, 1.0)
    return gateway.data.post("/predict/iris", json={"rows": [row]})


def alive_on_a_new_connection(gateway: LiveGateway, *, timeout_s: float) -> bool:
    return httpx.get(f"{gateway.data_url}/livez", timeout=timeout_s).status_code == 200
