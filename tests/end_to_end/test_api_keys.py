"""API keys through both doors: who comes in, who does not, in which words, and that no key is ever written down."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.builders import classifier, write_package
from tests.cli.terminal import Terminal
from tests.live import LiveGateway, eventually

KEYS = "/admin/v1/keys"
NATIVE, OIP, PINNED = "/predict/iris", "/v2/models/iris/infer", "/v2/models/iris/versions/1/infer"
ROW = {"rows": [dict.fromkeys(classifier().features, 1.0)]}
TENSOR = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 1.0, 1.0, 1.0]}]}
LABEL = {"prediction_id": "0" * 32, "label": 1}
# Path -> the body of a POST, None for a GET.
ASKED: dict[str, Any] = {
    NATIVE: ROW,
    OIP: TENSOR,
    PINNED: TENSOR,
    "/v1/feedback": LABEL,
    "/v2": None,
    "/v2/models": None,
    "/v2/models/iris": None,
    "/v2/models/iris/ready": None,
    "/v2/models/iris/versions/1": None,
    "/v1/models/iris:predict": {"instances": [[1.0, 1.0, 1.0, 1.0]]},
    "/v1/models/iris/versions/1:predict": {"instances": [[1.0, 1.0, 1.0, 1.0]]},
    "/v1/models/iris/labels/stable:classify": {"examples": [dict.fromkeys(classifier().features, 1.0)]},
    "/v1/models/iris": None,
    "/v1/models/iris/metadata": None,
    "/v1/models": None,
    "/": None,
    "/models/iris/invocations": {"inputs": [[1.0, 1.0, 1.0, 1.0]]},
    "/ping": None,
    "/version": None,
    "/predictions/iris": [1.0, 1.0, 1.0, 1.0],
    "/models": None,
    "/models/iris/all": None,
    "/v2/models/iris/config": None,
    "/v2/models/iris/stats": None,
    "/v2/models/stats": None,
    "/v2/repository/index": {},
}


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LiveGateway]]:
    root = tmp_path_factory.mktemp("keys")
    for model in (classifier(), classifier("churn")):
        write_package(root / "models", model)
    with contextlib.ExitStack() as stack:
        yield {
            door: stack.enter_context(
                LiveGateway(
                    root / "models",
                    root / door,
                    workers=2 if door == "fast" else 1,
                    settings={"server": {"door": door, "api_keys": "required"}, "sampling": {"rate": 1.0}},
                )
            )
            for door in ("fast", "asgi")
        }


@pytest.fixture(params=["fast", "asgi"])
def gateway(gateways: dict[str, LiveGateway], request: pytest.FixtureRequest) -> LiveGateway:
    return gateways[request.param]


def make(gateway: LiveGateway, name: str = "shop", **more: Any) -> dict[str, Any]:
    """A new key that all workers let in, if it is good for anything: its id, and the secret as `key`."""
    reply = gateway.control.post(KEYS, json={"name": name, **more})
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


def bearer(made: Mapping[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {made['key']}"}


def ask(gateway: LiveGateway, path: str, headers: Mapping[str, str]) -> httpx.Response:
    """On a connection of its own, so that it may be any worker that answers."""
    body = ASKED[path]
    with httpx.Client(base_url=gateway.data_url, timeout=20, verify=False) as client:  # no TLS here
        return client.request("GET" if body is None else "POST", path, json=body, headers=dict(headers))


def settled(gateway: LiveGateway, made: Mapping[str, Any], status: int = 200, *, path: str = "/v2") -> None:
    """Wait until six connections in a row get *status*: then all workers know. Costs nothing that has a quota."""

    def all_agree() -> bool:
        return all(ask(gateway, path, bearer(made)).status_code == status for _ in range(24))

    eventually(all_agree, f"all workers answer {status}")


def use_up(gateway: LiveGateway, made: Mapping[str, Any]) -> list[int]:
    """Ask until no worker lets the key in any more; returns the statuses."""
    statuses: list[int] = []

    def is_used_up() -> bool:
        statuses.extend(ask(gateway, OIP, bearer(made)).status_code for _ in range(24))
        return set(statuses[-24:]) == {429}

    eventually(is_used_up, "all workers have given what they may")
    return statuses


def test_without_a_key_nothing_is_told_but_health(gateway: LiveGateway) -> None:
    for path in ASKED:
        for headers in ({}, {"authorization": "Bearer slk_00000000_nonsense"}, {"x-api-key": gateway.admin_token}):
            reply = ask(gateway, path, headers)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Bearer realm="sluicegate"'), path
            assert "iris" not in reply.text
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert gateway.data.get(path).status_code == 200


def test_a_key_comes_in_by_either_header_and_one_for_some_models_sees_these_alone(gateway: LiveGateway) -> None:
    everywhere, iris = make(gateway), make(gateway, "iris", models=["iris"])
    churn = make(gateway, "churn", models=["churn"])
    for key in (everywhere, iris, churn):
        settled(gateway, key)
    for path in ASKED:
        for headers in (bearer(everywhere), {"x-api-key": everywhere["key"]}, bearer(iris), {"X-API-Key": iris["key"]}):
            reply = ask(gateway, path, headers)
            assert reply.status_code in (200, 400), (path, reply.text)  # 400: no such prediction to label
        is_of_a_model = "iris" in path
        assert (ask(gateway, path, bearer(churn)).status_code == 403) == is_of_a_model, path
    assert ask(gateway, "/v2/models", bearer(iris)).json() == {"models": ["iris"]}
    assert ask(gateway, "/v2/models", bearer(everywhere)).json() == {"models": ["churn", "iris"]}


def test_refusals_come_in_the_words_of_the_protocol_and_through_both_doors_alike(
    gateways: dict[str, LiveGateway],
) -> None:
    seen: dict[str, list[tuple[Any, ...]]] = {}
    for door, gateway in gateways.items():
        churn, slow = make(gateway, models=["churn"]), make(gateway, rate_per_s=0.001, burst=1)
        settled(gateway, churn)
        seen[door] = []
        for path in ASKED:
            answers = [ask(gateway, path, {}), ask(gateway, path, bearer(churn))]
            for reply in answers:
                names = [name for name in reply.headers if name not in ("x-prediction-id",)]
                words = re.sub(r"[0-9a-f]{8}\b", "ID", reply.text) if reply.status_code != 200 else ""
                seen[door].append((path, reply.status_code, names, words))
        use_up(gateway, slow)
        for path in (OIP, NATIVE):
            reply = ask(gateway, path, bearer(slow))
            assert reply.status_code == 429
            assert 900 <= int(reply.headers["retry-after"]) <= 1500
            seen[door].append((path, 429, list(reply.headers), re.sub(r"[0-9a-f]{8}\b", "ID", reply.text)))
    assert seen["fast"] == seen["asgi"]
    by_path = {(path, status): json.loads(words) for path, status, _, words in seen["fast"] if words}
    assert by_path[NATIVE, 401]["error"]["code"] == "unauthenticated"
    assert by_path[NATIVE, 403]["error"]["code"] == "forbidden"
    assert by_path[NATIVE, 429]["error"]["code"] == "quota_exceeded"
    assert "API key" in by_path[OIP, 401]["error"]
    assert by_path["/v1/feedback", 401]["error"]["code"] == "unauthenticated"
    for method, path in (("GET", "/models"), ("DELETE", "/models/iris"), ("POST", "/explanations/iris")):
        refused = gateway.data.request(method, path)
        assert (refused.status_code, refused.json()["code"], "www-authenticate" in refused.headers) == (401, 401, True)
        assert refused.json()["type"] == "BadRequestException"


def test_a_quota_holds_for_each_worker(gateway: LiveGateway) -> None:
    key = make(gateway, rate_per_s=0.001, burst=3)
    statuses = use_up(gateway, key)
    assert statuses.count(200) == 3 * len(gateway.child_pids("worker"))


def test_a_key_is_rotated_revoked_and_expires_without_a_restart(gateway: LiveGateway) -> None:
    pids = gateway.child_pids("worker")
    old = make(gateway, models=["iris"], rate_per_s=5000)
    settled(gateway, old)
    reply = gateway.control.post(f"{KEYS}/{old['id']}:rotate", json={"grace_s": 3600})
    assert reply.status_code == 201, reply.text
    new = reply.json()
    assert (new["models"], new["rate_per_s"], new["replaces"]["id"]) == (["iris"], 5000, old["id"])
    settled(gateway, new)
    settled(gateway, old)
    again = gateway.control.post(f"{KEYS}/{new['id']}:rotate", json={"grace_s": 0}).json()
    settled(gateway, new, 401)
    settled(gateway, again)
    assert gateway.control.delete(f"{KEYS}/{old['id']}").status_code == 204
    settled(gateway, old, 401)
    assert gateway.control.delete(f"{KEYS}/{old['id']}").status_code == 404
    brief = make(gateway, expires_in_s=1)
    eventually(lambda: "has expired" in ask(gateway, "/v2", bearer(brief)).text, "it has expired")
    assert brief["expires_s"] <= time.time()
    assert gateway.child_pids("worker") == pids


def test_a_revocation_reaches_a_connection_that_is_open(gateway: LiveGateway) -> None:
    key = make(gateway)
    settled(gateway, key)
    with httpx.Client(base_url=gateway.data_url, headers=bearer(key)) as client:
        assert client.post(OIP, json=TENSOR).status_code == 200
        gateway.control.delete(f"{KEYS}/{key['id']}")
        eventually(lambda: client.post(OIP, json=TENSOR).status_code == 401, "the key is not let in", timeout_s=5)


def test_the_metrics_tell_outcomes_by_public_id(gateway: LiveGateway) -> None:
    key = make(gateway, models=["iris"])
    settled(gateway, key)
    ask(gateway, OIP, bearer(key))
    assert gateway.control.get("/metrics").status_code == 200

    def counted() -> bool:
        page = gateway.control.get("/metrics").text
        assert re.search(r'sluicegate_refused_total\{code="unauthenticated"\} \d', page)
        assert re.search(r'sluicegate_api_key_requests_total\{key="",outcome="unauthenticated"\} \d', page)
        return f'sluicegate_api_key_requests_total{{key="{key["id"]}",outcome="admitted"}}' in page

    eventually(counted, "the outcomes are on the page")


def test_each_change_is_audited_and_no_key_is_ever_written_down(gateways: dict[str, LiveGateway]) -> None:
    gateway = gateways["asgi"]
    key = make(gateway, "audited", models=["iris"])
    settled(gateway, key)
    wrong = "slk_deadbeef_" + "w" * 43
    assert ask(gateway, NATIVE, {"x-api-key": wrong}).status_code == 401
    assert ask(gateway, NATIVE, bearer(key)).status_code == 200
    new = gateway.control.post(f"{KEYS}/{key['id']}:rotate", json={"grace_s": 60}).json()
    gateway.control.delete(f"{KEYS}/{new['id']}", headers={"x-change-reason": "it leaked"})
    rows = gateway.control.get("/admin/v1/audit", params={"limit": 10_000}).json()["rows"]
    told = [
        (row["verb"], row["target"], row["actor"]) for row in rows if row["target"].endswith((key["id"], new["id"]))
    ]
    assert told == [
        ("key.create", f"key:{key['id']}", "admin"),
        ("key.rotate", f"key:{key['id']}", "admin"),
        ("key.create", f"key:{new['id']}", "admin"),
        ("key.revoke", f"key:{new['id']}", "admin"),
    ]
    assert [row["reason"] for row in rows if row["verb"] == "key.revoke"][-1] == "it leaked"
    listed = gateway.control.get(KEYS).text
    assert "digest" not in listed
    page = gateway.control.get("/metrics").text
    written = b"".join(path.read_bytes() for path in gateway.state.rglob("*") if path.is_file())
    everything = written + (gateway.log + listed + page + json.dumps(rows)).encode()
    assert b"iris" in everything
    for secret in (key["key"], new["key"], wrong):
        random_part = secret.rpartition("_")[2] if secret == wrong else secret.split("_", 2)[2]
        assert random_part.encode() not in everything


def test_no_rule_of_a_route_gets_to_see_a_key(gateways: dict[str, LiveGateway]) -> None:
    for name in ("authorization", "x-api-key"):
        rule = {"if": [{"==": [{"var": f"headers.{name}"}, "x"]}, "stable", None]}
        flag = {"state": "ENABLED", "variants": {"stable": "1"}, "defaultVariant": "stable", "targeting": rule}
        reply = gateways["asgi"].control.put(
            "/admin/v1/flags/seen.route", json=flag, headers={"if-none-match": "*", "x-change-reason": "a test"}
        )
        assert reply.status_code == 422, reply.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a", "models": []}, "models"),
        ({"name": "a", "models": ["../x"]}, "models"),
        ({"name": "a", "models": "iris"}, "models"),
        ({"name": "a", "rate_per_s": 0}, "rate_per_s"),
        ({"name": "a", "rate_per_s": True}, "rate_per_s"),
        ({"name": "a", "burst": 5}, "burst"),
        ({"name": "a", "rate_per_s": 5, "burst": 1.5}, "burst"),
        ({"name": "a", "expires_in_s": -1}, "expires_in_s"),
        ({"name": "a", "priority": "sheddable"}, "priority"),
        ({"name": "a", "priority": None}, "priority"),
        ({"name": "a", "key": "mine"}, "key"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(
    gateways: dict[str, LiveGateway], body: dict[str, Any], field: str
) -> None:
    reply = gateways["asgi"].control.post(KEYS, json=body)
    assert (reply.status_code, reply.json()["field"]) == (400, field)


def test_an_api_key_evaluates_the_flags_of_its_models_and_is_no_admin_token(gateways: dict[str, LiveGateway]) -> None:
    gateway = gateways["asgi"]
    key = make(gateway, models=["iris"])
    flags = "/ofrep/v1/evaluate/flags"
    with httpx.Client(base_url=gateway.control_url) as client:
        for headers in (bearer(key), {"x-api-key": key["key"]}):
            one = client.post(f"{flags}/iris.route", json={"context": {}}, headers=headers)
            assert (one.status_code, one.json()["value"]) == (200, "1")
            assert client.post(f"{flags}/churn.route", json={"context": {}}, headers=headers).status_code == 403
            everything = client.post(flags, json={"context": {}}, headers=headers)
            assert {flag["key"] for flag in everything.json()["flags"]} == {"iris.route"}
            assert client.get("/admin/v1/flags", headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        for wrong in (key["key"] + "x", "slk_00000000_x", "slk_"):
            assert client.post(flags, json={"context": {}}, headers={"x-api-key": wrong}).status_code == 401
        whole = gateway.control.post(flags, json={"context": {}})
        assert whole.headers["etag"] != everything.headers["etag"]
        gateway.control.delete(f"{KEYS}/{key['id']}")
        assert client.post(flags, json={"context": {}}, headers=bearer(key)).status_code == 401


def test_the_verbs_make_list_rotate_and_revoke(
    gateways: dict[str, LiveGateway], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = gateways["asgi"]
    monkeypatch.setenv("SLUICEGATE_URL", gateway.control_url)
    monkeypatch.setenv("SLUICEGATE_TOKEN", gateway.admin_token)
    terminal = Terminal(capsys)
    more = ("--rate", "10", "--expires-in", "90d", "--priority", "critical")
    secret = terminal.ok("keys", "create", "cli", "--model", "iris", *more).strip()
    key_id = secret.split("_")[1]
    (listed,) = [key for key in terminal.json("keys", "list") if key["id"] == key_id]
    assert (listed["models"], listed["rate_per_s"], listed["burst"]) == (["iris"], 10, 10)
    assert listed["priority"] == "critical"
    assert listed["expires_s"] - listed["created_s"] == pytest.approx(90 * 86_400)
    shown = terminal.ok("keys", "list")
    assert key_id in shown
    assert secret not in shown
    new = terminal.ok("keys", "rotate", key_id, "--grace", "1h", "--reason", "quarterly").strip()
    assert new.split("_")[1] not in (key_id, "")
    assert "is revoked" in terminal.ok("keys", "revoke", key_id)
    assert "no API key" in terminal.fails("keys", "revoke", key_id)
    assert "usage" in terminal.usage("keys", "create", "x", "--expires-in", "soon")


def test_who_may_do_what_with_keys(gateways: dict[str, LiveGateway], tmp_path: Path) -> None:
    gateway = gateways["asgi"]
    key = make(gateway)
    secrets = {
        scope: gateway.control.post("/admin/v1/tokens", json={"name": scope, "scope": scope}).json()["token"]
        for scope in ("metrics", "viewer", "operator", "approver")
    }
    with httpx.Client(base_url=gateway.control_url) as client:

        def status(scope: str, method: str, path: str, body: Any = None) -> int:
            headers = {"authorization": f"Bearer {secrets[scope]}"}
            return client.request(method, path, json=body, headers=headers).status_code

        assert (status("metrics", "GET", KEYS), status("viewer", "GET", KEYS)) == (403, 200)
        for scope in secrets:
            assert status(scope, "POST", KEYS, {"name": "x"}) == 403
            assert status(scope, "POST", f"{KEYS}/{key['id']}:rotate", {"grace_s": 0}) == 403
        assert status("viewer", "DELETE", f"{KEYS}/{key['id']}") == 403
        assert status("operator", "DELETE", f"{KEYS}/{key['id']}") == 204
