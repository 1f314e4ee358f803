"""Both ports over TLS that asks clients for a certificate: who has none gets no further than the handshake."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import certificates
from tests.builders import classifier, write_package
from tests.certificates import Pair
from tests.cli.terminal import Terminal
from tests.live import LiveGateway

ROW = dict.fromkeys(classifier().features, 1.0)


@dataclass(frozen=True, slots=True)
class House:
    """A gateway on two TLS ports, each with an authority of its own for clients, and a client of each."""

    gateway: LiveGateway
    server: Pair
    caller: Pair  # may come in at the public port
    operator: Pair  # may come in at both
    stranger: Pair


@pytest.fixture(scope="module", params=["fast", "asgi"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("mutual")
    write_package(root / "models", classifier())
    server = certificates.self_signed(root / "tls")
    callers, operators, strangers = (
        certificates.self_signed(root / "tls", name, name) for name in ("callers", "operators", "strangers")
    )
    caller = certificates.signed_by(callers, "caller", "shop")
    operator = certificates.signed_by(operators, "operator", "ops")
    stranger = certificates.signed_by(strangers, "stranger", "shop")
    both = root / "tls" / "both.pem"
    both.write_bytes(callers.certificate.read_bytes() + operators.certificate.read_bytes())
    settings = {
        "server": {**server.settings, "tls_client_ca": str(both), "door": request.param},
        "control": {**server.settings, "tls_client_ca": str(operators.certificate)},
        "metrics": {"listen": "127.0.0.1:0"},
    }
    shown = (operator.certificate, operator.key)
    with LiveGateway(root / "models", root / "state", settings=settings, client=shown) as gateway:
        yield House(gateway, server, caller, operator, stranger)


def get(house: House, url: str, client: Pair | None, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> int:
    """The status of /livez as *client* sees it. Raises OSError if it is not let in."""
    trust = ssl.create_default_context(cafile=str(house.server.certificate))
    trust.minimum_version = trust.maximum_version = version
    if client is not None:
        trust.load_cert_chain(client.certificate, client.key)
    host, _, port = url.removeprefix("https://").partition(":")
    connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=trust)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_port_of_the_metrics_is_plain_and_is_told_so(house: House) -> None:
    metrics = house.gateway.ready["metrics"]
    assert metrics["url"] == f"http://127.0.0.1:{metrics['port']}"
    assert f'"metrics": "{metrics["url"]}"' in house.gateway.log
    assert httpx.get(f"{metrics['url']}/metrics").status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_each_port_lets_in_who_its_own_authorities_vouch_for(house: House, version: ssl.TLSVersion) -> None:
    gateway = house.gateway
    allowed = {
        gateway.data_url: {"caller": True, "operator": True, "stranger": False, "nobody": False},
        gateway.control_url: {"caller": False, "operator": True, "stranger": False, "nobody": False},
    }
    clients = {"caller": house.caller, "operator": house.operator, "stranger": house.stranger, "nobody": None}
    for url, people in allowed.items():
        assert url.startswith("https://")
        for name, is_allowed in people.items():
            if is_allowed:
                assert get(house, url, clients[name], version=version) == 200, (url, name)
            else:
                with pytest.raises((OSError, http.client.HTTPException)):
                    get(house, url, clients[name], version=version)


def test_a_certificate_is_no_token_and_predictions_are_answered(house: House) -> None:
    gateway = house.gateway
    assert gateway.data.post("/predict/iris", json={"rows": [ROW]}).status_code == 200
    assert gateway.control.get("/admin/v1/flags").status_code == 200
    assert gateway.control.get("/admin/v1/flags", headers={"authorization": ""}).status_code == 401


def test_the_command_line_shows_its_certificate_by_options_or_environment(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLUICEGATE_URL", house.gateway.control_url)
    monkeypatch.setenv("SLUICEGATE_TOKEN", house.gateway.admin_token)
    terminal = Terminal(capsys)
    ca, operator = str(house.server.certificate), house.operator
    both = tmp_path / "both.pem"
    both.write_bytes(operator.certificate.read_bytes() + operator.key.read_bytes())
    listed = ("flags", "list")
    terminal.ok(*listed, "--ca", ca, "--cert", str(operator.certificate), "--key", str(operator.key))
    terminal.ok(*listed, "--ca", ca, "--cert", str(both))
    assert "cannot reach" in terminal.fails(*listed)  # an authority that the system does not know
    terminal.fails(*listed, "--ca", ca)
    assert "--key needs --cert" in terminal.fails(*listed, "--ca", ca, "--key", str(operator.key))
    assert "cannot use the certificates in nowhere.pem" in terminal.fails(*listed, "--ca", "nowhere.pem")
    for name, path in (("CA", ca), ("CERT", str(operator.certificate)), ("KEY", str(operator.key))):
        monkeypatch.setenv(f"SLUICEGATE_{name}", path)
    terminal.ok(*listed)
