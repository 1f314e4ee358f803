"""The verbs that talk to control, and what they say where it goes wrong: token, audit, quarantine."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from gateway import quarantine
from gateway.cli.tokens import SCOPES
from gateway.control import auth
from gateway.quarantine import Quarantined
from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess, route


def test_a_control_plane_that_is_not_there_is_told_with_what_to_start(terminal: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    refused = terminal.fails("flags", "list", "--url", url)
    assert url in refused
    assert "sluicegate serve" in refused
    assert "SLUICEGATE_URL" in refused


def test_something_else_at_that_address_is_told_as_such(terminal: Terminal) -> None:
    for url in ("not a url", "http://", "ftp://127.0.0.1", "localhost:8081"):
        assert url.split(":")[0] in terminal.fails("flags", "list", "--url", url)
    assert "write it like http://" in terminal.err


def test_a_wrong_token_is_told_with_where_the_right_one_is(
    control: ControlProcess, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLUICEGATE_TOKEN", "wrong")
    refused = terminal.fails("flags", "list")
    assert "admin.token" in refused
    assert "--token-file" in refused
    assert "wrong" not in refused
    terminal.ok("flags", "list", "--token-file", str(control.state / "admin.token"))
    assert "cannot read" in terminal.fails("flags", "list", "--token-file", str(tmp_path / "absent"))
    monkeypatch.setenv("SLUICEGATE_TOKEN", "tökén")
    assert terminal.fails("flags", "list")
    monkeypatch.delenv("SLUICEGATE_TOKEN")
    assert "admin.token" in terminal.fails("flags", "list")


def test_a_token_is_made_used_listed_and_revoked(
    control: ControlProcess, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SCOPES == auth.SCOPES
    secret = terminal.ok("token", "create", "ci", "--scope", "viewer").strip()
    assert "not shown again" in terminal.err
    assert secret not in terminal.err
    token = terminal.json("token", "create", "ci2", "--scope", "viewer")
    monkeypatch.setenv("SLUICEGATE_TOKEN", secret)
    terminal.ok("flags", "list")
    assert "scope operator" in terminal.fails("flags", "set", "x.sampling", "1", "--reason", "x")
    assert "scope admin" in terminal.fails("token", "list")
    monkeypatch.setenv("SLUICEGATE_TOKEN", control.admin_token)
    listed = terminal.ok("token", "list")
    assert "ci2" in listed
    assert secret not in listed
    assert {"ci", "ci2", "admin"} <= {found["name"] for found in terminal.json("token", "list")}
    assert token["id"] in terminal.ok("token", "revoke", token["id"])
    assert terminal.json("token", "revoke", token["id"])["revoked"] is True
    assert "no token" in terminal.fails("token", "revoke", "nobody")
    monkeypatch.setenv("SLUICEGATE_TOKEN", token["token"])
    assert "revoked" in terminal.fails("flags", "list")


def test_the_audit_is_exported_and_verified(control: ControlProcess, terminal: Terminal, tmp_path: Path) -> None:
    control.put("aud.route", route())
    out = tmp_path / "audit.jsonl"
    assert "rows in" in terminal.ok("audit", "export", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(terminal.ok("audit", "export", "--after", str(len(rows) - 1)).splitlines()) == 1
    assert "none touched" in terminal.ok("audit", "verify")
    control.patch("aud.route", {"state": "DISABLED"})
    found = terminal.json("audit", "verify", "--file", str(out))
    assert found["rows"] > len(rows)  # the change, and that somebody read
    more = tmp_path / "more.jsonl"
    terminal.ok("audit", "export", "--out", str(more))

    rows[1]["reason"] = "another"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "row 2 was changed" in terminal.fails("audit", "verify", "--file", str(out))
    out.write_text("nonsense")
    assert "not what" in terminal.fails("audit", "verify", "--file", str(out))


def test_verify_finds_a_tail_that_was_cut_off_and_a_chain_made_anew(
    control: ControlProcess,
    terminal: Terminal,
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    control.put("tail.route", route())
    out = tmp_path / "audit.jsonl"
    terminal.ok("audit", "export", "--out", str(out))
    with ControlProcess(models, tmp_path / "state") as other:  # another chain, as if made anew
        monkeypatch.setenv("SLUICEGATE_URL", other.url)
        monkeypatch.setenv("SLUICEGATE_TOKEN", other.admin_token)
        assert "cut off" in terminal.fails("audit", "verify", "--file", str(out))
        for i in range(len(out.read_text().splitlines())):
            other.put(f"m{i}.route", route())
        assert "made anew" in terminal.fails("audit", "verify", "--file", str(out))


def test_what_is_quarantined_is_listed_and_lifted(control: ControlProcess, terminal: Terminal) -> None:
    assert terminal.ok("models", "quarantine", "list") == "nothing is quarantined\n"
    kept_out = Quarantined("iris", "2", "d" * 64, "in flight at 2 deaths", "2026-01-01T00:00:00.000Z")
    quarantine.add(control.state / "quarantine.json", [kept_out])
    listed = terminal.ok("models", "quarantine", "list")
    for word in ("iris", "2", "d" * 12, "in flight at 2 deaths"):
        assert word in listed
    assert terminal.json("models", "quarantine", "list")["versions"] == [kept_out.to_json()]
    terminal.usage("models", "quarantine", "lift", "iris", "2")
    lift = ("models", "quarantine", "lift", "iris", "2", "--reason", "tested")
    assert terminal.ok(*lift) == "iris 2 is lifted: the workers load it again\n"
    assert "is not quarantined" in terminal.fails(*lift)
