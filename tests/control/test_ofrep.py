"""The OpenFeature Remote Evaluation Protocol as it is written: shapes, reasons, errors, ETags, tokens."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.control.process import ControlProcess, route, split

FLAGS = "/ofrep/v1/evaluate/flags"


def ask(control: ControlProcess, key: str, **context: Any) -> httpx.Response:
    return control.client.post(f"{FLAGS}/{key}", json={"context": context})


def answer(control: ControlProcess, key: str, **context: Any) -> dict[str, Any]:
    reply = ask(control, key, **context)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    assert found["key"] == key
    assert found["reason"] in ("STATIC", "TARGETING_MATCH", "SPLIT", "DISABLED", "UNKNOWN")
    return found


def failure(reply: httpx.Response, status: int, key: str | None) -> str:
    """The error code of a failure in the protocol's shape."""
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert body.get("key") == key
    assert body["errorDetails"]
    return str(body["errorCode"])


def put_ready(control: ControlProcess, model: str, plain: dict[str, Any]) -> None:
    control.write_status({model: {"1": "warm", "2": "warm"}})
    control.put(f"{model}.route", {**plain, "targeting": {}})
    reply = control.put(f"{model}.route", plain, etag=control.etag(f"{model}.route"))
    assert reply.status_code == 200, reply.text


def test_a_route_gives_the_version_with_variant_reason_and_metadata(shared: ControlProcess) -> None:
    shared.put("plain.route", {**route(), "metadata": {"owner": "ml", "high": True, "weight": 0.5}})
    found = answer(shared, "plain.route", targetingKey="u1")
    assert (found["value"], found["variant"], found["reason"]) == ("1", "stable", "STATIC")
    revision = int(shared.etag("plain.route").strip('"'))
    assert found["metadata"] == {"owner": "ml", "high": True, "weight": 0.5, "revision": revision}


def test_each_reason_is_told_in_the_words_of_the_protocol(shared: ControlProcess) -> None:
    by_header = {"==": [{"var": "headers.x-tier"}, "gold"]}
    rule = {"if": [by_header, "canary", {"==": [{"var": "protocol"}, "oip"]}, {"var": "headers.x-v"}, split(50)]}
    put_ready(shared, "why", route(targeting=rule))
    assert answer(shared, "why.route", targetingKey="u", headers={"x-tier": "gold"})["reason"] == "TARGETING_MATCH"
    assert answer(shared, "why.route", targetingKey="u")["reason"] == "SPLIT"
    assert answer(shared, "why.route", targetingKey="u", protocol="native")["reason"] == "SPLIT"
    for headers in ({}, {"x-v": "no variant"}):  # left to the default variant; and a variant that does not exist
        found = answer(shared, "why.route", targetingKey="u", protocol="oip", headers=headers)
        assert (found["value"], found["variant"], found["reason"]) == ("1", "stable", "UNKNOWN")
    shared.patch("why.route", {"state": "DISABLED"})
    found = answer(shared, "why.route", targetingKey="u", headers={"x-tier": "gold"})
    assert (found["value"], found["variant"], found["reason"]) == ("1", "stable", "DISABLED")


def test_headers_come_as_an_object_or_flat_and_by_any_case(shared: ControlProcess) -> None:
    put_ready(shared, "head", route(targeting={"if": [{"==": [{"var": "headers.x-tier"}, "gold"]}, "canary"]}))
    for context in (
        {"headers": {"X-Tier": "gold"}},
        {"headers.x-tier": "gold"},
        {"headers": None, "headers.X-TIER": "gold"},
    ):
        assert answer(shared, "head.route", targetingKey="u", **context)["variant"] == "canary"
    assert answer(shared, "head.route", targetingKey="u", headers={"x-tier": None})["variant"] == "stable"
    # the model of a route is its own, whatever else the application keeps in its context
    assert answer(shared, "head.route", targetingKey="u", model="other", plan={"a": [1]})["variant"] == "stable"


def test_without_a_targeting_key_the_policy_of_the_flag_holds(shared: ControlProcess) -> None:
    put_ready(shared, "random", route(targeting=split(50)))
    drawn = {answer(shared, "random.route")["variant"] for _ in range(40)}
    assert drawn == {"stable", "canary"}
    put_ready(shared, "default", {**route(targeting=split(50)), "metadata": {"missingKey": "default"}})
    assert {answer(shared, "default.route", targetingKey="")["variant"] for _ in range(20)} == {"stable"}
    put_ready(shared, "reject", {**route(targeting=split(50)), "metadata": {"missingKey": "reject"}})
    assert failure(ask(shared, "reject.route"), 400, "reject.route") == "TARGETING_KEY_MISSING"
    assert answer(shared, "reject.route", targetingKey="u")["reason"] == "SPLIT"


def test_the_other_flags_of_a_model_give_their_value(shared: ControlProcess) -> None:
    shared.put("opt.sampling", {"state": "ENABLED", "variants": {"all": 1, "few": 0.5}, "defaultVariant": "all"})
    reply = ask(shared, "opt.sampling", targetingKey="u")
    assert b'"value":1.0' in reply.content  # a float also where it is whole
    assert (reply.json()["variant"], reply.json()["reason"]) == ("all", "STATIC")
    shared.put("opt.cache", {"state": "ENABLED", "variants": {"on": {"enabled": True}}, "defaultVariant": "on"})
    assert answer(shared, "opt.cache", targetingKey="u")["value"] == {"enabled": True}
    shared.patch("opt.cache", {"state": "DISABLED"})
    found = answer(shared, "opt.cache", targetingKey="u")
    assert "value" not in found  # the settings decide: the caller's own default
    assert (found["variant"], found["reason"]) == ("on", "DISABLED")
    shared.put("opt.batching", {"state": "ENABLED", "variants": {"on": {"enabled": True}}, "defaultVariant": None})
    found = answer(shared, "opt.batching", targetingKey="u")
    assert ("value" in found, found["variant"], found["reason"]) == (False, "", "UNKNOWN")


def test_errors_come_in_the_shapes_of_the_protocol(shared: ControlProcess) -> None:
    shared.put("err.route", route())
    path = f"{FLAGS}/err.route"
    assert failure(ask(shared, "gone.route", targetingKey="u"), 404, "gone.route") == "FLAG_NOT_FOUND"
    for body in (b"", b"{", b"[]", b"\xff"):
        assert failure(shared.client.post(path, content=body), 400, "err.route") == "PARSE_ERROR"
        assert failure(shared.client.post(FLAGS, content=body), 400, None) == "PARSE_ERROR"
    wrong: list[Any] = [{}, {"context": None}, {"context": []}]
    wrong += [{"context": {"targetingKey": 7}}, {"context": {"headers": []}}, {"context": {"headers": {"x-a": 1}}}]
    wrong += [{"context": {"headers": "x"}}, {"context": {"protocol": {}}}, {"context": {"headers.x": True}}]
    for body in wrong:
        assert failure(shared.client.post(path, json=body), 400, "err.route") == "INVALID_CONTEXT"
        assert failure(shared.client.post(FLAGS, json=body), 400, None) == "INVALID_CONTEXT"


def test_a_token_comes_as_bearer_or_as_api_key(shared: ControlProcess) -> None:
    shared.put("auth.route", route())
    body = {"context": {"targetingKey": "u"}}
    made = {
        scope: shared.client.post("/admin/v1/tokens", json={"name": scope, "scope": scope}).json()["token"]
        for scope in ("metrics", "viewer")
    }
    with shared.client_as(None) as nobody:
        for path in (FLAGS, f"{FLAGS}/auth.route"):
            assert nobody.post(path, json=body).status_code == 401
            assert nobody.post(path, json=body, headers={"x-api-key": "wrong"}).status_code == 401
            assert nobody.post(path, json=body, headers={"x-api-key": made["metrics"]}).status_code == 403
            assert nobody.post(path, json=body, headers={"x-api-key": made["viewer"]}).status_code == 200
            bearer = {"authorization": f"Bearer {made['viewer']}"}
            assert nobody.post(path, json=body, headers=bearer).status_code == 200


def test_all_flags_come_at_once_with_failures_among_them(control: ControlProcess) -> None:
    put_ready(control, "iris", {**route(targeting=split(50)), "metadata": {"missingKey": "reject"}})
    control.put("wine.route", route())
    reply = control.client.post(FLAGS, json={"context": {}})
    assert reply.status_code == 200
    found = reply.json()
    assert found.keys() == {"flags", "metadata"}  # no event streams: there are none
    assert found["metadata"] == {"revision": int(control.client.get("/admin/v1/flags").headers["etag"].strip('"'))}
    refused, answered = found["flags"]
    assert refused["errorCode"] == "TARGETING_KEY_MISSING"
    assert refused["key"] == "iris.route"
    assert (answered["key"], answered["value"]) == ("wine.route", "1")
    with_key = control.client.post(FLAGS, json={"context": {"targetingKey": "u"}}).json()["flags"]
    assert [flag["reason"] for flag in with_key] == ["SPLIT", "STATIC"]
    assert with_key[0] == answer(control, "iris.route", targetingKey="u")


def test_what_has_not_changed_is_not_sent_again(shared: ControlProcess) -> None:
    shared.put("tag.route", route())

    def poll(etag: str, **context: Any) -> httpx.Response:
        return shared.client.post(FLAGS, json={"context": context}, headers={"if-none-match": etag})

    first = poll("", targetingKey="u", plan="free")
    etag = first.headers["etag"]
    assert first.status_code == 200
    same = poll(etag, plan="free", targetingKey="u")  # the order of its fields is none of a context's business
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert poll(f'"other", W/{etag}', plan="free", targetingKey="u").status_code == 304
    assert poll(etag, targetingKey="v", plan="free").status_code == 200
    shared.patch("tag.route", {"state": "DISABLED"})
    again = poll(etag, targetingKey="u", plan="free")
    assert again.status_code == 200
    assert again.headers["etag"] != etag
    assert {flag["key"]: flag["reason"] for flag in again.json()["flags"]}["tag.route"] == "DISABLED"


@pytest.mark.parametrize("path", [FLAGS, f"{FLAGS}/x.route"])
def test_it_is_asked_by_post_only(shared: ControlProcess, path: str) -> None:
    assert shared.client.get(path).status_code == 405
