"""When a checkpoint is due, what happens to one that cannot be written or sent, and what a broken trail sets off."""

from __future__ import annotations

import http.server
import json
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control.checkpoints import Checkpoint, public_keys_in, read_checkpoints
from gateway.control.notary import Notary, Poster
from gateway.control.trail import check_store
from gateway.errors import AuditBroken
from gateway.flags.audit import SYSTEM
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import Note, note
from gateway.metrics import AuditMetrics, process_registry
from gateway.settings import AuditSettings

EVERY_ROWS, EVERY_S = 10, 3600.0


class Office:
    """A notary with a store of its own, and clocks that only the test moves."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.file = state / "audit.checkpoints.jsonl"
        self.wall_s = 1_800_000_000.0
        self.monotonic_s = 100.0
        self.registry = process_registry()
        self.metrics = AuditMetrics(self.registry)
        self.store = SqliteStore(state / "flags.sqlite", clock=lambda: self.wall_s)
        self.notary = self.hire()

    def hire(self) -> Notary:
        """A notary as after a start of the process."""
        return Notary(
            self.store,
            AuditSettings(checkpoint_rows=EVERY_ROWS, checkpoint_s=EVERY_S),
            self.metrics,
            key_path=self.state / "audit.key",
            public_path=self.state / "audit.pub",
            file=self.file,
            clock=lambda: self.wall_s,
            monotonic=lambda: self.monotonic_s,
        )

    def happen(self, times: int = 1) -> None:
        for i in range(times):
            note(self.store, Note("token.create", f"token:{i}"), author=SYSTEM, reason="")

    @property
    def rows(self) -> int:
        return self.store.history(newest_first=True, limit=1)[0].seq

    @property
    def signed(self) -> list[int]:
        return [checkpoint.seq for checkpoint in read_checkpoints(self.file)] if self.file.exists() else []

    @property
    def verbs(self) -> list[str]:
        return [row.verb for row in self.store.history(limit=10_000)]

    def check(self) -> None:
        check_store(self.store, read_checkpoints(self.file), public_keys_in(self.state))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def as_root_of_the_file(self, *statements: str) -> None:
        """What somebody who has the file can do to it."""
        with sqlite3.connect(self.state / "flags.sqlite") as connection:
            connection.execute("DROP TRIGGER audit_stays")
            connection.execute("DROP TRIGGER audit_remains")
            for statement in statements:
                connection.execute(statement)
        connection.close()


@pytest.fixture
def office(state: Path) -> Iterator[Office]:
    state.mkdir(parents=True, exist_ok=True)
    found = Office(state)
    yield found
    found.store.close()


def test_a_checkpoint_comes_at_the_start_after_so_many_rows_and_after_so_long(office: Office) -> None:
    office.notary.start()
    office.notary.step()
    assert office.signed == [1]  # the row that tells of the key
    office.happen(EVERY_ROWS - 1)
    office.notary.step()
    assert office.signed == [1]
    office.happen()
    office.notary.step()
    assert office.signed == [1, 11]
    office.happen()
    office.monotonic_s += EVERY_S - 1
    office.notary.step()
    assert office.signed == [1, 11]
    office.monotonic_s += 1
    office.notary.step()
    assert office.signed == [1, 11, 12]
    office.monotonic_s += 10 * EVERY_S
    office.notary.step()
    assert office.signed == [1, 11, 12]  # nothing new
    office.check()
    assert office.metric("sluicegate_audit_checkpoint_seq") == office.metric("sluicegate_audit_seq") == 12


def test_a_clock_set_back_delays_nothing(office: Office) -> None:
    office.notary.step()
    office.wall_s -= 10 * 365 * 86_400
    office.happen()
    office.monotonic_s += EVERY_S
    office.notary.step()
    assert office.signed == [1, 2]
    office.check()
    office.happen()
    office.wall_s -= 86_400
    office.hire().step()  # rows from before a start are signed, whatever the clock says
    assert office.signed == [1, 2, 3]


def test_the_last_rows_are_signed_at_the_stop(office: Office) -> None:
    office.notary.step()
    office.happen(3)
    office.notary.finish()
    assert office.signed == [1, 4]


def test_a_file_that_cannot_be_written_is_told_once_and_tried_again(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    office.file.mkdir()
    for _ in range(4):
        office.monotonic_s += 3600
        office.notary.step()
    office.happen()  # and nothing else is held up
    assert sum("no checkpoint" in record.message for record in caplog.records) == 1
    assert office.metric("sluicegate_audit_checkpoint_failures_total", target="file") == 4
    office.file.rmdir()
    office.notary.step()
    assert not office.file.exists()  # the next try is not due yet
    office.monotonic_s += 3600
    office.notary.step()
    assert office.signed == [office.rows]
    office.check()


def test_a_file_that_was_moved_away_is_begun_anew(office: Office) -> None:
    office.notary.step()
    office.file.rename(office.state / "shipped.jsonl")
    office.happen(EVERY_ROWS)
    office.notary.step()
    assert office.signed == [11]
    office.file.unlink()
    office.hire().step()  # after a start the whole trail is read and signed
    assert office.signed == [11]
    assert "alarm.audit_broken" not in office.verbs


@pytest.mark.parametrize(
    ("statement", "seen"),
    [
        ("UPDATE audit SET body = replace(body, 'token:3', 'token:4') WHERE seq = 5", False),
        ("DELETE FROM audit WHERE seq = 5", False),
        ("UPDATE audit SET seq = 99 WHERE seq = 5", False),
        ("DELETE FROM audit WHERE seq >= 5", True),
        ("UPDATE audit SET body = replace(body, 'token', 'toke') WHERE seq = 10", True),
    ],
)
def test_a_trail_that_does_not_go_on_from_its_checkpoint_sets_off_an_alarm_and_is_signed_from_there(
    office: Office, caplog: pytest.LogCaptureFixture, statement: str, seen: bool
) -> None:
    office.notary.step()
    office.happen(EVERY_ROWS - 1)
    if seen:
        office.notary.step()  # and not yet signed
    office.as_root_of_the_file(statement)
    for _ in range(3):  # at once, and once only
        office.notary.step()
    newest = office.store.history(newest_first=True, limit=1)[0]
    assert newest.verb == "alarm.audit_broken"
    assert any("tampered" in record.message for record in caplog.records)
    assert office.metric("sluicegate_audit_breaks_total") == 1
    assert office.signed[-1] == newest.seq
    if statement.endswith(">= 5"):
        office.check()  # what was cut off had not been signed: only the alarm tells
    else:
        with pytest.raises(AuditBroken):
            office.check()


def test_what_was_seen_is_signed_as_it_was_seen(office: Office) -> None:
    office.notary.step()
    office.happen(EVERY_ROWS - 1)
    office.notary.step()
    office.as_root_of_the_file("DELETE FROM audit WHERE seq = 5")
    office.monotonic_s += EVERY_S
    office.notary.step()
    assert office.signed == [1, 10]
    with pytest.raises(AuditBroken, match="row 5 is missing"):
        office.check()


def test_a_lost_store_is_told_at_the_next_start(office: Office) -> None:
    office.happen(20)
    office.notary.step()
    office.store.close()
    for path in office.state.glob("flags.sqlite*"):
        path.unlink()
    office.happen(2)
    office.hire().step()
    assert "alarm.audit_broken" in office.verbs
    assert office.signed == [21, 3]
    with pytest.raises(AuditBroken, match="cut off"):
        office.check()


def test_a_file_of_checkpoints_that_was_edited_is_told_at_the_next_start(office: Office) -> None:
    office.notary.step()
    office.file.write_text("nonsense\n")
    office.hire().step()
    assert "alarm.audit_broken" in office.verbs
    with pytest.raises(AuditBroken, match="line 1"):
        office.check()


# -- the webhook ------------------------------------------------------------------------------------


class Receiver:
    """A server that takes POSTs, and answers as it is told."""

    def __init__(self) -> None:
        self.status = 200
        self.got: list[Any] = []
        receiver = self

        class Take(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.status == 200:
                    receiver.got.append(json.loads(body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook?key=secret"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


def test_the_webhook_gets_each_checkpoint_and_those_that_it_refused_later(
    office: Office, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    poster = Poster(receiver.url, office.notary.unsent, office.metrics)
    office.notary.step()
    assert poster.post_all()
    assert receiver.got == [read_checkpoints(office.file)[0].to_json()]
    receiver.status = 503
    for _ in range(3):
        office.happen(EVERY_ROWS)
        office.notary.step()
        assert not poster.post_all()
    assert [record.message for record in caplog.records].count(
        "a checkpoint could not be posted; it is tried again"
    ) == 1
    assert "secret" not in caplog.text
    receiver.status = 200
    assert poster.post_all()
    assert [each["seq"] for each in receiver.got] == office.signed == [1, 11, 21, 31]
    after_a_start = office.hire()
    after_a_start.start()
    assert Poster(receiver.url, after_a_start.unsent, office.metrics).post_all()
    assert receiver.got[-1]["seq"] == 31  # it may have been missed


def test_a_webhook_that_is_not_there_keeps_the_newest(office: Office) -> None:
    unsent: deque[Checkpoint] = deque(maxlen=2)
    poster = Poster("http://127.0.0.1:9/", unsent, office.metrics)
    office.notary.step()
    for seq in (1, 1, 1):
        unsent.append(office.notary.unsent[0])
        assert seq
    assert not poster.post_all()
    assert len(unsent) == 2
