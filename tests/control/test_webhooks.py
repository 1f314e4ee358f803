"""Webhooks through the door: a real control process, real receivers, and all that receivers do to senders."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import OK, Arrival, Mute, Receiver, Reply, free_port

WEBHOOKS = "/admin/v1/webhooks"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def add(control: ControlProcess, url: str, *events: str, **more: str) -> dict[str, Any]:
    """A new webhook; its id and secret."""
    body = {"url": url, **({"events": list(events)} if events else {}), **more}
    reply = control.client.post(WEBHOOKS, json=body)
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


def remove(control: ControlProcess, webhook: dict[str, Any]) -> None:
    assert control.client.delete(f"{WEBHOOKS}/{webhook['id']}").status_code == 204


def listed(control: ControlProcess, webhook: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in control.client.get(WEBHOOKS).json()["webhooks"] if each["id"] == webhook["id"]
    )
    return found


def progress(control: ControlProcess, webhook: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = listed(control, webhook)["progress"]
    return found


def audit(control: ControlProcess, verb: str, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    rows = control.client.get("/admin/v1/audit").json()["rows"]
    return [row for row in rows if row["verb"] == verb and row["target"] == f"webhook:{webhook['id']}"]


def change_flags(control: ControlProcess, name: str, count: int) -> list[int]:
    """Write *count* flags of their own; returns the seqs of their audit rows."""
    for number in range(count):
        assert control.put(f"{name}{number}.route", route()).status_code == 201
    rows = control.client.get("/admin/v1/audit", params={"limit": 10_000}).json()["rows"]
    found = [row["seq"] for row in rows if row["target"].startswith(name)]
    assert len(found) == count
    return found


# -- what is sent -----------------------------------------------------------------------------------


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


# -- who may do what, and what is refused --------------------------------------------------------------


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


# -- what receivers do ---------------------------------------------------------------------------------


def once(reply: Reply) -> Any:
    """An answer that is *reply* to the first arrival and OK to all after it."""
    answers = iter([reply])
    return lambda _arrival: next(answers, OK)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ((500, {}, b"<h1>oops</h1>"), "answered 500"),
        ((429, {"retry-after": "1"}, b""), "answered 429"),
        ((302, {"location": "/elsewhere"}, b""), "redirects are not followed"),
        ((400, {"retry-after": "garbage", "set-cookie": "a=b"}, b""), "answered 400"),
        (None, "RemoteProtocolError"),
    ],
    ids=["500", "429", "redirect", "400", "cut"],
)
def test_what_was_not_taken_comes_again_with_the_same_id(
    shared: ControlProcess, receiver: Receiver, reply: Reply, why: str
) -> None:
    receiver.answer = once(reply)
    webhook = add(shared, receiver.url, "webhook.create")
    failing = eventually(lambda: progress(shared, webhook) if receiver.arrivals else None, "an attempt")
    if failing["failures"]:  # it may have come again already
        assert why in failing["last_error"]
    eventually(lambda: receiver.taken, "it comes again")
    first, second = receiver.arrivals
    assert not receiver.strays
    assert (first.id, first.body, second.path) == (second.id, second.body, first.path)
    assert "cookie" not in second.headers
    second.check(webhook["secret"])
    told = eventually(lambda: None if (seen := progress(shared, webhook))["failures"] else seen, "it is told")
    assert told["last_success_s"] is not None
    assert told["last_error"] == ""
    remove(shared, webhook)


def test_an_endless_reply_is_not_read_to_its_end(shared: ControlProcess) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n"
    with Mute(head, b"\x1f\x8b" + b"x" * 65536, endless=True) as mute:
        webhook = add(shared, mute.url, "webhook.create")
        eventually(lambda: progress(shared, webhook)["last_success_s"], "it counts as delivered")
        remove(shared, webhook)
    assert len(mute.connections) == 1
    assert 0 < mute.sent_bytes < 50_000_000  # what fits into the buffers of two sockets


@pytest.mark.parametrize(
    "words", [b"garbage\r\n\r\n", b"HTTP/1.1 200", b"HTTP/1.1 9999 What\r\n\r\n", b"\x00" * 300_000]
)
def test_what_is_no_http_is_a_failure_and_no_more(shared: ControlProcess, words: bytes) -> None:
    with Mute(words) as mute:
        webhook = add(shared, mute.url, "webhook.create")
        seen = eventually(lambda: (p := progress(shared, webhook))["failures"] and p, "a failed attempt")
        assert "Error" in seen["last_error"]
        remove(shared, webhook)


def test_410_gone_disables_and_a_test_that_is_taken_goes_on_where_it_stopped(
    control: ControlProcess, receiver: Receiver
) -> None:
    webhook = add(control, receiver.url, "flag.*")
    receiver.answer = lambda _: (410, {}, b"")
    seqs = change_flags(control, "gone", 1)
    eventually(lambda: listed(control, webhook)["disabled"], "it is disabled")
    assert len(receiver.arrivals) == 1
    (alarm,) = audit(control, "alarm.webhook_disabled", webhook)
    assert "410" in alarm["after"]["why"]
    seqs += change_flags(control, "later", 2)
    assert len(receiver.arrivals) == 1
    assert control.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()["outcome"] == "gone"
    assert listed(control, webhook)["disabled"]
    receiver.answer = lambda _: OK
    assert control.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()["delivered"]
    eventually(lambda: receiver.seqs == seqs, "what it missed arrives, in order")
    assert listed(control, webhook)["disabled"] == ""
    (row,) = audit(control, "webhook.enable", webhook)
    assert row["actor"] == "admin"


def test_slow_and_dead_receivers_hold_up_nobody(control: ControlProcess, receiver: Receiver) -> None:
    with Mute() as mute:
        slow = add(control, mute.url)
        dead = add(control, f"http://127.0.0.1:{free_port()}/")
        nameless = add(control, "http://no-such-host.invalid/")
        quick = add(control, receiver.url, "flag.*")
        seqs = change_flags(control, "busy", 30)
        eventually(lambda: receiver.seqs == seqs, "all arrives where it can")
        assert len(mute.connections) == 1  # its first attempt still waits for an answer
        eventually(lambda: progress(control, dead)["failures"] and progress(control, nameless)["failures"], "failures")
        timed_out = eventually(lambda: (p := progress(control, slow))["failures"] and p, "the slow one times out")
        assert "no answer within 5 s" in timed_out["last_error"]
        assert timed_out["lag_rows"] >= 30
        assert progress(control, quick)["lag_rows"] == 0
        for webhook in (slow, dead, nameless):
            remove(control, webhook)


def test_a_receiver_that_was_down_gets_all_that_it_missed_in_order(control: ControlProcess) -> None:
    port = free_port()
    webhook = add(control, f"http://127.0.0.1:{port}/", "flag.*")
    seqs = change_flags(control, "missed", 20)
    eventually(lambda: progress(control, webhook)["failures"] > 0, "it is down")
    with Receiver(port=port) as receiver:
        assert control.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()["delivered"]
        eventually(lambda: receiver.seqs == seqs, "all arrives without another wait")


# -- control dies ------------------------------------------------------------------------------------


def test_kill_9_in_mid_delivery_loses_nothing_and_changes_neither_order_nor_ids(control: ControlProcess) -> None:
    """Twice killed while events are on their way: what is there after each start arrives, in its order."""
    door = Receiver()

    def kill_at(count: int) -> Callable[[Arrival], Reply]:
        def answer(_: Arrival) -> Reply:
            if len(door.arrivals) == count:
                control.kill()
                return None
            return OK

        return answer

    with door:
        webhook = add(control, door.url, "flag.*")
        seqs: list[int] = []
        for name in ("first", "second"):
            door.answer = lambda _: (503, {}, b"")  # nothing is taken before there is something to lose
            seqs = [*seqs, *change_flags(control, name, 12)]
            door.answer = kill_at(len(door.arrivals) + 6)
            control.client.post(f"{WEBHOOKS}/{webhook['id']}:test")
            eventually(lambda: not control.is_running, "control is killed in mid-delivery")
            assert len(door.seqs) < len(seqs)
            control.start()
            eventually(lambda: progress(control, webhook)["lag_rows"] == 0, "all is delivered")
        assert list(dict.fromkeys(door.seqs)) == seqs
        ids: dict[int, set[str]] = {}
        for arrival in door.taken:
            arrival.check(webhook["secret"])
            if "seq" in arrival.event["data"]:
                ids.setdefault(arrival.seq, set()).add(arrival.id)
        assert all(len(found) == 1 for found in ids.values())


def test_a_stop_saves_how_far_it_came(control: ControlProcess, receiver: Receiver) -> None:
    add(control, receiver.url, "flag.*")
    seqs = change_flags(control, "saved", 25)
    eventually(lambda: receiver.seqs == seqs, "all arrives")
    control.stop()
    control.start()
    seqs += change_flags(control, "after", 1)
    eventually(lambda: receiver.seqs[-1:] == seqs[-1:], "the new one arrives")
    assert receiver.seqs == seqs  # nothing came twice


def test_a_stop_does_not_wait_for_a_receiver(control: ControlProcess) -> None:
    with Mute() as mute:
        add(control, mute.url)
        eventually(lambda: mute.connections, "an attempt hangs")
        control.stop()
        control.start()


def test_a_lost_key_is_told_and_nothing_is_signed_with_another(control: ControlProcess, receiver: Receiver) -> None:
    webhook = add(control, receiver.url, "flag.*")
    (control.state / "webhook.key").rename(control.state / "webhook.key.away")
    with Receiver() as another:
        add(control, another.url, "nothing.at.all")  # makes a new key
        seqs = change_flags(control, "unsigned", 1)
        seen = eventually(lambda: (p := progress(control, webhook))["failures"] and p, "it fails")
        assert "webhook.key" in seen["last_error"]
        assert not receiver.arrivals
        assert control.client.post(f"{WEBHOOKS}/{webhook['id']}:test").json()["code"] == "store_unavailable"
        (control.state / "webhook.key.away").rename(control.state / "webhook.key")
        control.client.post(f"{WEBHOOKS}/{webhook['id']}:test")
        eventually(lambda: receiver.seqs == seqs, "it goes on with the key put back")


def test_an_audit_row_that_was_touched_is_passed_by_and_the_rest_arrives(
    control: ControlProcess, receiver: Receiver
) -> None:
    webhook = add(control, receiver.url, "flag.*")
    receiver.answer = lambda _: (503, {}, b"")
    seqs = change_flags(control, "touched", 5)
    control.kill()
    database = sqlite3.connect(control.state / "flags.sqlite")
    database.execute("DROP TRIGGER audit_stays")
    database.execute(
        "UPDATE audit SET body = replace(body, 'a test', 'a fest') WHERE seq IN (?, ?)", (seqs[1], seqs[4])
    )
    database.commit()
    database.close()
    receiver.answer = lambda _: OK
    control.start()
    eventually(lambda: receiver.seqs == [seqs[0], seqs[2], seqs[3]], "the others arrive")
    assert control.put("last.route", route()).status_code == 201
    eventually(lambda: len(receiver.seqs) == 4, "and what comes later")
    assert progress(control, webhook)["lag_rows"] == 0
