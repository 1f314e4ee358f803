"""``sluicegate webhooks`` against a real control process and a real receiver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import OK, Receiver


@pytest.fixture
def terminal(
    models: Path, state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    with ControlProcess(models, state) as control:
        monkeypatch.setenv("SLUICEGATE_URL", control.url)
        monkeypatch.setenv("SLUICEGATE_TOKEN", control.admin_token)
        control.put("iris.route", route())
        yield Terminal(capsys)


def test_a_webhook_is_made_tried_listed_and_removed(terminal: Terminal) -> None:
    with Receiver() as receiver:
        added = terminal.ok(
            *("webhooks", "add", receiver.url, "--events", "rollout.*", "flag.*"), *("--description", "room 7")
        )
        secret = added.strip()
        assert secret.startswith("whsec_")
        (webhook,) = terminal.json("webhooks", "list")
        assert webhook["events"] == ["rollout.*", "flag.*"]
        assert "nothing sent yet" in terminal.ok("webhooks", "list")
        assert "204" in terminal.ok("webhooks", "test", webhook["id"])
        receiver.taken[0].check(secret)
        terminal.ok("flags", "kill", "iris", "--reason", "a test")
        eventually(lambda: "flag.put" in receiver.types, "the change arrives")
        eventually(lambda: " 0 rows" in terminal.ok("webhooks", "list"), "no lag")
        seen = terminal.out
        for word in (webhook["id"], "/hook/", "rollout.*", "ok", "room 7"):
            assert word in seen
        assert secret not in seen
        receiver.answer = lambda _: (500, {}, b"")
        assert "answered 500" in terminal.fails("webhooks", "test", webhook["id"])
        terminal.ok("flags", "enable", "iris", "--reason", "a test")
        eventually(lambda: "failures in a row" in terminal.ok("webhooks", "list"), "the failure is listed")
        receiver.answer = lambda _: OK
        assert webhook["id"] in terminal.ok("webhooks", "remove", webhook["id"])
        assert terminal.json("webhooks", "list") == []
        assert "no webhook" in terminal.fails("webhooks", "test", webhook["id"])


def test_what_is_no_receiver_is_refused(terminal: Terminal) -> None:
    assert "http or https" in terminal.fails("webhooks", "add", "ftp://host/")
    assert "usage" in terminal.usage("webhooks", "add")
