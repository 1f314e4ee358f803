"""Flags over HTTP: preconditions, reasons, patches, dry runs, history."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.flags.audit import from_json, verify
from tests.builders import classifier, write_package
from tests.control.process import ControlProcess, route, split


def code(reply: httpx.Response, status: int) -> str:
    """The code of a problem document, checked to be one."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:sluicegate:{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    return str(problem["code"])


def test_a_flag_is_created_read_changed_and_deleted(shared: ControlProcess) -> None:
    created = shared.put("life.route", route())
    assert created.status_code == 201
    etag = created.headers["etag"]
    read = shared.client.get("/admin/v1/flags/life.route")
    assert (read.status_code, read.headers["etag"]) == (200, etag)
    assert read.json() == created.json()
    assert read.json()["metadata"]["revision"] == int(etag.strip('"'))
    changed = shared.put("life.route", {**route(), "state": "DISABLED"}, etag=etag)
    assert changed.status_code == 200
    assert changed.headers["etag"] > etag
    headers = {"if-match": changed.headers["etag"], "x-change-reason": "no longer needed"}
    assert shared.client.delete("/admin/v1/flags/life.route", headers=headers).status_code == 204
    assert code(shared.client.get("/admin/v1/flags/life.route"), 404) == "unknown_flag"
    assert code(shared.client.delete("/admin/v1/flags/life.route", headers=headers), 412) == "revision_conflict"
    history = shared.client.get("/admin/v1/flags/life.route/history").json()["rows"]
    assert [row["verb"] for row in history] == ["flag.delete", "flag.put", "flag.put"]
    assert history[0]["reason"] == "no longer needed"
    assert history[0]["after"] is None


def test_a_write_without_its_precondition_is_refused(shared: ControlProcess) -> None:
    shared.put("pre.route", route())
    path = "/admin/v1/flags/pre.route"
    reason = {"x-change-reason": "a test"}
    for method in ("PUT", "PATCH", "DELETE"):
        assert code(shared.client.request(method, path, headers=reason, json=route()), 428) == "precondition_missing"
    assert code(shared.put("pre.route", route()), 412) == "revision_conflict"  # it exists already
    assert code(shared.put("pre2.route", route(), etag='"3"'), 412) == "revision_conflict"  # it does not exist
    assert code(shared.patch("pre2.route", {}, etag="*"), 412) == "revision_conflict"
    assert code(shared.put("pre.route", route(), etag="7"), 400) == "invalid_input"
    assert code(shared.put("pre.route", route(), etag='W/"1"'), 400) == "invalid_input"
    wrong = {**reason, "if-none-match": '"1"'}
    assert code(shared.client.put(path, headers=wrong, json=route()), 400) == "invalid_input"


def test_a_stale_revision_is_refused_and_told_the_one_in_force(shared: ControlProcess) -> None:
    old = shared.put("stale.route", route()).headers["etag"]
    new = shared.patch("stale.route", {"state": "DISABLED"}).headers["etag"]
    refused = shared.patch("stale.route", {"state": "ENABLED"}, etag=old)
    assert code(refused, 412) == "revision_conflict"
    assert refused.headers["etag"] == new
    assert f'"{refused.json()["current_revision"]}"' == new
    assert shared.client.get("/admin/v1/flags/stale.route").json()["state"] == "DISABLED"


def test_any_revision_will_do_for_who_says_so(shared: ControlProcess) -> None:
    shared.put("star.route", route())
    assert shared.patch("star.route", {"state": "DISABLED"}, etag="*").status_code == 200


@pytest.mark.parametrize("reason", [None, "", "x" * 1001])
def test_a_write_needs_a_reason(shared: ControlProcess, reason: str | None) -> None:
    headers = {"if-none-match": "*"} | ({} if reason is None else {"x-change-reason": reason})
    refused = shared.client.put("/admin/v1/flags/why.route", json=route(), headers=headers)
    assert code(refused, 400) == "invalid_input"
    assert refused.json()["field"] == "header X-Change-Reason"


def test_reasons_and_request_ids_reach_the_audit_in_full(shared: ControlProcess) -> None:
    headers = {
        b"if-none-match": b"*",
        b"x-change-reason": "größer machen ✓".encode(),
        b"x-request-id": b"req-7",
    }
    assert shared.client.put("/admin/v1/flags/audit.route", json=route(), headers=headers).status_code == 201
    row = shared.client.get("/admin/v1/flags/audit.route/history").json()["rows"][0]
    assert row["reason"] == "größer machen ✓"
    assert (row["actor"], row["ip"], row["request_id"]) == ("admin", "127.0.0.1", "req-7")
    assert row["token_id"]


def test_a_merge_patch_changes_what_it_names_and_removes_what_is_null(shared: ControlProcess) -> None:
    shared.put("patch.route", {**route(targeting=split(0)), "metadata": {"owner": "ml", "note": "x"}})
    patched = shared.patch("patch.route", {"variants": {"old": "0"}, "metadata": {"note": None}, "targeting": None})
    assert patched.status_code == 200
    flag = patched.json()
    assert flag["variants"] == {"stable": "1", "canary": "2", "old": "0"}
    assert flag["metadata"].keys() == {"owner", "revision"}
    assert "targeting" not in flag


def test_a_write_that_changes_nothing_keeps_the_revision(shared: ControlProcess) -> None:
    etag = shared.put("same.route", route()).headers["etag"]
    assert shared.put("same.route", route(), etag=etag).headers["etag"] == etag
    assert len(shared.client.get("/admin/v1/flags/same.route/history").json()["rows"]) == 1
    # what GET gave can be PUT back as it is
    read = shared.client.get("/admin/v1/flags/same.route")
    assert shared.put("same.route", read.json(), etag=etag).headers["etag"] == etag


def test_a_wrong_flag_is_refused_by_the_name_of_its_field(shared: ControlProcess) -> None:
    refused = shared.put("wrong.route", route(targeting={"fractional": [["canary", 0.5], ["stable", 99.5]]}))
    assert code(refused, 422) == "invalid_flag"
    problem = refused.json()
    assert problem["field"] == "flags.wrong.route.targeting.fractional[0][1]"
    assert problem["came"] == "0.5"
    assert "whole number" in problem["expected"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff", b"NaN", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(shared: ControlProcess, body: bytes) -> None:
    headers = {"if-none-match": "*", "x-change-reason": "a test"}
    refused = shared.client.put("/admin/v1/flags/body.route", content=body, headers=headers)
    assert code(refused, 400) == "invalid_input"
    assert refused.json()["field"] == "body"


def test_a_body_that_is_nested_too_deep_is_refused_and_the_flags_stay_readable(shared: ControlProcess) -> None:
    headers = {"if-match": "*", "x-change-reason": "a test"}
    for depth in (110, 300, 900):
        deep = b'{"a":' * depth + b"1" + b"}" * depth
        for body in (b'{"$evaluators":{"x":%b}}' % deep, b'{"flags":{"deep.route":{"variants":{"a":%b}}}}' % deep):
            reply = shared.client.patch("/admin/v1/flags", content=body, headers=headers)
            assert code(reply, 400) == "invalid_input"
            assert reply.json()["field"] == "body"
    assert shared.client.get("/admin/v1/flags").status_code == 200


def test_a_rule_with_a_list_for_an_operator_is_refused(shared: ControlProcess) -> None:
    rule = {"if": [{"sem_ver": [{"var": "headers.x"}, ["="], "1.0.0"]}, "canary"]}
    assert code(shared.put("listed.route", route(targeting=rule)), 422) == "invalid_flag"


def test_a_named_rule_that_no_flag_uses_is_checked_too(shared: ControlProcess) -> None:
    headers = {"if-match": "*", "x-change-reason": "a test"}
    for rule in ({"exec": ["rm"]}, "stable", {"$ref": "unused"}, {"if": [{"$ref": "unused"}]}):
        refused = shared.client.patch("/admin/v1/flags", json={"$evaluators": {"unused": rule}}, headers=headers)
        assert code(refused, 422) == "invalid_flag"
        assert refused.json()["field"].startswith("$evaluators.unused")


def test_a_huge_body_is_refused(shared: ControlProcess) -> None:
    headers = {"if-none-match": "*", "x-change-reason": "a test"}
    refused = shared.client.put("/admin/v1/flags/body.route", content=b" " * (1024 * 1024 + 1), headers=headers)
    assert code(refused, 413) == "body_too_large"


def test_a_dry_run_tells_the_difference_and_changes_nothing(shared: ControlProcess) -> None:
    etag = shared.put("dry.route", route()).headers["etag"]
    query = {"dryRun": "true"}
    headers = {"if-match": etag}  # a reason is only needed for what happens
    change = {"targeting": split(10)}
    tried = shared.client.patch("/admin/v1/flags/dry.route", json=change, headers=headers, params=query).json()
    assert tried["dryRun"] is True
    assert tried["changed"] is True
    assert {"path": "/targeting", "after": split(10)} in tried["diff"]
    assert {change["path"] for change in tried["diff"]} == {"/targeting"}
    assert tried["blocked"] == []
    moved = tried["movedKeys"]
    assert moved["of"] == 10_000
    assert 800 < moved["moved"] < 1200
    assert moved["moves"] == [
        {"from": "stable", "fromVersion": "1", "to": "canary", "toVersion": "2", "keys": moved["moved"]}
    ]
    assert shared.etag("dry.route") == etag
    nothing = shared.client.patch("/admin/v1/flags/dry.route", json={}, headers=headers, params=query).json()
    assert (nothing["changed"], nothing["diff"], nothing["movedKeys"]["moved"]) == (False, [], 0)
    assert code(shared.patch("dry.route", {}, etag='"999999"', dryRun="true"), 412) == "revision_conflict"
    assert code(shared.patch("dry.route", {"state": "ON"}, dryRun="true"), 422) == "invalid_flag"
    assert code(shared.patch("dry.route", {}, dryRun="yes"), 400) == "invalid_input"
    created = shared.put("dry2.route", route(), dryRun="true").json()
    assert (created["before"], created["after"]["state"]) == (None, "ENABLED")
    assert "movedKeys" not in created  # nobody was served before
    assert code(shared.client.get("/admin/v1/flags/dry2.route"), 404) == "unknown_flag"


def test_a_dry_run_counts_the_keys_that_change_places_between_variants(shared: ControlProcess) -> None:
    def weights(a: int, b: int) -> dict[str, Any]:
        return {"targeting": {"fractional": [["a", a], ["b", b], ["stable", 100 - a - b]]}}

    shared.write_status({"places": {"1": "warm", "2": "warm", "3": "warm"}})
    shared.put("places.route", {**route(stable="1", a="2", b="3"), **weights(0, 0)})
    shared.patch("places.route", weights(5, 5))
    moved = shared.patch("places.route", weights(10, 5), dryRun="true").json()["movedKeys"]
    by_ends = {(move["from"], move["to"]): move["keys"] for move in moved["moves"]}
    assert by_ends.keys() == {("b", "a"), ("stable", "b")}  # b stands between a and stable: its keys are pushed on
    assert sum(by_ends.values()) == moved["moved"]
    assert all(400 < keys < 600 for keys in by_ends.values())
    renamed = {"variants": {"a": None, "c": "2"}, "targeting": {"fractional": [["c", 5], ["b", 5], ["stable", 90]]}}
    assert shared.patch("places.route", renamed, dryRun="true").json()["movedKeys"]["moved"] == 0  # the same versions


def test_a_dry_run_of_a_route_that_refuses_some_requests_counts_them_as_refused(shared: ControlProcess) -> None:
    shared.write_status({"some": {"1": "warm", "2": "warm"}})
    plain = {**route(), "metadata": {"missingKey": "reject"}}
    shared.put("some.route", plain)
    by_header = {"targeting": {"fractional": [{"var": "headers.x-tenant"}, ["canary", 1], ["stable", 1]]}}
    moved = shared.patch("some.route", by_header, dryRun="true").json()["movedKeys"]
    assert moved["moves"] == [{"from": "stable", "fromVersion": "1", "to": "refused", "toVersion": "", "keys": 10_000}]


def test_a_dry_run_tells_every_rule_that_would_block_the_change(control: ControlProcess) -> None:
    for model in ("cold", "kept", "quiet"):
        control.put(f"{model}.route", route())
    control.write_status({"cold": {"1": "warm", "2": "loading: 3 s so far"}, "quiet": {"1": "warm", "2": "warm"}})
    write_package(control.models, classifier("kept", "1"))
    tried = control.patch("cold.route", {"targeting": split(10)}, dryRun="true")
    assert tried.status_code == 200
    (blocked,) = tried.json()["blocked"]
    assert (blocked["flag"], blocked["rule"]) == ("cold.route", "version_not_warm")
    assert blocked["blocking"] == [{"worker": 0, "version": "2", "state": "loading", "reason": "3 s so far"}]
    assert "3 s so far" in blocked["detail"]
    headers = {"if-match": "*"}
    dry = {"dryRun": "true"}
    deleted = control.client.delete("/admin/v1/flags/kept.route", headers=headers, params=dry)
    assert deleted.status_code == 200
    assert (deleted.json()["after"], deleted.json()["blocked"][0]["rule"]) == (None, "change_refused")
    flags = {"cold.route": {"targeting": split(10)}, "kept.route": None, "quiet.route": {"targeting": split(50)}}
    whole = control.client.patch("/admin/v1/flags", json={"flags": flags}, headers=headers, params=dry)
    assert whole.status_code == 200
    found = whole.json()
    assert [(b["flag"], b["rule"]) for b in found["blocked"]] == [
        ("kept.route", "change_refused"),
        ("cold.route", "version_not_warm"),
    ]
    assert found["movedKeys"].keys() == {"cold.route", "quiet.route"}
    assert 4500 < found["movedKeys"]["quiet.route"]["moved"] < 5500
    assert {change["path"].split("/")[2] for change in found["diff"]} == set(flags)
    written = control.client.patch(
        "/admin/v1/flags", json={"flags": flags}, headers={**headers, "x-change-reason": "x"}
    )
    assert code(written, 409) == "change_refused"


def test_a_dry_run_of_another_hash_tells_the_keys_that_move(shared: ControlProcess) -> None:
    shared.write_status({"hash": {"1": "warm", "2": "warm"}})
    shared.put("hash.route", route(targeting=split(0)))
    shared.patch("hash.route", {"targeting": split(50)})
    patch = {"metadata": {"bucketing": "flagd-v2"}}
    tried = shared.client.patch("/admin/v1/flags", json=patch, headers={"if-match": "*"}, params={"dryRun": "true"})
    moved = tried.json()["movedKeys"]["hash.route"]
    assert 4500 < moved["moved"] < 5500  # two independent draws of one half
    assert {(move["from"], move["to"]) for move in moved["moves"]} == {("canary", "stable"), ("stable", "canary")}


def test_the_whole_document_is_read_and_changed_as_one_revision(shared: ControlProcess) -> None:
    shared.put("all.route", route(targeting=split(0)))
    everything = shared.client.get("/admin/v1/flags")
    etag, before = everything.headers["etag"], everything.json()
    assert before["metadata"]["revision"] == int(etag.strip('"'))
    headers = {"if-match": etag, "x-change-reason": "another hash"}
    patch = {"metadata": {"bucketing": "flagd-v2"}, "$evaluators": {"always": {"!!": [True]}}}
    changed = shared.client.patch("/admin/v1/flags", json=patch, headers=headers)
    assert changed.status_code == 200
    assert changed.json()["metadata"]["bucketing"] == "flagd-v2"
    assert changed.json()["flags"]["all.route"]["metadata"]["revision"] == int(changed.headers["etag"].strip('"'))
    assert code(shared.client.patch("/admin/v1/flags", json=patch, headers=headers), 412) == "revision_conflict"
    using = {"targeting": {"fractional": None, "if": [{"$ref": "always"}, "stable"]}}
    assert shared.patch("all.route", using).status_code == 200
    headers = {"if-match": shared.client.get("/admin/v1/flags").headers["etag"], "x-change-reason": "back"}
    gone = shared.client.patch("/admin/v1/flags", json={"$evaluators": None}, headers=headers)
    assert code(gone, 422) == "invalid_flag"  # a flag still refers to it
    tried = shared.client.put("/admin/v1/flags", json=before, headers=headers, params={"dryRun": "true"}).json()
    assert {"path": "/metadata/bucketing", "before": "flagd-v2"} in tried["diff"]
    back = shared.client.put("/admin/v1/flags", json=before, headers=headers)
    assert back.status_code == 200
    assert back.json()["flags"].keys() == before["flags"].keys()


def test_the_audit_is_read_in_pages_and_verifies(shared: ControlProcess) -> None:
    for i in range(5):
        shared.put(f"page{i}.route", route())
    rows: list[dict[str, Any]] = []
    while True:
        after = rows[-1]["seq"] if rows else 0
        page = shared.client.get("/admin/v1/audit", params={"after": after, "limit": 3}).json()["rows"]
        if not page:
            break
        assert len(page) <= 3
        rows += page
    assert verify([from_json(row) for row in rows]).seq == len(rows) >= 5
    for query in ({"after": "-1"}, {"limit": "0"}, {"limit": "x"}):
        assert code(shared.client.get("/admin/v1/audit", params=query), 400) == "invalid_input"


def test_unknown_paths_methods_and_flags_are_told_as_problems(shared: ControlProcess) -> None:
    assert code(shared.client.get("/admin/v2"), 404) == "unknown_path"
    assert code(shared.client.post("/admin/v1/flags"), 405) == "method_not_allowed"
    assert code(shared.client.get("/admin/v1/flags/none.route"), 404) == "unknown_flag"
    assert code(shared.client.get("/admin/v1/flags/none.route/history"), 404) == "unknown_flag"


def test_options_of_a_model_are_flags_too(shared: ControlProcess) -> None:
    rate = {"state": "ENABLED", "variants": {"some": 0.05}, "defaultVariant": "some"}
    assert shared.put("opt.sampling", rate).status_code == 201
    assert code(shared.put("opt.cache", rate), 422) == "invalid_flag"
    headers = {"if-match": shared.etag("opt.sampling"), "x-change-reason": "a test"}
    assert shared.client.delete("/admin/v1/flags/opt.sampling", headers=headers).status_code == 204
