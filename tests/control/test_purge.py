"""The door of purges: what it takes, what it refuses, and who may use it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.control.process import ControlProcess, route

PATH = "/admin/v1/models/{}/cache:purge"


def purge(control: ControlProcess, model: str, body: Any, reason: str = "a test", **query: str) -> httpx.Response:
    headers = {"x-change-reason": reason} if reason else {}
    return control.client.post(PATH.format(model), json=body, headers=headers, params=query)


def test_a_purge_keeps_all_else_of_the_cache_flag(shared: ControlProcess) -> None:
    shared.put("kept.route", route())
    variants = {"short": {"enabled": True, "ttl_s": 2}}
    flag = {"state": "DISABLED", "variants": variants, "defaultVariant": "short", "metadata": {"owner": "ml"}}
    shared.put("kept.cache", flag)
    revision = purge(shared, "kept", {}).json()["revision"]
    found = shared.client.get("/admin/v1/flags/kept.cache").json()
    assert {name: found[name] for name in ("state", "variants", "defaultVariant")} == {
        name: flag[name] for name in ("state", "variants", "defaultVariant")
    }
    assert found["metadata"] == {"owner": "ml", "purged": revision, "revision": revision}


def test_what_is_not_served_cannot_be_purged(shared: ControlProcess) -> None:
    shared.put("known.route", route())
    unknown = purge(shared, "nobody", {})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")
    unnamed = purge(shared, "known", {"version": "9"})
    assert (unnamed.status_code, unnamed.json()["code"]) == (404, "unknown_version")
    assert "1, 2" in unnamed.json()["detail"]


@pytest.mark.parametrize("body", [{"versions": ["1"]}, {"version": 1}, {"version": ["1"]}, [], None])
def test_a_wrong_body_is_refused(shared: ControlProcess, body: Any) -> None:
    assert purge(shared, "any", body).status_code == 400


def test_a_purge_needs_a_reason_and_an_operator(shared: ControlProcess) -> None:
    shared.put("who.route", route())
    assert purge(shared, "who", {}, reason="").json()["field"] == "header X-Change-Reason"
    made = shared.client.post("/admin/v1/tokens", json={"name": "looker", "scope": "viewer"}).json()
    with shared.client_as(made["token"]) as viewer:
        assert viewer.post(PATH.format("who"), json={}, headers={"x-change-reason": "x"}).status_code == 403
    with shared.client_as(None) as nobody:
        assert nobody.post(PATH.format("who"), json={}).status_code == 401
    assert shared.client.get("/admin/v1/flags/who.cache").status_code == 404


def test_a_purge_can_be_tried(shared: ControlProcess) -> None:
    shared.put("dry.route", route())
    tried = purge(shared, "dry", {"version": "2"}, reason="", dryRun="true").json()
    assert (tried["dryRun"], tried["changed"], tried["before"], tried["blocked"]) == (True, True, None, [])
    assert "purged.2" in tried["after"]["metadata"]
    assert shared.client.get("/admin/v1/flags/dry.cache").status_code == 404


@pytest.mark.parametrize("value", [True, "7", 1.5, -1])
def test_a_note_that_is_no_revision_is_refused(shared: ControlProcess, value: Any) -> None:
    flag = {"state": "ENABLED", "variants": {"on": {"enabled": True}}, "metadata": {"purged.1": value}}
    refused = shared.put("note.cache", flag)
    assert refused.status_code == 422
    assert refused.json()["field"] == "flags.note.cache.metadata.purged.1"
