"""Alarms: drift and failed checks that become audit rows, once each, and through a real process also notifications."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from gateway.control.app import build
from gateway.control.checks import FailedVersions, LastKnownGood, OpenBreakers
from gateway.control.drift_alarms import RECOVERED_AFTER_S, DriftAlarms
from gateway.control.seed import seed
from gateway.control.status import WorkerStatus
from gateway.errors import StoreUnavailable
from gateway.flags.audit import AuditRow
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import verify_trail
from gateway.offline.drift import Rules
from gateway.offline.history import Alarm, AlarmRule, TopFeature
from gateway.offline.report import BesideReport, DriftDocument, VersionReport
from gateway.offline.windows import replace_file
from gateway.settings import PathSettings, Settings
from tests.control.process import ControlProcess, route
from tests.live import eventually
from tests.receiver import Receiver

HOUR_S = 3600.0


def alarm(name: str, effect: float = 0.3) -> Alarm:
    top = (TopFeature("a", 0.4),)
    return Alarm(name, "input", 2, 3, 1, 2, 500, 400, "ks", effect, 1e-9, 1e-8, effect, "", top, ("p1", "p2"))


def write_drift(
    directory: Path,
    written_at: float,
    *,
    digest: str = "d1",
    version: str = "3",
    accuracy: str = "",
    adwin: str = "",
    tell: str = "alarm",
    **verdicts: str,
) -> None:
    """A drift document of the model iris, as the monitor writes it. verdicts: column -> verdict. accuracy: its verdict
    by labels. adwin: that of a detector on single errors, which may alarm or not."""
    alarms = tuple(alarm(name) for name, verdict in verdicts.items() if verdict == "drifted")
    quiet = tuple(name for name, verdict in verdicts.items() if verdict == "stable")
    report = VersionReport(version, digest, "stable", "", 500, 1, 2, 500, 500, (), alarms, quiet)
    metric = {"name": "accuracy", "verdict": accuracy, "value": 0.7, "mean": 0.9, "bound": 0.85}
    change = {"ts_ns": 2, "before": 0.1, "after": 0.4}
    detector = {"name": "adwin", "verdict": adwin, "reason": "", "rows": 500, "found": 1, "changes": [change]}
    by_labels = {"metrics": [metric] if accuracy else [], "detectors": [detector] if adwin else []}
    labels = {"versions": [{"version": version, **by_labels}], "detectors_alarm": tell == "alarm"}
    rules = Rules(100, 0.05, 0.08)
    document = DriftDocument(
        "iris", written_at, 1000, rules, (report,), AlarmRule(2, 3), performance=labels if accuracy or adwin else None
    )
    directory.mkdir(exist_ok=True)
    replace_file(directory / "iris.json", document.to_json(), sync=False)


class Rig:
    """A store, a directory of drift documents, and alarms that may be started again."""

    def __init__(self, root: Path) -> None:
        self.now_s = 1_800_000_000.0
        self.drift = root / "drift"
        self.store = SqliteStore(root / "flags.sqlite", clock=lambda: self.now_s)
        self.statuses: list[WorkerStatus] = []
        self.trouble = ""
        self.restart()

    def restart(self) -> None:
        """As a new process would begin."""
        self.alarms = DriftAlarms(self.store, self.drift)
        self.versions = FailedVersions(self.store, lambda: self.statuses, clock=lambda: self.now_s)
        self.breakers = OpenBreakers(self.store, lambda: self.statuses, clock=lambda: self.now_s)
        self.last_known_good = LastKnownGood(self.store, lambda: self.trouble, clock=lambda: self.now_s)

    def report(self, written_at: float, **more: str) -> None:
        write_drift(self.drift, written_at, **more)
        self.alarms.look()

    @property
    def rows(self) -> list[AuditRow]:
        return self.store.history(limit=1000)

    @property
    def drift_rows(self) -> list[tuple[str, list[str]]]:
        return [(row.after["state"], [each["name"] for each in row.after["columns"]]) for row in self.rows]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    verify_trail(rig.store)
    rig.store.close()


# -- drift --------------------------------------------------------------------------------------------


def test_a_column_is_told_once_when_it_drifts_and_once_when_it_has_recovered(rig: Rig) -> None:
    rig.report(0, a="stable", b="stable")
    rig.report(10, a="drifted", b="stable")
    rig.report(20, a="drifted", b="drifted")
    rig.report(30, a="drifted", b="drifted")
    assert rig.drift_rows == [("drifted", ["a"]), ("drifted", ["b"])]
    rig.report(40, a="stable", b="drifted")
    rig.report(40 + RECOVERED_AFTER_S - 1, a="stable", b="drifted")
    assert len(rig.rows) == 2
    rig.report(40 + RECOVERED_AFTER_S, a="stable", b="drifted")
    rig.report(41 + RECOVERED_AFTER_S, a="stable", b="drifted")
    assert rig.drift_rows[2:] == [("recovered", ["a"])]
    row = rig.rows[0]
    assert (row.verb, row.target, row.actor) == ("alarm.drift", "drift:iris", "system")
    assert row.after["model"] == "iris"
    (told,) = row.after["columns"]
    assert told == {
        "name": "a",
        "role": "input",
        "test": "ks",
        "statistic": 0.3,
        "p": 1e-9,
        "q": 1e-8,
        "effect": 0.3,
        "n_ref": 500,
        "n_cur": 400,
        "window_from_ns": 1,
        "window_to_ns": 2,
        "drifted_windows": 2,
        "judged_windows": 3,
        "top_features": [{"name": "a", "effect": 0.4}],
        "prediction_ids": ["p1", "p2"],
    }
    assert row.reason == "iris 3 has drifted: a"


def test_what_labels_say_is_told_as_drift_is(rig: Rig) -> None:
    rig.report(0, a="stable", accuracy="stable")
    rig.report(10, a="stable", accuracy="drifted")
    rig.report(20, a="stable", accuracy="drifted")
    rig.report(30, a="stable", accuracy="stable")
    rig.report(30 + RECOVERED_AFTER_S, a="stable", accuracy="stable")
    assert rig.drift_rows == [("drifted", ["accuracy by labels"]), ("recovered", ["accuracy by labels"])]
    assert rig.rows[0].reason == "iris 3 has drifted: accuracy by labels"


def test_what_detectors_find_is_told_only_if_it_shall_be(rig: Rig) -> None:
    rig.report(0, a="stable", adwin="drifted", tell="report")
    assert rig.drift_rows == []
    rig.report(10, a="stable", adwin="drifted")
    assert rig.drift_rows == [("drifted", ["adwin by labels"])]
    (column,) = rig.rows[0].after["columns"]
    assert column["effect"] == pytest.approx(0.3)
    rig.report(20, a="stable", adwin="drifted", tell="report")  # set back: it is not open for ever
    rig.report(20 + RECOVERED_AFTER_S, a="stable", adwin="drifted", tell="report")
    assert rig.drift_rows[-1] == ("recovered", ["adwin by labels"])


def test_drift_against_the_stable_version_is_told_apart_from_drift_against_the_reference(rig: Rig) -> None:
    beside = BesideReport("2", "drifted", "", 500, 500, 1, 2, (), (alarm("a"),), ("b",))
    report = VersionReport("3", "d", "stable", "", 500, 1, 2, 500, 500, (), (alarm("a"),), beside=beside)
    rig.drift.mkdir()
    document = DriftDocument("iris", 0.0, 1000, Rules(100, 0.05, 0.08), (report,), AlarmRule(2, 3))
    (rig.drift / "iris.json").write_bytes(document.to_json())
    rig.alarms.look()
    assert rig.drift_rows == [("drifted", ["a", "a against 2"])]
    assert rig.rows[0].reason == "iris 3 has drifted: a, a against 2"


def test_a_column_on_the_edge_is_told_once(rig: Rig) -> None:
    for report in range(int(2 * RECOVERED_AFTER_S)):
        rig.report(float(report), a="drifted" if report % 2 == 0 else "stable")
    assert rig.drift_rows == [("drifted", ["a"])]


def test_too_few_rows_say_nothing_either_way(rig: Rig) -> None:
    rig.report(0, a="insufficient")
    rig.report(1, a="drifted")
    rig.report(2, a="insufficient")
    rig.report(2 + 2 * RECOVERED_AFTER_S, a="insufficient")
    rig.report(3 + 2 * RECOVERED_AFTER_S)  # the reference is gone
    rig.report(4 + 2 * RECOVERED_AFTER_S, a="drifted")
    assert rig.drift_rows == [("drifted", ["a"])]


def test_a_restart_says_nothing_again_and_misses_nothing(rig: Rig) -> None:
    rig.report(0, a="drifted")
    rig.restart()
    rig.alarms.look()
    rig.report(1, a="drifted", b="stable")
    assert len(rig.rows) == 1
    write_drift(rig.drift, 2, a="drifted", b="drifted")  # while control is down
    rig.restart()
    rig.alarms.look()
    assert rig.drift_rows[1:] == [("drifted", ["b"])]


def test_a_package_that_is_replaced_begins_anew_and_a_version_that_is_gone_has_recovered(rig: Rig) -> None:
    rig.report(0, digest="d1", a="drifted")
    rig.report(1, digest="d2", a="drifted")
    assert rig.drift_rows[1:] == [("recovered", ["a"]), ("drifted", ["a"])]
    assert "replaced" in rig.rows[1].after["why"]
    rig.report(2, version="4", a="stable")
    assert rig.drift_rows[3:] == [("recovered", ["a"])]
    assert "no longer watched" in rig.rows[3].after["why"]
    (rig.drift / "iris.json").unlink()
    rig.alarms.look()
    assert len(rig.rows) == 4


def test_a_row_names_the_columns_of_the_largest_effect_and_counts_the_others(rig: Rig) -> None:
    alarms = tuple(alarm(f"c{number}", effect=number / 1000) for number in range(200))
    report = VersionReport("3", "d", "drifted", "", 500, 1, 2, 500, 500, (), alarms)
    rig.drift.mkdir()
    document = DriftDocument("iris", 0.0, 1000, Rules(100, 0.05, 0.08), (report,), AlarmRule(2, 3))
    (rig.drift / "iris.json").write_bytes(document.to_json())
    rig.alarms.look()
    (row,) = rig.rows
    assert row.after["count"] == 200
    assert [each["name"] for each in row.after["columns"]] == [f"c{number}" for number in range(199, 149, -1)]
    assert row.reason == "iris 3 has drifted: c199, c198, c197 and 197 more"


def test_drift_that_the_store_could_not_take_is_told_when_it_can(rig: Rig, tmp_path: Path) -> None:
    path, away = tmp_path / "flags.sqlite", tmp_path / "away.sqlite"
    rig.report(0, a="drifted")
    rig.store.close()
    path.rename(away)
    path.write_bytes(b"no database " * 1000)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            rig.report(1, a="drifted", b="drifted")
    away.replace(path)
    rig.alarms.look()
    assert rig.drift_rows == [("drifted", ["a"]), ("drifted", ["b"])]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'{"schema": 2}', b'{"schema": 1, "written_at": 1, "versions": [{}]}',
     b'{"schema": 1, "written_at": 1, "versions": [{"version": "1", "digest": "d", "quiet": [], "alarms": [{}]}]}'],
)  # fmt: skip
def test_what_is_no_drift_document_is_passed_by(rig: Rig, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    rig.report(0, a="drifted")
    (rig.drift / "other.json").write_bytes(raw)
    (rig.drift / "..json").write_bytes(raw)
    for _ in range(3):
        rig.alarms.look()
    assert caplog.text.count("cannot be read") == 1
    rig.report(1, a="drifted", b="drifted")
    assert len(rig.rows) == 2


# -- versions, the file, the trail ------------------------------------------------------------------------


def worker(slot: int = 0, age_s: float = 0.0, **versions: str) -> WorkerStatus:
    """What a worker says of iris. versions: v1="failed: reason" for version 1."""
    told: dict[str, Mapping[str, str]] = {}
    for name, words in versions.items():
        state, _, reason = words.partition(": ")
        told[name.removeprefix("v")] = {"state": state, "reason": reason, "digest": ""}
    return WorkerStatus({"slot": slot, "models": {"iris": {"versions": told}}}, age_s)


def test_a_version_that_fails_is_told_once_over_all_workers_tries_and_restarts(rig: Rig) -> None:
    rig.statuses = [worker(0, v1="warm", v2="failed: hash of model.onnx"), worker(1, v2="loading")]
    rig.versions.look()
    rig.statuses = [worker(0, v1="warm", v2="loading"), worker(1, v2="failed: hash of model.onnx")]
    rig.versions.look()
    rig.restart()
    rig.statuses = [worker(0), worker(1)]  # they have not read their routes yet
    rig.versions.look()
    rig.statuses = [worker(0, v1="warm", v2="failed: hash of model.onnx"), worker(1, age_s=60.0)]
    rig.versions.look()
    (row,) = rig.rows
    assert (row.verb, row.target) == ("alarm.version_failed", "version:iris@2")
    assert row.after == {
        "model": "iris",
        "version": "2",
        "workers": [0],
        "why": "iris 2 fails to load: hash of model.onnx",
    }


def test_a_version_that_fails_again_after_it_was_warm_or_away_or_for_another_reason_is_told_again(rig: Rig) -> None:
    for words in ("failed: a", "warm", "failed: a", "failed: b"):
        rig.statuses = [worker(v2=words)]
        rig.versions.look()
    assert len(rig.rows) == 2  # another reason within the hour is not told
    rig.now_s += HOUR_S
    rig.versions.look()
    assert len(rig.rows) == 3
    rig.statuses = [worker()]
    for _ in range(2):
        rig.versions.look()
        rig.now_s += 61
    rig.statuses = [worker(v2="failed: b")]
    rig.versions.look()
    assert len(rig.rows) == 4
    rig.statuses = []
    for _ in range(2):
        rig.versions.look()
        rig.now_s += HOUR_S
    rig.statuses = [worker(v2="failed: b")]
    rig.versions.look()
    assert len(rig.rows) == 4  # no worker was there to say anything


def test_a_quarantined_version_is_an_alarm_of_its_own(rig: Rig) -> None:
    rig.statuses = [worker(v2="quarantined: two workers died in it")]
    for _ in range(2):
        rig.versions.look()
    (row,) = rig.rows
    assert (row.verb, row.target) == ("alarm.quarantine", "version:iris@2")
    assert row.reason == "iris 2 is quarantined: two workers died in it"


def breaker(state: str, *, slot: int = 0, version: str = "2") -> WorkerStatus:
    told = {"model": "iris", "variant": "canary", "version": version, "state": state, "opened": 1, "reason": "5 errors"}
    return WorkerStatus({"slot": slot, "breakers": [told]}, 0.0)


def test_a_breaker_that_opens_is_told_once_until_it_was_closed_for_a_minute(rig: Rig) -> None:
    def pass_by(seconds: float, *statuses: WorkerStatus) -> int:
        rig.statuses = [*statuses]
        rig.breakers.look()
        rig.now_s += seconds
        return len(rig.rows)

    assert pass_by(1, breaker("closed"), breaker("closed", slot=1)) == 0
    assert pass_by(1, breaker("closed"), breaker("open", slot=1)) == 1
    assert pass_by(1, breaker("open"), breaker("half_open", slot=1)) == 1
    assert pass_by(30, breaker("closed"), breaker("closed", slot=1)) == 1
    assert pass_by(1, breaker("open")) == 1
    assert pass_by(1000) == 1  # no worker lives
    assert pass_by(1000) == 1
    rig.restart()
    assert pass_by(1, breaker("open")) == 1
    assert pass_by(61, breaker("closed")) == 1
    assert pass_by(1, breaker("closed")) == 1
    assert pass_by(1, breaker("open")) == 2
    assert pass_by(1, breaker("open", version="3")) == 3
    row = rig.rows[0]
    assert (row.verb, row.target, row.after["model"]) == ("alarm.breaker", "breaker:iris/canary", "iris")
    assert row.reason == "the breaker of canary (iris 2) is open on worker 1: 5 errors"


def test_a_file_that_cannot_be_written_is_told_once_per_trouble_and_hour(rig: Rig) -> None:
    first = [("disk full", 1.0), ("disk full", 1.0), ("", 1.0), ("disk full", 1.0), ("", HOUR_S)]
    for trouble, seconds in (*first, ("again", 1.0), ("again", 2 * HOUR_S), ("again", 1.0)):
        rig.trouble = trouble
        rig.last_known_good.look()
        rig.now_s += seconds
    assert [(row.verb, row.after["why"]) for row in rig.rows] == [
        ("alarm.last_known_good", "disk full"),
        ("alarm.last_known_good", "again"),
    ]


# -- through a real process ---------------------------------------------------------------------------------


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
