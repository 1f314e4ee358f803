"""Alarms: drift and failed checks that become audit rows, once each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.control.checks import FailedVersions, LastKnownGood, OpenBreakers
from gateway.control.drift_alarms import RECOVERED_AFTER_S, DriftAlarms
from gateway.control.status import WorkerStatus
from gateway.errors import StoreUnavailable
from gateway.flags.audit import AuditRow
from gateway.flags.sqlite import SqliteStore
from gateway.flags.store import verify_trail
from gateway.offline.drift import Rules
from gateway.offline.history import AlarmRule
from gateway.offline.report import BesideReport, DriftDocument, VersionReport
from tests.control.drifting import alarm, write_drift

HOUR_S = 3600.0


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
