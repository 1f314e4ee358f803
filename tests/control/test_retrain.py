"""Advice to retrain: once per version that takes traffic, until it has recovered, and with what pipelines need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.control.drift_alarms import RECOVERED_AFTER_S, DriftAlarms
from gateway.control.retrain import RetrainAdvice
from gateway.flags.audit import Author
from gateway.flags.document import FlagDocument, change, parse_flag
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import verify_trail
from gateway.offline.drift import Rules
from gateway.offline.history import AlarmRule
from gateway.offline.report import BesideReport, DriftDocument, VersionReport
from tests.control.drifting import alarm, write_drift
from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import Receiver

COOL_DOWN_S = 3600.0


class Rig:
    """A store with a route of iris, a directory of drift documents, and a round of control's checks by hand."""

    def __init__(self, root: Path) -> None:
        self.now_s = 1_800_000_000.0
        self.drift = root / "drift"
        self.store = SqliteStore(root / "flags.sqlite", clock=lambda: self.now_s)
        self.restart()

    def restart(self) -> None:
        self.checks = (
            DriftAlarms(self.store, self.drift),
            RetrainAdvice(self.store, self.drift, cool_down_s=COOL_DOWN_S, clock=lambda: self.now_s),
        )

    def serve(self, plain: dict[str, Any]) -> None:
        """Put the route of iris."""

        def edit(before: FlagDocument) -> FlagDocument:
            return change(before, put=[parse_flag("iris.route", plain)])

        self.store.commit(edit, author=Author("test"), verb="flag.put", reason="")

    def look(self, seconds: float = 1.0) -> None:
        for check in self.checks:
            check.look()
        self.now_s += seconds

    def report(self, written_at: float, seconds: float = 1.0, **more: str) -> None:
        write_drift(self.drift, written_at, **more)
        self.look(seconds)

    @property
    def advice(self) -> list[tuple[str, list[str]]]:
        """Version and evidence of each event."""
        rows = [row.after for row in self.store.history(limit=1000) if row.verb == "retrain.advised"]
        return [(row["version"], [each["name"] for each in (*row["metrics"], *row["columns"])]) for row in rows]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    verify_trail(rig.store)
    rig.store.close()


def test_a_version_is_advised_once_until_it_has_recovered(rig: Rig) -> None:
    rig.serve(route(stable="3"))
    rig.report(0, a="stable", b="stable")
    rig.report(10, a="drifted", b="stable")
    rig.report(20, a="drifted", b="drifted")
    rig.restart()
    rig.report(30, a="drifted", b="drifted")
    assert rig.advice == [("3", ["a"])]
    rig.now_s += 2 * COOL_DOWN_S
    rig.report(40, a="stable", b="drifted")
    rig.report(41 + RECOVERED_AFTER_S, a="stable", b="drifted")  # b is of the same trouble
    rig.look()
    assert len(rig.advice) == 1
    rig.report(50 + RECOVERED_AFTER_S, a="stable", b="stable")
    rig.report(51 + 2 * RECOVERED_AFTER_S, a="stable", b="stable")
    rig.report(1000, a="drifted", b="stable")
    assert rig.advice[1:] == [("3", ["a"])]


def test_within_the_cool_down_advice_waits_and_is_not_lost(rig: Rig) -> None:
    rig.serve(route(stable="3"))
    rig.report(0, a="drifted")
    rig.serve(route(stable="4"))  # retrained, and it drifts at once
    rig.report(10, version="4", a="drifted")
    rig.look(COOL_DOWN_S - 10)
    assert rig.advice == [("3", ["a"])]
    rig.restart()
    for _ in range(10):
        rig.look()
    assert rig.advice[1:] == [("4", ["a"])]


def test_a_version_without_traffic_is_advised_when_it_gets_some(rig: Rig) -> None:
    rig.report(0, a="drifted")
    rig.look()  # there is no route
    rig.serve(route(stable="1", canary="3"))  # declared at weight 0
    rig.look()
    assert rig.advice == []
    rig.serve(route(stable="1", canary="3", targeting={"fractional": [["canary", 5], ["stable", 95]]}))
    rig.look()
    assert rig.advice == [("3", ["a"])]
    (row,) = (row for row in rig.store.history(limit=100) if row.verb == "retrain.advised")
    assert row.after["traffic"] == "split"


def test_decay_by_labels_is_a_reason_and_another_package_begins_anew(rig: Rig) -> None:
    rig.serve(route(stable="3"))
    rig.report(0, a="stable", accuracy="drifted")
    (row,) = (row for row in rig.store.history(limit=100) if row.verb == "retrain.advised")
    (metric,) = row.after["metrics"]
    assert (metric["name"], metric["value"], metric["mean"], metric["bound"]) == ("accuracy", 0.7, 0.9, 0.85)
    assert row.after["why"] == "iris 3 should be retrained: accuracy"
    rig.now_s += COOL_DOWN_S
    rig.report(10, digest="d2", accuracy="drifted")
    assert rig.advice == [("3", ["accuracy"])] * 2


def test_a_candidate_that_drifts_from_the_stable_version_is_no_reason_to_retrain(rig: Rig) -> None:
    rig.serve(route(stable="2", canary="3", targeting={"fractional": [["canary", 5], ["stable", 95]]}))
    beside = BesideReport("2", "drifted", "", 500, 500, 1, 2, (), (alarm("a"),), ())
    report = VersionReport("3", "d", "stable", "", 500, 1, 2, 500, 500, (), (), beside=beside)
    document = DriftDocument("iris", 0.0, 1000, Rules(100, 0.05, 0.08), (report,), AlarmRule(2, 3))
    rig.drift.mkdir()
    (rig.drift / "iris.json").write_bytes(document.to_json())
    rig.look()
    assert [row.verb for row in rig.store.history(limit=100)] == ["flag.put", "alarm.drift"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"versions": [{"version": "3", "digest": "d1"}]}', None])
def test_a_document_that_cannot_be_read_any_more_gives_no_advice_and_stops_nothing(rig: Rig, raw: bytes | None) -> None:
    rig.report(0, a="drifted")  # there is no route yet
    path = rig.drift / "iris.json"
    path.unlink() if raw is None else path.write_bytes(raw)
    rig.serve(route(stable="3"))
    rig.look()
    assert rig.advice == []
    rig.report(10, a="drifted")
    assert rig.advice == [("3", ["a"])]


def test_the_evidence_is_in_the_event(rig: Rig) -> None:
    rig.serve(route(stable="3"))
    rig.report(0, a="drifted", accuracy="drifted")
    (row,) = (row for row in rig.store.history(limit=100) if row.verb == "retrain.advised")
    assert (row.target, row.actor) == ("retrain:iris", "system")
    told = row.after
    assert {name: told[name] for name in ("model", "version", "digest", "traffic")} == {
        "model": "iris",
        "version": "3",
        "digest": "d1",
        "traffic": "default",
    }
    (column,) = told["columns"]
    assert (column["n_ref"], column["n_cur"], column["drifted_windows"], column["q"]) == (500, 400, 2, 1e-8)
    assert column["top_features"] == [{"name": "a", "effect": 0.4}]
    assert column["prediction_ids"] == ["p1", "p2"]
    assert told["document"] == "/admin/v1/models/iris/drift"
    assert Path(told["file"]) == rig.drift / "iris.json"
    assert told["export"] == "sluicegate samples export --model iris --version 3 --out iris-3.parquet"


def test_a_receiver_that_asks_for_it_gets_it_and_nothing_else(
    control: ControlProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    with Receiver() as receiver:
        cli = ["--url", control.url, "--token-file", str(control.state / "admin.token")]
        assert main(["webhooks", "add", receiver.url, "--events", "retrain.advised", *cli]) == 0
        secret = capsys.readouterr().out.strip()
        control.write_status({"iris": {"3": "warm"}})
        assert control.put("iris.route", route(stable="3")).status_code == 201
        write_drift(control.state / "drift", 1.0, petal_length="drifted")
        eventually(lambda: receiver.taken, "the advice arrives")
        control.kill()
        control.start()
        write_drift(control.state / "drift", 2.0, petal_length="drifted", petal_width="drifted")

        def told_of_the_second_column() -> bool:
            rows = control.client.get("/admin/v1/audit", params={"limit": 1000}).json()["rows"]
            return [row["verb"] for row in rows].count("alarm.drift") == 2

        eventually(told_of_the_second_column, "the other column is told")
        for _ in range(2):
            control.wait_report("beat")  # each a second: the checks have looked again
        assert set(receiver.types) == {"retrain.advised"}
        (event_id,) = {arrival.id for arrival in receiver.taken}
        arrival = receiver.taken[0]
        arrival.check(secret)
        assert (arrival.event["subject"], arrival.event["id"]) == ("iris", event_id)
        assert arrival.event["data"]["after"]["columns"][0]["name"] == "petal_length"
