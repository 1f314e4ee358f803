"""The port of the metrics, as a Prometheus meets it on a host that runs workers and no control."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.live import LiveGateway, eventually


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    tmp_path = tmp_path_factory.mktemp("told")
    write_package(tmp_path / "models", classifier())
    with LiveGateway(tmp_path / "models", tmp_path / "state", role="control"):
        pass  # it has written the first flags
    listen = {"metrics": {"listen": "127.0.0.1:0"}}
    with LiveGateway(tmp_path / "models", tmp_path / "state", workers=2, role="serving", settings=listen) as live:
        yield live


def address_of(serving: LiveGateway) -> str:
    return f"{serving.ready['metrics']['url']}/metrics"


def predictions(serving: LiveGateway) -> float:
    page = httpx.get(address_of(serving)).raise_for_status().text
    counts = [line for line in page.splitlines() if line.startswith("sluicegate_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def test_a_host_without_control_tells_the_counts_of_all_its_workers_also_of_dead_ones(serving: LiveGateway) -> None:
    row = dict.fromkeys(classifier().features, 0.5)
    for _ in range(20):  # new connections, which go to both workers
        httpx.post(f"{serving.data_url}/predict/iris", json={"rows": [row]}).raise_for_status()
    eventually(lambda: predictions(serving) == 20, "all predictions are counted")
    serving.kill("worker", 0)
    assert predictions(serving) == 20


def test_it_comes_back_when_it_is_killed_and_tells_that(serving: LiveGateway) -> None:
    address = address_of(serving)
    serving.kill("exporter")
    restarts = 'sluicegate_process_restarts_total{role="exporter"} 1.0'
    eventually(lambda: restarts in httpx.get(address).text, "the restart is counted")


def test_there_is_one_page(serving: LiveGateway) -> None:
    assert httpx.get(f"{serving.ready['metrics']['url']}/").status_code == 404
    assert httpx.post(address_of(serving)).status_code == 501
    assert httpx.get(address_of(serving)).headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_client_that_says_nothing_holds_up_nobody(serving: LiveGateway) -> None:
    metrics = serving.ready["metrics"]
    with socket.create_connection((metrics["host"], metrics["port"])):
        assert httpx.get(address_of(serving)).status_code == 200
