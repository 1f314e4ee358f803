"""Names of models and versions that try to be paths lead nowhere: through both doors, the admin port and flags."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.errors import PackageInvalid
from gateway.models.source import DirectorySource
from tests.builders import classifier, write_package
from tests.live import LiveGateway

BAIT = "bait-that-nobody-may-read"
TENSOR = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 1.0, 1.0, 1.0]}]}
BODY = json.dumps(TENSOR).encode()
# What paths that lead out are made of: "outside" is a package beside the models directory, "secret" a file of the
# state.
PARTS = st.sampled_from(
    [
        *("..", ".", "/", "//", "%2e", "%2E%2e", "%2f", "%2F", "%5c", "\\", "%00", "%0d%0a", "%25", "%252e%252e%252f"),
        *(
            "outside",
            "secret",
            "iris",
            "1",
            "x",
            ";",
            "?",
            "#",
            "%",
            "%zz",
            "*",
            "~",
            ":",
            "@",
            "file:",
            "%c0%ae%c0%ae",
        ),
        *("\N{ONE DOT LEADER}" * 2, "\N{FULLWIDTH SOLIDUS}", "\N{DIVISION SLASH}", "\u202e", "%ff", "\x7f"),
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=6).map("".join) | st.text(
    st.characters(exclude_characters=" \r\n\t", exclude_categories=["Cs"]), min_size=1, max_size=20
)


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveGateway]]:
    root = tmp_path_factory.mktemp("names")
    write_package(root / "models", classifier())
    write_package(root, classifier("outside"))
    with contextlib.ExitStack() as stack:
        found = {}
        for door in ("fast", "asgi"):
            gateway = stack.enter_context(
                LiveGateway(root / "models", root / door, settings={"server": {"door": door}})
            )
            (gateway.state / "secret.json").write_text(json.dumps({"bait": BAIT}))
            found[door] = gateway
        yield found


def ask(gateway: LiveGateway, url: str, method: str, path: str, *headers: str) -> tuple[int, bytes]:
    """Status and body of an answer to a request whose path is sent exactly as it is."""
    host, port = url.removeprefix("http://").split(":")
    body = BODY if method in ("POST", "PUT") else b""
    lines = (f"{method} {path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(body)}", *headers)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        answer = b""
        while some := connection.recv(65536):
            answer += some
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
@example("../outside")
@example("..%2foutside")
@example("%2e%2e%2foutside")
@example("..%2f..%2fetc%2fpasswd")
@example("outside%00")
@example("iris%00")
@example("iris%2f1")
@example("iris/../../outside")
@example("..")
def test_on_the_public_port_a_name_is_a_name_and_nothing_else(gateways: dict[str, LiveGateway], name: str) -> None:
    for method, path in (
        ("POST", f"/predict/{name}"),
        ("POST", f"/v2/models/{name}/infer"),
        ("POST", f"/v2/models/iris/versions/{name}/infer"),
        ("GET", f"/v2/models/{name}"),
        ("GET", f"/v2/models/iris/versions/{name}/ready"),
    ):
        statuses = set()
        for gateway in gateways.values():
            status, content = ask(gateway, gateway.data_url, method, path)
            assert status < 500 or (status == 503 and b"not ready" in content), (path, status, content)
            assert status != 200 or b"outside" not in content, path
            assert BAIT.encode() not in content
            statuses.add(status)
        assert len(statuses) == 1, (path, statuses)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
@example("..%2fsecret")
@example("../secret")
@example("%2e%2e%2fsecret")
@example("..%2fsecret.json%00")
@example("secret")
def test_on_the_admin_port_no_name_reads_a_file_that_is_not_its_own(
    gateways: dict[str, LiveGateway], name: str
) -> None:
    gateway = gateways["fast"]
    token = f"authorization: Bearer {gateway.admin_token}"
    for method, path in (
        ("GET", f"/admin/v1/models/{name}/drift"),
        ("GET", f"/admin/v1/models/{name}/shadow"),
        ("POST", f"/admin/v1/models/{name}/cache:purge"),
        ("DELETE", f"/admin/v1/quarantine/{name}/{name}"),
        ("GET", f"/admin/v1/flags/{name}.route/history"),
    ):
        status, content = ask(gateway, gateway.control_url, method, path, token, "x-change-reason: a test")
        assert status < 500, (path, status, content)
        assert BAIT.encode() not in content, path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES.filter(lambda name: name not in ("x", "1", "iris", "outside", "secret")))
@example("../outside")
@example("..")
@example(".")
@example("/etc")
@example("1\n")
@example("1/../../../outside/1")
def test_no_flag_and_no_key_names_what_could_be_a_path(gateways: dict[str, LiveGateway], name: str) -> None:
    control = gateways["fast"].control
    is_fine = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) is not None
    flag: dict[str, Any] = {"state": "ENABLED", "variants": {"stable": name}, "defaultVariant": "stable"}
    headers = {"if-none-match": "*", "x-change-reason": "a test"}
    query = {"dryRun": "true"}
    reply = control.put("/admin/v1/flags/tried.route", json=flag, headers=headers, params=query)
    assert (reply.status_code == 200) <= is_fine, reply.text
    assert reply.status_code < 500
    if "." in name or not is_fine:
        flag["variants"] = {"stable": "1"}
        reply = control.put(f"/admin/v1/flags/{quote(name, safe='')}.route", json=flag, headers=headers, params=query)
        assert 400 <= reply.status_code < 500, reply.text
        reply = control.post("/admin/v1/keys", json={"name": "tried", "models": [name]})
        assert reply.status_code == 400, reply.text


def test_after_all_of_that_nothing_else_is_loaded_and_nobody_died(gateways: dict[str, LiveGateway]) -> None:
    for gateway in gateways.values():
        assert gateway.data.get("/v2/models").json() == {"models": ["iris"]}
        status = gateway.control.get("/admin/v1/status").json()
        assert [list(worker["models"]) for worker in status["workers"]] == [["iris"]]
        assert "died" not in gateway.log


@pytest.mark.parametrize("name", ["../../../outside", "/etc/passwd", ".hidden", "a/b"])
def test_files_named_in_a_package_do_not_lead_out_of_it(tmp_path: Path, name: str) -> None:
    write_package(tmp_path, classifier())
    manifest = tmp_path / "iris" / "1" / "manifest.json"
    plain = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**plain, "files": {**plain["files"], name: "0" * 64}}))
    with pytest.raises(PackageInvalid, match="leads out of the package"):
        DirectorySource(tmp_path).open("iris", "1")
