"""The port of metrics and health, as Prometheus and probes meet it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import certificates
from tests.builders import classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually


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


def test_there_is_nothing_else_on_it(serving: LiveGateway) -> None:
    assert httpx.get(f"{serving.ready['metrics']['url']}/").status_code == 404
    assert httpx.post(address_of(serving)).status_code == 501
    assert httpx.get(address_of(serving)).headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_client_that_says_nothing_holds_up_nobody(serving: LiveGateway) -> None:
    metrics = serving.ready["metrics"]
    with socket.create_connection((metrics["host"], metrics["port"])):
        assert httpx.get(address_of(serving)).status_code == 200


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_it_tells_that_the_gateway_is_ready_as_the_public_port_does(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    settings: SettingsTable = {
        "metrics": {"listen": f"127.0.0.1:{free_port()}"},  # the ready file is not there when it is asked first
        "server": {"drain_delay_s": 1},
        "supervisor": {"backoff_min_s": 1},
    }
    probes = httpx.Client(base_url=f"http://{settings['metrics']['listen']}")
    with LiveGateway(tmp_path / "models", tmp_path / "state", role="serving", settings=settings, wait=False) as live:
        # Without flags no worker is ready.
        assert eventually(lambda: probes.get("/livez"), "it answers").json() == {"live": True}
        assert probes.get("/readyz").status_code == 503
        assert probes.get("/readyz").json() == {"ready": False, "live": True}
        with LiveGateway(tmp_path / "models", tmp_path / "state", role="control"):
            live.wait_ready()
        assert (probes.get("/readyz").status_code, probes.get("/readyz").json()) == (200, {"ready": True, "live": True})
        assert live.data.get("/readyz").json() == probes.get("/readyz").json()

        dead = live.signal_child("worker")
        eventually(lambda: probes.get("/readyz").status_code == 503, "its only worker is dead")
        assert probes.get("/livez").status_code == 200
        live.wait_replaced("worker", 0, dead)
        assert probes.get("/readyz").status_code == 200

        live.signal(signal.SIGTERM)
        eventually(lambda: "detail" in probes.get("/readyz").json(), "it is stopping")
        told = probes.get("/readyz")
        assert told.status_code == 503
        assert told.json() == {"ready": False, "live": True, "detail": ["draining: the gateway is stopping"]}
        assert live.data.get("/readyz").json() == told.json()
        live.wait_stopped()
    probes.close()


def test_where_there_are_no_workers_all_processes_must_be_ready(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    settings: SettingsTable = {"metrics": {"listen": "127.0.0.1:0"}, "supervisor": {"backoff_min_s": 1}}
    with LiveGateway(tmp_path / "models", tmp_path / "state", role="control", settings=settings) as live:
        address = f"{live.ready['metrics']['url']}/readyz"
        assert httpx.get(address).status_code == 200
        dead = live.signal_child("control")
        eventually(lambda: httpx.get(address).status_code == 503, "control is dead")
        live.wait_replaced("control", 0, dead)
        assert httpx.get(address).status_code == 200


def test_probes_come_through_where_both_other_ports_ask_for_certificates(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier())
    server = certificates.self_signed(tmp_path / "tls")
    callers = certificates.self_signed(tmp_path / "tls", "callers", "callers")
    caller = certificates.signed_by(callers, "caller", "shop")
    asks = {**server.settings, "tls_client_ca": str(callers.certificate)}
    settings = {"server": asks, "control": asks, "metrics": {"listen": "127.0.0.1:0"}}
    shown = (caller.certificate, caller.key)
    with LiveGateway(tmp_path / "models", tmp_path / "state", settings=settings, client=shown) as live:
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(f"{live.ready['metrics']['url']}{path}").status_code == 200
        for url in (live.data_url, live.control_url):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/livez", verify=False)
        assert live.data.get("/livez").status_code == 200
