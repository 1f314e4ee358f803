"""Debian's Prometheus, with the configuration that we ship, scrapes a running gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.deploy.programs import require
from tests.deploy.prometheus import CONFIGURATION, install, replaced, results, running
from tests.live import LiveGateway, eventually


@pytest.fixture(scope="module", autouse=True)
def _prometheus_is_there() -> None:
    """Without Prometheus there is nothing to show."""
    require("prometheus", "prometheus")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    root = tmp_path_factory.mktemp("scraped")
    write_package(root / "models", classifier())
    with LiveGateway(root / "models", root / "state", workers=2) as live:
        yield live


@pytest.fixture(scope="module")
def token_file(gateway: LiveGateway) -> Path:
    """The token that the commands at the head of the configuration make."""
    path = gateway.state.with_name("sluicegate.token")
    lines = [line.removeprefix("#   ") for line in CONFIGURATION.read_text().splitlines() if line.startswith("#   ")]
    places = {
        "-o prometheus ": "",
        "/etc/prometheus/sluicegate.token": str(path),
        "/var/lib/sluicegate/admin.token": str(gateway.state / "admin.token"),
        "sluicegate token": f"{sys.executable} -m gateway token",
        "python3 -c": f"{sys.executable} -c",
    }
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", replaced("\n".join(lines), places)],
        env={**os.environ, "SLUICEGATE_URL": gateway.control_url},
        check=True,
    )
    return path


@pytest.fixture(scope="module")
def configuration(gateway: LiveGateway, token_file: Path) -> Path:
    """Our configuration for this gateway's port and token, and scraping more often."""
    places = {
        "127.0.0.1:8081": gateway.control_url.removeprefix("http://"),
        "/etc/prometheus/sluicegate.token": str(token_file),
        "scrape_interval: 15s": "scrape_interval: 500ms",
    }
    return install(token_file.parent, places)


@pytest.fixture(scope="module")
def prometheus(configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(configuration, tmp_path_factory.mktemp("prometheus")) as client:
        yield client


def query(prometheus: httpx.Client, expression: str) -> float | None:
    """The value of *expression*, None if it has no series."""
    found = results(prometheus, expression)
    return float(found[0]["value"][1]) if found else None


def test_the_shipped_configuration_is_valid(configuration: Path) -> None:
    done = subprocess.run(["promtool", "check", "config", configuration], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_token_of_prometheus_may_read_metrics_and_nothing_else(gateway: LiveGateway, token_file: Path) -> None:
    headers = {"authorization": f"Bearer {token_file.read_text().strip()}"}
    assert token_file.stat().st_mode & 0o077 == 0
    assert httpx.get(f"{gateway.control_url}/metrics", headers=headers).status_code == 200
    assert httpx.get(f"{gateway.control_url}/admin/v1/flags", headers=headers).status_code == 403


def test_our_metrics_follow_the_rules_of_prometheus(gateway: LiveGateway) -> None:
    page = gateway.control.get("/metrics").raise_for_status().text
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_query_gives_the_predictions_that_were_made(gateway: LiveGateway, prometheus: httpx.Client) -> None:
    row = dict.fromkeys(classifier().features, 0.5)
    for _ in range(10):
        gateway.data.post("/predict/iris", json={"rows": [row]}).raise_for_status()
    eventually(lambda: query(prometheus, 'up{job="sluicegate"}') == 1, "the gateway is scraped")
    eventually(
        lambda: query(prometheus, 'sum(sluicegate_requests_total{model="iris",outcome="ok"})') == 10,
        "the predictions are found by a query",
    )
