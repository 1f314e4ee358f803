"""Tokens: who may do what, and what is kept of them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from gateway.control.app import build
from gateway.settings import PathSettings, Settings
from tests.control.process import ControlProcess, route

OPEN = {"/livez", "/readyz"}
WRITE = {"if-none-match": "*", "x-change-reason": "a test"}


def make(control: ControlProcess, name: str, scope: str) -> tuple[str, httpx.Client]:
    """A new token's id, and a client that sends its secret."""
    reply = control.client.post("/admin/v1/tokens", json={"name": name, "scope": scope})
    assert reply.status_code == 201, reply.text
    return reply.json()["id"], control.client_as(reply.json()["token"])


def test_the_first_start_writes_an_admin_token_for_its_owner_only_and_never_logs_it(control: ControlProcess) -> None:
    path = control.state / "admin.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((control.state / "tokens.sqlite").stat().st_mode) == 0o600
    assert str(path) in control.log
    assert control.admin_token not in control.log
    assert control.client.get("/admin/v1/tokens").status_code == 200
    first = control.admin_token
    control.kill()
    control.start()
    assert control.admin_token == first
    path.unlink()  # an operator keeps it elsewhere
    control.kill()
    control.start()
    assert not path.exists()
    assert control.client.get("/admin/v1/tokens").status_code == 200


def test_only_hashes_of_tokens_are_kept(control: ControlProcess) -> None:
    secret = control.client.post("/admin/v1/tokens", json={"name": "ci", "scope": "viewer"}).json()["token"]
    assert len(secret) >= 40
    kept = b"".join(path.read_bytes() for path in control.state.rglob("*") if path.is_file())
    assert secret.encode() not in kept
    assert control.admin_token.encode() in kept  # the one file that is there for it
    listed = control.client.get("/admin/v1/tokens").text
    assert secret not in listed
    assert control.admin_token not in listed


def test_every_path_but_health_asks_for_a_token(shared: ControlProcess, tmp_path: Path) -> None:
    settings = Settings(paths=PathSettings(models=tmp_path, state=tmp_path))
    app = build(settings, boot="b", run_dir=tmp_path).app
    wrong = ["", "Bearer", "Bearer nonsense", f"Basic {shared.admin_token}", f"Bearer {shared.admin_token}x"]
    with shared.client_as(None) as anonymous:
        for place in app.routes:
            path, methods = place.path, place.methods  # type: ignore[attr-defined]  # all of ours are Routes
            for method in methods - {"HEAD"}:
                url = path.replace("{key}", "x.route").replace("{model}", "x").replace("{id}", "x")
                if path in OPEN:
                    assert anonymous.request(method, url).status_code == 200
                    continue
                for header in wrong:
                    reply = anonymous.request(method, url, headers={"authorization": header})
                    assert reply.status_code == 401, (method, url, header)
                    assert reply.headers["www-authenticate"].startswith("Bearer")
                    assert reply.json()["code"] == "unauthenticated"


def test_each_scope_may_do_what_those_below_it_may_and_no_more(shared: ControlProcess) -> None:
    asks: list[tuple[str, Callable[[httpx.Client], httpx.Response], int]] = [
        # the lowest scope that may, the request, and the status when it may
        ("metrics", lambda c: c.get("/metrics"), 200),
        ("viewer", lambda c: c.get("/admin/v1/flags"), 200),
        ("viewer", lambda c: c.get("/admin/v1/audit"), 200),
        ("viewer", lambda c: c.get("/admin/v1/status"), 200),
        ("viewer", lambda c: c.get("/admin/v1/models"), 200),
        ("viewer", lambda c: c.get("/admin/v1/models/x/drift"), 404),
        ("operator", lambda c: c.put("/admin/v1/flags/scope.route", headers=WRITE, json={}), 422),
        ("admin", lambda c: c.get("/admin/v1/tokens"), 200),
        ("admin", lambda c: c.post("/admin/v1/tokens", json={}), 400),
        ("admin", lambda c: c.delete("/admin/v1/tokens/none"), 404),
    ]
    order = ["metrics", "viewer", "operator", "admin"]
    for scope in order:
        _, client = make(shared, f"{scope}-1", scope)
        with client:
            for lowest, ask, status in asks:
                allowed = order.index(scope) >= order.index(lowest)
                assert ask(client).status_code == (status if allowed else 403), (scope, lowest)


def test_a_revoked_token_opens_nothing_and_stays_in_the_list(shared: ControlProcess) -> None:
    token_id, client = make(shared, "leaving", "operator")
    with client:
        assert client.get("/admin/v1/flags").status_code == 200
        for _ in range(2):  # to revoke it again is no error
            assert shared.client.delete(f"/admin/v1/tokens/{token_id}").status_code == 204
        assert client.get("/admin/v1/flags").json()["code"] == "unauthenticated"
    listed = {token["id"]: token for token in shared.client.get("/admin/v1/tokens").json()["tokens"]}
    assert listed[token_id]["revoked_s"] >= listed[token_id]["created_s"]


def test_the_last_admin_token_cannot_be_revoked(control: ControlProcess) -> None:
    (first,) = control.client.get("/admin/v1/tokens").json()["tokens"]
    refused = control.client.delete(f"/admin/v1/tokens/{first['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "change_refused")
    _, second = make(control, "second", "admin")
    with second:
        assert second.delete(f"/admin/v1/tokens/{first['id']}").status_code == 204
        assert control.client.get("/admin/v1/flags").status_code == 401
        assert second.get("/admin/v1/flags").status_code == 200


def test_tokens_made_and_revoked_are_in_the_audit_without_their_secrets(shared: ControlProcess) -> None:
    reply = shared.client.post(
        "/admin/v1/tokens", json={"name": "ci", "scope": "viewer"}, headers={"x-change-reason": "for CI"}
    )
    token = reply.json()
    shared.client.delete(f"/admin/v1/tokens/{token['id']}")
    rows = shared.client.get("/admin/v1/audit").json()["rows"]
    made, revoked = [row for row in rows if row["target"] == f"token:{token['id']}"]
    assert (made["verb"], made["reason"], made["after"]["scope"]) == ("token.create", "for CI", "viewer")
    assert revoked["verb"] == "token.revoke"
    assert token["token"] not in shared.client.get("/admin/v1/audit").text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "", "scope": "viewer"}, "name"),
        ({"name": "a b", "scope": "viewer"}, "name"),
        ({"name": 7, "scope": "viewer"}, "name"),
        ({"name": "a", "scope": "root"}, "scope"),
        ({"name": "a", "scope": ["admin"]}, "scope"),
        ({"name": "a"}, "scope"),
        ({"name": "a", "scope": "viewer", "expires": 1}, "expires"),
    ],
)
def test_a_token_that_cannot_be_is_refused_by_the_name_of_its_field(
    shared: ControlProcess, body: dict[str, object], field: str
) -> None:
    refused = shared.client.post("/admin/v1/tokens", json=body)
    assert refused.status_code == 400
    assert refused.json()["field"] == field


def test_an_operator_is_named_in_the_audit_by_the_token(shared: ControlProcess) -> None:
    token_id, client = make(shared, "ada@example.org", "operator")
    with client:
        assert client.put("/admin/v1/flags/named.route", headers=WRITE, json=route()).status_code == 201
    row = shared.client.get("/admin/v1/flags/named.route/history").json()["rows"][0]
    assert (row["actor"], row["token_id"]) == ("ada@example.org", token_id)
