"""The proxies that we ship configurations for, the real programs, in front of two gateways of which one goes away."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.deploy.programs import require
from tests.deploy.proxies import PROXIES, free_port
from tests.end_to_end.flags import declare, must_change, split, wait_adopted
from tests.live import LiveGateway, eventually

ROW = {"rows": [dict.fromkeys(classifier().features, 0.5)]}
CLIENTS = 8
MORE_REQUESTS = 40  # of each client, after the gateway has gone


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("proxied") / "models"
    for version in ("1", "2"):
        write_package(root, classifier(version=version))
    return root


@contextlib.contextmanager
def gateway_on(host: str, models: Path, state: Path) -> Iterator[LiveGateway]:
    """A gateway on an address of its own, which splits by key."""
    with LiveGateway(models, state, options=("--host", host)) as live:
        declare(live, "iris", "canary", "1")
        wait_adopted(live, "iris", must_change(live, "iris.route", {"targeting": split(50)}))
        yield live


@pytest.fixture(scope="module")
def staying(models: Path) -> Iterator[LiveGateway]:
    with gateway_on("127.0.0.2", models, models.with_name("staying")) as live:
        yield live


@pytest.fixture(params=PROXIES)
def proxied(
    request: pytest.FixtureRequest, staying: LiveGateway, models: Path, tmp_path: Path
) -> Iterator[tuple[str, LiveGateway, LiveGateway]]:
    """The address of the proxy, the gateway that will leave and the one that stays."""
    package, write = PROXIES[request.param]
    require(request.param, package)
    with gateway_on("127.0.0.3", models, tmp_path / "leaving") as leaving:
        port = free_port()
        command = write(tmp_path, port, [each.data_url.removeprefix("http://") for each in (leaving, staying)])
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            eventually(lambda: httpx.get(f"{address}/readyz").is_success, "the proxy lets requests through")
            yield address, leaving, staying
        finally:
            process.terminate()
            process.wait(20)


class Asking(threading.Thread):
    """A client that asks one prediction after another over a connection that it keeps, until told to end."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__()
        self._address = address
        self._number = number
        self._enough = threading.Event()
        self.answers = 0
        self.failed: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=30) as client:
            while not self._enough.is_set():
                headers = {"x-targeting-key": f"{self._number}-{self.answers}"}
                try:
                    reply = client.post("/predict/iris", json=ROW, headers=headers)
                    if reply.status_code != 200:
                        self.failed.append(f"{reply.status_code} {reply.text}")
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                self.answers += 1

    def end(self) -> None:
        self._enough.set()
        self.join()


def predictions(gateway: LiveGateway) -> float:
    page = gateway.control.get("/metrics").raise_for_status().text
    lines = [line for line in page.splitlines() if line.startswith("sluicegate_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_requests_pass_with_their_headers_and_a_gateway_leaves_without_a_failure(
    proxied: tuple[str, LiveGateway, LiveGateway],
) -> None:
    address, leaving, staying = proxied
    for key in (f"user-{number}" for number in range(20)):
        headers = {"x-targeting-key": key, "x-request-id": f"id-of-{key}"}
        through = httpx.post(f"{address}/predict/iris", json=ROW, headers=headers)
        direct = staying.data.post("/predict/iris", json=ROW, headers=headers)
        assert through.headers["x-request-id"] == f"id-of-{key}"
        assert through.headers["x-model-variant"] == direct.headers["x-model-variant"]

    clients = [Asking(address, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        before = predictions(leaving), predictions(staying)
        eventually(lambda: predictions(leaving) > before[0] + 50, "one answers")
        eventually(lambda: predictions(staying) > before[1] + 50, "so does the other")
        leaving.signal(signal.SIGTERM)
        leaving.wait_stopped()
        seen = [client.answers for client in clients]
        eventually(
            lambda: all(client.answers > count + MORE_REQUESTS for client, count in zip(clients, seen, strict=True)),
            "all go on",
        )
    finally:
        for client in clients:
            client.end()
    print(f"{sum(client.answers for client in clients)} requests")
    assert [each for client in clients for each in client.failed] == []
