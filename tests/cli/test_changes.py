"""``sluicegate changes``: what waits for approval is listed, shown and decided from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders
from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess, route, split


@pytest.fixture
def act_as(terminal: Terminal, control: ControlProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Go on as somebody with a new token."""

    def go_on(name: str, scope: str) -> None:
        monkeypatch.setenv("SLUICEGATE_TOKEN", control.admin_token)
        secret = terminal.ok("token", "create", name, "--scope", scope).strip()
        monkeypatch.setenv("SLUICEGATE_TOKEN", secret)

    return go_on


def model_of_high_stakes(control: ControlProcess, model: str) -> None:
    control.put(f"{model}.route", route())
    builders.write_package(control.models, builders.classifier(model, "1"), card={"stakes": "high"})


def test_a_change_is_proposed_listed_shown_and_approved(
    control: ControlProcess, terminal: Terminal, act_as: Callable[[str, str], None]
) -> None:
    model_of_high_stakes(control, "iris")
    act_as("ada", "operator")
    assert "waits for approval by one person" in terminal.ok("flags", "set", "iris", "canary=10", "--dry-run")
    said = terminal.ok("flags", "set", "iris", "canary=10", "--reason", "start")
    assert "iris.route is not changed yet" in said
    change = terminal.json("flags", "set", "iris", "canary=10", "--reason", "start")
    assert change["state"] == "open"
    assert f"sluicegate changes approve {change['id']}" in said
    listed = terminal.ok("changes", "list")
    for word in (change["id"], "iris.route", "0 of 1", "ada", "start"):
        assert word in listed
    shown = terminal.ok("changes", "show", change["id"])
    assert "/targeting: nothing ->" in shown
    assert terminal.json("changes", "show", change["id"])["digest"] == change["digest"]
    assert "scope approver" in terminal.fails("changes", "approve", change["id"])
    act_as("bob", "approver")
    assert "is applied" in terminal.ok("changes", "approve", change["id"], "--reason", "seen")
    assert "/targeting: nothing ->" in terminal.out
    assert control.client.get("/admin/v1/flags/iris.route").json()["targeting"]["fractional"][0] == ["canary", 1000]
    assert terminal.json("changes", "list") == []
    assert change["id"] in terminal.ok("changes", "list", "--all")


def test_a_change_is_rejected_and_a_broken_glass_acknowledged(
    control: ControlProcess, terminal: Terminal, act_as: Callable[[str, str], None]
) -> None:
    model_of_high_stakes(control, "wine")
    act_as("ada", "operator")
    change = terminal.json("flags", "set", "wine", "canary=10", "--reason", "start")
    act_as("bob", "approver")
    assert terminal.run("changes", "reject", change["id"]) == 2  # it needs a reason
    assert terminal.json("changes", "reject", change["id"], "--reason", "too early")["state"] == "rejected"
    assert "too early" in terminal.fails("changes", "approve", change["id"])
    act_as("ada", "operator")
    assert "is at revision" in terminal.ok("flags", "set", "wine", "canary=10", "--reason", "now", "--break-glass")
    control.patch("wine.route", {"targeting": split(0)})
    (glass,) = terminal.json("changes", "list")
    assert glass["state"] == "break_glass"
    assert "409" not in terminal.fails("changes", "apply", glass["id"])
    act_as("bob", "approver")
    assert "is reviewed" in terminal.ok("changes", "acknowledge", glass["id"], "--reason", "it had to be")


def test_an_unknown_change_is_told(terminal: Terminal, tmp_path: Path) -> None:
    assert "no change 'x'" in terminal.fails("changes", "show", "x")
    assert "cannot read" in terminal.fails("changes", "list", "--token-file", str(tmp_path / "absent"))
