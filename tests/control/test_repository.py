"""The repository's verbs as changes of a route: what is declared answers nobody, and what answers stays."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.control.repository import declared, let_go
from gateway.errors import ChangeRefused, UnknownModel, UnknownVersion
from tests.control.process import ControlProcess, route

STABLE: dict[str, Any] = {"state": "ENABLED", "variants": {"stable": "1"}, "defaultVariant": "stable"}
SPLIT: dict[str, Any] = {
    "state": "ENABLED",
    "variants": {"stable": "1", "canary": "2", "old": "3", "shadow": "4"},
    "defaultVariant": "stable",
    "targeting": {"fractional": [["canary", 20], ["old", 0], ["stable", 80]]},
}


def test_a_version_is_declared_as_a_variant_of_its_own_name_that_no_rule_gives() -> None:
    after = declared("m", STABLE, "2")
    assert after == {**STABLE, "variants": {"stable": "1", "2": "2"}}
    assert STABLE["variants"] == {"stable": "1"}
    assert declared("m", after, "2") == after
    assert declared("m", STABLE, "1") == STABLE


def test_what_cannot_be_declared_is_refused() -> None:
    with pytest.raises(UnknownModel, match="no route yet"):
        declared("m", None, "1")
    with pytest.raises(ChangeRefused, match="has a variant '2' of version '7'"):
        declared("m", {**STABLE, "variants": {"stable": "1", "2": "7"}}, "2")


def test_letting_go_takes_out_what_answers_nobody_but_not_the_shadow() -> None:
    after = let_go("m", SPLIT, None, {})
    assert after["variants"] == {"stable": "1", "canary": "2", "shadow": "4"}
    assert after["targeting"] == {"fractional": [["canary", 20], ["stable", 80]]}
    assert let_go("m", SPLIT, "4", {})["variants"] == {"stable": "1", "canary": "2", "old": "3"}
    assert let_go("m", declared("m", STABLE, "2"), "2", {}) == STABLE


def test_what_answers_stays() -> None:
    with pytest.raises(ChangeRefused, match="version 2 of 'm' answers requests, as canary"):
        let_go("m", SPLIT, "2", {})
    with pytest.raises(ChangeRefused, match="answers requests, as stable"):
        let_go("m", {**SPLIT, "variants": {**SPLIT["variants"], "old": "1"}}, "1", {})
    with pytest.raises(ChangeRefused, match="all versions of 'm' that are loaded answer requests"):
        let_go("m", STABLE, None, {})
    with pytest.raises(UnknownVersion, match="names no version '9'"):
        let_go("m", STABLE, "9", {})
    with pytest.raises(UnknownModel):
        let_go("m", None, None, {})


def ask(client: httpx.Client, path: str, body: Any = None) -> httpx.Response:
    return client.post(f"/v2/repository/{path}", content=b"" if body is None else json.dumps(body))


def test_the_door_asks_for_a_token_and_answers_in_both_shapes(shared: ControlProcess) -> None:
    shared.put("repo.route", route())
    with shared.client_as(None) as nobody:
        refused = ask(nobody, "index")
        assert refused.status_code == 401
        assert refused.json()["error"] == refused.json()["detail"]
    made = shared.client.post("/admin/v1/tokens", json={"name": "looks", "scope": "viewer"}).json()
    with shared.client_as(made["token"]) as viewer:
        assert ask(viewer, "index").status_code == 200
        assert ask(viewer, "models/repo/load").status_code == 403
        assert ask(viewer, "models/repo/unload").status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("index", {"ready": 1}, "ready"),
        ("index", [], "body"),
        ("models/repo/load", {"parameters": {"config": "{}"}}, "parameters.config"),
        ("models/repo/load", {"parameters": {"file:1/model.onnx": "AAAA"}}, "parameters.file:1/model.onnx"),
        ("models/repo/load", {"parameters": {"version": 2}}, "parameters.version"),
        ("models/repo/unload", {"parameters": 7}, "parameters"),
    ],
)
def test_a_wrong_body_is_refused_by_field(shared: ControlProcess, path: str, body: Any, field: str) -> None:
    refused = ask(shared.client, path, body)
    assert (refused.status_code, refused.json()["field"]) == (400, field)
    assert field in refused.json()["error"]


def test_a_model_without_packages_cannot_be_loaded(shared: ControlProcess) -> None:
    assert ask(shared.client, "models/nothing/load").status_code == 404
    assert ask(shared.client, "models/nothing/load", {"parameters": {"version": "1"}}).status_code == 404
