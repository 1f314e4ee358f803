"""Webhooks through the door: what is sent, who may make them, and which are refused."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.control.hooks import WEBHOOKS, add, listed, progress, remove
from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import Mute, Receiver


def test_a_flag_change_arrives_as_a_signed_cloud_event(shared: ControlProcess, receiver: Receiver) -> None:
    webhook = add(shared, receiver.url, description="the team's room")
    shared.put("signed.route", route(), etag=None)
    eventually(lambda: "flag.put" in receiver.types, "the change arrives")
    remove(shared, webhook)
    for arrival in receiver.taken:
        arrival.check(webhook["secret"])
    made, changed = receiver.taken
    assert made.event["type"] == "dev.sluicegate.webhook.create"
    event = changed.event
    row = shared.client.get("/admin/v1/flags/signed.route/history").json()["rows"][0]
    assert event["id"] == f"{row['seq']}-{row['hash'][:16]}"
    assert (event["subject"], event["time"]) == ("signed", row["ts"])
    assert event["data"] == {
        name: row[name]
        for name in ("seq", "verb", "target", "actor", "reason", "revision", "request_id", "before", "after")
    }
    assert changed.path == "/hook/Tr0ub4dor?token=pssst"
    with pytest.raises(AssertionError):
        changed.check("whsec_" + base64.b64encode(b"another key").decode())


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*"], ["webhook.create", "flag.put", "token.create"]),
        (["flag.*"], ["flag.put"]),
        (["dev.sluicegate.token.*", "alarm.*"], ["token.create"]),
        (["rollout.*", "*.put"], ["flag.put"]),
    ],
)
def test_patterns_choose_the_events(
    control: ControlProcess, receiver: Receiver, patterns: list[str], expected: list[str]
) -> None:
    webhook = add(control, receiver.url, *patterns)
    control.put("chosen.route", route())
    control.client.post("/admin/v1/tokens", json={"name": "ci", "scope": "viewer"})
    eventually(lambda: progress(control, webhook)["lag_rows"] == 0, "all rows are passed on or by")
    assert receiver.types == expected


def test_a_test_event_says_at_once_what_became_of_it(shared: ControlProcess, receiver: Receiver) -> None:
    webhook = add(shared, receiver.url, "nothing.at.all")
    tried = shared.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()
    assert tried == {"delivered": True, "outcome": "delivered", "status": 204, "why": ""}
    (arrival,) = receiver.taken
    arrival.check(webhook["secret"])
    assert arrival.event["type"] == "dev.sluicegate.webhook.test"
    receiver.answer = lambda _: (503, {}, b"")
    tried = shared.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()
    assert (tried["delivered"], tried["status"]) == (False, 503)
    remove(shared, webhook)
    assert shared.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()["code"] == "unknown_webhook"


def test_viewers_see_where_webhooks_lead_and_only_admins_the_whole_url(
    shared: ControlProcess, receiver: Receiver
) -> None:
    webhook = add(shared, receiver.url, "nothing.at.all")
    secret = shared.client.post("/admin/v1/tokens", json={"name": "v", "scope": "viewer"}).json()["token"]
    with shared.client_as(secret) as viewer:
        seen = viewer.get(WEBHOOKS)
        assert viewer.post(WEBHOOKS, json={"url": receiver.url}).status_code == 403
        assert viewer.delete(f"{WEBHOOKS}/{webhook['id']}").status_code == 403
        assert viewer.post(f"{WEBHOOKS}/{webhook['id']}:test").status_code == 403
    assert f"http://127.0.0.1:{receiver.port}/..." in seen.text
    assert "Tr0ub4dor" not in seen.text
    assert listed(shared, webhook)["url"] == receiver.url
    for text in (seen.text, shared.client.get(WEBHOOKS).text):
        assert "whsec" not in text
        assert "fingerprint" not in text
    remove(shared, webhook)
    assert shared.client.delete(f"{WEBHOOKS}/{webhook['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": "ftp://host/"}, "url"),
        ({"url": "http:///path"}, "url"),
        ({"url": "http://user:hunter2@host/"}, "url"),
        ({"url": "http://host/#part"}, "url"),
        ({"url": "http://host:port/"}, "url"),
        ({"url": "http://[::1/"}, "url"),
        ({"url": "http://host/a b"}, "url"),
        ({"url": "http://höst/"}, "url"),
        ({"url": "http://host/" + "x" * 2000}, "url"),
        ({"url": "http://host/", "events": "flag.*"}, "events"),
        ({"url": "http://host/", "events": []}, "events"),
        ({"url": "http://host/", "events": [["a"]]}, "events"),
        ({"url": "http://host/", "events": ["[a-z]"]}, "events"),
        ({"url": "http://host/", "events": ["a"] * 33}, "events"),
        ({"url": "http://host/", "description": "two\nlines"}, "description"),
        ({"url": "http://host/", "secret": "whsec_mine"}, "secret"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_by_the_name_of_the_field(
    shared: ControlProcess, body: dict[str, Any], field: str
) -> None:
    refused = shared.client.post(WEBHOOKS, json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, field)
    assert "hunter2" not in refused.text


def test_there_is_a_bound_to_the_number_of_webhooks(control: ControlProcess) -> None:
    for _ in range(50):
        add(control, "http://127.0.0.1:9/", "nothing.at.all")
    refused = control.client.post(WEBHOOKS, json={"url": "http://127.0.0.1:9/"})
    assert (refused.status_code, refused.json()["code"]) == (409, "change_refused")


def test_webhooks_that_are_made_at_once_can_all_be_signed_for(control: ControlProcess, receiver: Receiver) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: add(control, receiver.url, "nothing.at.all"), range(16)))
    for webhook in made:
        assert control.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()["delivered"]
        receiver.taken[-1].check(webhook["secret"])


def test_secrets_and_urls_stay_where_they_belong(control: ControlProcess, receiver: Receiver) -> None:
    webhook = add(control, receiver.url)
    with Mute(b"220 mail.example.com ESMTP\r\n") as mute:
        noisy = add(control, f"{mute.url}?token=pssst")
        control.put("quiet.route", route())
        eventually(lambda: progress(control, noisy)["failures"] > 0, "one of them fails")
        eventually(lambda: "flag.put" in receiver.types, "the change arrives")
        outputs = control.log + control.client.get("/admin/v1/audit").text + control.client.get(WEBHOOKS).text
        kept = b"".join(path.read_bytes() for path in control.state.rglob("*") if path.is_file())
        for made in (webhook, noisy):
            raw = base64.b64decode(made["secret"].removeprefix("whsec_"))
            for secret in (made["secret"].encode(), made["secret"].removeprefix("whsec_").encode(), raw):
                assert secret not in kept
                assert secret not in outputs.encode()
                assert all(secret not in arrival.body for arrival in receiver.taken)
        assert b"whsec" not in kept
        assert "pssst" not in control.log + control.client.get("/admin/v1/audit").text
        assert all(b"pssst" not in arrival.body for arrival in receiver.taken)
        assert (control.state / "webhook.key").stat().st_mode & 0o777 == 0o600
        remove(control, noisy)
