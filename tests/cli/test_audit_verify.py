"""``sluicegate audit verify`` on a server, an export and a state directory, with checkpoints that were taken away."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.control.checkpoints import read_checkpoints
from gateway.flags.audit import from_json
from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess, route
from tests.control.test_trail import resealed
from tests.live import SettingsTable, eventually


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """A directory on what stands for another disk."""
    path = tmp_path / "away"
    path.mkdir()
    return path


@pytest.fixture
def control(models: Path, state: Path, away: Path) -> ControlProcess:
    settings: SettingsTable = {"audit": {"checkpoint_rows": 2, "checkpoint_file": str(away / "checkpoints.jsonl")}}
    return ControlProcess(models, state, settings=settings)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


def fill(control: ControlProcess, terminal: Terminal, away: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Some changes, an export, and checkpoints over all of it; returns the options that name the latter."""
    monkeypatch.setenv("SLUICEGATE_URL", control.url)
    monkeypatch.setenv("SLUICEGATE_TOKEN", control.admin_token)
    for i in range(6):
        control.put(f"m{i}.route", route())
    headers = {b"if-none-match": b"*", b"x-change-reason": "one line\u2028or two".encode()}
    assert control.client.put("/admin/v1/flags/lines.route", json=route(), headers=headers).status_code == 201
    terminal.ok("audit", "export", "--out", str(away / "export.jsonl"))
    checkpoints = away / "checkpoints.jsonl"
    eventually(lambda: read_checkpoints(checkpoints)[-1].seq >= 7, "the changes are signed")
    shutil.copy(control.state / "audit.pub", away)
    return ["--checkpoints", str(checkpoints), "--public-key", str(away / "audit.pub")]


def test_a_server_an_export_and_a_state_directory_hold(
    control: ControlProcess, terminal: Terminal, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with control:
        signed = fill(control, terminal, away, monkeypatch)
        assert "proves more" in terminal.ok("audit", "verify")
        assert "proves more" not in terminal.ok("audit", "verify", *signed)
        assert "checkpoints of" in terminal.out
        control.stop()
        assert "in the flags in force" in terminal.ok("audit", "verify", "--state", str(control.state), *signed)
        assert "no checkpoint was at hand" in terminal.ok("audit", "verify", "--state", str(control.state))
        control.start()
        export = away / "export.jsonl"
        terminal.ok("audit", "export", "--out", str(export))
        whole = terminal.json("audit", "verify", "--export", str(export))
        rows = export.read_text().split("\n")[:-1]
        assert (whole["rows"], whole["checkpoints"], whole["newest_checkpoint"]) == (len(rows), 0, None)
        found = terminal.json("audit", "verify", "--export", str(export), *signed)
        assert found["newest_checkpoint"]["seq"] >= 7
        (away / "part.jsonl").write_text("".join(f"{row}\n" for row in rows[4:]))
        part = ("--export", str(away / "part.jsonl"))
        assert "from row 5 on" in terminal.ok("audit", "verify", *part, "--after", "4", *signed)
        assert "row 1 is missing" in terminal.fails("audit", "verify", *part, *signed)
        assert "row 4 is missing" in terminal.fails("audit", "verify", *part, "--after", "3", *signed)


def test_what_was_done_to_the_trail_is_found_by_what_was_taken_away(
    control: ControlProcess, terminal: Terminal, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with control:
        signed = fill(control, terminal, away, monkeypatch)
        control.stop()
        newest = read_checkpoints(away / "checkpoints.jsonl")[-1].seq
        offline = ["audit", "verify", "--state", str(control.state), *signed]
        terminal.ok(*offline)
        database = control.state / "flags.sqlite"

        def rewrite(*statements: tuple[str, tuple[object, ...]]) -> None:
            with sqlite3.connect(database) as connection:
                connection.execute("DROP TRIGGER IF EXISTS audit_stays")
                connection.execute("DROP TRIGGER IF EXISTS audit_remains")
                for statement, values in statements:
                    connection.execute(statement, values)
            connection.close()

        # the tail is cut off, with what it wrote
        kept = [from_json(json.loads(line)) for line in (away / "export.jsonl").read_text().split("\n")[:-1]]
        rewrite(("DELETE FROM audit WHERE seq > ?", (newest - 1,)))
        assert f"rows after {newest - 1} were cut off" in terminal.fails(*offline)
        # the whole chain is made anew with another reason in row 3

        forged = resealed([*kept[:2], replace(kept[2], reason="all is well"), *kept[3:]])
        writes = [
            ("INSERT INTO audit (seq, body, hash) VALUES (?, ?, ?)", (r.seq, r.canonical(), r.hash)) for r in forged
        ]
        rewrite(("DELETE FROM audit", ()), *writes)
        terminal.ok("audit", "verify", "--state", str(control.state), "--public-key", str(away / "audit.pub"))
        assert "the chain was made anew from a row in" in terminal.fails(*offline)
        control.start()
        assert "the chain was made anew from a row in" in terminal.fails("audit", "verify", *signed)
        assert "the chain was made anew" in control.client.get("/admin/v1/audit:verify").json()["found"]


def test_what_cannot_be_checked_is_told(terminal: Terminal, tmp_path: Path, away: Path) -> None:
    export = away / "export.jsonl"
    export.write_text("")
    absent = str(tmp_path / "absent")
    assert "public-key" in terminal.usage("audit", "verify", "--export", str(export), "--checkpoints", absent)
    assert "--after goes with" in terminal.usage("audit", "verify", "--after", "3")
    assert "cannot read" in terminal.fails("audit", "verify", "--export", absent)
    assert "cannot read" in terminal.fails("audit", "verify", "--export", str(export), "--public-key", absent)
    assert "flags.sqlite" in terminal.fails("audit", "verify", "--state", str(tmp_path))
    key = ["--public-key", str(export)]
    assert "no public key" in terminal.fails("audit", "verify", "--export", str(export), *key)
