"""Where webhooks may not lead: whatever the address is written like, and wherever its name leads by then."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.control.deliver import DELIVERED, UNREACHABLE, Attempt, Sender
from gateway.control.events import Event
from gateway.control.lookups import LookupLoop
from gateway.control.reach import Reach
from gateway.control.webhooks import Webhook
from gateway.errors import InvalidSetting
from gateway.networks import parse_networks, why_forbidden
from gateway.settings import load
from tests import certificates
from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import Receiver

WEBHOOKS = "/admin/v1/webhooks"
LOOPBACK = "127.0.0.0/8, ::1"
EVENT = Event("1", "dev.sluicegate.test", "x", b"{}")
SECRET = "whsec_c2VjcmV0"
PUBLIC = "93.184.215.14"

# Addresses that must not be sent to, and the ways to write them.
INSIDE = (
    *("127.0.0.1", "127.9.9.9", "localhost", "0.0.0.0", "0", "127.1", "2130706433", "0x7f.1", "0177.0.0.1"),
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0xa9fea9fe", "198.18.0.1"),
    *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.8"),
    *("[::1]", "[::]", "[fe80::1]", "[fec0::1]", "[fd00::1]", "[ff02::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]"),
    *(
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[::7f00:1]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[2001:2::1]",
        "[3fff::1]",
    ),
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    """A control process as it is by default."""
    root = tmp_path_factory.mktemp("guarded")
    (root / "models").mkdir()
    with ControlProcess(root / "models", root / "state", settings={"webhooks": {}}) as process:
        yield process


@pytest.mark.parametrize("host", INSIDE)
def test_a_webhook_to_an_address_that_is_not_public_is_refused_when_it_is_made(
    guarded: ControlProcess, host: str
) -> None:
    for scheme in ("http", "https"):
        reply = guarded.client.post(WEBHOOKS, json={"url": f"{scheme}://{host}:8080/latest/meta-data"})
        assert (reply.status_code, reply.json()["field"]) == (400, "url"), reply.text
        assert "webhooks.allow_networks" in reply.json()["detail"]
    assert guarded.client.get(WEBHOOKS).json() == {"webhooks": []}


def test_what_the_setting_names_is_allowed_and_no_more(models: Path, state: Path) -> None:
    settings = {"webhooks": {"allow_networks": "127.0.0.2/32, 10.0.0.0/8"}}
    with ControlProcess(models, state, settings=settings) as control, Receiver() as receiver:

        def status(host: str) -> int:
            body = {"url": f"http://{host}:{receiver.port}/", "events": ["nothing.at.all"]}
            return control.client.post(WEBHOOKS, json=body).status_code

        assert [status(host) for host in ("127.0.0.2", "10.1.2.3", "[::ffff:10.0.0.1]")] == [201, 201, 201]
        assert [status(host) for host in ("127.0.0.1", "127.0.0.3", "192.168.0.1", "[::1]")] == [400, 400, 400, 400]


def test_a_permission_that_is_taken_back_ends_what_was_made_under_it(models: Path, state: Path) -> None:
    with ControlProcess(models, state) as control, Receiver() as receiver:
        control.client.post(WEBHOOKS, json={"url": receiver.url})
        eventually(lambda: receiver.types, "its own making arrives")
        control.stop()
        control.settings["webhooks"] = {}
        seen = len(receiver.arrivals)
        control.start()
        control.put("iris.route", route())

        def told() -> Any:
            (webhook,) = control.client.get(WEBHOOKS).json()["webhooks"]
            return webhook["progress"]["last_error"]

        assert "127.0.0.1 is loopback" in eventually(told, "the failure is told")
        assert len(receiver.arrivals) == seen


# -- names ------------------------------------------------------------------------------------------


def resolver(answers: Callable[[str], list[str]]) -> Callable[..., list[Any]]:
    def resolve(host: str, port: int, *_: Any) -> list[Any]:
        found = [host] if not host.endswith(".example") else answers(host)
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in found
        ]

    return resolve


def sent(url: str, answers: Callable[[str], list[str]], *, allowed: str = LOOPBACK, times: int = 1) -> Attempt:
    """What becomes of an event to *url* while names ending in .example lead where *answers* says; the last of some."""

    async def send() -> Attempt:
        reach = Reach(parse_networks(allowed))
        sender = Sender(reach, clock=lambda: 1e9)
        webhook = Webhook("w", url, ("*",), "", 0.0, "")
        try:
            for _ in range(times):
                attempt = await sender.send(webhook, SECRET, EVENT)
            return attempt
        finally:
            await sender.close()

    with asyncio.Runner(loop_factory=lambda: LookupLoop(resolver(answers))) as runner:
        return runner.run(send())


def test_a_name_that_leads_inside_by_the_time_of_the_delivery_gets_nothing() -> None:
    with Receiver() as receiver:
        url = f"http://hooks.example:{receiver.port}/"

        async def made() -> None:
            await Reach(()).check(url)

        with asyncio.Runner(loop_factory=lambda: LookupLoop(resolver(lambda _: [PUBLIC]))) as runner:
            runner.run(made())  # was fine when it was made
        attempt = sent(url, lambda _: ["127.0.0.1"], allowed="")
        assert attempt.outcome == UNREACHABLE
        assert "hooks.example is 127.0.0.1, which is loopback" in attempt.why
        assert not receiver.arrivals


def test_a_name_of_which_one_address_leads_inside_gets_nothing() -> None:
    with Receiver() as receiver:
        url = f"http://hooks.example:{receiver.port}/"
        for addresses in (["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"]):
            attempt = sent(url, lambda _, found=addresses: found)  # type: ignore[misc]
            assert (attempt.outcome, "private" in attempt.why) == (UNREACHABLE, True)
        assert not receiver.arrivals


def test_each_connection_is_made_to_what_was_looked_up_for_it_and_the_receiver_hears_its_name() -> None:
    """A second lookup, whose answer nobody has judged, would lead to the address that nobody listens at."""
    asked: list[str] = []

    def answers(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.9"]

    with Receiver() as receiver:
        attempt = sent(f"http://hooks.example:{receiver.port}/a?b=c", answers, times=2)
        assert (attempt.outcome, asked) == (DELIVERED, ["hooks.example"])
        assert [arrival.path for arrival in receiver.arrivals] == ["/a?b=c"] * 2
        assert receiver.arrivals[0].headers["host"] == f"hooks.example:{receiver.port}"


def test_an_address_that_does_not_answer_is_not_the_end_of_a_name() -> None:
    with Receiver() as receiver:
        url = f"http://hooks.example:{receiver.port}/"
        assert sent(url, lambda _: ["::1", "127.0.0.8", "127.0.0.1"]).outcome == DELIVERED


def test_a_certificate_is_held_against_the_name_and_not_against_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = certificates.self_signed(tmp_path / "tls")  # for 127.0.0.1
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
    with tls_receiver(pair) as port:
        assert sent(f"https://127.0.0.1:{port}/", lambda _: []).outcome == DELIVERED
        attempt = sent(f"https://hooks.example:{port}/", lambda _: ["127.0.0.1"])
        assert attempt.outcome == UNREACHABLE
        assert "hooks.example" in attempt.why


@contextlib.contextmanager
def tls_receiver(pair: certificates.Pair) -> Iterator[int]:
    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that trusts us not, as one shall here

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = Quiet(("127.0.0.1", 0), Door)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- proxies ----------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_gets_names_as_they_are_and_addresses_are_judged_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Receiver() as proxy:
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "direct.example")

        def answers(host: str) -> list[str]:
            assert host == "direct.example", "names behind a proxy are its business"
            return ["10.0.0.1"]

        assert sent("http://hooks.example/a", answers).outcome == DELIVERED
        assert [arrival.path for arrival in proxy.arrivals] == ["http://hooks.example/a"]
        for url in ("http://10.0.0.1/", "http://[::ffff:169.254.169.254]/", "http://direct.example/"):
            assert sent(url, answers).outcome == UNREACHABLE
        assert len(proxy.arrivals) == 1


# -- addresses --------------------------------------------------------------------------------------

FORMS: tuple[Callable[[int], int], ...] = (
    lambda v4: 0xFFFF << 32 | v4,
    lambda v4: 0x0064FF9B << 96 | v4,
    lambda v4: 0x0064FF9B0001 << 80 | v4,
    lambda v4: 0x2002 << 112 | v4 << 80 | 0xBEEF,
    lambda v4: 0x20010000 << 96 | 0x41414141 << 64 | (v4 ^ 0xFFFFFFFF),
)


@given(st.ip_addresses(v=4))
@example(ipaddress.IPv4Address("169.254.169.254"))
@example(ipaddress.IPv4Address("127.0.0.1"))
@example(ipaddress.IPv4Address("8.8.8.8"))
def test_an_address_in_the_clothes_of_the_other_family_is_judged_as_what_it_is(v4: ipaddress.IPv4Address) -> None:
    judged = why_forbidden(v4, ())
    for form in FORMS:
        v6 = ipaddress.IPv6Address(form(int(v4)))
        assert why_forbidden(v6, ()) == judged, v6
    assert why_forbidden(v4, parse_networks(f"{v4}/32")) == ""


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111"])
def test_what_is_public_may_be_sent_to(address: str) -> None:
    assert why_forbidden(ipaddress.ip_address(address), ()) == ""


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "everywhere", "10.0.0.0/33", "10.0.0.0/8; fd00::/8"])
def test_a_setting_that_names_no_network_is_refused_at_the_start(wrong: str) -> None:
    with pytest.raises(InvalidSetting, match=r"'webhooks\.allow_networks'"):
        load(None, {}, {"webhooks.allow_networks": wrong})
