"""All that receivers do to senders, and what a control process that dies in between still owes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from tests.control.hooks import WEBHOOKS, add, audit, change_flags, listed, progress, remove
from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import OK, Arrival, Mute, Receiver, Reply, free_port


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
