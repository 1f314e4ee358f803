"""The audit of a real control process: checkpoints through kills and stops, verified from outside, and who read it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.control.auth import Token
from gateway.control.checkpoints import public_keys_in, read_checkpoints
from gateway.control.reads import WINDOW_S, ReadLog
from gateway.control.trail import check_store
from gateway.errors import StoreUnavailable
from gateway.flags.audit import Author
from gateway.flags.sqlite import SqliteStore
from tests.control.process import ControlProcess, route
from tests.live import SettingsTable, eventually
from tests.puppet import FakeClock

OFTEN = {"audit": {"checkpoint_rows": 3, "checkpoint_s": 1}}


def audit(control: ControlProcess, after: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = control.client.get(
        "/admin/v1/audit", params={"after": after, "limit": 10_000}
    ).json()["rows"]
    return found


def checkpoint_file(control: ControlProcess) -> Path:
    return control.state / "audit.checkpoints.jsonl"


def test_the_head_is_signed_in_the_background_and_at_the_stop(models: Path, state: Path) -> None:
    with ControlProcess(models, state, settings=OFTEN) as control:
        assert (state / "audit.key").stat().st_mode & 0o777 == 0o600
        for i in range(4):
            control.put(f"m{i}.route", route())

        def signed() -> bool:
            found = control.client.get("/admin/v1/audit/checkpoints").json()
            return bool(found["checkpoints"]) and found["checkpoints"][-1]["seq"] >= 5

        eventually(signed, "a checkpoint over the changes")
        found = control.client.get("/admin/v1/audit/checkpoints", params={"limit": 1}).json()
        assert len(found["checkpoints"]) == 1
        assert list(found["public_keys"]) == [found["checkpoints"][0]["key_id"]]
        verified = control.client.get("/admin/v1/audit:verify").json()
        assert verified["intact"] is True
        assert verified["checkpoints"] == found["in_all"] or verified["checkpoints"] > found["in_all"]
        page = eventually(
            lambda: (
                page if "sluicegate_audit_checkpoint_seq " in (page := control.client.get("/metrics").text) else None
            ),
            "the metric",
        )
        assert "sluicegate_audit_checkpoint_timestamp_seconds" in page
        control.put("last.route", route())
        control.stop()
        store = SqliteStore(state / "flags.sqlite", read_only=True)
        newest = store.history(newest_first=True, limit=1)[0]
        store.close()
        last = read_checkpoints(checkpoint_file(control))[-1]
        assert (last.seq, last.hash) == (newest.seq, newest.hash)  # the last reads are written down, then all is signed
        control.start()


def test_kill_9_around_checkpoints_leaves_a_file_and_a_trail_that_hold(models: Path, state: Path) -> None:
    settings = {"audit": {"checkpoint_rows": 1, "checkpoint_s": 1}}
    with ControlProcess(models, state, settings=settings) as control:
        path = checkpoint_file(control)
        for round_number in range(3):
            before = len(read_checkpoints(path)) if path.exists() else 0

            def kill_in_mid_signing(before: int = before) -> None:
                eventually(lambda: len(read_checkpoints(path)) > before, "one more checkpoint")
                control.kill()

            killing = threading.Thread(target=kill_in_mid_signing)
            killing.start()
            step = 0
            try:
                while True:
                    control.put(f"k{round_number}-{step}.route", route())
                    step += 1
            except httpx.TransportError:
                killing.join()
            with path.open("ab") as file:  # and what a kill in the middle of a line leaves
                file.write(b'{"schema": 1, "seq')
            control.start()
        control.put("after.route", route())
        newest = audit(control)[-1]["seq"]
        eventually(lambda: read_checkpoints(path)[-1].seq >= newest, "what was before the kill and after it is signed")
        store = SqliteStore(state / "flags.sqlite", read_only=True)
        verified, _ = check_store(store, read_checkpoints(path), public_keys_in(state))
        store.close()
        assert verified.checkpoints == len(path.read_text().splitlines()) >= 4
        assert "alarm.audit_broken" not in {row["verb"] for row in audit(control)}


def test_a_file_that_cannot_be_written_holds_up_no_change_and_is_told(
    models: Path, state: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("no directory")
    settings: SettingsTable = {"audit": {"checkpoint_rows": 1, "checkpoint_file": str(blocked / "checkpoints.jsonl")}}
    with ControlProcess(models, state, settings=settings) as control:
        assert control.put("iris.route", route()).status_code == 201
        eventually(lambda: "no checkpoint of the audit can be written" in control.log, "a line in the log")
        assert control.put("wine.route", route()).status_code == 201


def test_a_row_that_was_changed_on_the_disk_is_found_through_the_door(models: Path, state: Path) -> None:
    with ControlProcess(models, state, settings=OFTEN) as control:
        control.put("iris.route", route())
        control.patch("iris.route", {"state": "DISABLED"})
        eventually(lambda: len(read_checkpoints(checkpoint_file(control))) >= 1, "a checkpoint")
        assert control.client.get("/admin/v1/audit:verify").json()["intact"] is True
        with sqlite3.connect(state / "flags.sqlite") as connection:
            connection.execute("DROP TRIGGER audit_stays")
            connection.execute("UPDATE audit SET body = replace(body, 'a test', 'a jest') WHERE seq = 2")
        connection.close()
        found = control.client.get("/admin/v1/audit:verify").json()
        assert found["intact"] is False
        assert "row 2 was changed" in found["found"]
        assert "gives" not in found  # nothing else is claimed


# -- who read ---------------------------------------------------------------------------------------


def reads(control: ControlProcess) -> list[dict[str, Any]]:
    return [row for row in audit(control) if row["verb"] == "audit.read"]


def viewer(control: ControlProcess, name: str) -> tuple[Token, httpx.Client]:
    made = control.client.post("/admin/v1/tokens", json={"name": name, "scope": "viewer"}).json()
    secret = made.pop("token")
    return Token(**made), control.client_as(secret)


def test_who_reads_the_trail_stands_in_it_before_the_answer_leaves(shared: ControlProcess) -> None:
    shared.put("read.route", route())
    eve, client = viewer(shared, "eve")
    with client:
        got = client.get("/admin/v1/audit", params={"after": 1, "limit": 1}).json()["rows"]
        client.get("/admin/v1/flags/read.route/history")
        client.get("/admin/v1/audit:verify")
        client.get("/admin/v1/audit/checkpoints")
    rows = [row for row in reads(shared) if row["token_id"] == eve.id]
    assert [row["after"]["what"] for row in rows] == ["rows", "history", "verify", "checkpoints"]
    first = rows[0]
    assert (first["actor"], first["ip"], first["target"]) == ("eve", "127.0.0.1", "audit:trail")
    assert first["after"] == {"what": "rows", "requests": 1, "rows": 1, "first": got[0]["seq"], "last": got[0]["seq"]}
    assert rows[1]["after"]["flags"] == ["read.route"]


def test_an_export_page_by_page_ends_and_grows_the_trail_by_one_row(shared: ControlProcess) -> None:
    for i in range(12):
        shared.put(f"paged{i}.route", route())
    before = audit(shared)[-1]["seq"]
    _, client = viewer(shared, "pager")
    got: list[int] = []
    with client:
        while rows := client.get("/admin/v1/audit", params={"after": got[-1] if got else 0, "limit": 1}).json()["rows"]:
            got += [row["seq"] for row in rows]
            assert len(got) < 10 * before
    assert got == list(range(1, before + 3))  # the making of the token, and the one row of this reading


class Reader:
    """A read log over a store of its own, with a clock that the test moves."""

    def __init__(self, state: Path) -> None:
        self.clock = FakeClock()
        self.store = SqliteStore(state / "flags.sqlite")
        self.log = ReadLog(self.store, clock=self.clock)
        self.author = Author("eve", token_id="t1", ip="10.0.0.1", request_id="r1")

    @property
    def told(self) -> list[dict[str, Any]]:
        return [row.after for row in self.store.history(limit=1000)]


def test_reads_of_one_minute_are_told_together_and_none_is_lost(state: Path) -> None:
    reader = Reader(state)
    reader.log.note("rows", reader.author, [])
    assert [each["requests"] for each in reader.told] == [1]
    for _ in range(5):
        reader.log.note("rows", reader.author, reader.store.history())
    assert len(reader.told) == 1
    reader.clock.advance(WINDOW_S)
    reader.log.note("rows", reader.author, [])
    assert reader.told[-1]["before_that"] == {"requests": 5, "rows": 5, "first": 1, "last": 1}
    reader.log.note("rows", reader.author, [])
    reader.log.flush()
    assert len(reader.told) == 2  # its minute is not over
    reader.clock.advance(WINDOW_S)
    reader.log.flush()
    reader.log.flush()
    assert [each["requests"] for each in reader.told] == [1, 1, 1]
    reader.log.note("rows", reader.author, [])
    reader.log.note("rows", reader.author, [])
    reader.log.flush(closing=True)
    assert sum(each["requests"] + each.get("before_that", {}).get("requests", 0) for each in reader.told) == 10
    reader.store.close()


def test_another_token_address_or_kind_of_read_has_a_row_of_its_own(state: Path) -> None:
    reader = Reader(state)
    for author in (reader.author, Author("eve", "t2", "10.0.0.1"), Author("eve", "t1", "10.0.0.2")):
        for what in ("rows", "history"):
            reader.log.note(what, author, [], flag="iris.route")
            reader.log.note(what, author, [], flag="iris.route")
    assert len(reader.told) == 6
    reader.store.close()


def test_a_read_that_cannot_be_written_down_is_refused(state: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = SqliteStore(tmp_path / "file" / "flags.sqlite")
    with pytest.raises(StoreUnavailable):
        ReadLog(store).note("rows", Author("eve", "t1"), [])
