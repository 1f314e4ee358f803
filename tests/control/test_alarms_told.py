"""Alarms through a real process: what is notified, once, also across a kill."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.control.app import build
from gateway.control.seed import seed
from gateway.settings import PathSettings, Settings
from tests.control.drifting import write_drift
from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import Receiver


def verbs(control: ControlProcess) -> list[str]:
    rows = control.client.get("/admin/v1/audit", params={"limit": 10_000}).json()["rows"]
    return [row["verb"] for row in rows if row["verb"].startswith("alarm.")]


def test_drift_and_a_version_that_fails_are_notified_once_also_across_a_kill(control: ControlProcess) -> None:
    with Receiver() as receiver:
        control.client.post("/admin/v1/webhooks", json={"url": receiver.url, "events": ["alarm.*"]})
        write_drift(control.state / "drift", 1.0, petal_length="drifted")
        control.write_status({"iris": {"3": "failed: its golden predictions differ"}})
        expected = ["alarm.drift", "alarm.version_failed"]
        eventually(lambda: sorted(set(receiver.types)) == expected, "both arrive")
        control.kill()
        control.start()
        control.write_status({"iris": {"3": "failed: its golden predictions differ"}})
        write_drift(control.state / "drift", 2.0, petal_length="drifted", petal_width="drifted")
        eventually(lambda: verbs(control).count("alarm.drift") == 2, "the second column is told")
        eventually(lambda: len({arrival.id for arrival in receiver.taken}) == 3, "and arrives")
        assert sorted(verbs(control)) == ["alarm.drift", *expected]
        (first, *_) = (arrival.event for arrival in receiver.taken if arrival.event["type"].endswith("drift"))
        assert first["subject"] == "iris"
        assert first["data"]["after"]["why"] == "iris 3 has drifted: petal_length"


def test_a_last_known_good_file_that_cannot_be_written_is_an_alarm(control: ControlProcess) -> None:
    path = control.state / "flags.lkg.json"
    control.put("iris.route", route())
    path.unlink()
    path.mkdir()
    assert control.put("wine.route", route()).status_code == 201  # the change itself is safe
    eventually(lambda: verbs(control) == ["alarm.last_known_good"], "it is told")
    path.rmdir()
    assert control.patch("iris.route", {"metadata": {"a": 1}}).status_code == 200
    assert path.is_file()


def test_the_desk_says_why_the_file_is_behind_until_it_is_not(tmp_path: Path) -> None:
    settings = Settings(paths=PathSettings(models=tmp_path / "models", state=tmp_path))
    control = build(settings, boot="b", run_dir=tmp_path / "run" / "b")
    try:
        seed(control.desk, {"iris": "1"})
        assert control.desk.last_known_good_trouble == ""
        settings.last_known_good_path.unlink()
        settings.last_known_good_path.mkdir()
        seed(control.desk, {"wine": "1"})
        assert "flags.lkg.json" in control.desk.last_known_good_trouble
        settings.last_known_good_path.rmdir()
        seed(control.desk, {"house": "1"})
        assert control.desk.last_known_good_trouble == ""
    finally:
        control.close()


@pytest.mark.parametrize("end", [ControlProcess.kill, ControlProcess.stop])
def test_a_trail_that_was_touched_is_an_alarm_after_the_next_start_and_only_once(
    control: ControlProcess, end: Callable[[ControlProcess], None]
) -> None:
    """After a kill the row is newer than the last checkpoint and the notary finds it; after a stop it is older."""
    for number in range(3):
        control.put(f"m{number}.route", route())
    end(control)
    database = sqlite3.connect(control.state / "flags.sqlite")
    database.execute("DROP TRIGGER audit_remains")
    database.execute("DELETE FROM audit WHERE seq = 2")
    database.commit()
    database.close()
    with Receiver() as receiver:
        control.start()
        eventually(lambda: verbs(control) == ["alarm.audit_broken"], "it is found")
        control.client.post("/admin/v1/webhooks", json={"url": receiver.url})  # who asks for less is not served worse
        eventually(lambda: receiver.types == ["webhook.create"], "and notifications go on")
    control.kill()
    control.start()
    for _ in range(6):  # each a second; by then both have looked again
        control.wait_report("beat")
    assert verbs(control) == ["alarm.audit_broken"]
    row = next(r for r in control.client.get("/admin/v1/audit").json()["rows"] if r["verb"] == "alarm.audit_broken")
    assert "row 2 is missing" in row["after"]["why"]
